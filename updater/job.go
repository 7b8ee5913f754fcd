package updater

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"moult/consensus/fleet"
	"moult/updater/artifact"
	"moult/updater/install"
	"moult/updater/order"
	"moult/updater/release"
)

// spareArtifacts is how many artifacts this host keeps, and serves, besides the
// one it runs and the one it is to run, when nothing else is said.
const spareArtifacts = 2

// job carries one order out. It returns ErrRestart when the trial is due, nil
// when the job has ended, whichever way, or is to be gone on with later.
func (u *Updater) job(ctx context.Context, o order.Order, sealed []byte, resumes int) error {
	out := outcomeOf(o)
	out.Result, out.At, out.Order, out.Resumes = install.Running, time.Now(), sealed, resumes
	u.openLog(o.JobID)
	if resumes == 0 {
		u.note(fmt.Sprintf("order accepted: update from version %s to %s", u.cfg.Version, o.Version))
	}
	// On disk before the first act: a restart must neither forget nor repeat it.
	if err := install.SaveOutcome(u.cfg.DataDir, out); err != nil {
		u.fail(out, err.Error())
		return nil
	}
	u.enter(PhaseFetching, o.JobID)
	m, err := u.prepare(ctx, o, &out)
	switch {
	case ctx.Err() != nil:
		return nil // stopped from outside: resumed at the next start
	case err != nil:
		u.fail(out, err.Error())
		return nil
	case m == nil:
		u.note("version " + o.Version + " runs already")
		out.Result = install.Committed
		u.end(out)
		return nil
	}
	u.note("restarting on trial")
	u.mu.Lock()
	if u.log != nil {
		if err := u.log.sync(); err != nil {
			u.slog.Warn("sync job log", "error", err)
		}
	}
	u.mu.Unlock()
	u.mu.Lock()
	out.Sources = u.status.namedSources()
	u.mu.Unlock()
	out.Staged = true
	if err := install.SaveOutcome(u.cfg.DataDir, out); err != nil {
		u.fail(out, err.Error())
		return nil
	}
	if err := install.SaveMarker(u.cfg.DataDir, *m); err != nil {
		u.fail(out, err.Error())
		return nil
	}
	if u.cfg.Link != nil {
		if err := u.cfg.Link.Restarting(); err != nil {
			u.slog.Warn("tell the supervisor", "error", err) // it hears it by this process's end
		}
	}
	u.enter(PhaseRestarting, o.JobID)
	return ErrRestart
}

// prepare does everything up to the marker, in the order of trust. A nil marker
// means that this host runs the release already.
func (u *Updater) prepare(ctx context.Context, o order.Order, out *install.Outcome) (*install.Marker, error) {
	// First: the manifest may be signed by a key that these bring in.
	if _, err := u.TakeKeyStatements(o.KeyStatements); err != nil {
		u.note(fmt.Sprintf("the order's key statements are not followed: %v", err))
	}
	off, err := u.verify(o)
	if err != nil {
		return nil, err
	}
	out.Digest, out.Number, out.Floor, out.Expires = off.Digest, off.Number, off.Floor, off.Expires
	t, err := loadTrust(u.cfg.DataDir)
	if err != nil {
		return nil, err
	}
	switch {
	case off.Digest == u.cfg.Digest && off.Version == u.cfg.Version:
		return nil, nil
	case off.Digest == u.cfg.Digest:
		return nil, fmt.Errorf("the release of version %s is the binary that runs here, which says that it is version %s; build it as %s and publish that", off.Version, u.cfg.Version, off.Version)
	}
	if err := t.admit(off, u.runningNumber(t, o), time.Now()); err != nil {
		return nil, err
	}
	if f, failed := install.FailedBefore(u.cfg.DataDir, o.JobID, off.Digest); failed {
		return nil, fmt.Errorf("this binary was rolled back before in this job: %s", f.Reason)
	}
	u.note(fmt.Sprintf("manifest verified: release %s, number %d, %d bytes, sha256 %s", off.Version, off.Number, off.Size, off.Digest))
	path, found, err := u.fetchAndCheck(ctx, o, off)
	if err != nil {
		return nil, err
	}
	u.note("preflight passed")
	var proof *install.SignedRelease
	if found.Place == install.InData {
		u.note(fmt.Sprintf("it will run from the data directory, and %s stays as it is, because %s", u.cfg.Installed, found.Why))
		proof = &install.SignedRelease{Manifest: o.Manifest, Signature: o.Signature, Keys: u.keysOf(t)}
	}
	if u.cfg.MayRestart != nil {
		if err := u.cfg.MayRestart(ctx); err != nil {
			return nil, err
		}
	}
	return &install.Marker{
		JobID: o.JobID, Attempt: o.Attempt, Index: o.Index, Version: off.Version, Digest: off.Digest,
		Number: off.Number, Floor: off.Floor, Expires: off.Expires, StagedPath: path,
		FromVersion: u.cfg.Version, FromDigest: u.cfg.Digest, State: install.Staged,
		Place: found.Place, Release: proof,
	}, nil
}

// fetchAndCheck gets the artifact into the store and finds out whether this host can
// run it. Bytes that are here already are verified by Preflight, which reads them
// through the descriptor that it executes: they are not read for it twice. If they
// prove bad they are fetched anew, once.
func (u *Updater) fetchAndCheck(ctx context.Context, o order.Order, off offer) (path string, found install.Verdict, err error) {
	here := u.holds(off)
	for {
		if path, err = u.fetch(ctx, o, off, here); err != nil {
			return "", found, err
		}
		u.enter(PhasePreflight, o.JobID)
		request := u.preflight(off)
		if here {
			request.Proof = u.staged.takeProof(ctx)
		}
		found, err = install.Preflight(ctx, request)
		switch {
		case found.Proven && err == nil:
			u.note("artifact verified, and asked for its version, shortly before this job")
		case here && err == nil:
			u.note("artifact verified")
		}
		if !here || !errors.Is(err, install.ErrDigest) {
			return path, found, err
		}
		u.note(fmt.Sprintf("what was here of it is damaged, and is fetched anew: %v", err))
		here = false
		u.enter(PhaseFetching, o.JobID)
	}
}

// preflight is what is to be found out of a staged artifact.
func (u *Updater) preflight(off offer) install.PreflightRequest {
	return install.PreflightRequest{
		Staged: u.cfg.Store.Path(off.Digest), Digest: off.Digest, Installed: u.cfg.Installed, DataDir: u.cfg.DataDir, Version: off.Version, Wish: u.cfg.Place,
	}
}

// holds tells whether the store has a file of an artifact's name and length.
func (u *Updater) holds(off offer) bool {
	st, err := os.Stat(u.cfg.Store.Path(off.Digest))
	return err == nil && st.Mode().IsRegular() && st.Size() == off.Size
}

// verify checks the release key's signature and picks this host's artifact.
func (u *Updater) verify(o order.Order) (offer, error) {
	t, err := loadTrust(u.cfg.DataDir)
	if err != nil {
		return offer{}, err
	}
	m, err := release.Verify(u.keysOf(t), o.Manifest, o.Signature)
	if err != nil {
		return offer{}, fmt.Errorf("verify the manifest of version %s: %w", o.Version, err)
	}
	if m.Version != o.Version {
		return offer{}, fmt.Errorf("the order is for version %s, its manifest is of %s", o.Version, m.Version)
	}
	a, ok := m.Artifact(runtime.GOOS, runtime.GOARCH)
	if !ok {
		return offer{}, fmt.Errorf("release %s has no artifact for %s/%s; publish one that has", m.Version, runtime.GOOS, runtime.GOARCH)
	}
	return offer{
		Version: m.Version, Number: m.Number, Floor: m.Floor, MinFrom: m.MinFrom, Rollback: m.Rollback,
		Expires: m.Expires, Digest: a.SHA256, Size: a.Size, Chunks: a.Chunks(),
	}, nil
}

// fetch gets the artifact into the store and returns its path; its progress is
// in the reports. here: it is there, and is verified by who reads it next.
func (u *Updater) fetch(ctx context.Context, o order.Order, off offer, here bool) (string, error) {
	u.cfg.Store.Pin(off.Digest)
	// Before the fetch, which needs the room. No limit keeps a host from its update: the
	// disk does, if it has no room.
	if err := u.makeRoom(off); err != nil {
		u.slog.Warn("make room for the artifact", "error", err)
	}
	u.mu.Lock()
	job := u.status.job
	u.status.total, u.status.sources = off.Size, map[string]fleet.Source{}
	u.mu.Unlock()
	pull := u.pull(o)
	var sources []artifact.Source
	var err error
	if !here {
		sources, err = u.patched(ctx, off, pull, u.note)
	}
	if !here && err == nil && sources == nil {
		sources, err = artifact.Fetch(ctx, artifact.FetchRequest{
			Store: u.cfg.Store, Digest: off.Digest, Size: off.Size, Chunks: off.Chunks, HTTP: u.cfg.HTTP,
			Candidates: func() []artifact.Peer { return u.cfg.Candidates(off.Digest) },
			Pull:       pull, Limiter: u.cfg.Limiter,
			Progress: func(done int64, from artifact.Peer) { u.progress(job, off.Size, done, from) },
			SetAside: func(p artifact.Peer, why error) {
				u.note(fmt.Sprintf("%s is asked no more for the artifact: %v", nameOf(p), why))
			},
		})
	}
	if err != nil {
		return "", fmt.Errorf("fetch release: %w", err)
	}
	if staged, patched := u.staged.from(off.Digest); len(sources) == 0 && len(staged) > 0 {
		how := "staged ahead of this job"
		if patched {
			how += ", as a patch of what runs here"
		}
		u.note(how)
		sources = staged
	}
	// The final count: bytes that proved bad are in none of these.
	final := map[string]fleet.Source{}
	for _, s := range sources {
		final[s.Peer.HostID] = sourceOf(s.Peer, s.Bytes)
		u.note(fmt.Sprintf("fetched %d bytes from %s", s.Bytes, nameOf(s.Peer)))
	}
	u.mu.Lock()
	u.status.done, u.status.sources = off.Size, final
	phase := u.status.phase
	u.mu.Unlock()
	if phase == PhaseFetching { // it was here already
		u.enter(PhaseVerifying, job)
	}
	if !here {
		u.note("artifact verified")
	}
	return u.cfg.Store.Path(off.Digest), nil
}

// pull says how relays get the artifact of an order for this host.
func (u *Updater) pull(o order.Order) *artifact.Pull {
	if u.cfg.Relays == nil {
		return nil
	}
	told := pullTold{}
	return &artifact.Pull{
		HostID: u.cfg.HostID, Manifest: o.Manifest, Signature: o.Signature, Relays: u.cfg.Relays,
		Old: u.cfg.Digest, Patched: u.patches(),
		Progress: func(p artifact.PullProgress) {
			u.mu.Lock()
			u.status.pulled = max(u.status.pulled, p.Moved)
			u.mu.Unlock()
			if line := told.line(p); line != "" {
				u.note(line)
			}
		},
	}
}

// pullTold is what the job's log says of a relay already: a line for each
// quarter keeps the log short, however slow the link.
type pullTold struct {
	relay   string
	quarter int64
}

// line returns what is to be said now, or "".
func (t *pullTold) line(p artifact.PullProgress) string {
	now := pullTold{relay: p.Relay.HostID, quarter: p.Done * 4 / max(p.Size, 1)}
	if now.relay == t.relay && now.quarter <= t.quarter {
		return ""
	}
	*t = now
	text := fmt.Sprintf("relay %s fetches it: %d %%", nameOf(p.Relay), p.Done*100/max(p.Size, 1))
	if p.From != "" {
		text += ", from " + p.From
	}
	return text
}

// progress takes note of the bytes that are here, and of who sent the newest.
func (u *Updater) progress(job string, size, done int64, from artifact.Peer) {
	u.mu.Lock()
	if done < u.status.done {
		clear(u.status.sources) // what they sent was bad
		u.status.done = 0
	}
	if added := done - u.status.done; added > 0 && from.HostID != "" {
		u.status.sources[from.HostID] = sourceOf(from, u.status.sources[from.HostID].Bytes+added)
	}
	u.status.done = done
	complete := done >= size && u.status.phase == PhaseFetching
	u.mu.Unlock()
	if complete {
		u.enter(PhaseVerifying, job)
	}
}

func sourceOf(p artifact.Peer, n int64) fleet.Source {
	return fleet.Source{HostID: p.HostID, Name: p.Name, Role: p.Role, Bytes: n}
}

func nameOf(p artifact.Peer) string {
	if p.Name != "" {
		return p.Name
	}
	return p.HostID
}
