package updater

import (
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/windows"

	"moult/updater/internal/job"
)

// verifiedFileNumber: a verified file is executed by its path here.
const verifiedFileNumber = -1

// childAttributes: without a console there is no Ctrl-C and no "a user logs off" that
// would end the agent behind its supervisor.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: windows.CREATE_NEW_PROCESS_GROUP | windows.DETACHED_PROCESS}
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

// terminate asks the child to stop.
func (c *child) terminate() {
	_ = c.say(message{Event: eventStop})
	c.send.Close()
}

// group is a job object: it ends with this process, so that no agent outlives
// its supervisor and holds the ports of the next.
type group struct{ *job.Job }

func (s *supervisor) groupOf(p *os.Process) group {
	j, err := job.Hold(p)
	if err != nil {
		s.log.Warn("the agent may outlive its supervisor", "pid", p.Pid, "error", err)
	}
	return group{j}
}

func (c *child) killGroup() {
	if c.group.Job == nil {
		_ = c.proc.Kill()
		return
	}
	c.group.Kill()
}

// freeGroup is called once the child has ended.
func (c *child) freeGroup() { c.group.Close() }
