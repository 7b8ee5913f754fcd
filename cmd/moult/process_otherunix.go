//go:build unix && !linux

package main

import (
	"os/exec"
	"syscall"
)

// endWithParent keeps the terminal's Ctrl-C from reaching the child directly.
func endWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
}
