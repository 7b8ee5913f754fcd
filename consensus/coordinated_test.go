package consensus

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"moult/consensus/coordinator"
	"moult/consensus/fleet"
)

// site is a cluster of real servers, each of which runs the coordinator while it
// leads, with agents that are observed and take orders without a mesh.
type site struct {
	*cluster
	coordinating sync.WaitGroup
	stopLeading  context.CancelFunc
	leading      context.Context
	carryOut     func(j fleet.Job) // what an agent does with its first order of a job
	told         *stepSite         // who is told of each step; nil: nobody

	mu       sync.Mutex
	seen     map[string]coordinator.Observation
	changed  chan struct{}
	orders   []fleet.Job                // in the order in which they were sent
	runs     map[string]map[string]bool // host → jobs that it has begun
	fences   map[string]uint64          // host → the highest index that it accepted
	inFlight int
}

const siteDigest = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

// startSite starts servers and enrols agents that run version A; B is published.
func startSite(tb testing.TB, servers, agents int, adjust func(*Config)) *site {
	tb.Helper()
	s := &site{
		cluster: startCluster(tb, servers, adjust), seen: map[string]coordinator.Observation{}, changed: make(chan struct{}),
		runs: map[string]map[string]bool{}, fences: map[string]uint64{},
	}
	leader := s.AwaitLeader()
	mustPropose(tb, leader, fleet.ClusterInitialized{
		Cluster: fleet.Cluster{ID: "c1"}, Server: fleet.Host{ID: "s1", Name: "server-1"},
		Admin: fleet.User{ID: "u1", Name: "admin"}, Token: fleet.APIToken{ID: "t1", Name: "bootstrap", Hash: "h1"},
	})
	mustPropose(tb, leader, fleet.ReleasePublished{Release: fleet.Release{
		Version: "B", Number: 2, Artifacts: []fleet.Artifact{{OS: "linux", Arch: "amd64", Size: 1, SHA256: siteDigest}},
	}})
	for i := range agents {
		token := fmt.Sprint("token-", i)
		mustPropose(tb, leader, fleet.JoinTokenCreated{Token: fleet.JoinToken{ID: token, Hash: token, Role: fleet.RoleAgent, ExpiresAt: time.Now().Add(time.Hour)}})
		mustPropose(tb, leader, fleet.HostEnrolled{TokenHash: token, Host: fleet.Host{
			ID: siteHost(i), Name: siteHost(i), OS: "linux", Arch: "amd64", PublicKey: make([]byte, 32),
		}})
		s.seen[siteHost(i)] = coordinator.Observation{Online: true, Boot: 1, Version: "A", Phase: "idle"}
		s.runs[siteHost(i)] = map[string]bool{}
	}
	s.leading, s.stopLeading = context.WithCancel(context.Background())
	tb.Cleanup(func() {
		s.stopLeading()
		s.coordinating.Wait()
	})
	return s
}

func siteHost(i int) string { return fmt.Sprintf("agent-%03d", i) }

// coordinate runs the coordinator on a server whenever it leads.
func (s *site) coordinate(server *server) {
	s.coordinating.Go(func() {
		server.Lead(s.leading, func(ctx context.Context) {
			cfg := coordinator.Config{
				Log: server.Node, Roster: s, Orders: ordersOf{s, server}, Timeouts: coordinator.DefaultTimeouts, Logger: slog.New(slog.DiscardHandler),
			}
			if s.told != nil {
				cfg.Log, cfg.Orders = toldProposals{server, s.told}, toldOrders{ordersOf{s, server}, s.told}
			}
			err := coordinator.Run(ctx, cfg)
			if ctx.Err() == nil {
				s.tb.Errorf("the coordinator of %s: %v", server.id, err)
			}
		})
	})
}

// Observations implements coordinator.Roster.
func (s *site) Observations(uint64) (map[string]coordinator.Observation, uint64, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.seen), 1, true
}

// Changed implements coordinator.Roster.
func (s *site) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// observe changes what all servers see of a host.
func (s *site) observe(host string, change func(*coordinator.Observation)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.seen[host]
	change(&o)
	s.seen[host] = o
	close(s.changed)
	s.changed = make(chan struct{})
}

// succeed is a host's record after its trial.
func (s *site) succeed(j fleet.Job) {
	s.observe(j.HostID, func(o *coordinator.Observation) {
		o.JobID, o.Phase, o.Version, o.Boot, o.Digest = j.ID, "idle", "B", o.Boot+1, siteDigest[:16]
	})
}

// ordersOf is the way of one server's orders to the hosts.
type ordersOf struct {
	*site
	from *server
}

func (ordersOf) Next(context.Context, fleet.Release, fleet.Host) error { return nil }

// Send checks that the order's intent is committed (invariant 16), and plays the
// host: it obeys no lower index (17) and begins each job once (13).
func (o ordersOf) Send(_ context.Context, j fleet.Job, _ fleet.Release, _ fleet.Host) error {
	behind := o.from.View().Audit(j.DispatchIndex+1, 1)
	if len(behind) == 0 || behind[0].Index != j.DispatchIndex || behind[0].Action != (fleet.JobDispatched{}).Kind() || !strings.Contains(behind[0].Detail, j.ID) {
		o.tb.Errorf("invariant 16: %s sends the order of job %s with index %d, behind which stands %+v", o.from.id, j.ID, j.DispatchIndex, behind)
	}
	o.mu.Lock()
	o.orders = append(o.orders, j)
	fresh := j.DispatchIndex >= o.fences[j.HostID] && !o.runs[j.HostID][j.ID]
	if fresh {
		o.fences[j.HostID] = j.DispatchIndex
		o.runs[j.HostID][j.ID] = true
		if o.inFlight++; o.inFlight > fleet.MaxInFlight {
			o.tb.Errorf("invariant 14: %d hosts are at work", o.inFlight)
		}
	}
	o.mu.Unlock()
	if fresh {
		o.carryOut(j)
	}
	return nil
}

// begun returns how many jobs the hosts have begun.
func (s *site) begun() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, jobs := range s.runs {
		n += len(jobs)
	}
	return n
}

// TestFleetUpdateSurvivesItsLeaders kills one leader while a host is at work,
// takes another off the network, and hands over from a third. Each host must be
// updated once, by one job, and all servers end with the same state.
func TestFleetUpdateSurvivesItsLeaders(t *testing.T) {
	const hosts = 8
	s := startSite(t, 3, hosts, nil)
	release := make(chan struct{}) // a host ends its job when it gets one
	var agents sync.WaitGroup
	defer agents.Wait()
	ended := make(chan struct{})
	defer close(ended)
	s.carryOut = func(j fleet.Job) {
		s.observe(j.HostID, func(o *coordinator.Observation) { o.JobID, o.Phase, o.Done, o.Total = j.ID, "fetching", 1, 2 })
		agents.Go(func() {
			select {
			case <-release:
			case <-ended:
				return
			}
			s.mu.Lock()
			s.inFlight--
			s.mu.Unlock()
			s.succeed(j)
		})
	}
	for _, server := range s.all() {
		s.coordinate(server)
	}
	var ids []string
	for i := range hosts {
		ids = append(ids, siteHost(i))
	}
	mustPropose(t, s.all()[0], fleet.FleetUpdateStarted{ID: "f1", TargetVersion: "B", HostIDs: ids})
	for i := range hosts {
		awaitSoon(t, fmt.Sprintf("host %d is at work", i+1), func() bool { return s.begun() == i+1 })
		switch i {
		case 1:
			leader := s.AwaitLeader()
			s.Kill(leader)
			s.coordinate(s.open(leader.id, leader.addr)) // from its disk
		case 3:
			leader := s.AwaitLeader()
			s.Cut(leader)
			awaitSoon(t, "another leader", func() bool { return s.AwaitLeader() != leader })
			s.Heal(leader)
		case 5:
			s.HandOver(s.AwaitLeader())
		case 6:
			s.AwaitLeader()
			s.Kill(s.AwaitLeader()) // and this one stays away
		}
		release <- struct{}{}
	}
	awaitSoon(t, "the fleet update is completed", func() bool {
		u, _ := s.all()[0].View().FleetUpdate("f1")
		return u.Status == fleet.FleetCompleted
	})
	s.stopLeading()
	s.coordinating.Wait()
	s.AwaitEqual()
	v := s.all()[0].View()
	u, _ := v.FleetUpdate("f1")
	for _, turn := range u.Hosts.All() {
		if jobs := v.Jobs(turn.HostID); turn.Status != fleet.TurnSucceeded || len(jobs) != 1 || jobs[0].Attempt != 1 {
			t.Errorf("%s %s with %d jobs", turn.Name, turn.Status, len(jobs))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for host, jobs := range s.runs {
		if len(jobs) != 1 {
			t.Errorf("%s was updated %d times", host, len(jobs))
		}
	}
	if !slices.IsSortedFunc(s.orders, func(a, b fleet.Job) int { return int(a.DispatchIndex) - int(b.DispatchIndex) }) {
		t.Error("an order went out after a later one's")
	}
}

// TestNoDispatchAfterAFailureWhoeverLeads: the host fails, and the leader dies
// before or after it said so. No further host gets an order (invariant 15).
func TestNoDispatchAfterAFailureWhoeverLeads(t *testing.T) {
	s := startSite(t, 3, 3, nil)
	s.carryOut = func(fleet.Job) {}
	for _, server := range s.all() {
		s.coordinate(server)
	}
	mustPropose(t, s.all()[0], fleet.FleetUpdateStarted{ID: "f1", TargetVersion: "B", HostIDs: []string{siteHost(0), siteHost(1), siteHost(2)}})
	awaitSoon(t, "the first host is at work", func() bool { return s.begun() == 1 })
	s.mu.Lock()
	j := s.orders[0]
	s.mu.Unlock()
	s.observe(j.HostID, func(o *coordinator.Observation) {
		o.JobID, o.Phase, o.Error = j.ID, "failed", "no space left on device"
	})
	s.Kill(s.AwaitLeader())
	halted := func() bool {
		u, _ := s.AwaitLeader().View().FleetUpdate("f1")
		return u.Status == fleet.FleetHalted
	}
	awaitSoon(t, "the fleet update is halted", halted)
	// Whatever else happens, and whoever asks.
	s.observe(siteHost(1), func(o *coordinator.Observation) { o.Seq++ })
	leader := s.AwaitLeader()
	if _, err := leader.Propose(s.within(5*time.Second), coordinator.Actor, fleet.JobDispatched{JobID: "j-late", HostID: siteHost(1), FleetUpdateID: "f1"}); err == nil {
		t.Error("invariant 15: a dispatch after the failure was taken")
	}
	s.stopLeading()
	s.coordinating.Wait()
	if n := s.begun(); n != 1 {
		t.Errorf("%d hosts were given an order", n)
	}
	u, _ := leader.View().FleetUpdate("f1")
	if !strings.Contains(u.HaltedReason, "no space left on device") || u.Hosts.At(1).Status != fleet.TurnPending {
		t.Errorf("fleet update %+v", u)
	}
}

// BenchmarkTurnaround measures the whole way between two hosts with real servers,
// logs on disk and default timers: from a host's success being visible to the
// next host's order being handed to the mesh. In between lie the verdict's
// commit, the plan, and the commit of the next dispatch.
func BenchmarkTurnaround(b *testing.B) {
	for _, servers := range []int{1, 3} {
		b.Run(fmt.Sprintf("servers=%d", servers), func(b *testing.B) { benchmarkTurnaround(b, servers) })
	}
}

func benchmarkTurnaround(b *testing.B, servers int) {
	const hosts = 200
	s := startSite(b, servers, hosts, func(cfg *Config) { cfg.Timing = Timing{Probe: 50 * time.Millisecond, Promote: 50 * time.Millisecond} })
	orders := make(chan fleet.Job, 1)
	s.carryOut = func(j fleet.Job) { orders <- j }
	for _, server := range s.all() {
		s.coordinate(server)
	}
	leader := s.AwaitLeader()
	var took []time.Duration
	left, updates := 0, 0
	var job fleet.Job
	for b.Loop() {
		if left == 0 {
			b.StopTimer()
			updates++
			left = hosts - 1
			job = s.again(b, leader, fmt.Sprint("f", updates), orders)
			b.StartTimer()
		}
		b.StopTimer() // until the coordinator is at rest: its lines are in the log
		awaitSoon(b, "the job's first line", func() bool {
			return len(leader.View().JobLog(job.ID, 0, 1)) == 1 || !leader.IsLeader() // a line is lost with its leader
		})
		leader = s.AwaitLeader()
		s.mu.Lock()
		s.inFlight--
		s.mu.Unlock()
		b.StartTimer()
		start := time.Now()
		s.succeed(job)
		job = <-orders
		took = append(took, time.Since(start))
		left--
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(float64(took[len(took)-1].Microseconds())/1000, "worst-ms")
}

// again ends the fleet update before, puts all hosts back to A and starts another.
func (s *site) again(b *testing.B, leader *server, id string, orders <-chan fleet.Job) fleet.Job {
	b.Helper()
	if u, active := leader.View().ActiveFleetUpdate(); active {
		for _, j := range leader.View().OpenJobs() {
			s.mu.Lock()
			s.inFlight--
			s.mu.Unlock()
			s.succeed(j)
		}
		awaitSoon(b, "the fleet update before has ended", func() bool {
			u, _ := leader.View().FleetUpdate(u.ID)
			return !u.Status.Active()
		})
	}
	var ids []string
	for i := range len(s.seen) {
		ids = append(ids, siteHost(i))
		s.observe(siteHost(i), func(o *coordinator.Observation) { o.Version, o.Digest, o.JobID = "A", "", "" })
	}
	mustPropose(b, leader, fleet.FleetUpdateStarted{ID: id, TargetVersion: "B", HostIDs: ids})
	return <-orders
}
