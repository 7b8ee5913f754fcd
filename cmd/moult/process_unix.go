//go:build unix

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

func terminateProcess(p *os.Process) error { return p.Signal(syscall.SIGTERM) }

// lockDataDir keeps a second process out of a data directory. The lock ends
// with the process.
func lockDataDir(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("data directory %s is in use by another moult; stop that one, or give another --data", dir)
	}
	return func() { f.Close() }, nil
}
