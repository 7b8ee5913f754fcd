package updater

import "syscall"

// childAttributes gives the child a group of its own, and has the kernel kill it
// when the thread that started it ends: RunSupervisor holds that thread.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// executesDescriptors: /proc/self/fd/N executes the open file itself.
const executesDescriptors = true
