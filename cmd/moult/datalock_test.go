package main

import (
	"strings"
	"testing"
	"time"

	"moult/cmd/internal/nodekit"
)

// Who starts while the one before it is still ending waits; who starts beside one
// that goes on is refused.
func TestDataDirectoryIsLocked(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	unlock, err := nodekit.LockDataDir(dir)
	must(t, err)
	if _, err := nodekit.LockDataDir(dir); err == nil || !strings.Contains(err.Error(), "is in use by another moult") {
		t.Fatalf("a second lock: %v", err)
	}
	ending := time.AfterFunc(10*nodekit.LockInterval, unlock)
	defer ending.Stop()
	again, err := nodekit.LockDataDir(dir)
	must(t, err)
	again()
}
