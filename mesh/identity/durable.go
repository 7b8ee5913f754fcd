package identity

import (
	"fmt"
	"os"
	"path/filepath"
)

// makePrivateDir makes a directory of mode 0700, or gives an existing one that
// mode.
func makePrivateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir)) // so that the new entry lasts
}

// writeFile replaces dir/name in one step, mode 0600: at any moment the file is
// the old one or the new one, whole. It is on the disk when writeFile returns.
// The bytes lie in .NAME.new first, a fixed name: what a crash leaves there may
// be a key, and the next write takes it away. One caller at a time.
func writeFile(dir, name string, content []byte) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", filepath.Join(dir, name), err)
		}
	}()
	f, err := os.OpenFile(filepath.Join(dir, "."+name+".new"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already after the rename
	defer f.Close()
	if err := f.Chmod(0o600); err != nil { // a leftover keeps the mode that it had
		return err
	}
	if _, err := f.Write(content); err != nil {
		return err
	}
	// Before the rename: else the name could outlast a power cut and the bytes not.
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil { // Windows renames closed files only
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	return syncDir(dir) // so that the rename itself lasts
}
