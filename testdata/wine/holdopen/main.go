//go:build windows

// Command holdopen holds a file open for a while, as a virus scanner does: others
// may read it, and can neither rename nor replace it.
//
//	holdopen FILE DURATION
package main

import (
	"fmt"
	"os"
	"syscall"
	"time"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "holdopen:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 3 {
		return fmt.Errorf("usage: holdopen FILE DURATION")
	}
	d, err := time.ParseDuration(os.Args[2])
	if err != nil {
		return err
	}
	name, err := syscall.UTF16PtrFromString(os.Args[1])
	if err != nil {
		return err
	}
	h, err := syscall.CreateFile(name, syscall.GENERIC_READ, syscall.FILE_SHARE_READ, nil, syscall.OPEN_EXISTING, syscall.FILE_ATTRIBUTE_NORMAL, 0)
	if err != nil {
		return err
	}
	defer syscall.CloseHandle(h)
	fmt.Println("held")
	time.Sleep(d)
	return nil
}
