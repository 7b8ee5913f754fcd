//go:build linux

// Package disktest gives tests file systems that are small, read-only or without
// execution: real ones, mounted, because that is where such faults show. It takes
// root; a test that cannot mount is skipped and says why.
package disktest

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Small mounts an empty file system of the given size, in KiB, for the time of
// the test.
func Small(t *testing.T, kib int) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting a file system takes root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dk", kib)); err != nil {
		t.Skipf("mounting a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// Remount changes the flags of a file system of Small: unix.MS_RDONLY,
// unix.MS_NOEXEC or 0.
func Remount(t *testing.T, dir string, flags uintptr) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT|flags, ""); err != nil {
		t.Fatalf("remount %s: %v", dir, err)
	}
}

// Fill leaves about free bytes on a file system of Small, and returns how to
// give the room back.
func Fill(t *testing.T, dir string, free int64) (giveBack func()) {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	filler := dir + "/filler"
	size := max(0, int64(st.Bavail)*st.Bsize-free)
	if err := os.WriteFile(filler, make([]byte, size), 0o600); err != nil {
		t.Fatalf("fill %s: %v", dir, err)
	}
	return func() {
		if err := os.Remove(filler); err != nil {
			t.Error(err)
		}
	}
}
