//go:build unix

package durable

import "os"

// Rename renames a file over another. SyncDir makes that durable.
func Rename(from, to string) error { return os.Rename(from, to) }
