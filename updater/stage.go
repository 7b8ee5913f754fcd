package updater

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"moult/updater/artifact"
	"moult/updater/install"
	"moult/updater/order"
)

const (
	// stageJitter spreads what a fleet begins at one moment, where the order does not
	// say how; it is also the most that an order can ask for. Less than a parent keeps
	// its children waiting.
	stageJitter = time.Second
	// stageReserve is how many bytes stay free beyond what is staged: a host needs room
	// for its own work more than a release ahead of time.
	stageReserve = 256 << 20
)

// stager fetches an artifact ahead of the host's turn: one at a time, the newest
// that was asked for. What it fetched lies in the store like any other artifact,
// where the host's turn finds it, and is kept there until another one is staged.
type stager struct {
	mu      sync.Mutex
	state   Staging    // of what is staged or being staged; the zero value: nothing
	parents [][]string // as the newest order has them
	running bool
	dropped bool              // what is being staged was withdrawn meanwhile
	sources []artifact.Source // who sent what is staged
	patched bool              // as a patch
	proof   *install.Proof    // of what is staged; nil: none
	proving chan struct{}     // closed when the proof that is made now is there, or will not be; nil: none is
	cancel  context.CancelFunc
	work    sync.WaitGroup
}

// stage carries a staging order out, as far as the fence lets it. It never blocks,
// raises no fence and touches nothing but the store.
func (u *Updater) stage(ctx context.Context, o order.Order) {
	if err := u.cfg.Fence.Check(o); err != nil {
		u.slog.Debug("staging order passed over", "version", o.Version, "index", o.Index, "error", err)
		return
	}
	if _, err := u.TakeKeyStatements(o.KeyStatements); err != nil {
		u.slog.Warn("the order's key statements are not followed", "error", err)
	}
	off, err := u.verify(o)
	if err != nil {
		u.slog.Warn("staging order refused", "version", o.Version, "error", err)
		return
	}
	if o.Action == order.ActionDrop {
		u.dropStaged(off)
		return
	}
	if off.Digest == u.cfg.Digest {
		return
	}
	t, err := loadTrust(u.cfg.DataDir)
	if err == nil {
		err = t.admit(off, u.runningNumber(t, o), time.Now())
	}
	if err != nil {
		u.slog.Warn("release not staged", "version", o.Version, "error", err)
		u.staged.show(Staging{Digest: off.Digest, State: StageFailed, Error: err.Error()})
		u.wake()
		return
	}
	if _, _, busy := u.standing(); busy {
		return // its own turn comes first; the order is sent again
	}
	u.beginStaging(ctx, o, off)
}

func (u *Updater) beginStaging(ctx context.Context, o order.Order, off offer) {
	s := &u.staged
	s.mu.Lock()
	defer s.mu.Unlock()
	defer u.wake() // who sends an order again has not heard how it stands
	s.parents = o.Parents
	switch {
	case s.running && s.state.Digest == off.Digest:
		return
	case s.running:
		s.cancel() // it ends in its own time; the order is sent again
		return
	case u.cfg.Store.Has(off.Digest):
		if s.state.Digest != off.Digest {
			s.state, s.sources = Staging{Digest: off.Digest, State: StageDone, Done: off.Size, Total: off.Size}, nil
		}
		if o.Next {
			u.prove(ctx, off)
		}
		return
	}
	s.state, s.sources = Staging{Digest: off.Digest, State: StageAwaitsPatch, Total: off.Size}, nil
	if o.AwaitPatch && u.cfg.Patches != nil {
		return
	}
	s.state.State, s.running, s.dropped = StageFetching, true, false
	ctx, s.cancel = context.WithCancel(ctx)
	s.work.Go(func() {
		err := u.fetchAhead(ctx, o, off)
		s.mu.Lock()
		defer s.mu.Unlock()
		defer u.wake()
		stopped := ctx.Err() != nil
		s.cancel()
		s.running = false
		switch {
		case err == nil:
			s.state.State, s.state.Done = StageDone, off.Size
		case stopped:
			s.state = Staging{}
			if s.dropped {
				u.discard(off, "staging stopped: the release was withdrawn")
			}
		default:
			u.slog.Warn("release not staged; it is tried again, or fetched at this host's turn", "version", off.Version, "error", err)
			s.state.State, s.state.Error = StageFailed, err.Error()
		}
	})
}

// prove does the job's preflight ahead of it, as this host's turn comes next: the host
// whose turn it is has passed its own. That this one does not is for its turn to tell.
// The lock is held.
func (u *Updater) prove(ctx context.Context, off offer) {
	s := &u.staged
	if s.proving != nil || ctx.Err() != nil || s.proof.Stands(u.preflight(off)) {
		return
	}
	done := make(chan struct{})
	s.proof, s.proving = nil, done
	s.work.Go(func() {
		proof, err := install.Prove(ctx, u.preflight(off))
		if err != nil {
			u.slog.Debug("preflight ahead of the turn", "version", off.Version, "error", err)
		}
		s.mu.Lock()
		s.proof, s.proving = proof, nil
		s.mu.Unlock()
		close(done)
	})
}

// takeProof returns what was proven of the staged file, once; it waits for a proof that
// is being made, as that is what the job would do itself.
func (s *stager) takeProof(ctx context.Context) *install.Proof {
	s.mu.Lock()
	proving := s.proving
	s.mu.Unlock()
	if proving != nil {
		select {
		case <-proving:
		case <-ctx.Done():
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	proof := s.proof
	s.proof = nil
	return proof
}

// fetchAhead gets the artifact into the store.
func (u *Updater) fetchAhead(ctx context.Context, o order.Order, off offer) error {
	spread := stageJitter
	if o.Spread > 0 {
		spread = min(o.Spread, stageJitter)
	}
	if !pause(ctx, rand.N(spread)) {
		return ctx.Err()
	}
	u.keep()
	if err := u.makeRoom(off); err != nil {
		return err
	}
	if free, known := u.cfg.Store.FreeBytes(); known && free < off.Size+stageReserve {
		return fmt.Errorf("%d MB are free in %s, staging %d MB leaves at least %d MB free; free some space", free/1e6, u.cfg.DataDir, off.Size/1e6, stageReserve/1_000_000)
	}
	u.slog.Info("staging a release", "version", off.Version, "bytes", off.Size, "digest", off.Digest)
	sources, err := u.patched(ctx, off, u.pullQuietly(o), func(s string) { u.slog.Info("staging: "+s, "version", off.Version) })
	if err != nil {
		return err
	}
	patched := sources != nil
	if !patched {
		sources, err = artifact.Fetch(ctx, artifact.FetchRequest{
			Store: u.cfg.Store, Digest: off.Digest, Size: off.Size, Chunks: off.Chunks, HTTP: u.cfg.HTTP,
			Candidates: func() []artifact.Peer { return u.cfg.Candidates(off.Digest) },
			Parents:    u.stageParents, Pull: u.pullQuietly(o), Limiter: u.cfg.Limiter,
			Progress: func(done int64, _ artifact.Peer) { u.staged.progress(off.Digest, done) },
			SetAside: func(p artifact.Peer, why error) {
				u.slog.Warn("peer is asked no more for the artifact", "peer", nameOf(p), "error", why)
			},
		})
	}
	if err != nil {
		return err
	}
	for _, s := range sources {
		u.slog.Info("staged bytes came in", "version", off.Version, "peer", nameOf(s.Peer), "bytes", s.Bytes)
	}
	u.slog.Info("release staged", "version", off.Version, "digest", off.Digest)
	u.rememberStaged(off.Digest, sources, patched)
	return nil
}

// makeRoom drops what has to make room for an artifact. The error says that there is
// none within the limit.
func (u *Updater) makeRoom(off offer) error {
	if u.cfg.Spare < 0 {
		return nil // somebody else prunes
	}
	if u.cfg.Patches != nil {
		if err := u.cfg.Patches.Prune(func(to string) bool { return to == off.Digest }); err != nil {
			u.slog.Warn("prune old patches", "error", err)
		}
	}
	return u.cfg.Store.MakeRoom(off.Digest, off.Size, u.cfg.Spare)
}

// stageParents resolves the parents that the newest order names.
func (u *Updater) stageParents() [][]artifact.Peer {
	if u.cfg.Named == nil {
		return nil
	}
	u.staged.mu.Lock()
	parents := u.staged.parents
	u.staged.mu.Unlock()
	out := make([][]artifact.Peer, len(parents))
	for i, ids := range parents {
		out[i] = u.cfg.Named(ids)
	}
	return out
}

// pullQuietly has relays get what is staged; no job's log tells of it.
func (u *Updater) pullQuietly(o order.Order) *artifact.Pull {
	if u.cfg.Relays == nil {
		return nil
	}
	return &artifact.Pull{
		HostID: u.cfg.HostID, Manifest: o.Manifest, Signature: o.Signature, Relays: u.cfg.Relays,
		Old: u.cfg.Digest, Patched: u.patches(),
	}
}

// dropStaged deletes a release's artifact, unless it runs here, is on trial or is of
// the job that is under way.
func (u *Updater) dropStaged(off offer) {
	if _, phase, busy := u.standing(); busy || phase == PhaseTrial || phase == PhaseRestarting || off.Digest == u.cfg.Digest || u.cfg.Spare < 0 {
		return
	}
	s := &u.staged
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running && s.state.Digest == off.Digest {
		s.dropped = true // it goes when the fetch has ended; what came in whole is told of again
		s.cancel()
		return
	}
	if s.state.Digest == off.Digest {
		s.state, s.sources = Staging{}, nil
	}
	if !u.cfg.Store.Has(off.Digest) {
		return
	}
	if u.discard(off, "dropped a withdrawn release") {
		u.wake()
	}
}

// discard deletes what the store has of a withdrawn release, says so, and tells whether
// it did.
func (u *Updater) discard(off offer, says string) bool {
	if err := u.cfg.Store.Remove(off.Digest); err != nil {
		u.slog.Warn("drop a withdrawn release", "version", off.Version, "error", err)
		return false
	}
	u.slog.Info(says, "version", off.Version, "digest", off.Digest)
	return true
}

// end stops the staging and waits for it.
func (s *stager) end() {
	s.mu.Lock()
	if s.cancel != nil {
		s.cancel()
	}
	s.mu.Unlock()
	s.work.Wait()
}
