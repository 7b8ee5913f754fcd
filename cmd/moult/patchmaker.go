package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"moult/consensus/fleet"
	"moult/mesh"
	"moult/updater/artifact"
	"moult/updater/patch"
)

// patchMaker makes patches to the newest release from those that agents run,
// while this server leads: one server's memory and processor are enough, and
// hosts ask all servers.
type patchMaker struct {
	state     *fleet.State
	artifacts *artifact.Store
	patches   *patch.Store
	members   func() []mesh.Member
	logger    *slog.Logger

	vain map[string]bool // patches that are not to be had
}

// wantedPatch is one between two artifacts, by their sha256.
type wantedPatch struct{ from, to string }

func (m *patchMaker) run(ctx context.Context) {
	m.vain = map[string]bool{}
	ticker := time.NewTicker(syncInterval)
	defer ticker.Stop()
	for {
		m.makeAll(ctx)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// makeAll makes what is wanted, and drops the patches to releases that are not
// the newest any more.
func (m *patchMaker) makeAll(ctx context.Context) {
	releases := m.state.View().Releases()
	wanted := patchesWanted(releases, func(digest string) bool { return runBy(m.members(), digest) })
	targets := map[string]bool{}
	if newest, ok := newestAvailable(releases); ok {
		for _, a := range newest.Artifacts {
			targets[a.SHA256] = true
		}
	}
	if err := m.patches.Prune(func(to string) bool { return targets[to] }); err != nil {
		m.logger.Warn("drop old patches", "error", err)
	}
	for _, w := range wanted {
		name := patch.Name(w.from, w.to)
		if m.vain[name] || m.patches.Has(w.from, w.to) {
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
			m.vain[name] = true
			m.logger.Info("no patch", "from", w.from[:12], "to", w.to[:12], "reason", err)
		}
	}
}

func newestAvailable(releases []fleet.Release) (fleet.Release, bool) {
	for _, r := range releases { // the highest number first
		if !r.Withdrawn {
			return r, true
		}
	}
	return fleet.Release{}, false
}

// patchesWanted are those to the newest available release from the older ones
// that somebody runs.
func patchesWanted(releases []fleet.Release, runs func(digest string) bool) (wanted []wantedPatch) {
	newest, ok := newestAvailable(releases)
	if !ok {
		return nil
	}
	for _, r := range releases {
		if r.Version == newest.Version || r.Withdrawn { // the bytes of a withdrawn one are gone
			continue
		}
		for _, old := range r.Artifacts {
			for _, a := range newest.Artifacts {
				if a.OS == old.OS && a.Arch == old.Arch && a.SHA256 != old.SHA256 && runs(old.SHA256) {
					wanted = append(wanted, wantedPatch{old.SHA256, a.SHA256})
				}
			}
		}
	}
	return wanted
}

// runBy tells whether an agent's record says that it runs a binary.
func runBy(members []mesh.Member, digest string) bool {
	for _, m := range members {
		if m.Digest != "" && strings.HasPrefix(digest, m.Digest) {
			return true
		}
	}
	return false
}
