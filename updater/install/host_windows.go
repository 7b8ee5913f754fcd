package install

import (
	"os"
	"syscall"

	"golang.org/x/sys/windows"

	"moult/updater/internal/job"
)

// freeSpace is what this user may still write in dir's volume, in bytes.
func freeSpace(dir string) (uint64, error) {
	p, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return 0, err
	}
	var free uint64
	if err := windows.GetDiskFreeSpaceEx(p, &free, nil, nil); err != nil {
		return 0, err
	}
	return free, nil
}

func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: windows.CREATE_NEW_PROCESS_GROUP | windows.CREATE_NO_WINDOW}
}

// groupKiller returns what ends the process and what it started.
func groupKiller(p *os.Process) func() {
	j, err := job.Hold(p)
	if err != nil { // it has ended already
		return func() { _ = p.Kill() }
	}
	return j.Close
}
