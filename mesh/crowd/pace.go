package crowd

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// PaceLimits bound the handshakes of a listener. A TLS handshake costs whoever asks
// for it next to nothing, and the listener a millisecond of its processor.
type PaceLimits struct {
	PerSecond int // that strangers get together
	AtOnce    int // that they get at once, after a rest

	KnownPerSecond int // of one known address, before it waits with the strangers
	KnownAtOnce    int
	KnownFor       time.Duration // how long an address is known
	MaxKnown       int           // addresses
}

// Pace lets strangers' handshakes begin at a bounded pace, in the order in which they
// came; those of known addresses begin at once. So a flood of handshakes takes a
// bounded part of the processor, and those who belong here don't wait behind it. Its
// methods are safe for concurrent use.
type Pace struct {
	limits PaceLimits
	turns  chan struct{}

	mu    sync.Mutex
	known map[string]*acquaintance // by Source
}

// acquaintance is an address from which somebody came who has shown who he is.
type acquaintance struct {
	until time.Time
	own   *rate.Limiter
}

// NewPace returns a pace at which nobody waits yet. Strangers wait for Run.
func NewPace(l PaceLimits) *Pace {
	p := &Pace{limits: l, turns: make(chan struct{}, l.AtOnce), known: map[string]*acquaintance{}}
	for range l.AtOnce {
		p.turns <- struct{}{}
	}
	return p
}

// Run gives strangers their turns until ctx ends.
func (p *Pace) Run(ctx context.Context) {
	every := time.Second / time.Duration(p.limits.PerSecond)
	timer := time.NewTimer(every)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		select {
		case p.turns <- struct{}{}: // at rest this waits
		case <-ctx.Done():
			return
		}
		timer.Reset(every)
	}
}

// Await returns when the handshake of a connection from this source may begin, or
// when ctx ends. Whoever is pushed out of a Crowd should end ctx by that, else the
// dead wait before the living.
func (p *Pace) Await(ctx context.Context, source string) error {
	if p.knows(source) {
		return nil
	}
	select {
	case <-p.turns:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for a turn among strangers: %w", context.Cause(ctx))
	}
}

// Met notes that somebody came from this source who has shown who he is.
func (p *Pace) Met(source string) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if a := p.known[source]; a != nil {
		a.until = now.Add(p.limits.KnownFor)
		return
	}
	if len(p.known) >= p.limits.MaxKnown {
		p.forgetOne(now)
	}
	p.known[source] = &acquaintance{until: now.Add(p.limits.KnownFor), own: rate.NewLimiter(rate.Limit(p.limits.KnownPerSecond), p.limits.KnownAtOnce)}
}

// forgetOne makes room: all that nobody came from for long, or else the one that was
// met the longest ago. The caller holds mu.
func (p *Pace) forgetOne(now time.Time) {
	var oldest string
	for source, a := range p.known {
		if now.After(a.until) {
			delete(p.known, source)
		} else if o := p.known[oldest]; o == nil || a.until.Before(o.until) {
			oldest = source
		}
	}
	if len(p.known) >= p.limits.MaxKnown {
		delete(p.known, oldest)
	}
}

func (p *Pace) knows(source string) bool {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.known[source]
	return a != nil && now.Before(a.until) && a.own.AllowN(now, 1)
}
