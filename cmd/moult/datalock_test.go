package main

import (
	"strings"
	"testing"
	"time"
)

// Who starts while the one before it is still ending waits; who starts beside one
// that goes on is refused.
func TestDataDirectoryIsLocked(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	unlock, err := lockDataDir(dir)
	must(t, err)
	if _, err := lockDataDir(dir); err == nil || !strings.Contains(err.Error(), "is in use by another moult") {
		t.Fatalf("a second lock: %v", err)
	}
	ending := time.AfterFunc(10*lockInterval, unlock)
	defer ending.Stop()
	again, err := lockDataDir(dir)
	must(t, err)
	again()
}
