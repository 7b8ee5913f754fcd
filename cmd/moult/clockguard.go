package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"moult/cmd/internal/nodekit"
)

// Limits of how clocks are watched.
const (
	clockLook      = 500 * time.Millisecond // between looks at the own clock
	clockAsk       = 2 * time.Second        // between questions to the other servers, after a step
	clockTolerance = 30 * time.Second       // what counts as a step, and how far clocks that agree may lie apart
	clockPatience  = 10 * time.Minute       // after which a clock that nobody agrees with counts as set on purpose
)

// clockGuard keeps a server from leading after its clock was stepped, until the
// other servers' clocks agree with it. A leader's clock is in the orders that hosts
// accept for some minutes only, and in each log entry; with a wrong one, hosts that
// are well would be failed. A step is seen by the monotonic clock beside it. After a
// machine was asleep all its clocks step, and agree at once.
type clockGuard struct {
	others func(ctx context.Context) []time.Time // what the clocks of those servers say that answer
	now    func() time.Time                      // the wall clock
	mono   func() time.Duration                  // the monotonic one
	logger *slog.Logger

	mu      sync.Mutex
	wall    time.Time     // when all was well last, by the wall clock, and
	at      time.Duration // by the monotonic one
	step    time.Duration // of the wall clock since, 0 while it may be trusted
	stepped time.Duration // when that was seen first, by the monotonic clock
}

func newClockGuard(others func(ctx context.Context) []time.Time, logger *slog.Logger) *clockGuard {
	start := time.Now()
	g := &clockGuard{others: others, now: func() time.Time { return time.Now().Round(0) }, mono: func() time.Duration { return time.Since(start) }, logger: logger}
	g.wall, g.at = g.now(), g.mono()
	return g
}

// unfit says why this server must not lead now. It looks at the clock itself, so that
// no step is too fresh to be seen.
func (g *clockGuard) unfit() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.look(); g.step == 0 {
		return nil
	}
	return fmt.Errorf("this server's clock was stepped by %v and the other servers' do not agree with it; set it right (see: timedatectl)", g.step.Round(time.Second))
}

// look compares the clocks. The caller holds g.mu.
func (g *clockGuard) look() {
	wall, at := g.now(), g.mono()
	step := wall.Sub(g.wall) - (at - g.at)
	switch {
	case step.Abs() <= clockTolerance:
		if g.step != 0 {
			g.logger.Info("the clock is as it was", "was_off", g.step)
		}
		g.wall, g.at, g.step = wall, at, 0 // small ones add up to no step
	case g.step == 0:
		g.logger.Error("the clock was stepped; this server does not lead until the other servers' clocks agree with it", "step", step)
		g.step, g.stepped = step, at
	default:
		g.step = step
	}
}

// run watches until ctx ends.
func (g *clockGuard) run(ctx context.Context) {
	asked := time.Duration(0)
	for nodekit.Sleep(ctx, clockLook) {
		if g.unfit() == nil {
			continue
		}
		if at := g.mono(); asked == 0 || at-asked >= clockAsk {
			asked = at
			g.compare(ctx)
		}
	}
}

// compare trusts the clock again if a majority of the servers that answer, this one
// among them, is of its opinion.
func (g *clockGuard) compare(ctx context.Context) {
	others := g.others(ctx)
	agree := 0
	for _, t := range others {
		if g.now().Sub(t).Abs() <= clockTolerance {
			agree++
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.step == 0:
	case agree > 0 && 2*(agree+1) > len(others)+1:
		g.logger.Info("the other servers' clocks agree with this one", "step", g.step, "agree", agree, "of", len(others))
		g.trust()
	case g.mono()-g.stepped > clockPatience:
		g.logger.Warn("nobody agrees with this server's clock; it counts as set on purpose", "step", g.step, "after", clockPatience)
		g.trust()
	}
}

// trust begins anew from the present clock. The caller holds g.mu.
func (g *clockGuard) trust() { g.wall, g.at, g.step = g.now(), g.mono(), 0 }

// otherClocks asks all other servers at once. A server of an earlier version does not
// tell.
func (m *membership) otherClocks(ctx context.Context) (clocks []time.Time) {
	var mu sync.Mutex
	var asked sync.WaitGroup
	for _, s := range m.raft.Servers() {
		if s.ID == m.self {
			continue
		}
		asked.Go(func() {
			st, err := m.servers.Status(ctx, s.Address)
			mu.Lock()
			defer mu.Unlock()
			if err == nil && !st.Now.IsZero() {
				clocks = append(clocks, st.Now)
			}
		})
	}
	asked.Wait()
	return clocks
}
