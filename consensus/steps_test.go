package consensus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"moult/consensus/coordinator"
	"moult/consensus/fleet"
	"moult/testdata/faultsuite"
)

// The steps of a dispatch as they are made within the servers, with the leader lost
// at exactly that step: no sleep and no chance decides what comes first. The
// kinds of a step's name are those of package fleet's changes.
var dispatchSteps = []struct {
	name   string
	inRaft bool // in Raft's own goroutine, which could not hand over there
}{
	{"job_dispatched is about to be proposed", false},
	{"job_dispatched is in the leader's log alone", true},
	{"job_dispatched is in a follower's log, which the leader has not heard", true},
	{"job_dispatched is committed", false},
	{"the order is about to be sent", false},
	{"the order is delivered", false},
	{"the host fetches", false},
	{"the host restarts", false},
	{"the host is back, unseen", false},
	{"the host is seen to be back", false},
	{"job_finished is about to be proposed", false},
	{"job_finished is in the leader's log alone", true},
	{"job_finished is in a follower's log, which the leader has not heard", true},
	{"job_finished is committed", false},
}

// losses are the ways in which a leader is lost.
var losses = []string{"kill", "cut", "transfer"}

// stepSite is a site whose leader is lost at a step.
type stepSite struct {
	*site
	agents sync.WaitGroup

	mu     sync.Mutex
	victim *server
	step   string // at which the victim is lost; "": at none
	loss   string
	lost   chan struct{} // closed when it is
}

// at loses the leader if it is time. It returns when the loss has begun: a server
// that is killed or cut off reaches nobody from there on, one that hands over leads
// no more.
func (s *stepSite) at(step string) {
	s.mu.Lock()
	if s.step != step {
		s.mu.Unlock()
		return
	}
	victim, loss, lost := s.victim, s.loss, s.lost
	s.step = ""
	s.mu.Unlock()
	defer close(lost)
	if loss != "transfer" {
		s.Cut(victim)
		return
	}
	ctx := s.within(patience)
	for victim.IsLeader() && ctx.Err() == nil { // on a busy machine a target may be too slow for it
		_ = victim.TransferLeadership(s.within(time.Second))
	}
}

// stored tells of entries that a server's log has taken.
func (s *stepSite) stored(id string, logs []*raft.Log) {
	for _, l := range logs {
		var e fleet.Entry
		if l.Type != raft.LogCommand || json.Unmarshal(l.Data, &e) != nil {
			continue
		}
		s.mu.Lock()
		own := s.victim != nil && s.victim.id == id
		s.mu.Unlock()
		if own {
			s.at(e.Type + " is in the leader's log alone")
		} else {
			s.at(e.Type + " is in a follower's log, which the leader has not heard")
		}
	}
}

// toldLog is a log that tells what it has taken before anybody else can know.
type toldLog struct {
	raft.LogStore
	stored func([]*raft.Log)
}

func (l toldLog) StoreLogs(logs []*raft.Log) error {
	err := l.LogStore.StoreLogs(logs)
	if err == nil {
		l.stored(logs)
	}
	return err
}

func (l toldLog) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

// toldProposals are a server's, with the steps before and after them.
type toldProposals struct {
	*server
	site *stepSite
}

func (p toldProposals) Propose(ctx context.Context, actor string, c fleet.Change) (fleet.Result, error) {
	p.site.at(c.Kind() + " is about to be proposed")
	r, err := p.server.Propose(ctx, actor, c)
	if err == nil {
		p.site.at(c.Kind() + " is committed")
	}
	return r, err
}

// toldOrders are a server's, with the steps before and after them.
type toldOrders struct {
	ordersOf
	site *stepSite
}

func (o toldOrders) Send(ctx context.Context, j fleet.Job, r fleet.Release, h fleet.Host) error {
	o.site.at("the order is about to be sent")
	if _, err := o.site.reach(o.from.addr, o.from.addr); err != nil {
		return err // cut off, it reaches no host either
	}
	err := o.ordersOf.Send(ctx, j, r, h)
	o.site.at("the order is delivered")
	return err
}

// carriesOut plays a host to the end of its job.
func (s *stepSite) carriesOut(j fleet.Job) {
	s.agents.Go(func() {
		s.at("the order is delivered") // the answer may be lost
		s.observe(j.HostID, func(o *coordinator.Observation) { o.JobID, o.Phase, o.Done, o.Total = j.ID, "fetching", 1, 2 })
		s.at("the host fetches")
		s.observe(j.HostID, func(o *coordinator.Observation) { o.JobID, o.Phase = j.ID, "restarting" })
		s.at("the host restarts")
		s.at("the host is back, unseen")
		s.site.mu.Lock()
		s.inFlight--
		s.site.mu.Unlock()
		s.succeed(j)
		s.at("the host is seen to be back")
	})
}

// TestLeaderChangeAtEachStepOfADispatch loses the leader at each step, in each of
// three ways. The fleet update must complete, and each host begin exactly one job
// at its first attempt; Send holds the orders to their committed intents.
func TestLeaderChangeAtEachStepOfADispatch(t *testing.T) {
	row := faultsuite.Row{Name: "leader change at each step, simulated", Long: 20 * len(dispatchSteps) * len(losses), Short: len(dispatchSteps)}
	row.MustBeChosen(t)
	cycles, rng := row.Cycles(t), row.Rand(t)
	var count faultsuite.Count
	defer func() { row.Print(t, count) }()
	s := &stepSite{}
	s.site = startSite(t, 3, 2, func(cfg *Config) {
		id := cfg.ServerID
		cfg.wrapLog = func(l raft.LogStore) raft.LogStore {
			return toldLog{l, func(logs []*raft.Log) { s.stored(id, logs) }}
		}
	})
	s.told = s
	s.carryOut = s.carriesOut
	for _, server := range s.all() {
		s.coordinate(server)
	}
	defer s.agents.Wait()
	first := rng.IntN(len(losses))
	for i := range cycles {
		step := dispatchSteps[i%len(dispatchSteps)]
		loss := losses[(first+i+i/len(dispatchSteps))%len(losses)]
		if step.inRaft && loss == "transfer" {
			loss = "kill"
		}
		start := time.Now()
		if !t.Run(fmt.Sprintf("%d/%s/%s", i+1, step.name, loss), func(t *testing.T) { s.cycle(t, i, step.name, loss) }) {
			count.Divergent++
			return
		}
		count.Cycles++
		count.Acked += 2 // turns that were decided
		count.Update = max(count.Update, time.Since(start))
	}
}

func (s *stepSite) cycle(t *testing.T, i int, step, loss string) {
	seen, _, _ := s.Observations(0)
	for host := range seen {
		s.observe(host, func(o *coordinator.Observation) { o.Version, o.Digest, o.JobID, o.Phase = "A", "", "", "idle" })
	}
	s.site.mu.Lock()
	s.orders = nil
	for host := range s.runs {
		s.runs[host] = map[string]bool{}
	}
	s.site.mu.Unlock()
	victim := s.AwaitLeader()
	lost := make(chan struct{})
	s.mu.Lock()
	s.victim, s.step, s.loss, s.lost = victim, step, loss, lost
	s.mu.Unlock()
	id := fmt.Sprint("f", i)
	s.agents.Go(func() { // beside: the leader may be lost before it answers
		_, err := victim.Propose(s.within(patience), "user:test", fleet.FleetUpdateStarted{ID: id, TargetVersion: "B", HostIDs: []string{siteHost(0), siteHost(1)}})
		if err != nil && !errors.Is(err, ErrClosed) && !errors.Is(err, ErrOutcomeUnknown) { // it was killed
			t.Errorf("start the fleet update: %v", err)
		}
	})
	select {
	case <-lost:
	case <-time.After(patience):
		t.Fatalf("the step %q was never reached", step)
	}
	switch loss {
	case "kill":
		s.Kill(victim)
		s.coordinate(s.open(victim.id, victim.addr)) // from its disk
	case "cut":
		awaitSoon(t, "another leader", func() bool { return s.AwaitLeader() != victim })
		s.Heal(victim)
	}
	awaitSoon(t, "the fleet update is completed", func() bool {
		u, _ := s.AwaitLeader().View().FleetUpdate(id)
		if !u.Status.Active() && u.Status != fleet.FleetCompleted && u.ID != "" {
			t.Fatalf("the fleet update is %s: %s", u.Status, u.HaltedReason)
		}
		return u.Status == fleet.FleetCompleted
	})
	s.agents.Wait()
	s.AwaitEqual()
	v := s.AwaitLeader().View()
	u, _ := v.FleetUpdate(id)
	s.site.mu.Lock()
	defer s.site.mu.Unlock()
	for _, turn := range u.Hosts.All() {
		jobs := slices.DeleteFunc(v.Jobs(turn.HostID), func(j fleet.Job) bool { return j.FleetUpdateID != id })
		begun := s.runs[turn.HostID]
		if len(jobs) != 1 || len(begun) != 1 || !begun[turn.JobID] || turn.Status != fleet.TurnSucceeded {
			t.Errorf("%s: %s, began %v, the log has %d jobs", turn.HostID, turn.Status, begun, len(jobs))
		}
	}
}
