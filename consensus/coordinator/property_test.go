package coordinator

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"moult/consensus/fleet"
)

// TestInvariantsOverRandomObservations lets hosts show anything at any time,
// people interfere, leaders change and commits get lost. Whatever is planned,
// no order goes out without a committed dispatch (16), one host is in flight
// (14), nothing is dispatched after a failure (15), no relay is dispatched while
// the one that could stand in for it is away, no server while an agent is to come
// or while the others are no healthy majority, nor the one that leads, a success is
// what the host showed, and a job in flight always has a next look.
func TestInvariantsOverRandomObservations(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		w := newWorld(t)
		hosts := []string{"agent-1", "agent-2", "relay-1", "relay-2"}
		for _, h := range hosts {
			w.addHost(h, "linux/amd64", segmentsByName(h)...)
		}
		w.unreachable = rapid.SampledFrom([]UnreachablePolicy{UnreachableIsOffline, WaitForUnreachable}).Draw(r, "policy")
		w.addServer("server-2")
		w.addServer("server-3")
		hosts = append([]string{"server-1", "server-2", "server-3"}, hosts...)
		w.addRelease("B", "linux/amd64")
		// Servers come last: where all hosts take part, theirs are hardly ever reached.
		w.startUpdate("B", rapid.Permutation(hosts[:rapid.SampledFrom([]int{1, 3, 4, len(hosts)}).Draw(r, "hosts")]).Draw(r, "order")...)
		for range rapid.IntRange(1, 60).Draw(r, "steps") {
			w.interfere(r, hosts)
			w.now = w.now.Add(time.Duration(rapid.IntRange(0, 40_000).Draw(r, "ms")) * time.Millisecond)
			w.checkedPlan(r)
		}
	})
}

func (w *world) interfere(r *rapid.T, hosts []string) {
	defer func() { // whoever leads is here
		o := w.seen[w.leader]
		o.Server, o.Online, o.Unreachable, o.Segments = true, true, false, segmentsByName(w.leader)
		w.seen[w.leader] = o
	}()
	host := rapid.SampledFrom(hosts).Draw(r, "host")
	switch rapid.IntRange(0, 10).Draw(r, "what") {
	case 0:
		w.mem = memory{since: w.now}
		if next := rapid.SampledFrom([]string{"server-1", "server-2", "server-3"}).Draw(r, "leader"); w.enrolled(next) {
			w.leader = next
		}
	case 1:
		w.apply(fleet.FleetUpdatePaused{ID: w.fleet})
	case 2:
		w.apply(fleet.FleetUpdateResumed{ID: w.fleet})
	case 3:
		w.jobs++
		w.apply(fleet.JobCreated{JobID: fmt.Sprintf("j%d", w.jobs), HostID: host, TargetVersion: "B"})
	case 4:
		if rapid.IntRange(0, 5).Draw(r, "remove") == 0 && host != w.leader {
			w.apply(fleet.HostRemoved{HostID: host})
		}
	case 5:
		delete(w.seen, host)
	case 6:
		w.sick[host] = !w.sick[host]
	default:
		version := rapid.SampledFrom([]string{"A", "B"}).Draw(r, "version")
		job := ""
		if open := w.state.View().OpenJobs(); len(open) > 0 && rapid.Bool().Draw(r, "names it") {
			job, host = open[0].ID, open[0].HostID
		}
		w.seen[host] = Observation{
			Server: w.servers[host], Online: rapid.Bool().Draw(r, "online"), Boot: rapid.Uint64Range(1, 4).Draw(r, "boot"),
			Version: version, Digest: digest(version, "linux/amd64")[:16], JobID: job,
			Phase: rapid.SampledFrom([]string{
				phaseIdle, phaseFetching, phaseVerifying, phasePreflight, phaseRestarting, phaseTrial, phaseFailed, phaseRolledBack, "new",
			}).Draw(r, "phase"),
			Done: rapid.Int64Range(0, 3).Draw(r, "done"), Total: 3, Pulled: rapid.Int64Range(0, 3).Draw(r, "pulled"), Segments: segmentsByName(host),
		}
		if o := w.seen[host]; !o.Online {
			o.Unreachable = rapid.Bool().Draw(r, "unreachable")
			w.seen[host] = o
		}
	}
}

func (w *world) enrolled(id string) bool {
	_, ok := w.state.View().Host(id)
	return ok
}

func segmentsByName(host string) []string {
	switch {
	case strings.HasPrefix(host, "relay"):
		return []string{fleet.DefaultSegment, "dmz"}
	case strings.HasPrefix(host, "server"):
		return []string{fleet.DefaultSegment}
	}
	return []string{"dmz"}
}

// mustNotStrand fails when a relay is dispatched while the other one, which
// could stand in for it, does not.
func (w *world) mustNotStrand(r *rapid.T, v fleet.View, hostID string) {
	other := map[string]string{"relay-1": "relay-2", "relay-2": "relay-1"}[hostID]
	o, known := w.seen[other]
	_, enrolled := v.Host(other)
	if enrolled && (!known || !o.Online || o.Phase == phaseTrial || o.Phase == phaseRestarting) {
		r.Fatalf("%s is dispatched while %s is %+v", hostID, other, o)
	}
}

// mustKeepTheServers fails when a server is dispatched that must not restart.
func (w *world) mustKeepTheServers(r *rapid.T, v fleet.View, u fleet.FleetUpdate, d fleet.JobDispatched) {
	hostID := d.HostID
	if !w.servers[hostID] {
		return
	}
	if hostID == w.leader {
		r.Fatalf("%s is dispatched while it leads", hostID)
	}
	if why := fleet.HoldsUpRestart(worldLog{w}.Group(context.Background()), hostID, hostID); why != "" {
		r.Fatalf("%s is dispatched though %s", hostID, why)
	}
	for _, turn := range u.Hosts.All() {
		if _, enrolled := v.Host(turn.HostID); enrolled && turn.Status == fleet.TurnPending && !w.servers[turn.HostID] {
			r.Fatalf("%s is dispatched before %s", hostID, turn.HostID)
		}
	}
}

// checkedPlan plans once and carries the plan out as far as chance lets it.
func (w *world) checkedPlan(r *rapid.T) {
	before := w.state.View()
	u, _ := before.FleetUpdate(w.fleet)
	steps, mem, wake := plan(w.input())
	w.mem = mem
	changes, sends := 0, 0
	for _, s := range steps {
		if s.Send {
			sends++
			w.mustBeDispatched(s.JobID)
		}
		if s.Change == nil {
			continue
		}
		changes++
		switch c := s.Change.(type) {
		case fleet.JobDispatched:
			if c.FleetUpdateID != "" && u.Status != fleet.FleetRunning {
				r.Fatalf("dispatched under a fleet update that is %s", u.Status)
			}
			if _, busy := running(before.OpenJobs()); busy {
				r.Fatal("a second host is dispatched")
			}
			w.mustNotStrand(r, before, c.HostID)
			w.mustKeepTheServers(r, before, u, c)
		case fleet.JobFinished:
			j, _ := before.Job(c.JobID)
			if o := w.seen[j.HostID]; c.Status == fleet.JobSucceeded && (!o.Online || o.Version != "B" || o.Phase == phaseTrial) {
				r.Fatalf("succeeded though the host shows %+v", o)
			}
			if c.Status == fleet.JobFailed && c.Error == "" {
				r.Fatal("failed without a reason")
			}
		}
		if rapid.IntRange(0, 9).Draw(r, "lost") == 0 {
			return
		}
		if d, ok := s.Change.(fleet.JobDispatched); ok && d.JobID == fmt.Sprintf("j%d", w.jobs+1) {
			w.jobs++
		}
		if res := w.apply(s.Change); res.Err != nil {
			r.Fatalf("%s: refused: %s", s.Change.Kind(), res.Err.Message)
		}
	}
	if changes > 0 && sends > 0 {
		r.Fatal("a plan both commits and sends")
	}
	if _, busy := running(before.OpenJobs()); busy && changes == 0 && !wake.After(w.now) {
		r.Fatalf("a job is in flight, and the next look is at %v", wake)
	}
}
