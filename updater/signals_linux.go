package updater

import (
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// leaveToKernel has the kernel end this process at one of these signals, at the moment
// that it is sent. One that a program handles is given to a thread first, and forgotten
// when an exec ends that thread before it runs. Process 1 has to handle its own: the
// kernel ends that one for none.
func leaveToKernel(signals ...syscall.Signal) {
	if os.Getpid() == 1 {
		return
	}
	var byDefault [64]byte // SIG_DFL and no flags, in a struct sigaction of any architecture
	const maskSize = 8
	for _, s := range signals {
		_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(&byDefault)), 0, maskSize, 0, 0)
	}
}
