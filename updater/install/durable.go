package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"moult/updater/internal/durable"
)

// WriteFile replaces path by content so that after a power cut it holds either
// the old bytes or the new ones. The file is readable by its owner only. One
// caller at a time per path.
func WriteFile(path string, content []byte) error {
	if err := durable.WriteFile(path, 0o600, content); err != nil {
		return fmt.Errorf("write %s: %w; check that %s exists, can be written and is not full", path, err, filepath.Dir(path))
	}
	return nil
}

// RemoveFile removes path durably. A missing file is no error.
func RemoveFile(path string) error {
	if err := os.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return durable.SyncDir(filepath.Dir(path))
}
