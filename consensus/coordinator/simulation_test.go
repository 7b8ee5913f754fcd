package coordinator

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"moult/consensus/fleet"
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
