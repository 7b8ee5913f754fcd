package coordinator

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"moult/consensus/fleet"
)

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
