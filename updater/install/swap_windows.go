package install

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/windows"
)

// place moves the running .exe aside under a unique name (Windows does not
// replace a running one, but renames it) and the copy to its place. The access
// control list of the directory is inherited, as the installer's was. A crash
// between the two renames is mended by SweepLeftovers' caller only if a moult
// still runs; see DESIGN.md.
func (r SwapRequest) place(temp *os.File, installed string) error {
	if err := r.step("sync"); err != nil {
		return err
	}
	if err := temp.Sync(); err != nil {
		return fmt.Errorf("swap %s: %w", installed, err)
	}
	if err := temp.Close(); err != nil {
		return fmt.Errorf("swap %s: %w", installed, err)
	}
	if err := r.step("aside"); err != nil {
		return err
	}
	aside := fmt.Sprintf("%s.old-%d", installed, time.Now().UnixNano())
	if err := moveThrough(installed, aside); err != nil {
		return fmt.Errorf("set %s aside: %w", installed, err)
	}
	if err := r.step("rename"); err != nil {
		return err
	}
	if err := moveThrough(temp.Name(), installed); err != nil {
		return errors.Join(fmt.Errorf("move the new binary to %s: %w", installed, err), moveThrough(aside, installed))
	}
	return r.step("done")
}

// moveThrough returns when the rename is on disk.
func moveThrough(from, to string) error {
	f, err := windows.UTF16PtrFromString(from)
	if err != nil {
		return err
	}
	t, err := windows.UTF16PtrFromString(to)
	if err != nil {
		return err
	}
	return windows.MoveFileEx(f, t, windows.MOVEFILE_WRITE_THROUGH)
}

// sweepAside removes the binaries set aside but the newest, the last good one.
// One that still runs cannot be removed; it goes at the next start.
func sweepAside(installed string) error {
	aside, err := filepath.Glob(filepath.Clean(installed) + ".old-*")
	if err != nil {
		return err
	}
	slices.SortFunc(aside, strings.Compare)
	for i := 0; i < len(aside)-1; i++ {
		os.Remove(aside[i])
	}
	return nil
}
