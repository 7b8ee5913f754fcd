package coordinator

import (
	"encoding/binary"
	"errors"
	"path/filepath"
	"slices"
	"time"

	"moult/consensus/fleet"
	"moult/updater/order"
)

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
