package main

import (
	"os/exec"
	"syscall"
)

// endWithParent has the kernel end the child when the thread that started it
// ends, and keeps the terminal's Ctrl-C from reaching it directly.
func endWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
