//go:build !windows

package nodekit

import "os"

// DefaultDataDir is --data where nothing else is said.
const DefaultDataDir = "/var/lib/moult"

// MakeDataDir makes a directory, if there is none, that only its maker can look into.
func MakeDataDir(dir string) error { return os.MkdirAll(dir, 0o700) }
