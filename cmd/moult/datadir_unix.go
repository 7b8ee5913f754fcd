//go:build unix

package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// refuseForeignPath refuses a directory that is another user's, and one of which a
// parent can be changed by others: they could put their own in its place. Whoever
// shares this user's group does not count as others, unless this is root. The path
// is looked at as it is without symbolic links, and each link's own parents too.
func refuseForeignPath(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	me := os.Geteuid()
	if owner := int(info.Sys().(*syscall.Stat_t).Uid); owner != me {
		return fmt.Errorf("it belongs to user %d, and moult runs as user %d; run moult as its owner, or chown it", owner, me)
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	for _, path := range []string{dir, real} {
		for parent := filepath.Dir(path); ; parent = filepath.Dir(parent) {
			if err := refuseForeignParent(parent, me); err != nil {
				return err
			}
			if parent == filepath.Dir(parent) {
				break
			}
		}
	}
	return nil
}

func refuseForeignParent(parent string, me int) error {
	info, err := os.Stat(parent)
	if err != nil {
		return err
	}
	stat := info.Sys().(*syscall.Stat_t)
	const next = "; move --data to where root alone writes, such as /var/lib/moult, or give --any-data-path if only people whom you trust reach this machine"
	if owner := int(stat.Uid); owner != me && owner != 0 {
		return fmt.Errorf("%s belongs to user %d, who could put another directory in its place%s", parent, owner, next)
	}
	if info.Mode()&fs.ModeSticky != 0 {
		return nil // as /tmp: others cannot rename what is not theirs
	}
	mode := info.Mode().Perm()
	ownGroup := me != 0 && int(stat.Gid) == os.Getegid() || stat.Gid == 0
	if mode&0o002 != 0 || mode&0o020 != 0 && !ownGroup {
		return fmt.Errorf("%s can be written to by others (mode %04o), who could put another directory in its place; chmod go-w it%s", parent, mode, next)
	}
	return nil
}

func ownerOf(st fs.FileInfo) int { return int(st.Sys().(*syscall.Stat_t).Uid) }
