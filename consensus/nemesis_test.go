package consensus

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"moult/consensus/fleet"
)

// TestAcknowledgedWritesSurviveAnyMinority writes through all servers at once
// while one after the other is killed, restarted from its disk, cut off, and in
// the end lost for good with its disk (invariant 10). Every write that was
// acknowledged must stand in every server's state, at the index that was
// acknowledged, and none may be applied twice, whatever became of its answer.
func TestAcknowledgedWritesSurviveAnyMinority(t *testing.T) {
	c := startCluster(t, 3, func(cfg *Config) {
		cfg.Snapshots = Snapshots{Interval: 50 * time.Millisecond, Threshold: 40, Trailing: 8} // restarts restore one
	})
	type write struct {
		name  string
		index uint64
	}
	var (
		tasks   sync.WaitGroup
		mu      sync.Mutex
		acked   []write
		tried   = map[string]bool{}
		ended   = make(chan struct{})
		written atomic.Int64
	)
	end := sync.OnceFunc(func() {
		close(ended)
		tasks.Wait()
	})
	defer end()
	for w := range 6 {
		tasks.Go(func() {
			pace := time.NewTicker(20 * time.Millisecond) // the state takes only so many users
			defer pace.Stop()
			for i := 0; ; i++ {
				select {
				case <-ended:
					return
				case <-pace.C:
				}
				all := c.all()
				if len(all) == 0 { // the test has failed
					return
				}
				name := fmt.Sprintf("w%d-%d", w, i)
				mu.Lock()
				tried[name] = true
				mu.Unlock()
				result, err := all[(w+i)%len(all)].Propose(c.within(500*time.Millisecond), "user:test", user(name))
				switch {
				case result.Index > 0 && result.Err == nil: // though this server may not have followed in time
					mu.Lock()
					acked = append(acked, write{name, result.Index})
					mu.Unlock()
					written.Add(1)
				case errors.Is(err, ErrClosed), errors.Is(err, ErrOutcomeUnknown), errors.Is(err, ErrNoLeader):
					// its server was killed, or the answer was lost
				default:
					t.Errorf("%s: %v", name, err) // a refusal would be its own first application
				}
			}
		})
	}
	progress := func() {
		t.Helper()
		before := written.Load()
		awaitSoon(t, "writes are acknowledged", func() bool { return written.Load() >= before+20 })
	}
	for range 2 {
		progress()
		leader := c.AwaitLeader()
		c.Kill(leader)
		progress()
		c.open(leader.id, leader.addr)
		progress()
		follower := c.Followers(c.AwaitLeader())[0]
		c.Cut(follower)
		progress()
		c.Heal(follower)
		progress()
		leader = c.AwaitLeader()
		c.Cut(leader)
		awaitSoon(t, "another leader", func() bool { return c.AwaitLeader() != leader })
		progress()
		c.Heal(leader)
	}
	progress()
	lost := c.AwaitLeader()
	c.Kill(lost)
	if err := os.RemoveAll(filepath.Join(c.dir, lost.id)); err != nil {
		t.Fatal(err)
	}
	progress()
	end()

	// The lost server's place is taken by a new one, which starts from a snapshot.
	survivor := c.AwaitLeader()
	if err := survivor.RemoveServer(c.within(patience), lost.id); err != nil {
		t.Fatal(err)
	}
	fresh := c.open("s9", "")
	if err := survivor.AddServer(c.within(patience), fresh.id, fresh.addr); err != nil {
		t.Fatal(err)
	}
	awaitSoon(t, "the new server is a voter", func() bool { return fresh.Ready() == nil && fresh.voters() == 3 })
	c.AwaitEqual()
	for _, s := range c.all() {
		at := map[uint64]fleet.AuditEntry{}
		times := map[string]int{}
		for _, e := range s.View().Audit(0, 1_000_000) {
			at[e.Index] = e
			times[e.Subject]++
		}
		for _, w := range acked {
			if e := at[w.index]; e.Subject != "user "+w.name || !hasUser(s, w.name) {
				t.Errorf("%s: %s was acknowledged at index %d, where %q stands", s.id, w.name, w.index, e.Subject)
			}
		}
		for name := range tried {
			if n := times["user "+name]; n > 1 {
				t.Errorf("%s: %s was applied %d times", s.id, name, n)
			}
		}
	}
	t.Logf("%d writes were acknowledged of %d tried", len(acked), len(tried))
}
