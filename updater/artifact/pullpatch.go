package artifact

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// FetchPatch gets an artifact into the store as a patch of another one that is in
// it. On an error nothing has changed, and the whole is to be fetched.
type FetchPatch func(context.Context, PatchWanted) (Source, error)

// PatchWanted says which patch, and from whom.
type PatchWanted struct {
	Old, New string // sha256
	Size     int64  // of the new artifact, as it was signed
	From     []Peer
	Progress func(n int64) // told of each n bytes that came in
}

// ErrNoPatch: the artifact is not to be had as a patch, and Fetch is to get the
// whole.
var ErrNoPatch = errors.New("there is no patch to be had")

// FetchPatched has a relay get the artifact, and takes it as the patch by which
// that got it. It is for a host that reaches nobody who has the artifact: the
// relay holds it afterwards, and Fetch finds it there when there was no patch.
// Of the request it uses what is about relays.
//
// Errors: ErrNoPatch; ctx's.
func FetchPatched(ctx context.Context, req FetchRequest) ([]Source, error) {
	if err := req.setDefaults(); err != nil {
		return nil, err
	}
	if req.Pull == nil || req.Pull.Patched == nil || req.Pull.Old == "" || req.Pull.Old == req.Digest {
		return nil, ErrNoPatch
	}
	own, watched, release, err := req.claim(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	if req.Store.Has(req.Digest) { // by another's fetch
		return watched.sources, nil
	}
	f := newFetch(req, own)
	last := errNobody
	for _, p := range f.orderRelays() {
		if last = f.awaitPull(ctx, p); last == nil {
			source, err := f.patchFrom(ctx, p)
			if err == nil {
				sources := []Source{source}
				own.update(func(s *flightState) { s.done, s.from, s.sources = req.Size, p, sources })
				return sources, nil
			}
			last = err
			break // it holds the whole
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return nil, fmt.Errorf("%w: %w", ErrNoPatch, last)
}

// patchFrom takes the artifact as a patch from a relay that holds it now.
func (f *fetch) patchFrom(ctx context.Context, p Peer) (Source, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	idle := time.AfterFunc(f.StallTimeout, cancel)
	defer idle.Stop()
	return f.Pull.Patched(ctx, PatchWanted{
		Old: f.Pull.Old, New: f.Digest, Size: f.Size, From: []Peer{p},
		Progress: func(int64) { idle.Reset(f.StallTimeout) },
	})
}

// patched gets the artifact for others as the patch that the first of them would
// take: from who has it, else through further relays.
func (p *Puller) patched(ctx context.Context, work *pull, req FetchRequest) ([]Source, error) {
	old, _, err := p.cfg.Store.Open(req.Pull.Old)
	if p.cfg.Patched == nil || err != nil {
		return nil, ErrNoPatch
	}
	old.Close()
	// A patch has half of the artifact's bytes at most, and is there until it is tried.
	if err := checkSpace(p.cfg.Store.dir, work.size+work.size/2+pullReserve); err != nil {
		return nil, err
	}
	from := req.Candidates()
	if len(from) == 0 {
		return FetchPatched(ctx, req)
	}
	// It leaves off when nothing comes in, before those who wait lose patience.
	limit := req.StallTimeout / 2
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	idle := time.AfterFunc(limit, cancel)
	defer idle.Stop()
	source, err := p.cfg.Patched(ctx, PatchWanted{
		Old: req.Pull.Old, New: req.Digest, Size: req.Size, From: from,
		Progress: func(n int64) {
			idle.Reset(limit)
			work.patch.Add(n)
		},
	})
	return []Source{source}, err
}
