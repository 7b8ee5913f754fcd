package install

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"moult/updater/internal/durable"
)

// MarkerState tells how far a trial has come.
type MarkerState string

// The states of a trial marker.
const (
	Staged  MarkerState = "staged" // written by the agent; no trial has started
	OnTrial MarkerState = "trial"  // the supervisor has started the staged binary
)

// Marker says that a staged binary is to run, or runs, on trial. It is
// DATA/trial.json, checksummed.
type Marker struct {
	JobID       string      `json:"job_id"`
	Attempt     int         `json:"attempt"`
	Index       uint64      `json:"index"` // of the order behind it
	Version     string      `json:"version"`
	Digest      string      `json:"digest"` // sha256 of the staged file, 64 hex digits
	Number      uint64      `json:"number"` // the release's
	Floor       uint64      `json:"floor,omitempty"`
	Expires     *time.Time  `json:"expires,omitempty"` // of the manifest; nil: never
	StagedPath  string      `json:"staged_path"`
	FromVersion string      `json:"from_version"`
	FromDigest  string      `json:"from_digest"`
	Starts      int         `json:"starts"` // how often the staged binary was started
	State       MarkerState `json:"state"`
	// Place is where a commit puts the binary; empty: InPlace.
	Place Place `json:"place,omitempty"`
	// Release proves later on that the binary may be executed; for InData.
	Release *SignedRelease `json:"release,omitempty"`
}

const markerFile = "trial.json"

// MarkerPath is where dataDir's marker is.
func MarkerPath(dataDir string) string { return filepath.Join(dataDir, markerFile) }

// SaveMarker writes the marker durably.
func SaveMarker(dataDir string, m Marker) error { return SaveSealed(MarkerPath(dataDir), m) }

// LoadMarker reads the marker. It returns ErrNoMarker when there is none and
// ErrCorruptMarker when it cannot be trusted.
func LoadMarker(dataDir string) (Marker, error) {
	var m Marker
	err := LoadSealed(MarkerPath(dataDir), &m)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Marker{}, ErrNoMarker
	case errors.Is(err, ErrCorrupt):
		return Marker{}, fmt.Errorf("%w: %w", ErrCorruptMarker, err)
	case err != nil:
		return Marker{}, fmt.Errorf("read trial marker: %w", err)
	case m.JobID == "" || len(m.Digest) != sha256.Size*2 || m.StagedPath == "":
		return Marker{}, fmt.Errorf("%w: job, digest or staged path is missing", ErrCorruptMarker)
	}
	return m, nil
}

// RemoveMarker ends the trial.
func RemoveMarker(dataDir string) error { return RemoveFile(MarkerPath(dataDir)) }

// SetCorruptMarkerAside renames a corrupt marker to trial.json.corrupt, where a
// person can look at it and no start trips over it again.
func SetCorruptMarkerAside(dataDir string) error {
	path := MarkerPath(dataDir)
	if err := os.Rename(path, path+".corrupt"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set corrupt trial marker aside: %w", err)
	}
	return durable.SyncDir(dataDir)
}
