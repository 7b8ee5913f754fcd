package updater

import (
	"encoding/json"
	"os"
	"path/filepath"

	"moult/consensus/fleet"
	"moult/updater/artifact"
	"moult/updater/install"
)

// Staging is how far a host is with an artifact that it is to have before its turn.
type Staging struct {
	Digest string       `json:"digest"` // sha256 of the artifact
	State  StagingState `json:"state"`
	// Done and Total are bytes of the artifact.
	Done  int64 `json:"done,omitempty"`
	Total int64 `json:"total,omitempty"`
	// Error is why it is not staged. It is tried again when the order comes again.
	Error string `json:"error,omitempty"`
}

// StagingState is where a host stands with it.
type StagingState string

// The states of staging.
const (
	StageAwaitsPatch StagingState = "awaits_patch" // until a server has made it
	StageFetching    StagingState = "fetching"
	StageDone        StagingState = "staged"
	StageFailed      StagingState = "failed"
)

// stagedFile says what was staged, and by whom it was sent, to an agent that was
// restarted between the staging and its turn.
const stagedFile = "staged.json"

type stagedRecord struct {
	Digest  string         `json:"digest"`
	Size    int64          `json:"size"`
	Patched bool           `json:"patched,omitempty"`
	Sources []fleet.Source `json:"sources,omitempty"`
}

// rememberStaged notes who sent an artifact that is staged now. That the note cannot
// be written costs no more than a line in a job's log.
func (u *Updater) rememberStaged(digest string, sources []artifact.Source, patched bool) {
	s := &u.staged
	s.mu.Lock()
	s.sources, s.patched = sources, patched
	r := stagedRecord{Digest: digest, Size: s.state.Total, Patched: patched}
	s.mu.Unlock()
	for _, from := range sources {
		r.Sources = append(r.Sources, sourceOf(from.Peer, from.Bytes))
	}
	text, err := json.Marshal(r)
	if err == nil {
		err = install.WriteFile(filepath.Join(u.cfg.DataDir, stagedFile), append(text, '\n'))
	}
	if err != nil {
		u.slog.Warn("remember what is staged", "error", err)
	}
}

// recallStaged reads that note.
func (u *Updater) recallStaged() {
	text, err := os.ReadFile(filepath.Join(u.cfg.DataDir, stagedFile))
	if err != nil {
		return
	}
	var r stagedRecord
	if json.Unmarshal(text, &r) != nil || r.Digest == u.cfg.Digest || !u.cfg.Store.Has(r.Digest) {
		return
	}
	s := &u.staged
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state, s.patched = Staging{Digest: r.Digest, State: StageDone, Done: r.Size, Total: r.Size}, r.Patched
	for _, from := range r.Sources {
		s.sources = append(s.sources, artifact.Source{Peer: artifact.Peer{HostID: from.HostID, Name: from.Name, Role: from.Role}, Bytes: from.Bytes})
	}
}

// from returns who sent an artifact that was staged, and whether as a patch, once: a
// job tells of it.
func (s *stager) from(digest string) (sources []artifact.Source, patched bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.Digest != digest {
		return nil, false
	}
	sources, s.sources = s.sources, nil
	return sources, s.patched
}

// keep has the store keep what this host can go back to, and what is staged.
func (u *Updater) keep() {
	u.staged.mu.Lock()
	staged := u.staged.state.Digest
	u.staged.mu.Unlock()
	t, err := loadTrust(u.cfg.DataDir)
	if err != nil {
		return // nothing is installed here then, and orders say why
	}
	u.cfg.Store.Keep(append(t.goBack(), staged)...)
}

// shown returns how the staging stands; nil: nothing was to be staged.
func (s *stager) shown() *Staging {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == (Staging{}) {
		return nil
	}
	state := s.state
	return &state
}

// show takes note of how the staging stands, unless one is under way.
func (s *stager) show(state Staging) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.running {
		s.state = state
	}
}

func (s *stager) progress(digest string, done int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.Digest == digest {
		s.state.Done = done
	}
}
