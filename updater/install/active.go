package install

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"moult/updater/internal/durable"
	"moult/updater/release"
)

// Errors of the active binary.
var (
	// ErrNoActive: the installed binary is the one that runs; nothing was committed
	// to the data directory.
	ErrNoActive = errors.New("no active binary in the data directory")
	// ErrActive: there is one, but it may not be run. The wrapping error says why.
	ErrActive = errors.New("the active binary cannot be used")
)

// SignedRelease is what proves later on that a binary may be executed here.
type SignedRelease struct {
	Manifest  []byte         `json:"manifest"`
	Signature []byte         `json:"signature"`
	Keys      release.KeySet `json:"keys"` // those that this host believed when it verified
}

// Active is DATA/active/active.json, checksummed: which binary runs instead of the
// packaged one, and why it may. The binary is DATA/active/DIGEST. Replacing this
// file is the commit.
type Active struct {
	Version string        `json:"version"`
	Number  uint64        `json:"number"` // the release's
	Digest  string        `json:"digest"` // sha256, 64 hex digits
	Release SignedRelease `json:"release"`
	// Packaged is the installed binary that hands over to this one, and its sha256 at
	// the commit: while it is the same, nobody has installed another package since.
	Packaged       string    `json:"packaged"`
	PackagedDigest string    `json:"packaged_digest"`
	Previous       string    `json:"previous,omitempty"` // digest of the one before, which is kept
	At             time.Time `json:"at"`
}

const (
	activeDir  = "active"
	activeFile = "active.json"
	startsFile = "starts.json"
)

// ActiveDir is where the data directory's active binaries are.
func ActiveDir(dataDir string) string { return filepath.Join(dataDir, activeDir) }

// ActivePath is where the active binary with a digest is.
func ActivePath(dataDir, digest string) string { return filepath.Join(ActiveDir(dataDir), digest) }

func activeRecord(dataDir string) string { return filepath.Join(ActiveDir(dataDir), activeFile) }

// LoadActive reads what the data directory's active binary is. It returns
// ErrNoActive, or ErrActive when the record cannot be trusted. That the record may
// be read says nothing about the binary: see OpenActive.
func LoadActive(dataDir string) (Active, error) {
	var a Active
	err := LoadSealed(activeRecord(dataDir), &a)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Active{}, ErrNoActive
	case err != nil:
		return Active{}, fmt.Errorf("%w: %s: %w", ErrActive, activeRecord(dataDir), err)
	case len(a.Digest) != sha256.Size*2 || a.Digest != filepath.Base(a.Digest) || a.Packaged == "":
		return Active{}, fmt.Errorf("%w: %s: digest or packaged binary is missing", ErrActive, activeRecord(dataDir))
	}
	return a, nil
}

// OpenActive returns the active binary, verified through the descriptor that is to
// be executed: its record, the release's signature, this platform's digest in it,
// and that no release since has set a floor above its number. Errors wrap
// ErrNoActive or ErrActive.
func OpenActive(dataDir string, floor uint64) (*os.File, Active, error) {
	a, err := LoadActive(dataDir)
	if err != nil {
		return nil, a, err
	}
	f, err := a.open(dataDir, floor)
	if err != nil {
		return nil, a, fmt.Errorf("%w: %w", ErrActive, err)
	}
	return f, a, nil
}

func (a Active) open(dataDir string, floor uint64) (*os.File, error) {
	if err := refuseOpenDir(ActiveDir(dataDir)); err != nil {
		return nil, err
	}
	if err := a.verifyRelease(); err != nil {
		return nil, err
	}
	if a.Number < floor {
		return nil, fmt.Errorf("release %s (number %d) is below the floor %d that a later release set", a.Version, a.Number, floor)
	}
	return OpenVerified(ActivePath(dataDir, a.Digest), a.Digest)
}

// verifyRelease checks the signature again. By the keys of that time: a change of
// keys says what may be installed from then on, and stops nothing that runs.
func (a Active) verifyRelease() error {
	m, err := release.Verify(a.Release.Keys, a.Release.Manifest, a.Release.Signature)
	if err != nil {
		return fmt.Errorf("verify the manifest of version %s: %w", a.Version, err)
	}
	artifact, ok := m.Artifact(runtime.GOOS, runtime.GOARCH)
	if !ok || artifact.SHA256 != a.Digest || m.Version != a.Version || m.Number != a.Number {
		return fmt.Errorf("the manifest of version %s is not that of the binary %s", a.Version, a.Digest)
	}
	return nil
}

// ActivateRequest names a binary that has proved itself and is to run from now on.
type ActivateRequest struct {
	Staged  string // path of the staged binary
	DataDir string
	// Active is what is to be on record; Previous and PackagedDigest are filled in.
	Active Active
	Step   func(step string) error // as SwapRequest.Step
}

// Activate puts a copy of the staged binary into the data directory, with the
// packaged one's mode, owner and extended attributes, and makes it the active one.
// The packaged binary is not touched. Until the last step the one before is the
// active one, and complete; it is kept afterwards too. After an error nothing has
// changed, and a later call starts afresh.
func Activate(r ActivateRequest) (err error) {
	if err := r.Active.verifyRelease(); err != nil {
		return fmt.Errorf("activate: %w", err)
	}
	if r.Active.PackagedDigest, err = Digest(r.Active.Packaged); err != nil {
		return fmt.Errorf("hash the packaged binary: %w", err)
	}
	before, err := LoadActive(r.DataDir)
	if err == nil {
		r.Active.Previous = before.Digest
		if before.Digest == r.Active.Digest {
			r.Active.Previous = before.Previous
		}
	}
	dir := ActiveDir(r.DataDir)
	swap := SwapRequest{Step: r.Step}
	if err := swap.step("create"); err != nil {
		return err
	}
	if err := makePrivateDir(dir); err != nil {
		return err
	}
	temp, err := os.CreateTemp(dir, tempPrefix+"*")
	if err != nil {
		return fmt.Errorf("create in %s: %w", dir, err)
	}
	defer func() {
		temp.Close()
		var stopped *stoppedError
		if err != nil && !errors.As(err, &stopped) {
			os.Remove(temp.Name())
		}
	}()
	if err := swap.step("copy"); err != nil {
		return err
	}
	staged, err := openVerified(r.Staged, r.Active.Digest, temp)
	if err != nil {
		return err
	}
	staged.Close()
	steps := append(activeRights(r.Active.Packaged, temp),
		swapStep{"rename", func() error { return os.Rename(temp.Name(), ActivePath(r.DataDir, r.Active.Digest)) }},
		swapStep{"sync-directory", func() error { return durable.SyncDir(dir) }},
		swapStep{"record", func() error { return SaveSealed(activeRecord(r.DataDir), r.Active) }},
	)
	if err := swap.do(steps, dir); err != nil {
		return err
	}
	return swap.step("done")
}

func makePrivateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("keep %s to this user: %w", dir, err)
	}
	return durable.SyncDir(filepath.Dir(dir))
}

// RemoveActive makes the installed binary the one that runs.
func RemoveActive(dataDir string) error { return RemoveFile(activeRecord(dataDir)) }

// SweepActive removes what an interrupted Activate left, and the binaries before
// the previous one. With a record that cannot be read it removes no binary. Call it
// when none runs.
func SweepActive(dataDir string) error {
	entries, err := os.ReadDir(ActiveDir(dataDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("sweep %s: %w", ActiveDir(dataDir), err)
	}
	a, loadErr := LoadActive(dataDir)
	if loadErr != nil && !errors.Is(loadErr, ErrNoActive) {
		return loadErr
	}
	var errs []error
	for _, e := range entries {
		name := e.Name()
		if name == activeFile || name == startsFile || name == a.Digest || name == a.Previous || !e.Type().IsRegular() {
			continue
		}
		errs = append(errs, os.Remove(filepath.Join(ActiveDir(dataDir), name)))
	}
	return errors.Join(errs...)
}

// starts counts in DATA/active/starts.json how often an active binary was handed
// over to and did not stay up.
type starts struct {
	Digest string `json:"digest"`
	Count  int    `json:"count"`
}

func startsPath(dataDir string) string { return filepath.Join(ActiveDir(dataDir), startsFile) }

// CountStart notes that the active binary is about to be started in the packaged
// one's place, and returns how often that came to nothing before.
func CountStart(dataDir, digest string) (before int, err error) {
	var s starts
	text, err := os.ReadFile(startsPath(dataDir))
	if err == nil {
		_ = json.Unmarshal(text, &s) // a damaged count begins anew
	}
	if s.Digest != digest {
		s = starts{Digest: digest}
	}
	before = s.Count
	s.Count++
	return before, writeJSON(startsPath(dataDir), s)
}

// ForgetStarts says that the active binary stayed up.
func ForgetStarts(dataDir string) error { return RemoveFile(startsPath(dataDir)) }
