//go:build unix

package install

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const identifies = true

// identity tells a file from others, and from what it was before a change: ctime is
// not to be set by anybody.
type identity struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

func identify(f *os.File) (identity, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return identity{}, &os.PathError{Op: "fstat", Path: f.Name(), Err: err}
	}
	dev := uint64(st.Dev) //nolint:unconvert // it has another type on darwin
	return identity{dev: dev, ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}, nil
}

func (i identity) changed() time.Time { return time.Unix(i.ctime.Unix()) }
