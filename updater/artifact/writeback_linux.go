package artifact

import (
	"os"

	"golang.org/x/sys/unix"
)

// beginWriteback asks the disk to begin with what was written. It promises
// nothing, and its error means nothing: the sync at the end counts.
func beginWriteback(f *os.File) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { _ = unix.SyncFileRange(int(fd), 0, 0, unix.SYNC_FILE_RANGE_WRITE) })
}
