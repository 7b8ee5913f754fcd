package coordinator

import (
	"fmt"
	"time"

	"moult/consensus/fleet"
)

// planNext says what to do when no job is in flight: first the jobs of single
// hosts that wait, for a person waits for each, then the fleet update.
func planNext(in input) (steps []step, wake time.Time) {
	for _, j := range in.Open {
		s, later := planQueued(in, j)
		if later.IsZero() {
			return []step{s}, time.Time{}
		}
		wake = earliest(wake, later)
	}
	if in.Active != nil && in.Active.Status == fleet.FleetRunning {
		turn, later := planTurn(in, *in.Active)
		return turn, earliest(wake, later)
	}
	return nil, wake
}

// planTurn acts on the next pending hosts of a fleet update: passes over those
// that need nothing, or dispatches, or halts, or ends it.
func planTurn(in input, u fleet.FleetUpdate) (steps []step, later time.Time) {
	skip := func(turn fleet.FleetUpdateHost, reason string) {
		steps = append(steps, step{Change: fleet.FleetUpdateHostSkipped{ID: u.ID, HostID: turn.HostID, Reason: reason}})
	}
	for _, turn := range u.Hosts {
		if turn.Status != fleet.TurnPending {
			continue
		}
		h, ok := in.Hosts[turn.HostID]
		if !ok {
			skip(turn, "host deleted")
			continue
		}
		seen, rel := in.Seen[h.ID], in.Releases[u.TargetVersion]
		if seen.Online && seen.Phase != phaseTrial && atTarget(seen, rel, h) {
			skip(turn, "already at target")
			continue
		}
		if len(steps) > 0 {
			return steps, time.Time{} // the skips first, then look again
		}
		why, later := cannotDispatch(in, h, u.TargetVersion)
		switch {
		case !later.IsZero():
			return nil, later
		case why != "":
			return []step{{Change: fleet.FleetUpdateHalted{ID: u.ID, HostID: h.ID, Reason: why}}}, time.Time{}
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
	return []step{{Change: fleet.FleetUpdateCompleted{ID: u.ID}}}, time.Time{}
}

// planQueued dispatches a single host's job, or ends it when it cannot run. With
// later, it is too early to say.
func planQueued(in input, j fleet.Job) (s step, later time.Time) {
	h, ok := in.Hosts[j.HostID]
	if !ok {
		return finish(j, fleet.JobCancelled, "host deleted", nil), time.Time{}
	}
	why, later := cannotDispatch(in, h, j.TargetVersion)
	switch {
	case !later.IsZero():
		return step{}, later
	case why != "":
		return finish(j, fleet.JobFailed, why, nil), time.Time{}
	}
	seen := in.Seen[h.ID]
	return step{
		JobID:  j.ID,
		Change: fleet.JobDispatched{JobID: j.ID, HostID: h.ID, FromVersion: seen.Version, Boot: seen.Boot},
		Say:    dispatched(h, seen, j.TargetVersion),
	}, time.Time{}
}

// cannotDispatch says why a host cannot be sent an order now. A host that this
// leader has never seen is not offline yet: the leader may have just started
// and not heard of anybody. Then later says until when to wait for it.
func cannotDispatch(in input, h fleet.Host, target string) (why string, later time.Time) {
	if why := cannotRun(target, in.Releases[target], h); why != "" {
		return why, time.Time{}
	}
	seen, known := in.Seen[h.ID]
	if seen.Online {
		return "", time.Time{}
	}
	if heard := in.Memory.since.Add(in.Timeouts.NoSign); !known && in.Now.Before(heard) {
		return "", heard
	}
	return "host went offline: " + h.Name, time.Time{}
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
