package main

import (
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/windows"
)

func endWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{CreationFlags: windows.CREATE_NEW_PROCESS_GROUP}
}

func terminateProcess(p *os.Process) error { return p.Kill() }

// makeFilesPrivate does nothing: files inherit what the directory allows.
func makeFilesPrivate() {}
