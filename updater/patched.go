package updater

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"moult/updater/artifact"
	"moult/updater/patch"
)

const (
	// patchPatience bounds what a patch may cost in time, before the whole artifact
	// is fetched.
	patchPatience = 2 * time.Minute
	// patchRounds is how often busy peers are asked, with patchPause between, half of
	// it by chance. When a whole fleet asks the few that have a patch, each round finds
	// more of them: who took it passes it on.
	patchRounds = 5
	patchPause  = 2 * time.Second
)

// patched gets the artifact as a patch of what this host runs, and returns who
// sent it; nobody when it is here already, or the whole artifact has to be
// fetched; note tells how that went. Where nobody near has the artifact, a relay
// gets it first, as pull says. The only error is ctx's.
func (u *Updater) patched(ctx context.Context, off offer, pull *artifact.Pull, note func(string)) ([]artifact.Source, error) {
	if u.cfg.Patches == nil || off.Digest == u.cfg.Digest || u.cfg.Store.Has(off.Digest) {
		return nil, nil
	}
	bounded, cancel := context.WithTimeout(ctx, patchPatience)
	defer cancel()
	source, err := u.askForPatch(bounded, off)
	for round := 1; errors.Is(err, patch.ErrBusy) && round < patchRounds && pause(bounded, patchPause/2+rand.N(patchPause/2)); round++ {
		source, err = u.askForPatch(bounded, off)
	}
	sources := []artifact.Source{source}
	if errors.Is(err, patch.ErrNotHeld) && pull != nil && len(u.cfg.Candidates(off.Digest)) == 0 {
		sources, err = artifact.FetchPatched(bounded, artifact.FetchRequest{
			Store: u.cfg.Store, Digest: off.Digest, Size: off.Size, HTTP: u.cfg.HTTP,
			Candidates: func() []artifact.Peer { return nil }, Pull: pull, Limiter: u.cfg.Limiter,
		})
		if err != nil { // that relays have none is no news; what keeps them from more, Fetch tells
			return nil, ctx.Err()
		}
	}
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err == nil && len(sources) > 0:
		note(fmt.Sprintf("took it as a patch of %d bytes of what runs here", sources[0].Bytes))
		return sources, nil
	case err == nil:
	case !errors.Is(err, patch.ErrNotHeld): // nobody having one is no news
		note(fmt.Sprintf("the whole artifact is needed: %v", err))
	}
	return nil, nil
}

// askForPatch asks those who have the new artifact by now.
func (u *Updater) askForPatch(ctx context.Context, off offer) (artifact.Source, error) {
	return patch.Fetch(ctx, patch.Request{
		Artifacts: u.cfg.Store, Patches: u.cfg.Patches, Old: u.cfg.Digest, New: off.Digest, Size: off.Size,
		Candidates: u.cfg.Candidates(off.Digest), HTTP: u.cfg.HTTP, Limiter: u.cfg.Limiter,
	})
}

// patches says how a patch comes from a relay that had to get it first; nil: none
// does.
func (u *Updater) patches() artifact.FetchPatch {
	if u.cfg.Patches == nil {
		return nil
	}
	return patch.Fetcher(u.cfg.Store, u.cfg.Patches, u.cfg.HTTP, u.cfg.Limiter)
}

// pause tells whether ctx outlived it.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
