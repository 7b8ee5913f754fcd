package nodekit

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// lockPatience is how long a process waits for the one before it to be gone: one
// that was killed together with its supervisor may outlive it by a moment, and a
// service manager starts the next one at once.
const (
	lockPatience = 5 * time.Second
	LockInterval = 50 * time.Millisecond
)

// LockDataDir keeps a second process out of a data directory. The lock ends
// with the process.
func LockDataDir(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	deadline := time.Now().Add(lockPatience)
	for lockFile(f) != nil {
		if time.Now().After(deadline) {
			f.Close()
			return nil, fmt.Errorf("data directory %s is in use by another moult; stop that one, or give another --data", dir)
		}
		time.Sleep(LockInterval)
	}
	return func() { f.Close() }, nil
}
