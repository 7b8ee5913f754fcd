package install

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"moult/updater/internal/durable"
)

// place moves the running .exe aside under a unique name (Windows does not
// replace a running one, but renames it) and the copy to its place. The access
// control list of the directory is inherited, as the installer's was.
//
// Only the second rename waits for the disk: NTFS writes its log in order, so
// that both get there together, and a power cut has next to no time to fall
// between them. See DESIGN.md for what is left of it.
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
	aside := installed + asideInfix + strconv.FormatInt(time.Now().UnixNano(), 10)
	if err := durable.Move(installed, aside, false); err != nil {
		return fmt.Errorf("set %s aside: %w", installed, explainInUse(err, installed))
	}
	if err := r.step("rename"); err != nil {
		return err
	}
	if err := durable.Move(temp.Name(), installed, true); err != nil {
		err = fmt.Errorf("move the new binary to %s: %w", installed, explainInUse(err, temp.Name()))
		return errors.Join(err, durable.Move(aside, installed, true))
	}
	return r.step("done")
}

// explainInUse says what to do about a file that somebody has open.
func explainInUse(err error, path string) error {
	if !durable.InUse(err) {
		return err
	}
	return fmt.Errorf("%w: %s (%w); if it is a virus scanner, except %s from it, and start the update again",
		ErrInUse, path, err, filepath.Dir(path))
}

// asideInfix and a number follow the name of a binary that was set aside.
const asideInfix = ".old-"

// Asides are the binaries that were set aside, the newest, the last good one,
// first.
func Asides(installed string) ([]string, error) {
	dir, prefix := filepath.Dir(installed), filepath.Base(installed)+asideInfix
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, e := range entries {
		number, ok := strings.CutPrefix(e.Name(), prefix)
		if _, err := strconv.ParseInt(number, 10, 64); ok && err == nil && e.Type().IsRegular() {
			found = append(found, filepath.Join(dir, e.Name()))
		}
	}
	slices.SortFunc(found, func(a, b string) int { return strings.Compare(b, a) })
	return found, nil
}

// sweepAside removes the binaries set aside but the newest. One that still runs
// cannot be removed; it goes at a later start.
func sweepAside(installed string) error {
	found, err := Asides(installed)
	if err != nil {
		return err
	}
	for i := 1; i < len(found); i++ {
		os.Remove(found[i])
	}
	return nil
}

// Reinstate puts the binary that the last swap set aside back in its place. The
// one that it replaces must not run; it is removed when the old one is back.
func Reinstate(installed string) error {
	found, err := Asides(installed)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return fmt.Errorf("reinstate %s: no binary lies aside", installed)
	}
	failed := filepath.Join(filepath.Dir(installed), tempPrefix+"failed-"+strconv.FormatInt(time.Now().UnixNano(), 10))
	if err := durable.Move(installed, failed, false); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("set %s aside: %w", installed, explainInUse(err, installed))
	}
	if err := durable.Move(found[0], installed, true); err != nil {
		return errors.Join(fmt.Errorf("reinstate %s: %w", found[0], explainInUse(err, found[0])), durable.Move(failed, installed, true))
	}
	os.Remove(failed) // or SweepLeftovers does
	return nil
}
