package consensus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestLeadIsExclusive moves and kills leaders while each one's callback writes
// to the log as fast as it can. What one callback wrote must lie in one piece in
// the log, and no server may run two callbacks at a time.
func TestLeadIsExclusive(t *testing.T) {
	c := startCluster(t, 3, nil)
	ctx, stop := context.WithCancel(context.Background())
	var (
		tasks sync.WaitGroup
		terms atomic.Int64
	)
	defer tasks.Wait()
	defer stop()
	for _, s := range c.all() {
		var running atomic.Int32
		tasks.Go(func() {
			s.Lead(ctx, func(ctx context.Context) {
				if running.Add(1) != 1 {
					t.Errorf("%s runs two callbacks", s.id)
				}
				defer running.Add(-1)
				term := terms.Add(1)
				for i := 0; ctx.Err() == nil; i++ {
					_, err := s.Propose(ctx, fmt.Sprintf("term:%d", term), user(fmt.Sprintf("t%d-%d", term, i)))
					if err != nil && ctx.Err() == nil && !errors.Is(err, ErrOutcomeUnknown) && !errors.Is(err, ErrNoLeader) {
						t.Errorf("%s in term %d: %v", s.id, term, err)
					}
				}
			})
		})
	}
	written := func(s *server, more int) {
		before := s.AppliedIndex()
		awaitSoon(t, "the callback writes", func() bool { return s.AppliedIndex() >= before+uint64(more) })
	}
	for range 4 {
		old := c.AwaitLeader()
		written(old, 20)
		if err := old.TransferLeadership(c.within(5 * time.Second)); err != nil {
			t.Logf("transfer: %v", err) // under this load a target may be too slow
		}
	}
	cut := c.AwaitLeader()
	written(cut, 20)
	c.Cut(cut)
	written(c.AwaitLeader(), 20)
	c.Heal(cut)
	killed := c.AwaitLeader()
	written(killed, 20)
	c.Kill(killed)
	written(c.AwaitLeader(), 20)
	stop()
	tasks.Wait()
	c.AwaitEqual()

	var order []string
	seen := make(map[string]bool)
	for _, e := range c.all()[0].View().Audit(0, 1_000_000) {
		if !strings.HasPrefix(e.Actor, "term:") || len(order) > 0 && order[len(order)-1] == e.Actor {
			continue
		}
		if seen[e.Actor] {
			t.Errorf("index %d: %s wrote after its successor", e.Index, e.Actor)
		}
		seen[e.Actor] = true
		order = append(order, e.Actor)
	}
	if len(order) < 3 {
		t.Errorf("only %d terms wrote anything: %v", len(order), order)
	}
}

func TestLeadCallsAgainWhenTheCallbackReturns(t *testing.T) {
	c := startCluster(t, 1, nil)
	s := c.all()[0]
	ctx, stop := context.WithCancel(c.within(patience))
	calls := 0
	s.Lead(ctx, func(context.Context) {
		if calls++; calls == 3 {
			stop()
		}
	})
	if calls != 3 {
		t.Errorf("called %d times", calls)
	}
}

// TestAFencedProposalIsNotForwarded: under a context from Lead, a server that
// lost leadership must not pass the proposal to its successor.
func TestAFencedProposalIsNotForwarded(t *testing.T) {
	c := startCluster(t, 3, nil)
	var (
		tasks sync.WaitGroup
		first sync.Once
		old   *server
		got   error
	)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	for _, s := range c.all() { // whoever leads: a leader may be lost by chance
		tasks.Go(func() {
			s.Lead(ctx, func(lead context.Context) {
				first.Do(func() {
					defer stop()
					for lead.Err() == nil { // on a busy machine a target may be too slow
						_ = s.TransferLeadership(c.within(time.Second))
					}
					// Even with a context that outlives the term, such as for a last word.
					_, got = s.Propose(context.WithoutCancel(lead), "user:test", user("late"))
					old = s
				})
			})
		})
	}
	tasks.Wait()
	if !errors.Is(got, ErrNoLeader) {
		t.Errorf("got %v, want ErrNoLeader", got)
	}
	mustPropose(t, old, user("marker"))
	if hasUser(old, "late") {
		t.Error("the proposal was forwarded")
	}
}

func TestLeadSeesEverythingCommittedBefore(t *testing.T) {
	c := startCluster(t, 1, nil)
	s := c.all()[0]
	var last uint64
	for i := range 200 {
		last = mustPropose(t, s, user(fmt.Sprintf("u%d", i))).Index
	}
	c.Stop(s)
	again := c.open(s.id, s.addr) // replays the log once it is elected
	ctx, stop := context.WithCancel(c.within(patience))
	ran := false
	again.Lead(ctx, func(context.Context) {
		defer stop()
		ran = true
		if got := again.AppliedIndex(); got < last {
			t.Errorf("the callback began at index %d of %d", got, last)
		}
	})
	if !ran {
		t.Error("the callback did not run")
	}
}
