package install

import (
	"os"

	"golang.org/x/sys/unix"
)

// Of linux/fs.h.
const (
	flagImmutable = 0x10 // FS_IMMUTABLE_FL
	flagAppend    = 0x20 // FS_APPEND_FL
)

// fixed tells why a file cannot be replaced although its directory can be written:
// it is immutable, or a mount by itself. "": nothing is known to be in the way.
func fixed(path string) string {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, 0, &st); err == nil {
		if st.Attributes_mask&st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
			return path + " is a mount by itself"
		}
		if st.Attributes_mask&st.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) != 0 {
			return path + " is immutable"
		}
	}
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	// Of file systems that do not say it above.
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil && flags&(flagImmutable|flagAppend) != 0 {
		return path + " is immutable"
	}
	return ""
}
