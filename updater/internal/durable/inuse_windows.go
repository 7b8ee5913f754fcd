package durable

import (
	"errors"
	"time"

	"golang.org/x/sys/windows"
)

// A file that another program holds open cannot be renamed or replaced: virus
// scanners and indexers do so for a moment with each new file.
const (
	inUsePatience = 10 * time.Second
	inUseInterval = 50 * time.Millisecond
)

// InUse tells whether err says that somebody has a file open. Windows answers
// "access denied", too, when a file is being deleted or is a program that runs.
func InUse(err error) bool {
	for _, e := range []windows.Errno{windows.ERROR_SHARING_VIOLATION, windows.ERROR_LOCK_VIOLATION, windows.ERROR_ACCESS_DENIED, windows.ERROR_USER_MAPPED_FILE} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// WhileInUse does something again as long as somebody has the file open, at most
// for inUsePatience.
func WhileInUse(do func() error) error {
	for began := time.Now(); ; {
		err := do()
		if err == nil || !InUse(err) || time.Since(began) > inUsePatience {
			return err
		}
		time.Sleep(inUseInterval)
	}
}

// Move renames a file, and waits for it to be on disk if durably. It replaces
// nothing.
func Move(from, to string, durably bool) error {
	var flags uint32
	if durably {
		flags = windows.MOVEFILE_WRITE_THROUGH
	}
	return move(from, to, flags)
}

// Rename renames a file over another. It returns when that is on disk.
func Rename(from, to string) error {
	return move(from, to, windows.MOVEFILE_REPLACE_EXISTING|windows.MOVEFILE_WRITE_THROUGH)
}

func move(from, to string, flags uint32) error {
	f, err := windows.UTF16PtrFromString(from)
	if err != nil {
		return err
	}
	t, err := windows.UTF16PtrFromString(to)
	if err != nil {
		return err
	}
	return WhileInUse(func() error { return windows.MoveFileEx(f, t, flags) })
}
