//go:build !windows

package nodekit

import "os"

// DefaultDataDir is --data where nothing else is said.
const DefaultDataDir = "/var/lib/moult"

func MakeDataDir(dir string) error { return os.MkdirAll(dir, 0o700) }
