package nodekit

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// OpenDataDir makes a data directory if there is none, gives it mode 0700, and
// keeps a second process out of it until unlock. A directory that somebody else
// could exchange, by its owner's or a parent's permissions, is refused unless
// anyPath: what is verified in it is executed from it, and its keys are believed.
func OpenDataDir(dir string, anyPath bool) (unlock func(), err error) {
	if err := MakeDataDir(dir); err != nil {
		return nil, fmt.Errorf("make --data: %w", err)
	}
	if !anyPath {
		path, err := filepath.Abs(dir)
		if err == nil {
			err = RefuseForeignPath(path)
		}
		if err != nil {
			return nil, fmt.Errorf("--data %s: %w", dir, err)
		}
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("keep --data to this user: %w; run moult as the user who owns it", err)
	}
	return LockDataDir(dir)
}

// CheckBinary refuses an installed binary that others could exchange, as openDataDir
// does a data directory.
func CheckBinary(binary string, anyPath bool) error {
	if anyPath {
		return nil
	}
	path, err := filepath.Abs(binary)
	if err == nil {
		err = RefuseForeignBinary(path)
	}
	if err != nil {
		return fmt.Errorf("--binary %s: %w", binary, err)
	}
	return nil
}

// WithoutJoinToken is an environment without the join token, which a process needs
// once: children and what they start do not get it.
func WithoutJoinToken(environ []string) []string {
	return slices.DeleteFunc(environ, func(kv string) bool { return strings.HasPrefix(kv, "MOULT_TOKEN=") })
}
