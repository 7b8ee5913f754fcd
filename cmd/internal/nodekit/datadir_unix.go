//go:build unix

package nodekit

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// RefuseForeignPath refuses a directory that is another user's, and one of which a
// parent can be changed by others: they could put their own in its place. Whoever
// shares this user's group does not count as others, unless this is root. The path
// is looked at as it is without symbolic links, and each link's own parents too.
func RefuseForeignPath(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	me := os.Geteuid()
	if err := RefuseOwner(info, me); err != nil {
		return err
	}
	return RefuseForeignParents(dir, "directory", "move --data to where root alone writes, such as /var/lib/moult"+trustAllHere)
}

const trustAllHere = ", or give --any-data-path if only people whom you trust reach this machine"

// RefuseForeignBinary refuses an installed binary that others can write to, or put
// another one in the place of: this process runs it, and moult may run as root.
func RefuseForeignBinary(path string) error {
	const next = "move the binary to where root alone writes, such as /usr/local/bin" + trustAllHere
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	if err := RefuseForeign(real, os.Geteuid(), "binary", next); err != nil {
		return err
	}
	return RefuseForeignParents(path, "binary", next)
}

// RefuseForeignParents looks at all parents of a path, of which what says what it is,
// and next what to do.
func RefuseForeignParents(path, what, next string) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	for _, path := range []string{path, real} {
		for parent := filepath.Dir(path); ; parent = filepath.Dir(parent) {
			if err := RefuseForeign(parent, os.Geteuid(), what, next); err != nil {
				return err
			}
			if parent == filepath.Dir(parent) {
				break
			}
		}
	}
	return nil
}

// RefuseOwner refuses what is another user's than me.
func RefuseOwner(info fs.FileInfo, me int) error {
	if owner := OwnerOf(info); owner != me {
		return fmt.Errorf("it belongs to user %d, and moult runs as user %d; run moult as its owner, or chown it", owner, me)
	}
	return nil
}

// RefuseForeign refuses a path that is neither user me's nor root's, or that others
// write to.
func RefuseForeign(path string, me int, what, next string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	stat := info.Sys().(*syscall.Stat_t)
	if owner := OwnerOf(info); owner != me && owner != 0 {
		return fmt.Errorf("%s belongs to user %d, who could put another %s in its place; %s", path, owner, what, next)
	}
	if info.IsDir() && info.Mode()&fs.ModeSticky != 0 {
		return nil // as /tmp: others cannot rename what is not theirs
	}
	mode := info.Mode().Perm()
	ownGroup := me != 0 && int(stat.Gid) == os.Getegid() || stat.Gid == 0
	if mode&0o002 != 0 || mode&0o020 != 0 && !ownGroup {
		return fmt.Errorf("%s can be written to by others (mode %04o), who could put another %s in its place; chmod go-w it; %s", path, mode, what, next)
	}
	return nil
}

// OwnerOf is the uid of who owns a file.
func OwnerOf(st fs.FileInfo) int { return int(st.Sys().(*syscall.Stat_t).Uid) }
