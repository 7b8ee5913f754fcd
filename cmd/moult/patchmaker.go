package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"moult/consensus/fleet"
	"moult/mesh"
	"moult/updater/artifact"
	"moult/updater/patch"
)

// How long hosts that stage a release are told to wait for a patch that is not made
// yet: patchAllowance, and a second for each patchPace bytes of the release. It is
// made at several times that pace where the leader has a processor to itself.
const (
	patchAllowance = 3 * time.Second
	patchPace      = 2 << 20
)

// patchMaker makes patches to the releases that hosts are to have from those that
// agents run, while this server leads: one at a time, as one server's memory and
// processor are enough, and hosts ask all servers.
type patchMaker struct {
	state     *fleet.State
	artifacts *artifact.Store
	patches   *patch.Store
	members   func() []mesh.Member
	logger    *slog.Logger

	mu    sync.Mutex
	vain  map[string]bool      // patches that are not to be had, by their names
	asked map[string]time.Time // when hosts were first told to wait for it
}

// wantedPatch is one between two artifacts, by their sha256.
type wantedPatch struct {
	from, to string
	size     int64 // of what it makes
}

func (w wantedPatch) name() string { return patch.Name(w.from, w.to) }

func (m *patchMaker) run(ctx context.Context) {
	m.mu.Lock()
	m.vain, m.asked = map[string]bool{}, map[string]time.Time{}
	m.mu.Unlock()
	events, end := m.state.Subscribe()
	defer end()
	ticker := time.NewTicker(syncInterval)
	defer ticker.Stop()
	for {
		m.makeAll(ctx)
		for again := false; !again; {
			select {
			case <-ctx.Done():
				return
			case e := <-events: // what is published, or staged, is to be had as a patch soon
				again = slices.Contains(e.Topics, "releases") || slices.Contains(e.Topics, "*")
			case <-ticker.C:
				again = true
			}
		}
	}
}

// makeAll makes what is wanted, and drops the patches to releases that hosts are not
// to have any more.
func (m *patchMaker) makeAll(ctx context.Context) {
	v := m.state.View()
	targets := map[string]bool{}
	for _, r := range patchTargets(v.Releases(), activeUpdate(v)) {
		for _, a := range r.Artifacts {
			targets[a.SHA256] = true
		}
	}
	if err := m.patches.Prune(func(to string) bool { return targets[to] }); err != nil {
		m.logger.Warn("drop old patches", "error", err)
	}
	for _, w := range m.wanted(v) {
		if !m.missing(w) {
			continue
		}
		begin := time.Now()
		err := m.patches.Make(ctx, m.artifacts, w.from, w.to)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			m.logger.Info("made a patch", "from", w.from[:12], "to", w.to[:12], "seconds", time.Since(begin).Seconds())
		case errors.Is(err, artifact.ErrNotHeld): // its bytes are on their way
		default:
			m.mu.Lock()
			m.vain[w.name()] = true
			m.mu.Unlock()
			m.logger.Info("no patch", "from", w.from[:12], "to", w.to[:12], "reason", err)
		}
	}
}

func (m *patchMaker) wanted(v fleet.View) []wantedPatch {
	running := map[string]bool{}
	for _, member := range m.members() {
		running[member.Digest] = true
	}
	return patchesWanted(v.Releases(), activeUpdate(v), func(digest string) bool { return running[recorded(digest)] })
}

// missing tells whether a patch is still to be made.
func (m *patchMaker) missing(w wantedPatch) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.vain[w.name()] && !m.patches.Has(w.from, w.to)
}

// awaited returns what tells whether it is worth while for hosts that run a binary,
// by the first 16 hex digits of its sha256, to wait for a patch to another one: it is
// being made, or comes next, and there is time.
func (m *patchMaker) awaited(now time.Time) func(running, to string) bool {
	type pair struct{ running, to string }
	waits := sync.OnceValue(func() map[pair]bool { // at rest nobody asks
		waits := map[pair]bool{}
		for _, w := range m.wanted(m.state.View()) {
			if m.missing(w) && m.inTime(w, now) {
				waits[pair{recorded(w.from), w.to}] = true
			}
		}
		return waits
	})
	return func(running, to string) bool { return waits()[pair{running, to}] }
}

// recordedDigits is how much of a digest a host's record says.
const recordedDigits = 16

func recorded(digest string) string { return digest[:min(len(digest), recordedDigits)] }

func (m *patchMaker) inTime(w wantedPatch, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.asked == nil {
		m.asked = map[string]time.Time{} // it is about to begin
	}
	since, asked := m.asked[w.name()]
	if !asked {
		since = now
		m.asked[w.name()] = now
	}
	return now.Sub(since) < patchAllowance+time.Duration(w.size/patchPace)*time.Second
}

func activeUpdate(v fleet.View) string {
	u, _ := v.ActiveFleetUpdate()
	return u.ID
}

// patchTargets are the releases that hosts are to have: the newest that is available,
// and those that are staged, for all hosts or for the active fleet update.
func patchTargets(releases []fleet.Release, update string) (targets []fleet.Release) {
	newest := true
	for _, r := range releases { // the highest number first
		staged := r.StageIndex != 0 && (r.StageFor == "" || r.StageFor == update)
		if r.Withdrawn || !newest && !staged {
			continue
		}
		newest = false
		targets = append(targets, r)
	}
	return targets
}

// patchesWanted are those to the targets from the other releases that somebody runs.
func patchesWanted(releases []fleet.Release, update string, runs func(digest string) bool) (wanted []wantedPatch) {
	for _, target := range patchTargets(releases, update) {
		for _, r := range releases {
			if r.Version == target.Version || r.Withdrawn { // the bytes of a withdrawn one are gone
				continue
			}
			for _, old := range r.Artifacts {
				for _, a := range target.Artifacts {
					if a.OS == old.OS && a.Arch == old.Arch && a.SHA256 != old.SHA256 && runs(old.SHA256) {
						wanted = append(wanted, wantedPatch{old.SHA256, a.SHA256, a.Size})
					}
				}
			}
		}
	}
	return wanted
}
