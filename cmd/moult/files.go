package main

import (
	"io"
	"os"
)

// The files that bootstrap leaves in the data directory, for the operator to
// take away.
const (
	adminTokenFile    = "admin.token"
	adminPasswordFile = "admin.password"
	releaseKeyFile    = "release.key"
)

func copyExecutable(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	tmp := to + ".new"
	dst, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	defer dst.Close()
	if _, err := io.Copy(dst, src); err != nil {
		return err
	}
	if err := dst.Close(); err != nil {
		return err
	}
	return os.Rename(tmp, to)
}

func fileExists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
