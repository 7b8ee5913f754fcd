package install

import (
	"errors"
	"fmt"
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
func Swap(r SwapRequest) error {
	p, staged, err := PrepareSwap(r)
	if err != nil {
		return err
	}
	staged.Close()
	return p.Finish()
}

// PreparedSwap is the first half of a Swap: a copy of the staged binary lies beside
// the installed one. It is for one goroutine at a time.
type PreparedSwap struct {
	r         SwapRequest
	installed string
	copy      string   // its path; "": finished, or discarded
	temp      *os.File // the copy; nil: flushed, and closed
	flushed   error    // why it may not be on the disk
}

// PrepareSwap does what takes long in a Swap and changes nothing that is installed.
// It reads the staged binary once, for both: the copy, and the descriptor that it
// returns, which is verified as OpenVerified's is. Finish or Discard the former,
// close the latter.
func PrepareSwap(r SwapRequest) (_ *PreparedSwap, staged *os.File, err error) {
	if err := r.validate(); err != nil {
		return nil, nil, err
	}
	installed, err := filepath.EvalSymlinks(r.Installed)
	if err != nil {
		return nil, nil, fmt.Errorf("find installed binary: %w", err)
	}
	if err := r.step("create"); err != nil {
		return nil, nil, err
	}
	temp, err := os.CreateTemp(filepath.Dir(installed), tempPrefix+"*")
	if err != nil {
		return nil, nil, fmt.Errorf("create beside %s: %w", installed, err)
	}
	p := &PreparedSwap{r: r, installed: installed, copy: temp.Name(), temp: temp}
	defer func() { err = p.sweep(err) }()
	if err := r.step("copy"); err != nil {
		return nil, nil, err
	}
	staged, err = openVerified(r.Staged, r.Digest, temp)
	return p, staged, err
}

// Flush writes the copy through to the disk and closes it, so that Finish has little
// left to write. It may run while the staged binary does. What goes wrong is for
// Finish to tell: a second sync of a file may pass over the failure of the first.
func (p *PreparedSwap) Flush() {
	p.flushed = errors.Join(p.temp.Sync(), p.temp.Close())
	p.temp = nil
}

// Finish is the other half of Swap.
func (p *PreparedSwap) Finish() (err error) {
	defer func() { err = p.sweep(err) }()
	if p.flushed != nil {
		return fmt.Errorf("write the copy of the staged binary: %w", p.flushed)
	}
	if p.temp == nil {
		if p.temp, err = os.OpenFile(p.copy, os.O_RDWR, 0); err != nil {
			return fmt.Errorf("open the copy of the staged binary: %w", err)
		}
	}
	if err := p.r.place(p.temp, p.installed); err != nil {
		return err
	}
	p.copy = ""
	return nil
}

// Discard takes the copy away. After Finish it does nothing.
func (p *PreparedSwap) Discard() error {
	if p.copy == "" {
		return nil
	}
	if p.temp != nil {
		p.temp.Close()
	}
	err := os.Remove(p.copy)
	p.copy = ""
	return err
}

// sweep takes the copy away after an error, which it returns; but for one of the
// step hook.
func (p *PreparedSwap) sweep(err error) error {
	var stopped *stoppedError
	if err == nil {
		return nil
	}
	if p.temp != nil {
		p.temp.Close()
	}
	if !errors.As(err, &stopped) {
		os.Remove(p.copy)
	}
	p.copy = ""
	return err
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
