//go:build unix

package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// refuseOpenDir refuses a directory in which another user could put a binary.
func refuseOpenDir(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	switch {
	case !info.IsDir():
		return fmt.Errorf("%s is no directory", dir)
	case int(owner) != os.Geteuid():
		return fmt.Errorf("%s belongs to user %d, and this is user %d; chown it", dir, owner, os.Geteuid())
	case info.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("%s is open to others (mode %04o); chmod 700 it", dir, info.Mode().Perm())
	}
	return nil
}

// activeRights gives a copy in the data directory the packaged binary's rights, and
// makes it durable. A user who may not give files away keeps the copy, without the
// rights that hang on the packaged one's owner.
func activeRights(packaged string, temp *os.File) []swapStep {
	steps := rightsOf(packaged, temp)
	kept := false
	for i, s := range steps {
		switch s.name {
		case "owner":
			steps[i].do = func() error {
				err := copyOwner(temp, packaged)
				kept = os.Geteuid() != 0 && errors.Is(err, fs.ErrPermission)
				if kept {
					return nil
				}
				return err
			}
		case "mode":
			steps[i].do = func() error {
				if !kept {
					return copyMode(temp, packaged)
				}
				st, err := os.Stat(packaged)
				if err != nil {
					return err
				}
				return temp.Chmod(st.Mode().Perm() | 0o500)
			}
		}
	}
	return steps
}
