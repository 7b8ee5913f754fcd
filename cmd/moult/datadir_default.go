//go:build !windows

package main

import "os"

// defaultDataDir is --data where nothing else is said.
const defaultDataDir = "/var/lib/moult"

func makeDataDir(dir string) error { return os.MkdirAll(dir, 0o700) }
