//go:build unix

package main

import (
	"os"

	"moult/cmd/internal/nodekit"
)

// refuseForeignOwner refuses a data directory that is another user's, for commands
// that write in it: the service, which runs as that user, could not open what they
// leave. One that is not there is nobody's.
func refuseForeignOwner(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return nil //nolint:nilerr // the command itself tells what is wrong with it
	}
	return nodekit.RefuseOwner(info, os.Geteuid())
}
