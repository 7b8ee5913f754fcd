package updater

import (
	"context"
	"time"

	"moult/consensus/fleet"
)

// The phases that the updater announces in the host's record.
const (
	PhaseIdle       = "idle"
	PhaseFetching   = "fetching"
	PhaseVerifying  = "verifying"
	PhasePreflight  = "preflight"
	PhaseRestarting = "restarting"
	PhaseTrial      = "trial"
	PhaseFailed     = "failed"
	PhaseRolledBack = "rolled_back"
)

// Report is what a host tells the servers beyond its record. Its sender is in
// the envelope, never in it.
type Report struct {
	// Record is the host's raw signed record, filled in by the mesh's side.
	Record []byte `json:"record,omitempty"`
	JobID  string `json:"job_id,omitempty"`
	// Done and Total are bytes of the artifact.
	Done  int64 `json:"done,omitempty"`
	Total int64 `json:"total,omitempty"`
	// Pulled counts the bytes that relays moved for this host before any reach it.
	// As long as it grows the download makes progress, though Done does not.
	Pulled int64 `json:"pulled,omitempty"`
	// RunsFrom is the path of the active binary in the data directory, if that runs.
	RunsFrom string `json:"runs_from,omitempty"`
	// Error is why the job failed or was rolled back; LastOutput is the last line
	// that the new binary printed.
	Error      string         `json:"error,omitempty"`
	LastOutput string         `json:"last_output,omitempty"`
	Sources    []fleet.Source `json:"sources,omitempty"`
	// First is the host's number of the first of Lines; it counts a job's lines
	// from 1. Lines repeat until they are acknowledged (HandleAck).
	First uint64          `json:"first,omitempty"`
	Lines []fleet.LogLine `json:"lines,omitempty"`
	// Staging is the last artifact that was to be fetched ahead of this host's turn;
	// Stored are the bytes that it keeps of releases. Both stand in reports without a
	// job too.
	Staging *Staging `json:"staging,omitempty"`
	Stored  int64    `json:"stored,omitempty"`
	// KeyFork is what this host has seen of two key statements with one number; it
	// stands in reports without a job too.
	KeyFork *KeyFork `json:"key_fork,omitempty"`
}

// The reporter's rhythm. Orders and acknowledgements may be lost, so everything
// is said again until it is acknowledged or old.
const (
	progressEvery = 500 * time.Millisecond
	resendEvery   = time.Second
	settledEvery  = 5 * time.Second // the verdict, again: a new leader may have missed it
	settledFor    = 2 * time.Minute
	restateEvery  = 5 * time.Minute // what is not of a job, for servers that were restarted
	// stagingEvery is how often the progress of staging is told: a whole fleet stages
	// at once.
	stagingEvery = 3 * time.Second
	// maxReportBytes bounds the lines of one report: a mesh message holds 256 KiB,
	// JSON and the envelope included.
	maxReportBytes = 64 << 10
)

// report sends reports until ctx ends: at once on kick, on progress, while lines
// are unacknowledged, and the verdict for a while.
func (u *Updater) report(ctx context.Context) {
	look := time.NewTimer(progressEvery)
	defer look.Stop()
	var sent, sentStaged time.Time
	var sentBytes, sentStaging int64
	for {
		kicked := false
		select {
		case <-ctx.Done():
			return
		case <-u.kick:
			kicked = true
		case <-look.C:
		}
		r, since := u.compose()
		now := time.Now()
		_, _, busy := u.standing()
		ago := now.Sub(sent)
		look.Reset(nextLook(r, busy, now.Sub(since), ago))
		bytes := r.Done + r.Pulled
		due := kicked || r.JobID != "" && (bytes != sentBytes ||
			(len(r.Lines) > 0 && ago >= resendEvery-progressEvery/5) ||
			(ago >= settledEvery && now.Sub(since) < settledFor)) ||
			(r.Staging != nil && r.Staging.Done != sentStaging && now.Sub(sentStaged) >= stagingEvery) ||
			ago >= restateEvery
		if !due {
			continue
		}
		sent, sentBytes = now, bytes
		if r.Staging != nil {
			sentStaged, sentStaging = now, r.Staging.Done
		}
		r.Stored = u.cfg.Store.Used()
		if r.JobID == "" && r.KeyFork == nil && r.Staging == nil && r.Stored == 0 {
			continue
		}
		u.cfg.Mesh.Report(ctx, r)
	}
}

// nextLook is when the reporter looks again, unasked. What begins or ends wakes it;
// what grows in between does not, and what is not acknowledged is sent again. since is
// how long ago the phase began, ago the last report.
func nextLook(r Report, busy bool, since, ago time.Duration) time.Duration {
	unsettled := r.JobID != "" && (len(r.Lines) > 0 || since < settledFor)
	stages := r.Staging != nil && r.Staging.State == StageFetching
	if busy || unsettled || stages {
		return progressEvery
	}
	return max(restateEvery-ago, progressEvery)
}

// compose makes a report of the present state; since is when the phase began.
func (u *Updater) compose() (r Report, since time.Time) {
	staging := u.staged.shown()
	u.mu.Lock()
	defer u.mu.Unlock()
	st := u.status
	r = Report{
		JobID: st.job, Done: st.done, Total: st.total, Pulled: st.pulled,
		RunsFrom: u.runsFrom, Error: st.reason, LastOutput: st.lastOutput, Sources: st.namedSources(), KeyFork: u.keyFork, Staging: staging,
	}
	if u.log != nil && u.log.job == st.job {
		r.First, r.Lines = u.log.unstored(maxReportBytes)
	}
	return r, st.since
}

// HandleAck takes a server's word that the first `stored` lines of a job's log
// are committed. Safe for concurrent use.
func (u *Updater) HandleAck(jobID string, stored uint64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.log != nil && u.log.job == jobID {
		u.log.acknowledge(stored)
		if u.log.settled() {
			select {
			case u.acked <- struct{}{}:
			default:
			}
		}
	}
}

// tellFork has all further reports tell of a fork, from now on. nil: there is none.
func (u *Updater) tellFork(f *KeyFork) {
	u.mu.Lock()
	u.keyFork = f
	u.mu.Unlock()
	if f != nil {
		u.wake()
	}
}

// wake makes the reporter report now.
func (u *Updater) wake() {
	select {
	case u.kick <- struct{}{}:
	default:
	}
}

// flush waits until the servers have the job's log, at most for d.
func (u *Updater) flush(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		u.mu.Lock()
		done := u.log == nil || u.log.settled()
		u.mu.Unlock()
		if done {
			return
		}
		u.wake()
		select {
		case <-u.acked:
		case <-t.C:
			return
		case <-ctx.Done():
			return
		}
	}
}
