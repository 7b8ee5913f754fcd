package coordinator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"moult/consensus/fleet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is a fleet that Run can be pointed at: a real state behind a made-up log,
// and agents that carry orders out in a few seconds.
type site struct {
	*world
	mu       sync.Mutex // guards the world and what follows
	agents   map[string]*agent
	changed  chan struct{}
	sent     []sentOrder
	next     []string // who was told that its turn comes next
	nextErr  error
	proposed int
	tasks    sync.WaitGroup

	// crash, when set, is asked before and after each proposal is applied, and
	// after each order, whether the leader dies there.
	crash  func(point string) bool
	die    context.CancelFunc
	refuse bool          // every proposal
	stall  time.Duration // of the next call of Changed
	slow   time.Duration // how long an order takes to send
}

type sentOrder struct {
	jobID, hostID string
	at            time.Time
}

// agent is how a host takes orders.
type agent struct {
	deaf int             // orders that it loses
	fail string          // the reason it gives; "": it succeeds
	runs map[string]bool // jobs that it has begun
}

func newSite(t testing.TB, hosts int) *site {
	s := &site{world: newWorld(t), agents: map[string]*agent{}, changed: make(chan struct{})}
	s.now = time.Now()
	for i := 1; i <= hosts; i++ {
		name := fmt.Sprintf("agent-%d", i)
		s.addHost(name, "linux/amd64")
		s.agents[name] = &agent{runs: map[string]bool{}}
	}
	s.addRelease("B", "linux/amd64")
	return s
}

func (s *site) State() *fleet.State { return s.state }

var errLost = errors.New("the answer was lost")

func (s *site) Propose(ctx context.Context, actor string, c fleet.Change) (fleet.Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.proposed++
	if actor != Actor {
		s.t.Errorf("%s is proposed by %q", c.Kind(), actor)
	}
	point := fmt.Sprintf("%d %s", s.proposed, c.Kind())
	if s.crash != nil && s.crash("before "+point) {
		s.die()
		return fleet.Result{}, errLost
	}
	if ctx.Err() != nil {
		return fleet.Result{}, ctx.Err() // the term is over
	}
	if s.refuse {
		e := &fleet.Error{Code: fleet.CodeConflict, Message: "not now"}
		return fleet.Result{Err: e}, e
	}
	s.now = time.Now()
	r := s.apply(c)
	if s.crash != nil && s.crash("after "+point) {
		s.die()
		return fleet.Result{}, errLost
	}
	if r.Err != nil {
		return r, r.Err
	}
	return r, nil
}

func (s *site) Observations(uint64) (map[string]Observation, uint64, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.seen), 1, true
}

func (s *site) Changed() <-chan struct{} {
	s.mu.Lock()
	stall := s.stall
	s.stall = 0
	s.mu.Unlock()
	if stall > 0 {
		<-time.After(stall)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// observe changes what is seen of a host.
func (s *site) observe(host string, change func(*Observation)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.seen[host]
	change(&o)
	s.seen[host] = o
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *site) Next(_ context.Context, r fleet.Release, h fleet.Host) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u, active := s.state.View().ActiveFleetUpdate(); !active || r.Version != u.TargetVersion {
		s.t.Errorf("%s is told that it is next for %s, the fleet update is %+v", h.ID, r.Version, u)
	}
	s.next = append(s.next, h.ID)
	return s.nextErr
}

func (s *site) Send(ctx context.Context, j fleet.Job, r fleet.Release, h fleet.Host) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mustBeDispatched(j.ID)
	if r.Version != j.TargetVersion || h.ID != j.HostID {
		s.t.Errorf("the order of job %s is for %s and %s", j.ID, r.Version, h.ID)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s.sent = append(s.sent, sentOrder{j.ID, h.ID, time.Now()})
	if s.crash != nil && s.crash(fmt.Sprintf("after order %d", len(s.sent))) {
		s.die()
	}
	if slow := s.slow; slow > 0 {
		s.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(slow):
		}
		s.mu.Lock()
	}
	a := s.agents[h.ID]
	if a.deaf > 0 {
		a.deaf--
		return nil
	}
	if a.runs[j.ID] { // as the real agent: it says again how it stands
		return nil
	}
	a.runs[j.ID] = true
	s.tasks.Go(func() { s.carryOut(j, a.fail) })
	return nil
}

// carryOut is an agent at work on a job.
func (s *site) carryOut(j fleet.Job, fail string) {
	for _, phase := range []string{phaseFetching, phaseVerifying, phasePreflight, phaseRestarting} {
		s.observe(j.HostID, func(o *Observation) {
			o.JobID, o.Phase = j.ID, phase
			o.Done, o.Total = 1000, 1000
			o.Sources = []fleet.Source{{HostID: "server-1", Name: "server-1", Role: "server", Bytes: 1000}}
		})
		<-time.After(300 * time.Millisecond)
	}
	s.observe(j.HostID, func(o *Observation) { o.Online, o.Left = false, true })
	<-time.After(time.Second)
	if fail != "" {
		s.observe(j.HostID, func(o *Observation) {
			o.Online, o.Boot, o.Phase, o.Error = true, o.Boot+2, phaseRolledBack, fail
		})
		return
	}
	s.observe(j.HostID, func(o *Observation) {
		o.Online, o.Boot, o.Version, o.Phase, o.Sources = true, o.Boot+1, "B", phaseTrial, nil
		o.Digest = digest("B", "linux/amd64")[:16]
	})
	<-time.After(2 * time.Second)
	s.observe(j.HostID, func(o *Observation) { o.Phase = phaseIdle })
}

// lead runs one leader until ctx ends or a crash point is reached.
func (s *site) lead(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	s.die = cancel
	s.mu.Unlock()
	err := Run(ctx, Config{Log: s, Roster: s, Orders: s, Timeouts: DefaultTimeouts, Logger: slog.New(slog.DiscardHandler)})
	if !errors.Is(err, context.Canceled) {
		s.t.Errorf("Run: %v", err)
	}
}

// start leads until the test ends, by as many leaders as it takes.
func (s *site) start() {
	ctx, cancel := context.WithCancel(s.t.Context())
	var leading sync.WaitGroup
	leading.Go(func() {
		for ctx.Err() == nil {
			s.lead(ctx)
		}
	})
	s.t.Cleanup(func() {
		cancel()
		leading.Wait()
		s.tasks.Wait()
	})
}

// awaitEnd waits until the fleet update has ended and the coordinator is at rest.
func (s *site) awaitEnd(limit time.Duration) fleet.FleetUpdate {
	s.t.Helper()
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); <-time.After(100 * time.Millisecond) {
		if u, _ := s.state.View().FleetUpdate(s.fleet); !u.Status.Active() {
			s.rest(time.Second) // for what is said in the logs
			return u
		}
	}
	u, _ := s.state.View().FleetUpdate(s.fleet)
	s.t.Fatalf("the fleet update has not ended in %v: %+v", limit, u)
	return u
}

func (s *site) rest(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// Who is next is told once in a turn. That it is lost, or takes long, delays nothing.
func TestRunTellsWhoIsNext(t *testing.T) {
	for name, lost := range map[string]error{"told": nil, "lost": errors.New("unreachable")} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, 3)
				s.nextErr = lost
				r, _ := s.state.View().Release("B")
				for _, h := range []string{"agent-2", "agent-3"} {
					s.observe(h, func(o *Observation) { o.Holds = []string{r.Artifacts[0].SHA256[:16]} })
				}
				s.startUpdate("B", "agent-1", "agent-2", "agent-3")
				s.start()
				u := s.awaitEnd(time.Minute)
				s.mu.Lock()
				defer s.mu.Unlock()
				if want := []string{"agent-2", "agent-3"}; u.Status != fleet.FleetCompleted || !slices.Equal(s.next, want) {
					t.Errorf("told were %v, want %v; the fleet update: %+v", s.next, want, u)
				}
			})
		})
	}
}

func TestRunUpdatesHostByHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, 3)
		s.startUpdate("B", "agent-1", "agent-2", "agent-3")
		s.start()
		u := s.awaitEnd(time.Minute)
		if u.Status != fleet.FleetCompleted || len(s.sent) != 3 {
			t.Fatalf("%d orders, fleet update %+v", len(s.sent), u)
		}
		for i, turn := range u.Hosts.All() {
			j, _ := s.state.View().Job(turn.JobID)
			if turn.Status != fleet.TurnSucceeded || s.sent[i].hostID != turn.HostID || len(j.Sources) != 1 || j.Sources[0].Bytes != 1000 {
				t.Errorf("turn %+v, order %+v, job %+v", turn, s.sent[i], j)
			}
			var said []string
			for _, l := range s.state.View().JobLog(j.ID, 0, 10) {
				if l.Stream != fleet.StreamCoordinator || l.At.IsZero() {
					t.Errorf("line %+v", l)
				}
				said = append(said, l.Line)
			}
			if text := strings.Join(said, "|"); text != "dispatched: "+turn.Name+", from A to B|succeeded" {
				t.Errorf("log: %s", text)
			}
		}
	})
}

// Invariant 15, in the loop: nothing is dispatched after a failure.
func TestNothingIsDispatchedAfterAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, 3)
		s.agents["agent-2"].fail = "exit status 3"
		s.startUpdate("B", "agent-1", "agent-2", "agent-3")
		s.start()
		u := s.awaitEnd(time.Minute)
		s.rest(10 * time.Minute)
		if want := "agent-2: agent rejoined at A, expected B: exit status 3"; u.Status != fleet.FleetHalted || u.HaltedReason != want {
			t.Errorf("fleet update %s: %q, want %q", u.Status, u.HaltedReason, want)
		}
		if len(s.sent) != 2 || len(s.agents["agent-3"].runs) != 0 {
			t.Errorf("orders: %+v", s.sent)
		}
	})
}

func TestOrderIsSentAgainUntilShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, 1)
		s.agents["agent-1"].deaf = 2
		s.startUpdate("B", "agent-1")
		s.start()
		if u := s.awaitEnd(time.Minute); u.Status != fleet.FleetCompleted {
			t.Errorf("fleet update: %+v", u)
		}
		if len(s.sent) != 3 {
			t.Fatalf("%d orders, want 3", len(s.sent))
		}
		for i := range 2 {
			if d := s.sent[i+1].at.Sub(s.sent[i].at); d != DefaultTimeouts.Resend {
				t.Errorf("order %d came after %v", i+2, d)
			}
		}
	})
}

// The leader dies before and after each of its commits, and after each order;
// the next ones resume from the state alone. Invariants 13 and 14.
func TestResumeAfterLeaderChangeAtEachStep(t *testing.T) {
	points := map[string]bool{}
	run := func(t *testing.T, crashAt string) {
		synctest.Test(t, func(t *testing.T) {
			s := newSite(t, 3)
			s.agents["agent-2"].deaf = 1
			crashed := false
			s.crash = func(point string) bool {
				if crashAt == "" {
					points[point] = true
				}
				hit := point == crashAt && !crashed
				crashed = crashed || hit
				return hit
			}
			s.startUpdate("B", "agent-1", "agent-2", "agent-3")
			s.start()
			u := s.awaitEnd(2 * time.Minute)
			if u.Status != fleet.FleetCompleted {
				t.Fatalf("fleet update: %+v", u)
			}
			if crashAt != "" && !crashed {
				t.Fatalf("never came to %q", crashAt)
			}
			for _, turn := range u.Hosts.All() {
				if n := len(s.agents[turn.HostID].runs); n != 1 {
					t.Errorf("%s ran %d jobs", turn.Name, n)
				}
				if n := len(s.state.View().Jobs(turn.HostID)); n != 1 || turn.Status != fleet.TurnSucceeded {
					t.Errorf("%s has %d jobs, its turn is %s %s", turn.Name, n, turn.Status, turn.FailedReason)
				}
			}
		})
	}
	run(t, "")
	if len(points) < 20 {
		t.Fatalf("only %d points to die at: %v", len(points), points)
	}
	for point := range points {
		t.Run(strings.ReplaceAll(point, " ", "_"), func(t *testing.T) { run(t, point) })
	}
}

// A leader that is killed again and again, each 700 ms, cannot fail a healthy fleet.
func TestUnsteadyLeadershipFailsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, 4)
		s.startUpdate("B", "agent-1", "agent-2", "agent-3", "agent-4")
		s.start()
		s.tasks.Go(func() {
			for range 50 {
				<-time.After(700 * time.Millisecond)
				s.mu.Lock()
				s.die()
				s.mu.Unlock()
			}
		})
		u := s.awaitEnd(2 * time.Minute)
		if u.Status != fleet.FleetCompleted {
			t.Errorf("fleet update: %+v", u)
		}
		for name, a := range s.agents {
			if len(a.runs) != 1 {
				t.Errorf("%s ran %d jobs", name, len(a.runs))
			}
		}
	})
}

// A change that is refused again and again must not fill the log.
func TestRefusedChangesAreRetriedWithPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, 1)
		s.refuse = true
		s.startUpdate("B", "agent-1")
		s.start()
		s.rest(time.Minute)
		if s.proposed < 5 || s.proposed > 20 {
			t.Errorf("%d proposals in a minute", s.proposed)
		}
		s.mu.Lock()
		s.refuse = false
		s.mu.Unlock()
		if u := s.awaitEnd(time.Minute); u.Status != fleet.FleetCompleted {
			t.Errorf("fleet update: %+v", u)
		}
	})
}

// A process that was stopped for longer than its waits has not watched anybody.
func TestHeldUpLeaderBeginsItsWaitsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, 1)
		s.agents["agent-1"].deaf = 1 << 30
		s.startUpdate("B", "agent-1")
		s.start()
		s.rest(time.Second)
		s.mu.Lock()
		s.stall = 40 * time.Second
		s.mu.Unlock()
		s.observe("agent-1", func(*Observation) {})
		s.rest(45 * time.Second)
		s.mu.Lock()
		s.agents["agent-1"].deaf = 0
		s.mu.Unlock()
		if u := s.awaitEnd(time.Minute); u.Status != fleet.FleetCompleted {
			t.Errorf("fleet update: %+v", u)
		}
	})
}

// An order that hangs on its way holds no verdict up, and its successor waits.
func TestSlowSendHoldsNothingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, 1)
		s.slow = time.Hour
		s.agents["agent-1"].deaf = 1 << 30
		s.startUpdate("B", "agent-1")
		s.start()
		s.rest(time.Second)
		j := s.state.View().OpenJobs()[0]
		s.observe("agent-1", func(o *Observation) {
			o.JobID, o.Phase, o.Boot, o.Version, o.Digest = j.ID, phaseIdle, 2, "B", digest("B", "linux/amd64")[:16]
		})
		synctest.Wait()
		if j, _ = s.state.View().Job(j.ID); j.Status != fleet.JobSucceeded {
			t.Errorf("job: %+v", j)
		}
		if len(s.sent) != 1 {
			t.Errorf("%d orders at a time", len(s.sent))
		}
	})
}

func TestRunRefusesAnIncompleteConfig(t *testing.T) {
	s := newSite(t, 0)
	for name, cfg := range map[string]Config{
		"no log":      {Roster: s, Orders: s, Timeouts: DefaultTimeouts},
		"no timeouts": {Log: s, Roster: s, Orders: s},
	} {
		if err := Run(t.Context(), cfg); err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// serverGroup are three servers, of which this one leads; leadership is handed over at
// the third attempt.
type serverGroup struct {
	mu       sync.Mutex
	attempts int
	end      context.CancelFunc // of the term
}

func (g *serverGroup) Group(context.Context) []fleet.GroupMember {
	return []fleet.GroupMember{
		{ID: "server-1", Name: "server-1", Voter: true, Healthy: true},
		{ID: "server-2", Name: "server-2", Voter: true, Healthy: true},
		{ID: "server-3", Name: "server-3", Voter: true, Healthy: true},
	}
}

func (g *serverGroup) TransferLeadership(context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.attempts++; g.attempts < 3 {
		return errors.New("it came back")
	}
	g.end()
	return nil
}

// The leader is not dispatched: it hands leadership over, as often as it takes, and
// its term ends.
func TestRunHandsLeadershipOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, 0)
		s.addServer("server-2")
		s.addServer("server-3")
		s.startUpdate("B", "server-1")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		g := &serverGroup{end: cancel}
		err := Run(ctx, Config{Log: s, Roster: s, Orders: s, Timeouts: DefaultTimeouts, Self: "server-1", Servers: g})
		if !errors.Is(err, context.Canceled) || g.attempts != 3 || s.proposed != 0 || len(s.sent) != 0 {
			t.Errorf("Run: %v; %d attempts, %d changes, %d orders", err, g.attempts, s.proposed, len(s.sent))
		}
	})
}
