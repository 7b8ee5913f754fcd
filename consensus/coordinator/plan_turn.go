package coordinator

import (
	"fmt"
	"time"

	"moult/consensus/fleet"
)

// planNext says what to do when no job is in flight: first the jobs of single
// hosts that wait, for a person waits for each, then the fleet update.
func planNext(in input, w *waits) (steps []step, wake time.Time) {
	for _, j := range in.Open {
		s, later := planQueued(in, j, w)
		if later.IsZero() {
			return []step{s}, time.Time{}
		}
		wake = earliest(wake, later)
	}
	if in.Active != nil && in.Active.Status == fleet.FleetRunning {
		turn, later := planTurn(in, *in.Active, w)
		return turn, earliest(wake, later)
	}
	return nil, wake
}

// waits measures how long a host is waited for.
type waits struct {
	old, now map[string]time.Time
	stage    stageMemory
}

// until returns when the wait for a host is over.
func (w *waits) until(hostID string, now time.Time, limit time.Duration) time.Time {
	since, waited := w.old[hostID]
	if !waited {
		since = now
	}
	if w.now == nil {
		w.now = map[string]time.Time{}
	}
	w.now[hostID] = since
	return since.Add(limit)
}

// planTurn acts on the next pending hosts of a fleet update: passes over those
// that need nothing, or dispatches, or halts, or ends it. An agent whose turn has to
// wait lets other agents go before it; when none is left its wait begins. Servers
// come after the agents and wait in their order: what one waits for concerns all.
func planTurn(in input, u fleet.FleetUpdate, w *waits) (steps []step, later time.Time) {
	var heldHost fleet.Host
	var held obstacle
	skip := func(turn fleet.FleetUpdateHost, reason string) {
		steps = append(steps, step{Change: fleet.FleetUpdateHostSkipped{ID: u.ID, HostID: turn.HostID, Reason: reason}})
	}
	for turn := range turnsInOrder(in, u) {
		h, ok := in.Hosts[turn.HostID]
		if !ok {
			skip(turn, "host deleted")
			continue
		}
		if h.Quarantine != nil {
			skip(turn, inQuarantine(h))
			continue
		}
		if held.wait > 0 && h.Role == fleet.RoleServer {
			break
		}
		seen, rel := in.Seen[h.ID], in.Releases[u.TargetVersion]
		if seen.Online && seen.Phase != phaseTrial && atTarget(seen, rel, h) {
			skip(turn, "already at target")
			continue
		}
		if len(steps) > 0 {
			return steps, time.Time{} // the skips first, then look again
		}
		o := cannotDispatch(in, h, u.TargetVersion)
		switch {
		case !o.later.IsZero():
			return nil, o.later
		case o.wait > 0:
			if held.wait == 0 {
				heldHost, held = h, o
			}
			continue
		case o.why != "":
			return []step{{Change: fleet.FleetUpdateHalted{ID: u.ID, HostID: h.ID, Reason: o.why}}}, time.Time{}
		case handsOver(in, h):
			return planHandover(in, u, h, w)
		}
		if due := awaitStaging(in, u, h, &w.stage); in.Now.Before(due) {
			return nil, due
		}
		return []step{{
			JobID:  in.NewJobID,
			Change: fleet.JobDispatched{JobID: in.NewJobID, HostID: h.ID, FleetUpdateID: u.ID, FromVersion: seen.Version, Boot: seen.Boot},
			Say:    dispatched(h, seen, u.TargetVersion),
		}}, time.Time{}
	}
	if len(steps) > 0 {
		return steps, time.Time{}
	}
	if held.wait > 0 {
		if due := w.until(heldHost.ID, in.Now, held.wait); in.Now.Before(due) {
			if held.look > 0 {
				due = earliest(due, in.Now.Add(held.look))
			}
			return nil, due
		}
		return []step{{Change: fleet.FleetUpdateHalted{ID: u.ID, HostID: heldHost.ID, Reason: held.why}}}, time.Time{}
	}
	return []step{{Change: fleet.FleetUpdateCompleted{ID: u.ID}}}, time.Time{}
}

// planQueued dispatches a single host's job, or ends it when it cannot run. With
// later, it is too early to say.
func planQueued(in input, j fleet.Job, w *waits) (s step, later time.Time) {
	h, ok := in.Hosts[j.HostID]
	if !ok {
		return finish(j, fleet.JobCancelled, "host deleted", nil), time.Time{}
	}
	if h.Quarantine != nil {
		return finish(j, fleet.JobFailed, inQuarantine(h), nil), time.Time{}
	}
	o := cannotDispatch(in, h, j.TargetVersion)
	if o.wait > 0 {
		if due := w.until(h.ID, in.Now, o.wait); in.Now.Before(due) {
			o.later = due
		}
	}
	switch {
	case !o.later.IsZero():
		return step{}, o.later
	case o.why != "":
		return finish(j, fleet.JobFailed, o.why, nil), time.Time{}
	}
	seen := in.Seen[h.ID]
	return step{
		JobID:  j.ID,
		Change: fleet.JobDispatched{JobID: j.ID, HostID: h.ID, FromVersion: seen.Version, Boot: seen.Boot},
		Say:    dispatched(h, seen, j.TargetVersion),
	}, time.Time{}
}

// inQuarantine says why a host gets no order that must not get one.
func inQuarantine(h fleet.Host) string { return "in quarantine: " + h.Quarantine.Why }

// obstacle is what keeps a host from being sent an order. The zero obstacle is
// none.
type obstacle struct {
	why   string
	later time.Time     // too early to say: ask again then
	wait  time.Duration // it may go away: wait so long, while others go before
	look  time.Duration // look again after so long, for nothing tells when it goes away; 0: something does
}

// cannotDispatch says why a host cannot be sent an order now. A host that nobody has
// told this leader of, or only that there is one, is not offline yet: the leader may
// have just started and not heard of anybody.
func cannotDispatch(in input, h fleet.Host, target string) obstacle {
	if why := cannotRun(target, in.Releases[target], h); why != "" {
		return obstacle{why: why}
	}
	seen, known := in.Seen[h.ID]
	if seen.Online {
		if why := strands(in, h); why != "" {
			return obstacle{why: why, wait: RelayWait}
		}
		if h.Role == fleet.RoleServer {
			if why := fleet.HoldsUpRestart(in.Group, h.ID, h.Name); why != "" {
				return obstacle{why: why, wait: QuorumWait, look: quorumLook}
			}
		}
		return obstacle{}
	}
	if heard := in.Memory.since.Add(in.Timeouts.NoSign); (!known || seen.Unsighted) && in.Now.Before(heard) {
		return obstacle{later: heard}
	}
	if back := seen.Since.Add(ReturnWait); in.Now.Before(back) {
		return obstacle{later: back}
	}
	o := obstacle{why: offline(in, h)}
	if in.Unreachable == WaitForUnreachable && cutOff(in, h) != "" {
		o.wait = UnreachableWait
	}
	return o
}

func dispatched(h fleet.Host, seen Observation, target string) string {
	return fmt.Sprintf("dispatched: %s, from %s to %s", h.Name, orElse(seen.Version, "an unknown version"), target)
}

// finish ends a job.
func finish(j fleet.Job, status fleet.JobStatus, why string, sources []fleet.Source) step {
	say := string(status)
	if why != "" {
		say += ": " + why
	}
	return step{
		JobID:  j.ID,
		Change: fleet.JobFinished{JobID: j.ID, Status: status, Error: why, Sources: sources},
		Say:    say,
	}
}
