// Package durable replaces files so that a power cut leaves the old content or
// the new one, never a mixture: release directories, order fences and artifacts
// rest on it.
//
// The order of the steps is the point. The bytes are synced before the rename,
// or the name could outlive them; the directory is synced after it, or the
// rename itself could be lost after the caller was told that it is done.
package durable

import (
	"errors"
	"io"
	"os"
	"path/filepath"
)

// Replace makes path hold what write writes, with the given permissions. On an
// error path is as it was before, except that a failed sync of the directory
// leaves it unknown whether a power cut would undo the replacement. One caller
// at a time per path: the bytes lie in .NAME.new beside it first.
func Replace(path string, mode os.FileMode, write func(io.Writer) error) (err error) {
	dir := filepath.Dir(path)
	temporary := filepath.Join(dir, "."+filepath.Base(path)+".new")
	f, err := os.OpenFile(temporary, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreMissing(os.Remove(temporary)))
		}
	}()
	defer f.Close()
	if err := write(f); err != nil {
		return err
	}
	// The mode given to open does not count for a leftover, and umask cuts it.
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := Rename(temporary, path); err != nil {
		return err
	}
	return SyncDir(dir)
}

// WriteFile is Replace with the content at hand.
func WriteFile(path string, mode os.FileMode, content []byte) error {
	return Replace(path, mode, func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	})
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
