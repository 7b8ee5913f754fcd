package coordinator

import (
	"fmt"

	"moult/consensus/fleet"
	"moult/updater/order"
)

// simChecks remembers by itself what happened in a simulation, and holds the parts
// to it. The numbers are those of docs/invariants.md.
type simChecks struct {
	s          *sim
	hashes     map[int]string // of the state, by index
	dispatched map[string]uint64
	failed     map[string]bool // fleet updates with a failure, by the log
	began      map[string]int  // job, host, attempt → how often a host began it
	fences     map[string]uint64
	ended      map[string]fleet.JobStatus // jobs that have, by the log
	checkedTo  int                        // entries that were looked at once
}

func newSimChecks(s *sim) simChecks {
	return simChecks{
		s: s, hashes: map[int]string{}, dispatched: map[string]uint64{}, failed: map[string]bool{}, began: map[string]int{},
		fences: map[string]uint64{}, ended: map[string]fleet.JobStatus{},
	}
}

// applied looks at a replica after each entry. Replicas apply at different times,
// some of them from a snapshot.
func (c *simChecks) applied(srv *simServer, e fleet.Entry, res fleet.Result) {
	if srv.applied%hashEvery == 0 {
		c.compare(srv)
	}
	v := srv.state.View()
	if a := v.Audit(0, 1); len(a) > 0 && a[0].Index == uint64(srv.applied) && (a[0].Actor == "" || a[0].Actor != e.Actor || a[0].At != e.At) {
		c.s.fatalf("invariant 20: entry %d of %s is audited as %+v", srv.applied, e.Actor, a[0])
	}
	if srv.applied <= c.checkedTo {
		return
	}
	c.checkedTo = srv.applied
	repeated := res.Index != uint64(srv.applied)
	change := c.s.changes[srv.applied-1]
	if res.Err != nil || repeated {
		return
	}
	switch d := change.(type) {
	case fleet.JobDispatched:
		c.s.counts.Dispatches++
		j, _ := v.Job(d.JobID)
		if d.FleetUpdateID != "" && c.failed[d.FleetUpdateID] {
			c.s.fatalf("invariant 15: entry %d dispatches %s of %s after a failure", srv.applied, d.JobID, d.FleetUpdateID)
		}
		run := fmt.Sprint(j.ID, " ", j.HostID, " ", j.Attempt)
		if _, twice := c.dispatched[run]; twice || j.DispatchIndex != uint64(srv.applied) {
			c.s.fatalf("invariant 13: entry %d dispatches %s again, or its token is %d", srv.applied, run, j.DispatchIndex)
		}
		c.dispatched[run] = j.DispatchIndex
	case fleet.JobFinished:
		j, _ := v.Job(d.JobID)
		c.ended[j.ID] = j.Status
		if j.Status == fleet.JobFailed {
			c.s.counts.Failed++
			if j.FleetUpdateID != "" {
				c.failed[j.FleetUpdateID] = true
			}
			if c.s.calm {
				c.s.fatalf("a healthy host failed: %+v", j)
			}
		}
		c.truth(j)
	case fleet.FleetUpdateHalted:
		c.failed[d.ID] = true
		c.s.counts.Halted++
		if c.s.calm {
			c.s.fatalf("a fleet update halted though all hosts are well: %+v", d)
		}
	}
}

// hashEvery is between two indexes at which states are compared: a digest of all of a
// state is dear, and states that differ once differ from then on.
const hashEvery = 4

// compare holds a replica to the others at the same index.
func (c *simChecks) compare(srv *simServer) {
	hash := srv.state.Hash()
	if other, known := c.hashes[srv.applied]; known && other != hash {
		c.s.fatalf("invariants 11 and 12: %s has another state at index %d", srv.name, srv.applied)
	}
	c.hashes[srv.applied] = hash
}

// truth holds a success to the host.
func (c *simChecks) truth(j fleet.Job) {
	for _, h := range c.s.hosts {
		if j.Status == fleet.JobSucceeded && h.name == j.HostID && !h.reached[j.TargetVersion] {
			c.s.fatalf("invariant 19: job %s succeeded, and %s has never had %s", j.ID, h.name, j.TargetVersion)
		}
	}
}

// planned looks at what a coordinator is about to propose.
func (c *simChecks) planned(srv *simServer, change fleet.Change) {
	if f, ok := change.(fleet.JobFinished); ok && f.Status == fleet.JobFailed && f.Error == "" {
		c.s.fatalf("%s fails job %s without a reason", srv.name, f.JobID)
	}
}

// sent looks at an order that leaves a server, leader or not.
func (c *simChecks) sent(srv *simServer, j fleet.Job) {
	if j.DispatchIndex == 0 || j.DispatchIndex > uint64(len(c.s.log)) {
		c.s.fatalf("invariant 16: %s sends job %s with index %d of a log of %d", srv.name, j.ID, j.DispatchIndex, len(c.s.log))
	}
	change := c.s.changes[j.DispatchIndex-1]
	d, ok := change.(fleet.JobDispatched)
	if !ok || d.JobID != j.ID || d.HostID != j.HostID {
		c.s.fatalf("invariant 16: %s sends job %s, and behind it stands entry %d, %+v", srv.name, j.ID, j.DispatchIndex, change)
	}
}

// runs looks at an order that a host's fence let through.
func (c *simChecks) runs(h *simHost, o order.Order) {
	run := fmt.Sprint(o.JobID, " ", h.name, " ", o.Attempt)
	if c.began[run]++; c.began[run] > 1 {
		c.s.fatalf("invariant 13: %s runs %s again", h.name, run)
	}
	if o.Index <= c.fences[h.name] || o.HostID != h.name {
		c.s.fatalf("invariant 17: %s accepts index %d after %d", h.name, o.Index, c.fences[h.name])
	}
	c.fences[h.name] = o.Index
	if c.dispatched[run] != o.Index {
		c.s.fatalf("invariants 13 and 16: %s begins %s with index %d, and it was dispatched with %d", h.name, run, o.Index, c.dispatched[run])
	}
}

// all looks at every replica after a step.
func (c *simChecks) all() {
	for _, srv := range c.s.servers {
		if !srv.up {
			continue
		}
		v := srv.state.View()
		inFlight := 0
		for _, j := range v.OpenJobs() {
			if j.Status == fleet.JobRunning {
				inFlight++
			}
		}
		if inFlight > fleet.MaxInFlight {
			c.s.fatalf("invariant 14: %s has %d jobs in flight", srv.name, inFlight)
		}
		active := 0
		for _, u := range v.FleetUpdates() {
			if !u.Status.Active() {
				continue
			}
			active++
			for _, turn := range u.Hosts.All() {
				if turn.Status == fleet.TurnFailed {
					c.s.fatalf("invariant 15: on %s fleet update %s is %s after the failure of %s", srv.name, u.ID, u.Status, turn.Name)
				}
			}
		}
		if active > 1 {
			c.s.fatalf("%s has %d active fleet updates", srv.name, active)
		}
		if v.Index() != uint64(srv.applied) {
			c.s.fatalf("%s is at index %d after entry %d", srv.name, v.Index(), srv.applied)
		}
		if c.s.chance(2) && srv.applied > 0 { // nothing but entries changes a state (19)
			c.compare(srv)
		}
	}
	if n := len(c.s.log); n > 0 {
		c.acknowledged()
	}
}

// acknowledged: what the leader's state showed once, the next leader's shows, too.
func (c *simChecks) acknowledged() {
	l := c.s.leader
	if l == nil {
		return
	}
	if l.applied != len(c.s.log) {
		c.s.fatalf("invariant 10: %s leads at index %d of %d", l.name, l.applied, len(c.s.log))
	}
	for _, j := range l.state.View().OpenJobs() {
		if was, ended := c.ended[j.ID]; ended {
			c.s.fatalf("invariant 10: job %s was %s and is %s", j.ID, was, j.Status)
		}
	}
}
