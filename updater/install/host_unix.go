//go:build unix

package install

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// freeSpace is what this user may still write in dir's file system, in bytes.
func freeSpace(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return uint64(st.Bavail) * uint64(st.Bsize), nil //nolint:unconvert // signed on FreeBSD
}

// ownGroup starts a process in a group of its own, so that groupKiller ends what
// it started as well.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// groupKiller returns what ends the process and what it started.
func groupKiller(p *os.Process) func() {
	return func() { _ = syscall.Kill(-p.Pid, syscall.SIGKILL) }
}
