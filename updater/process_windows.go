package updater

import (
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/windows"
)

// verifiedFileNumber: a verified file is executed by its path here.
const verifiedFileNumber = -1

func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: windows.CREATE_NEW_PROCESS_GROUP}
}

// inherit passes the two pipes to the child as handles and tells it their values.
func inherit(attr *os.ProcAttr, read, write *os.File) error {
	for _, f := range []*os.File{read, write} {
		h := windows.Handle(f.Fd())
		if err := windows.SetHandleInformation(h, windows.HANDLE_FLAG_INHERIT, windows.HANDLE_FLAG_INHERIT); err != nil {
			return err
		}
		attr.Sys.AdditionalInheritedHandles = append(attr.Sys.AdditionalInheritedHandles, syscall.Handle(h))
	}
	attr.Env = append(attr.Env, envPipes+"="+strconv.FormatUint(uint64(read.Fd()), 10)+","+strconv.FormatUint(uint64(write.Fd()), 10))
	return nil
}

func inheritedPipe(handle uintptr, name string) *os.File {
	_ = windows.SetHandleInformation(windows.Handle(handle), windows.HANDLE_FLAG_INHERIT, 0)
	return os.NewFile(handle, name)
}

func closeVerifiedFile(string) {}

// terminate asks the child to stop by ending its pipe.
func (c *child) terminate() { c.send.Close() }

func (c *child) killGroup() { _ = c.proc.Kill() }
