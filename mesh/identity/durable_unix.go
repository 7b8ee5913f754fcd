//go:build !windows

package identity

import "os"

// syncDir makes a directory's entries last through a power cut.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
