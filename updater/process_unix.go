//go:build unix

package updater

import (
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// The descriptors of a child, in the order that start adds them.
const (
	childReadNumber    = 3
	childWriteNumber   = 4
	verifiedFileNumber = 5
)

// inherit passes the two pipes to the child and tells it their numbers.
func inherit(attr *os.ProcAttr, read, write *os.File) error {
	attr.Files = append(attr.Files, read, write)
	attr.Env = append(attr.Env, envPipes+"="+strconv.Itoa(childReadNumber)+","+strconv.Itoa(childWriteNumber))
	return nil
}

// inheritedPipe opens an inherited descriptor so that reads can be interrupted,
// and keeps it from this process's own children.
func inheritedPipe(fd uintptr, name string) *os.File {
	syscall.CloseOnExec(int(fd))
	_ = syscall.SetNonblock(int(fd), true)
	return os.NewFile(fd, name)
}

// closeVerifiedFile closes the descriptor this process was executed through, and
// gives the process its name back: the kernel calls it by the number.
func closeVerifiedFile(number string) {
	fd, err := strconv.Atoi(number)
	if err != nil || fd <= childWriteNumber {
		return
	}
	_ = syscall.Close(fd)
	takeName()
}

// takeName names the process after its program, which the kernel does not know.
func takeName() {
	if len(os.Args) > 0 {
		_ = os.WriteFile("/proc/self/comm", []byte(filepath.Base(os.Args[0])), 0)
	}
}

// terminate asks the child to stop.
func (c *child) terminate() { _ = c.proc.Signal(syscall.SIGTERM) }

// killGroup ends the process group that the child leads.
func (c *child) killGroup() { _ = syscall.Kill(-c.pid, syscall.SIGKILL) }
