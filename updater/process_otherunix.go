//go:build unix && !linux

package updater

import "syscall"

// childAttributes gives the child a group of its own. The end of the pipe tells
// it that its parent is gone.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// executesDescriptors: there is no execution of an open file here. The active
// binary lies in a directory that only its owner can write.
const executesDescriptors = false
