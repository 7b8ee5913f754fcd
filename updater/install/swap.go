package install

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// SwapRequest names what replaces what.
type SwapRequest struct {
	Staged    string // path of the binary that has proved itself
	Digest    string // its sha256, 64 hex digits, checked again while it is copied
	Installed string // path of the installed binary; a symbolic link is followed
	// Step is called before each step with its name, and once at the end with
	// "done". An error of it stops the swap there, as a power cut would: nothing
	// is cleaned up. Nil: no calls.
	Step func(step string) error
}

func (r SwapRequest) validate() error {
	if r.Staged == "" || r.Installed == "" || len(r.Digest) != 64 {
		return errors.New("swap needs the staged path, its digest and the installed path")
	}
	return nil
}

func (r SwapRequest) step(name string) error {
	if r.Step == nil {
		return nil
	}
	if err := r.Step(name); err != nil {
		return &stoppedError{name, err}
	}
	return nil
}

// swapStep is one step of putting a binary somewhere.
type swapStep struct {
	name string
	do   func() error
}

// do takes the steps in turn; what is what they are for.
func (r SwapRequest) do(steps []swapStep, what string) error {
	for _, s := range steps {
		if err := r.step(s.name); err != nil {
			return err
		}
		if err := s.do(); err != nil {
			return fmt.Errorf("swap %s (%s): %w", what, s.name, err)
		}
	}
	return nil
}

// stoppedError is an error of the step hook: the swap leaves all as it is.
type stoppedError struct {
	step string
	err  error
}

func (e *stoppedError) Error() string { return "stopped before " + e.step + ": " + e.err.Error() }
func (e *stoppedError) Unwrap() error { return e.err }

// tempPrefix begins the names of this package's temporary files in the
// installed binary's directory. SweepLeftovers removes them.
const tempPrefix = ".moult-swap-"

// Swap replaces the installed binary by the staged one and keeps the installed
// one beside it as NAME.old. Until its last step the installed path holds the
// old binary, afterwards the new one, both complete and durable. It returns
// ErrDigest when the staged bytes changed since they were verified. After an
// error the installed binary is the old one, and a later Swap starts afresh.
func Swap(r SwapRequest) (err error) {
	if err := r.validate(); err != nil {
		return err
	}
	installed, err := filepath.EvalSymlinks(r.Installed)
	if err != nil {
		return fmt.Errorf("find installed binary: %w", err)
	}
	if err := r.step("create"); err != nil {
		return err
	}
	temp, err := os.CreateTemp(filepath.Dir(installed), tempPrefix+"*")
	if err != nil {
		return fmt.Errorf("create beside %s: %w", installed, err)
	}
	defer func() {
		temp.Close()
		var stopped *stoppedError
		if err != nil && !errors.As(err, &stopped) {
			os.Remove(temp.Name())
		}
	}()
	if err := r.step("copy"); err != nil {
		return err
	}
	if err := copyVerified(temp, r.Staged, r.Digest); err != nil {
		return err
	}
	return r.place(temp, installed)
}

// copyVerified hashes the very bytes that it writes.
func copyVerified(temp *os.File, staged, digest string) error {
	src, err := os.Open(staged)
	if err != nil {
		return fmt.Errorf("open staged binary: %w", err)
	}
	defer src.Close()
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(temp, h), src); err != nil {
		return fmt.Errorf("copy staged binary: %w", err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != digest {
		return fmt.Errorf("%s: %w: sha256 is %s, want %s", staged, ErrDigest, got, digest)
	}
	return nil
}

// SweepLeftovers removes what an interrupted swap left in the installed
// binary's directory. Call it when no swap runs. It reports what it could not
// remove.
func SweepLeftovers(installed string) error {
	target, err := filepath.EvalSymlinks(installed)
	if err != nil {
		return fmt.Errorf("find installed binary: %w", err)
	}
	dir := filepath.Dir(target)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("sweep %s: %w", dir, err)
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) && e.Type().IsRegular() {
			errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	errs = append(errs, sweepAside(target))
	return errors.Join(errs...)
}
