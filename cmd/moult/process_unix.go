//go:build unix

package main

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func terminateProcess(p *os.Process) error { return p.Signal(syscall.SIGTERM) }

// makeFilesPrivate has this process make files for its own user alone, those of its
// libraries too: Raft's snapshots hold the CA's key.
func makeFilesPrivate() { unix.Umask(0o077) }
