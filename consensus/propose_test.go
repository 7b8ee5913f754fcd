package consensus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"moult/consensus/fleet"
)

func TestAnyServerTakesProposalsAndReadsItsOwnWrites(t *testing.T) {
	c := startCluster(t, 3, nil)
	for i := range 30 {
		s := c.all()[i%3]
		name := fmt.Sprintf("user-%d", i)
		result := mustPropose(t, s, user(name))
		if !hasUser(s, name) {
			t.Fatalf("%s does not show %s after Propose returned index %d", s.id, name, result.Index)
		}
		if got := s.AppliedIndex(); got < result.Index {
			t.Fatalf("%s is at %d after Propose returned %d", s.id, got, result.Index)
		}
	}
	c.AwaitEqual()
}

func TestARefusalComesBackWithItsCodeFromAnyServer(t *testing.T) {
	c := startCluster(t, 3, nil)
	for _, s := range c.all() {
		result, err := s.Propose(c.within(patience), "user:test", user("first"))
		var refused *fleet.Error
		if !errors.As(err, &refused) || refused.Code != fleet.CodeUserExists || result.Err == nil || result.Index == 0 {
			t.Errorf("%s: got %+v, %v; want a refusal with %s", s.id, result, err, fleet.CodeUserExists)
		}
	}
}

func TestAProposalIsAppliedOnceHoweverOftenItIsSent(t *testing.T) {
	c := startCluster(t, 3, nil)
	e, err := fleet.NewEntry(uuid.NewString(), "user:test", time.Now(), user("ann"))
	if err != nil {
		t.Fatal(err)
	}
	var first uint64
	for i := range 6 {
		s := c.all()[i%3]
		r, err := s.propose(c.within(patience), e)
		if err != nil || r.Err != nil {
			t.Fatalf("attempt %d: %v, %v", i, err, r.Err)
		}
		if first == 0 {
			first = r.Index
		}
		if r.Index != first {
			t.Errorf("attempt %d: index %d, want the first one's, %d", i, r.Index, first)
		}
	}
}

// TestLeaderKilledWithProposalsInFlight keeps proposing on the two surviving
// servers while the leader dies. Each proposal must be confirmed and applied
// once; a second application would come back as a refusal of its own name.
func TestLeaderKilledWithProposalsInFlight(t *testing.T) {
	c := startCluster(t, 3, nil)
	leader := c.AwaitLeader()
	survivors := c.Followers(leader)
	ctx := c.within(patience)
	const workers, killAfter = 8, 40
	var (
		tasks     sync.WaitGroup
		mu        sync.Mutex
		confirmed []string
		killed    = make(chan struct{})
		enough    = make(chan struct{})
	)
	for w := range workers {
		tasks.Go(func() {
			for i, after := 0, 0; after < 10; i++ {
				name := fmt.Sprintf("w%d-%d", w, i)
				if _, err := survivors[w%2].Propose(ctx, "user:test", user(name)); err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
				mu.Lock()
				if confirmed = append(confirmed, name); len(confirmed) == killAfter {
					close(enough)
				}
				mu.Unlock()
				select {
				case <-killed:
					after++
				default:
				}
			}
		})
	}
	select {
	case <-enough:
	case <-ctx.Done():
		t.Fatal("no progress before the kill")
	}
	c.Kill(leader)
	close(killed)
	tasks.Wait()

	c.AwaitEqual()
	applied := make(map[string]int)
	for _, e := range survivors[0].View().Audit(0, 1_000_000) {
		applied[e.Subject]++
	}
	for _, name := range confirmed {
		if !hasUser(survivors[0], name) {
			t.Errorf("%s was confirmed and is lost", name)
		}
	}
	for subject, times := range applied {
		if times != 1 {
			t.Errorf("%s was applied %d times", subject, times)
		}
	}
	if len(applied) < len(confirmed) {
		t.Errorf("%d applied, %d confirmed", len(applied), len(confirmed))
	}
}

func TestMinorityLeaderCommitsNothing(t *testing.T) {
	c := startCluster(t, 3, nil)
	type office struct {
		of  *server
		led chan struct{} // closed when its callback ends
	}
	leading := make(chan office)
	leadCtx, stopLead := context.WithCancel(context.Background())
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer stopLead()
	for _, s := range c.all() { // whoever leads: a leader may be lost by chance
		tasks.Go(func() {
			s.Lead(leadCtx, func(ctx context.Context) {
				o := office{s, make(chan struct{})}
				defer close(o.led)
				select {
				case leading <- o:
				case <-ctx.Done():
				}
				<-ctx.Done()
			})
		})
	}
	in := <-leading
	old := in.of
	c.Cut(old)
	others := c.Followers(old)
	before := old.AppliedIndex()
	_, err := old.Propose(c.within(time.Second), "user:test", user("lost"))
	if !errors.Is(err, ErrOutcomeUnknown) && !errors.Is(err, ErrNoLeader) {
		t.Fatalf("a leader without a majority answers %v", err)
	}
	select {
	case <-in.led:
	case <-time.After(patience):
		t.Fatal("the callback of a leader without a majority runs on")
	}
	if old.IsLeader() || old.Ready() == nil {
		t.Errorf("leader %v, ready %v; want neither", old.IsLeader(), old.Ready())
	}
	if got := old.AppliedIndex(); got != before {
		t.Errorf("it applied up to %d; was %d", got, before)
	}
	mustPropose(t, others[0], user("kept"))

	c.Heal(old)
	awaitSoon(t, "the old leader follows", func() bool { return hasUser(old, "kept") })
	c.AwaitEqual()
	if hasUser(old, "lost") {
		t.Error("a proposal that only a minority held was applied")
	}
}

func TestEntryTimesNeverGoBack(t *testing.T) {
	// Each server's clock is a different hour behind the one before it.
	var opened time.Duration
	c := startCluster(t, 3, func(cfg *Config) {
		behind := opened
		opened += time.Hour
		cfg.now = func() time.Time { return time.Now().Add(-behind) }
		cfg.Timing = DefaultTiming // a transfer waits for no timer; short ones cost elections on a busy machine
		cfg.Timing.Probe, cfg.Timing.Promote = fast.Probe, fast.Promote
	})
	for i := range 6 {
		if _, err := c.all()[i%3].Propose(c.within(patience), "user:test", user(fmt.Sprintf("u%d", i))); err != nil {
			t.Fatal(err)
		}
		c.HandOver(c.AwaitLeader())
	}
	audit := c.AwaitLeader().View().Audit(0, 100)
	if len(audit) < 7 {
		t.Fatalf("only %d audit entries", len(audit))
	}
	for i := 1; i < len(audit); i++ {
		if audit[i].At.After(audit[i-1].At) {
			t.Errorf("entry %d is of %s, the later entry %d of %s", audit[i].Index, audit[i].At, audit[i-1].Index, audit[i-1].At)
		}
	}
}

func TestWithoutALeaderAProposalSaysSo(t *testing.T) {
	c := &cluster{tb: t, dir: t.TempDir(), ids: make(map[string]string), cut: make(map[string]bool)}
	t.Cleanup(c.stop)
	s := c.open("s1", "")
	_, err := s.Propose(c.within(50*time.Millisecond), "user:test", user("ann"))
	if !errors.Is(err, ErrNoLeader) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want ErrNoLeader", err)
	}
	if err := s.WaitLeader(c.within(20 * time.Millisecond)); err == nil {
		t.Error("WaitLeader returned without a leader")
	}
	big := user("big")
	big.User.PasswordHash = strings.Repeat("x", MaxEntry)
	if _, err := s.Propose(c.within(time.Second), "user:test", big); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a change of over %d bytes: %v", MaxEntry, err)
	}
	if _, err := s.ServeForwarded(c.within(time.Second), []byte("{")); err == nil {
		t.Error("a request that is not JSON was taken")
	}
}

// TestStalledDiskCostsLeadership hangs the leader's log and expects another
// leader, though the old one's process and network are well.
func TestStalledDiskCostsLeadership(t *testing.T) {
	disks := make(map[string]*hangingLog)
	c := startCluster(t, 3, func(cfg *Config) {
		cfg.Timing.DiskStall = 300 * time.Millisecond
		d := &hangingLog{}
		disks[cfg.ServerID] = d
		cfg.wrapLog = d.wrap
	})
	old := c.AwaitLeader()
	others := c.Followers(old)
	disks[old.id].hang()
	defer disks[old.id].resume()
	go func() { // the write that hangs
		_, _ = old.Propose(c.within(3*time.Second), "user:test", user("stuck"))
	}()
	awaitSoon(t, "another leader", func() bool { return others[0].IsLeader() || others[1].IsLeader() })
	awaitSoon(t, "the old one gives up, and says why", func() bool {
		return !old.IsLeader() && errors.Is(old.Ready(), ErrDiskStalled)
	})
	mustPropose(t, others[0], user("meanwhile"))
	disks[old.id].resume()
	awaitSoon(t, "the old leader follows", func() bool { return hasUser(old, "meanwhile") && old.Ready() == nil })
	c.AwaitEqual()
}

func BenchmarkPropose(b *testing.B) {
	for _, servers := range []int{1, 3} {
		b.Run(fmt.Sprintf("servers=%d", servers), func(b *testing.B) {
			c := startCluster(b, servers, func(cfg *Config) { cfg.Timing = Timing{Probe: 50 * time.Millisecond, Promote: 50 * time.Millisecond} })
			leader := c.AwaitLeader()
			come, exists := user("b"), false
			for b.Loop() { // in turns: the state takes only so many users
				if exists = !exists; exists {
					mustPropose(b, leader, come)
				} else {
					mustPropose(b, leader, fleet.UserDeleted{UserID: come.User.ID})
				}
			}
		})
	}
}
