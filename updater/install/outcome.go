package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"moult/consensus/fleet"
)

// Result is how a job ended on this host, or that it has not.
type Result string

// The results of a job.
const (
	Running     Result = "running"     // accepted; the agent works on it, or was stopped while it did
	Committed   Result = "committed"   // the new binary is the installed one
	RolledBack  Result = "rolled_back" // the new binary did not prove itself
	Interrupted Result = "interrupted" // the trial ended with the supervisor or the power
	Failed      Result = "failed"      // it never came to a trial
)

// Done tells whether r is final.
func (r Result) Done() bool { return r != Running }

// Outcome is DATA/last-job.json: the last job this host worked on. The agent
// reports it after each start, so that no verdict is lost with a process.
type Outcome struct {
	JobID   string `json:"job_id"`
	Attempt int    `json:"attempt"`
	Index   uint64 `json:"index"`
	Result  Result `json:"result"`
	Version string `json:"version"`
	Digest  string `json:"digest,omitempty"`
	// FromDigest is of the binary that a trial was to replace.
	FromDigest string `json:"from_digest,omitempty"`
	Number     uint64 `json:"number,omitempty"` // the release's
	Floor      uint64 `json:"floor,omitempty"`
	// Expires is until when the release may be installed; nil: for ever.
	Expires *time.Time `json:"expires,omitempty"`
	// Reason says why it was not committed: one line for people.
	Reason string `json:"reason,omitempty"`
	// LastOutput is what the new binary printed last, at most 20 lines.
	LastOutput []string  `json:"last_output,omitempty"`
	At         time.Time `json:"at"`
	// Order is the sealed order of a running job: with it the agent resumes the
	// job after a restart. Resumes counts how often it did.
	Order   []byte `json:"order,omitempty"`
	Resumes int    `json:"resumes,omitempty"`
	// Staged: a trial was due. Such a job is not resumed, whatever became of the
	// marker: its binary may have been what took the host down.
	Staged bool `json:"staged,omitempty"`
	// Sources are who sent the artifact: what was told before a restart must be told
	// after it too, for a server that has begun to lead meanwhile.
	Sources []fleet.Source `json:"sources,omitempty"`
}

// OutcomeOf begins an outcome from a trial's marker. What the agent had told of the
// job beyond that, SaveVerdict keeps.
func OutcomeOf(m Marker, r Result, at time.Time) Outcome {
	return Outcome{
		JobID: m.JobID, Attempt: m.Attempt, Index: m.Index, Result: r,
		Version: m.Version, Digest: m.Digest, FromDigest: m.FromDigest, Number: m.Number, Floor: m.Floor, Expires: m.Expires, At: at,
	}
}

const (
	outcomeFile  = "last-job.json"
	failuresFile = "failed.json"
	// maxFailures bounds failed.json; the oldest are forgotten.
	maxFailures = 100
)

// SaveOutcome writes the outcome durably.
func SaveOutcome(dataDir string, o Outcome) error {
	return writeJSON(filepath.Join(dataDir, outcomeFile), o)
}

// SaveVerdict is SaveOutcome for whoever judges a trial.
func SaveVerdict(dataDir string, o Outcome) error {
	if before, err := LoadOutcome(dataDir); err == nil && before.JobID == o.JobID && len(o.Sources) == 0 {
		o.Sources = before.Sources
	}
	return SaveOutcome(dataDir, o)
}

// LoadOutcome reads the outcome, or returns ErrNoOutcome.
func LoadOutcome(dataDir string) (Outcome, error) {
	var o Outcome
	err := readJSON(filepath.Join(dataDir, outcomeFile), &o)
	if errors.Is(err, fs.ErrNotExist) {
		return o, ErrNoOutcome
	}
	return o, err
}

// Failure is a digest that was rolled back, and the job that tried it.
type Failure struct {
	JobID  string    `json:"job_id"`
	Digest string    `json:"digest"`
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// RememberFailure adds a failure to DATA/failed.json, at most 100.
func RememberFailure(dataDir string, f Failure) error {
	path := filepath.Join(dataDir, failuresFile)
	var all []Failure
	// A file that does not parse is begun anew: the memory only saves a trial.
	_ = readJSON(path, &all)
	all = slices.DeleteFunc(all, func(o Failure) bool { return o.JobID == f.JobID && o.Digest == f.Digest })
	all = append(all, f)
	if len(all) > maxFailures {
		all = all[len(all)-maxFailures:]
	}
	return writeJSON(path, all)
}

// FailedBefore returns the failure of a digest within a job. A new job may try
// the digest again: a person asked for it.
func FailedBefore(dataDir, jobID, digest string) (Failure, bool) {
	var all []Failure
	if readJSON(filepath.Join(dataDir, failuresFile), &all) != nil {
		return Failure{}, false
	}
	i := slices.IndexFunc(all, func(f Failure) bool { return f.JobID == jobID && f.Digest == digest })
	if i < 0 {
		return Failure{}, false
	}
	return all[i], true
}

func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	return WriteFile(path, append(b, '\n'))
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read %s: %w", filepath.Base(path), err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}
