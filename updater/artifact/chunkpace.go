package artifact

import (
	"context"
	"fmt"
	"io"
	"time"
)

// How long chunks are waited for, and how far stripes run apart.
const (
	// Who waits for a parent that waits for its own is patient for longer, so that
	// the one next to the trouble finds a way around it: a share of StallTimeout, and
	// so much more for each ancestor.
	stallShare      = 3
	stallPerAncient = 4
	// replacementShare: who takes a parent's place has less, as it may itself come to
	// wait for this host when several are gone.
	replacementShare = 2
	// A stripe for which others were held back for half of lagPatience is taken from
	// another peer, at most maxLagMoves times.
	lagPatience = 3 * time.Second
	maxLagMoves = 3
	// stripeLead is how many chunks a stripe may be ahead of another one: whoever sends
	// them has one link for all, and those behind this host need all stripes alike.
	// Waiting for a stripe that does not get on ends after leadPatience.
	stripeLead   = 16
	leadPatience = time.Second
)

// stallOf is how long a peer may send nothing. Who passes chunks on sends nothing while
// one comes in.
func (c *chunkFetch) stallOf(p chunkPeer) time.Duration {
	d := c.StallTimeout / stallShare
	if p.kind == holder {
		if c.Pull == nil || len(c.Pull.Via) == 0 {
			return c.StallTimeout
		}
		return d // others wait for this host
	}
	chunk := time.Duration(0)
	if rate := c.leastRate(); rate > 0 {
		chunk = time.Duration(float64(c.Chunks.Size) * float64(c.stripes) / float64(rate) * float64(time.Second))
	}
	switch {
	case p.kind == relay:
		return d + chunk
	case p.place > 0:
		return d/replacementShare + chunk
	}
	return d + time.Duration(p.ancient)*d/stallPerAncient + chunk
}

// patientReader puts the stall off with each read that brings something, and holds
// reads back to the limiter's rate.
type patientReader struct {
	*fetch
	body     io.Reader
	ctx      context.Context
	stall    *time.Timer
	patience time.Duration
}

func (r *patientReader) Read(b []byte) (int, error) {
	if r.Limiter != nil {
		b = b[:min(len(b), pacedRead)]
	}
	n, err := r.body.Read(b)
	if n > 0 && r.Limiter != nil {
		if waitErr := r.hold(func() error { return r.Limiter.WaitN(r.ctx, n) }); waitErr != nil {
			return n, waitErr
		}
	}
	if n > 0 {
		r.stall.Reset(r.patience)
	}
	return n, err
}

// hold waits for something else than the peer, which is no stall of the peer's.
func (r *patientReader) hold(wait func() error) error {
	r.stall.Stop()
	defer r.stall.Reset(r.patience)
	return wait()
}

// awaitOthers holds a stripe back that is too far ahead of another one.
func (c *chunkFetch) awaitOthers(ctx context.Context, at, stripe int, hold func(func() error) error) error {
	behind := func() bool {
		for other := range c.stripes {
			if first, n := c.file.missing(other, c.stripes); other != stripe && n > 0 && first/c.stripes+stripeLead < at {
				return true
			}
		}
		return false
	}
	if !behind() {
		return nil
	}
	patience := time.NewTimer(leadPatience)
	defer patience.Stop()
	began := time.Now()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for other := range c.stripes {
			if other != stripe {
				c.blamed[other] += time.Since(began)
			}
		}
	}()
	return hold(func() error {
		for {
			news := c.file.next()
			if !behind() {
				return nil
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-patience.C:
				return nil
			case <-news:
			}
		}
	})
}

// blame is how long others were held back for a stripe.
func (c *chunkFetch) blame(stripe int) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.blamed[stripe]
}

// stripeTaker holds what one peer sends against what is asked of it.
type stripeTaker struct {
	*chunkFetch
	peer    chunkPeer
	stripe  int
	minRate int64 // bytes per second; not above 0: any
	window  time.Time
	bytes   int64 // since then
	begun   time.Time
	// blamedBefore is how long others had waited for the stripe by begun.
	blamedBefore time.Duration
}

func (c *chunkFetch) newTaker(p chunkPeer, stripe int) *stripeTaker {
	rate := c.leastRate() / int64(c.stripes)
	if p.kind == relay {
		rate /= pullRateShare
	}
	now := time.Now()
	return &stripeTaker{chunkFetch: c, peer: p, stripe: stripe, minRate: rate, window: now, begun: now, blamedBefore: c.blame(stripe)}
}

// arrived counts a verified chunk and tells how far it is.
func (t *stripeTaker) arrived(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	done := t.file.done()
	t.sources = addSource(t.sources, t.peer.Peer, int64(n))
	t.Store.fetched.Add(int64(n))
	t.flight.update(func(s *flightState) {
		s.done, s.from = done, t.peer.Peer
		if t.peer.kind != relay { // or it is one that this host waits for
			s.through = nil
		}
	})
	t.Progress(done, t.peer.Peer)
}

// pace: a peer that is slow, or by which its stripe lags behind the others, is left
// for another one.
func (t *stripeTaker) pace(n int) error {
	t.bytes += int64(n)
	if elapsed := time.Since(t.window); elapsed >= t.StallTimeout {
		if rate := float64(t.bytes) / elapsed.Seconds(); t.minRate > 0 && rate < float64(t.minRate) {
			return fmt.Errorf("%w: %.0f bytes per second", errTooSlow, rate)
		}
		t.window, t.bytes = time.Now(), 0
	}
	if time.Since(t.begun) < lagPatience {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	waited := t.blamed[t.stripe] - t.blamedBefore
	t.begun, t.blamedBefore = time.Now(), t.blamed[t.stripe]
	if waited < lagPatience/2 || t.moves[t.stripe] >= maxLagMoves {
		return nil
	}
	t.moves[t.stripe]++
	return fmt.Errorf("%w: others waited for it for %s", errTooSlow, waited.Round(time.Millisecond))
}
