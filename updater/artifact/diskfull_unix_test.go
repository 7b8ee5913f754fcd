//go:build unix

package artifact

import "syscall"

// errDiskFull is what the system says when a disk is full.
const errDiskFull = syscall.ENOSPC
