package coordinator

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"moult/consensus/fleet"
	"moult/updater/order"
)

// TestSimulation plays a fleet in made-up time: the real planner, three replicas of
// the real state machine, hosts that keep real fences, and a network, disks and
// clocks that go wrong. After each step it asserts what section 12 of the design
// promises as far as these parts carry it (simulation_checks_test.go). Every second
// seed is calm: servers crash, are cut off and have wrong clocks, and hosts and their
// messages are well, so no job may fail.
//
// MOULT_SEED plays one seed again; MOULT_LONG plays a thousand.
func TestSimulation(t *testing.T) {
	if text := os.Getenv("MOULT_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("MOULT_SEED is %q; give a number", text)
		}
		simulate(t, seed, memoryDir(t))
		return
	}
	seeds := uint64(20)
	if os.Getenv("MOULT_LONG") != "" {
		seeds = 1000
	}
	var sum simCounts
	for seed := range seeds {
		ok := t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) { sum.add(simulate(t, seed, memoryDir(t))) })
		if !ok {
			t.Fatalf("repeat it with: MOULT_SEED=%d go test -run TestSimulation ./consensus/coordinator", seed)
		}
	}
	t.Logf("%d seeds: %+v", seeds, sum)
	if sum.Dispatches == 0 || sum.Failed == 0 || sum.Elections == 0 || sum.Crashes == 0 || sum.Stale == 0 || sum.Repeated == 0 || sum.Deposed == 0 || sum.Halted == 0 {
		t.Errorf("something that is to be tested did not happen: %+v", sum)
	}
}

// memoryDir is a directory in memory, where there is such a thing: fences are
// synced to disk at each order, which is what takes long in a simulation.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "moult-simulation-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

const simSteps = 400

func simulate(t *testing.T, seed uint64, dir string) simCounts {
	s := newSim(t, seed, dir)
	for range simSteps {
		s.step()
	}
	s.settle()
	return s.counts
}

// simCounts is what happened in a simulation.
type simCounts struct {
	Entries, Dispatches, Failed, Halted, Elections, Crashes, Orders int
	Stale, Repeated                                                 int // orders that fences refused
	Deposed                                                         int // changes that a leader proposed that no longer was one
}

func (c *simCounts) add(o simCounts) {
	c.Entries += o.Entries
	c.Dispatches += o.Dispatches
	c.Failed += o.Failed
	c.Halted += o.Halted
	c.Elections += o.Elections
	c.Crashes += o.Crashes
	c.Orders += o.Orders
	c.Stale += o.Stale
	c.Repeated += o.Repeated
	c.Deposed += o.Deposed
}

// sim is a fleet and all that is between its parts. One goroutine plays it.
type sim struct {
	t    *testing.T
	rng  *rand.Rand
	dir  string
	calm bool
	now  time.Time // that passes for all alike; clocks are off against it

	log     []fleet.Entry  // what is committed, from index 1
	changes []fleet.Change // in them
	lastAt  time.Time      // as a leader stamps
	servers []*simServer
	hosts   []*simHost
	leader  *simServer // the one that can commit; nil: none
	mail    []simMail
	ids     int
	trail   []string // what happened last

	checks simChecks
	counts simCounts
}

type simMail struct {
	at      time.Time
	deliver func()
}

// simServer is a replica, and its coordinator while it believes that it leads.
type simServer struct {
	name      string
	state     *fleet.State
	applied   int
	snapshot  []byte // of the state at snapshotAt
	snapAt    int
	up, cut   bool // cut: off from the other servers
	blind     bool // off from the hosts
	believes  bool // that it leads
	noticesAt time.Time
	offset    time.Duration // of its clock
	mem       memory
	seen      map[string]Observation
}

// simHost is an agent. What is on its disk survives a crash.
type simHost struct {
	name      string
	up        bool
	backAt    time.Time // when it is down
	boot, seq uint64
	installed string // on disk
	version   string // running
	phase     string
	job       string
	reason    string
	left      bool
	fence     *order.Fence
	next      []simPhase
	reached   map[string]bool // versions that it has committed
}

// simPhase is what a host does at a time.
type simPhase struct {
	at time.Time
	do func(h *simHost)
}

func newSim(t *testing.T, seed uint64, dir string) *sim {
	s := &sim{t: t, rng: rand.New(rand.NewPCG(seed, 0)), dir: dir, calm: seed%2 == 1, now: epoch}
	s.checks = newSimChecks(s)
	for i := range 3 {
		s.servers = append(s.servers, &simServer{name: fmt.Sprintf("server-%d", i+1), up: true, state: fleet.New(), seen: map[string]Observation{}})
	}
	s.elect(s.servers[0])
	s.mustCommit("system", fleet.ClusterInitialized{
		Cluster: fleet.Cluster{ID: "c"}, Server: fleet.Host{ID: "server-1", Name: "server-1"},
		Admin: fleet.User{ID: "u", Name: "ann"}, Token: fleet.APIToken{ID: "t", Name: "t", Hash: "t"},
	})
	for i := range 4 {
		s.enrol(fmt.Sprintf("agent-%d", i+1))
	}
	s.publish()
	for _, srv := range s.servers {
		s.meet(srv)
	}
	return s
}

func (s *sim) enrol(name string) {
	key := make([]byte, 32)
	binary.BigEndian.PutUint64(key, uint64(len(s.hosts)+1))
	s.mustCommit("user:ann", fleet.JoinTokenCreated{Token: fleet.JoinToken{ID: name, Hash: name, Role: fleet.RoleAgent, ExpiresAt: s.now.AddDate(100, 0, 0)}})
	s.mustCommit("host:"+name, fleet.HostEnrolled{TokenHash: name, Host: fleet.Host{ID: name, Name: name, OS: "linux", Arch: "amd64", PublicKey: key}})
	h := &simHost{name: name, up: true, boot: 1, installed: "A", version: "A", phase: phaseIdle, reached: map[string]bool{"A": true}}
	s.hosts = append(s.hosts, h)
	s.openFence(h)
}

func (s *sim) openFence(h *simHost) {
	f, err := order.OpenFence(filepath.Join(s.dir, h.name))
	if err != nil {
		s.t.Fatal(err)
	}
	h.fence = f
}

// publish makes the next release.
func (s *sim) publish() {
	n := uint64(len(s.servers[0].state.View().Releases()) + 1)
	if s.leader != nil {
		n = uint64(len(s.leader.state.View().Releases()) + 1)
	}
	version := string(rune('A' + n))
	s.commit(s.leader, "user:ann", fleet.ReleasePublished{Release: fleet.Release{
		Version: version, Number: n, Artifacts: []fleet.Artifact{{OS: "linux", Arch: "amd64", Size: 1000, SHA256: digest(version, "linux/amd64")}},
	}})
}

func (s *sim) chance(percent int) bool { return s.rng.IntN(100) < percent }

func (s *sim) between(a, b time.Duration) time.Duration {
	return a + time.Duration(s.rng.Int64N(int64(b-a)))
}

func (s *sim) say(format string, args ...any) {
	s.trail = append(s.trail, s.now.Sub(epoch).String()+" "+fmt.Sprintf(format, args...))
	if over := len(s.trail) - 80; over > 0 {
		s.trail = s.trail[over:]
	}
}

func (s *sim) fatalf(format string, args ...any) {
	s.t.Helper()
	s.t.Fatalf("%s\n%s", fmt.Sprintf(format, args...), strings.Join(s.trail, "\n"))
}

// step lets some time pass, lets something happen, and lets everybody act.
func (s *sim) step() {
	s.now = s.now.Add(s.between(time.Millisecond, 2*time.Second))
	if s.chance(20) {
		s.disturb()
	}
	if s.chance(10) {
		s.mend()
	}
	if s.chance(20) {
		s.administer()
	}
	s.act()
}

// act is all that goes on by itself.
func (s *sim) act() {
	s.deliver()
	for _, h := range s.hosts {
		s.live(h)
	}
	s.follow()
	for _, srv := range s.servers {
		if srv.up && srv.believes {
			s.coordinate(srv)
		}
	}
	s.checks.all()
}

func (s *sim) deliver() {
	due := s.mail[:0:0]
	later := s.mail[:0:0]
	for _, m := range s.mail {
		if m.at.After(s.now) {
			later = append(later, m)
		} else {
			due = append(due, m)
		}
	}
	s.mail = later
	slices.SortStableFunc(due, func(a, b simMail) int { return a.at.Compare(b.at) })
	for _, m := range due {
		m.deliver()
	}
}

func (s *sim) after(d time.Duration, deliver func()) {
	s.mail = append(s.mail, simMail{s.now.Add(d), deliver})
}

// mend brings back one server that is down or cut off.
func (s *sim) mend() {
	for _, srv := range s.servers {
		switch {
		case !srv.up:
			s.restart(srv)
			return
		case srv.cut:
			s.say("%s is back", srv.name)
			srv.cut = false
			return
		}
	}
}

// disturb does something to a server or, when it is not calm, to a host.
func (s *sim) disturb() {
	srv := s.servers[s.rng.IntN(len(s.servers))]
	h := s.hosts[s.rng.IntN(len(s.hosts))]
	switch s.rng.IntN(8) {
	case 0:
		s.crash(srv)
	case 1:
		s.say("%s is cut off", srv.name)
		srv.cut, srv.noticesAt = true, s.now.Add(s.between(0, 5*time.Second))
	case 2:
		s.mend()
	case 3:
		srv.offset += []time.Duration{time.Hour, -time.Hour, 365 * 24 * time.Hour, -365 * 24 * time.Hour, time.Minute}[s.rng.IntN(5)]
		s.say("the clock of %s is off by %v", srv.name, srv.offset)
	case 4:
		s.say("leadership moves")
		s.elect(srv)
	case 5:
		if srv.up {
			var b bytes.Buffer
			if err := srv.state.Snapshot(&b); err != nil {
				s.t.Fatal(err)
			}
			srv.snapshot, srv.snapAt = b.Bytes(), srv.applied
		}
	case 6:
		if !s.calm && h.up {
			s.say("%s loses power", h.name)
			s.down(h, s.between(5*time.Second, time.Minute), false)
			h.version, h.phase, h.job, h.reason, h.next = h.installed, phaseIdle, "", "", nil
		}
	case 7:
		if !s.calm && srv.up {
			if srv.blind = !srv.blind; srv.blind {
				s.say("%s does not see the hosts", srv.name)
				s.after(5*time.Second, func() {
					for id, o := range srv.seen {
						if srv.blind {
							o.Online = false
							srv.seen[id] = o
						}
					}
				})
			} else {
				s.meet(srv)
			}
		}
	}
	if s.leader != nil && !s.majority(s.leader) {
		s.say("%s can commit nothing any more", s.leader.name)
		s.leader.noticesAt = s.now.Add(s.between(0, 5*time.Second))
		s.leader = nil
	}
}

// majority tells whether a server and those that it reaches are one.
func (s *sim) majority(srv *simServer) bool {
	if !srv.up || srv.cut {
		return false
	}
	n := 0
	for _, o := range s.servers {
		if o.up && !o.cut {
			n++
		}
	}
	return n > len(s.servers)/2
}

func (s *sim) crash(srv *simServer) {
	if !srv.up {
		return
	}
	s.say("%s crashes", srv.name)
	s.counts.Crashes++
	srv.up, srv.believes, srv.blind = false, false, false
	srv.seen = map[string]Observation{}
}

// restart gives a server the state of its disk: a snapshot, if it has one, and the log.
func (s *sim) restart(srv *simServer) {
	s.say("%s starts", srv.name)
	srv.up, srv.state, srv.applied = true, fleet.New(), 0
	if srv.snapshot != nil {
		if err := srv.state.Restore(bytes.NewReader(srv.snapshot)); err != nil {
			s.t.Fatal(err)
		}
		srv.applied = srv.snapAt
	}
	s.meet(srv)
}

// meet tells a server of all hosts after a while.
func (s *sim) meet(srv *simServer) {
	for _, h := range s.hosts {
		s.after(s.between(0, 5*time.Second), func() { s.record(srv, h) })
	}
}

// elect makes a server leader, if a majority would have it. The one before may
// not hear of it for a while.
func (s *sim) elect(srv *simServer) {
	if !s.majority(srv) || s.leader == srv {
		return
	}
	if s.leader != nil {
		s.leader.noticesAt = s.now.Add(s.between(0, 5*time.Second))
	}
	s.counts.Elections++
	s.leader, srv.believes = srv, true
	s.apply(srv, len(s.log)) // a Barrier
	srv.mem = memory{since: s.now}
	s.say("%s leads", srv.name)
}

// follow has servers apply what is committed, sooner or later, and those that no
// longer lead notice.
func (s *sim) follow() {
	if s.leader == nil && s.chance(40) {
		s.elect(s.servers[s.rng.IntN(len(s.servers))])
	}
	for _, srv := range s.servers {
		if srv.believes && srv != s.leader && !s.now.Before(srv.noticesAt) {
			srv.believes = false
			s.say("%s notices that it no longer leads", srv.name)
		}
		if srv.up && !srv.cut && s.leader != nil && s.chance(70) {
			s.apply(srv, srv.applied+s.rng.IntN(len(s.log)-srv.applied+1))
		}
	}
}

func (s *sim) apply(srv *simServer, to int) (last fleet.Result) {
	for srv.applied < to {
		e := s.log[srv.applied]
		srv.applied++
		last = srv.state.Apply(uint64(srv.applied), e)
		s.checks.applied(srv, e, last)
	}
	return last
}

// commit has a server append a change, if it leads, and tells whether it was
// accepted and it heard so. Some are appended twice, as by a retry.
func (s *sim) commit(srv *simServer, actor string, c fleet.Change) bool {
	if srv == nil {
		return false
	}
	if srv != s.leader {
		s.counts.Deposed++
		return false
	}
	s.ids++
	at := s.now.Add(srv.offset)
	if s.lastAt.After(at) && s.lastAt.Sub(at) <= 24*time.Hour {
		at = s.lastAt
	}
	s.lastAt = at
	e, err := fleet.NewEntry(fmt.Sprintf("p%d", s.ids), actor, at, c)
	if err != nil {
		s.t.Fatal(err)
	}
	s.log, s.changes = append(s.log, e), append(s.changes, c)
	res := s.apply(srv, len(s.log))
	s.counts.Entries++
	s.say("%d %s by %s: %v %+v", len(s.log), c.Kind(), srv.name, res.Err, c)
	if s.chance(5) {
		s.log, s.changes = append(s.log, e), append(s.changes, c) // as by a retry
		s.apply(srv, len(s.log))
	}
	return res.Err == nil && !s.chance(3)
}

func (s *sim) mustCommit(actor string, c fleet.Change) {
	s.t.Helper()
	n := len(s.log)
	s.commit(s.leader, actor, c)
	if v := s.leader.state.View(); v.Index() <= uint64(n) {
		s.t.Fatalf("%s was not applied", c.Kind())
	}
}

// administer is what people do.
func (s *sim) administer() {
	if s.leader == nil {
		return
	}
	v := s.leader.state.View()
	newest, _ := v.NewestRelease()
	active, running := v.ActiveFleetUpdate()
	host := s.hosts[s.rng.IntN(len(s.hosts))].name
	s.ids++
	id := fmt.Sprintf("x%d", s.ids)
	switch s.rng.IntN(10) {
	case 0:
		if len(v.Releases()) < 8 {
			s.publish()
		}
	case 1, 6:
		s.commit(s.leader, "user:ann", fleet.JobCreated{JobID: id, HostID: host, TargetVersion: newest.Version})
	case 2:
		s.commit(s.leader, "user:ann", fleet.FleetUpdatePaused{ID: active.ID})
	case 3, 4:
		s.commit(s.leader, "user:ann", fleet.FleetUpdateResumed{ID: active.ID})
	case 5:
		if s.chance(30) {
			s.commit(s.leader, "user:ann", fleet.FleetUpdateCancelled{ID: active.ID})
		}
	default:
		if !running {
			var ids []string
			for _, h := range s.hosts {
				ids = append(ids, h.name)
			}
			s.commit(s.leader, "user:ann", fleet.FleetUpdateStarted{ID: id, TargetVersion: newest.Version, HostIDs: ids})
		}
	}
}

// coordinate is a round of Run on a server that believes it leads.
func (s *sim) coordinate(srv *simServer) {
	for range 10 {
		c := &coordinator{Config: Config{Log: simLog{srv: srv}, Roster: simLog{srv: srv}, Timeouts: DefaultTimeouts, Unreachable: UnreachableIsOffline}, memory: srv.mem}
		in := c.gather(context.Background(), s.now)
		s.ids++
		in.NewJobID = fmt.Sprintf("j%d", s.ids)
		steps, mem, _ := plan(in)
		srv.mem = mem
		moved := false
		for _, st := range steps {
			if st.Change != nil {
				s.checks.planned(srv, st.Change)
				if moved = s.commit(srv, Actor, st.Change); !moved {
					return
				}
			}
			if st.Send {
				s.send(srv, st.JobID)
			}
		}
		if !moved {
			return
		}
	}
}

// simLog is what a coordinator reads of its server.
type simLog struct {
	Log
	srv *simServer
}

func (l simLog) State() *fleet.State      { return l.srv.state }
func (l simLog) Changed() <-chan struct{} { return nil }
func (l simLog) Observations(uint64) (map[string]Observation, uint64, bool) {
	return l.srv.seen, 1, true
}

// send puts a job's order on its way, as Run.send does.
func (s *sim) send(srv *simServer, jobID string) {
	j, ok := srv.state.View().Job(jobID)
	if !ok || j.Status != fleet.JobRunning || j.DispatchIndex == 0 {
		return
	}
	s.counts.Orders++
	s.checks.sent(srv, j)
	o := order.Order{
		Cluster: "c", HostID: j.HostID, JobID: j.ID, Attempt: j.Attempt, Action: order.ActionUpdate, Version: j.TargetVersion,
		Manifest: []byte("m"), Signature: []byte("s"), Index: j.DispatchIndex, Expires: s.now.Add(time.Hour),
	}
	copies := 1
	if s.chance(20) {
		copies = 2
	}
	for i := range copies {
		delay := s.between(0, time.Second)
		switch {
		case s.calm && i == 0: // it gets there
		case s.chance(15):
			delay = s.between(0, 3*time.Minute) // overtaken by much
		case s.chance(10):
			continue // lost
		}
		s.after(delay, func() { s.receive(o) })
	}
}

// receive is a host that gets an order.
func (s *sim) receive(o order.Order) {
	i := slices.IndexFunc(s.hosts, func(h *simHost) bool { return h.name == o.HostID })
	h := s.hosts[i]
	if !h.up {
		return
	}
	switch err := h.fence.Accept(o); {
	case errors.Is(err, order.ErrStale):
		s.counts.Stale++
		return
	case errors.Is(err, order.ErrRepeated):
		s.counts.Repeated++
		return
	case err != nil:
		s.fatalf("%s: %v", h.name, err)
	}
	s.checks.runs(h, o)
	s.say("%s begins job %s, index %d", h.name, o.JobID, o.Index)
	h.job, h.reason = o.JobID, ""
	at := s.now
	then := func(d time.Duration, do func(h *simHost)) {
		at = at.Add(d)
		h.next = append(h.next, simPhase{at, do})
	}
	phase := func(p string) func(*simHost) { return func(h *simHost) { h.phase = p } }
	h.next = nil
	h.phase = phaseFetching
	s.tell(h)
	then(s.between(time.Second, 30*time.Second), phase(phaseVerifying))
	then(s.between(0, time.Second)+1, phase(phasePreflight))
	if !s.calm && s.chance(10) {
		then(time.Second, func(h *simHost) { h.phase, h.reason = phaseFailed, "no space" })
		return
	}
	then(time.Second, func(h *simHost) { h.phase = phaseRestarting })
	then(time.Second, func(h *simHost) { s.down(h, s.between(time.Second, 5*time.Second), true) })
	then(6*time.Second, func(h *simHost) { h.version, h.phase = o.Version, phaseTrial })
	if !s.calm && s.chance(10) {
		then(5*time.Second, func(h *simHost) { s.down(h, time.Second, false) })
		then(2*time.Second, func(h *simHost) { h.version, h.phase, h.reason = h.installed, phaseRolledBack, "it crashed" })
		return
	}
	then(5*time.Second, func(h *simHost) {
		h.installed, h.phase = o.Version, phaseIdle
		h.reached[o.Version] = true
	})
}

func (s *sim) down(h *simHost, d time.Duration, left bool) {
	h.up, h.left, h.backAt = false, left, s.now.Add(d)
	s.tell(h)
}

// live has a host do what is due.
func (s *sim) live(h *simHost) {
	if !h.up {
		if s.now.Before(h.backAt) {
			return
		}
		h.up, h.left = true, false
		h.boot++
		s.openFence(h) // from its disk
		s.tell(h)
	}
	for len(h.next) > 0 && !s.now.Before(h.next[0].at) && h.up {
		do := h.next[0].do
		h.next = h.next[1:]
		do(h)
		s.tell(h)
	}
}

// tell carries a host's record to the servers.
func (s *sim) tell(h *simHost) {
	h.seq++
	for _, srv := range s.servers {
		most := time.Second
		if !s.calm {
			most = 4 * time.Second
		}
		s.after(s.between(0, most), func() { s.record(srv, h) })
	}
}

// record is a server that hears of a host as it is now.
func (s *sim) record(srv *simServer, h *simHost) {
	if !srv.up || srv.blind {
		return
	}
	srv.seen[h.name] = Observation{
		Online: h.up, Left: h.left, Segments: []string{fleet.DefaultSegment}, Boot: h.boot, Seq: h.seq, Version: h.version,
		Digest: digest(h.version, "linux/amd64")[:16], Phase: h.phase, JobID: h.job, Error: h.reason,
	}
}

// settle heals everything, and waits until all that was begun has ended: nothing
// that happened may hold the fleet up for ever.
func (s *sim) settle() {
	for _, srv := range s.servers {
		srv.cut, srv.offset = false, 0
		if srv.blind {
			srv.blind = false
			s.meet(srv)
		}
		if !srv.up {
			s.restart(srv)
		}
	}
	s.say("all is healed")
	for range 4000 {
		s.now = s.now.Add(s.between(time.Millisecond, 2*time.Second))
		s.act()
		if s.leader == nil {
			continue
		}
		v := s.leader.state.View()
		u, active := v.ActiveFleetUpdate()
		if u.Status == fleet.FleetPaused {
			s.commit(s.leader, "user:ann", fleet.FleetUpdateResumed{ID: u.ID})
		}
		if !active && len(v.OpenJobs()) == 0 {
			for _, srv := range s.servers {
				s.apply(srv, len(s.log))
				s.checks.compare(srv)
			}
			s.checks.all()
			return
		}
	}
	s.fatalf("the fleet update does not end: %+v", s.leader.state.View().OpenJobs())
}
