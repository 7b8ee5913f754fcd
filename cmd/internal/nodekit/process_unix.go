//go:build unix

package nodekit

import (
	"os"

	"golang.org/x/sys/unix"
)

// lockFile takes the lock that ends with the process, or fails at once.
func lockFile(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }
