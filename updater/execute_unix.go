//go:build unix

package updater

import (
	"os"
	"syscall"
)

func execute(binary string) error { return syscall.Exec(binary, os.Args, os.Environ()) }
