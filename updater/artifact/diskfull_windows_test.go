package artifact

import "golang.org/x/sys/windows"

// errDiskFull is what the system says when a disk is full.
const errDiskFull = windows.ERROR_DISK_FULL
