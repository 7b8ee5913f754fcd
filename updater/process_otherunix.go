//go:build unix && !linux

package updater

import "syscall"

// childAttributes gives the child a group of its own. The end of the pipe tells
// it that its parent is gone.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
