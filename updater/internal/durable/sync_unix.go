//go:build unix

package durable

import (
	"errors"
	"os"
	"syscall"
)

// SyncDir makes the renames and removals in a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) {
		return nil // some network file systems cannot; there is nothing better to do
	}
	return err
}
