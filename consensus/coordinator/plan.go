package coordinator

import (
	"fmt"
	"strings"
	"time"

	"moult/consensus/fleet"
)

// The phases of a host that the planner tells apart; the mesh's record has the
// same names. A phase it does not know is work in progress.
const (
	phaseIdle       = "idle"
	phaseFetching   = "fetching"
	phaseVerifying  = "verifying"
	phasePreflight  = "preflight"
	phaseRestarting = "restarting"
	phaseTrial      = "trial"
	phaseFailed     = "failed"
	phaseRolledBack = "rolled_back"
)

// input is all that a plan depends on.
type input struct {
	Now      time.Time
	Timeouts Timeouts
	// Hosts and Releases hold at least those that Open, Alerts and the pending turns
	// of Active name, unless they were deleted. They, Seen and Relays are only read.
	Hosts    map[string]fleet.Host
	Releases map[string]fleet.Release
	Active   *fleet.FleetUpdate // running or paused
	Open     []fleet.Job        // queued and running, the oldest first
	Alerts   []fleet.Alert      // open
	Seen     map[string]Observation
	Relays   map[string]fleet.Host // the enrolled hosts in two or more segments, by ID
	// Unreachable is what becomes of a host that nobody can see.
	Unreachable UnreachablePolicy
	StageWait   time.Duration // see Config
	Memory      memory
	NewJobID    string // for a job that this plan makes

	Self string // the server that plans
	// Group are the servers that hold the log, looked at only while a server's turn
	// is next.
	Group []fleet.GroupMember
}

// memory is what a leader remembers from plan to plan. It is not replicated: a
// new leader begins with an empty one.
type memory struct {
	since      time.Time // this leader watches the hosts since then
	dispatched string    // the last job that this leader dispatched itself
	job        jobMemory // of the job in flight
	// waits tells since when nothing else is left to do than to wait for a host, by
	// its ID.
	waits map[string]time.Time
	stage stageMemory
	// handover is why the last attempt to hand leadership over was in vain.
	handover string
	// back tells since when the host of an open alert, by the alert's ID, has
	// been seen at the target.
	back map[string]time.Time
}

// step is one thing to do: commit a change, or send a job's order, or tell the next host; and a line
// that is said about it in the job's log.
type step struct {
	JobID  string       // what it is about; "": no job
	Change fleet.Change // nil: none
	Send   bool         // the order of JobID
	Say    string
	// Next is the host that is told that its turn comes next; "": none.
	Next string
	// HandOver: another server is to lead. It is the only step then.
	HandOver bool
}

// plan returns what to do now, the memory to keep, and when to look again at the
// latest (zero: when something changes). The steps are of one class: verdicts
// and other changes to the run, or an order to send, or leadership to hand over, or
// alerts to close, or a host to tell that it is next. Changes
// are to be committed in their order, up to the first that is refused.
func plan(in input) (steps []step, mem memory, wake time.Time) {
	mem = in.Memory
	if j, ok := running(in.Open); ok {
		mem.waits = nil
		steps, mem.job, wake = planJob(in, j)
	} else {
		mem.job = jobMemory{}
		w := waits{old: in.Memory.waits, stage: in.Memory.stage}
		steps, wake = planNext(in, &w)
		mem.waits, mem.stage = w.now, w.stage
		for _, s := range steps {
			if _, ok := s.Change.(fleet.JobDispatched); ok {
				mem.dispatched = s.JobID
			}
		}
	}
	if len(steps) == 0 {
		var later time.Time
		steps, mem.back, later = planAlerts(in)
		wake = earliest(wake, later)
	}
	if len(steps) == 0 {
		steps = planAhead(in, &mem.job)
	}
	return steps, mem, wake
}

func running(open []fleet.Job) (fleet.Job, bool) {
	for _, j := range open {
		if j.Status == fleet.JobRunning {
			return j, true
		}
	}
	return fleet.Job{}, false
}

// planAlerts closes the alerts whose host is back at what it failed to reach,
// and has been for a moment: an agent on trial may show its version before it
// shows that it is on trial. The host of the job in flight is left to its verdict.
func planAlerts(in input) (steps []step, back map[string]time.Time, later time.Time) {
	busy, _ := running(in.Open)
	for _, a := range in.Alerts {
		h, ok := in.Hosts[a.HostID]
		seen := in.Seen[a.HostID]
		if !ok || h.ID == busy.HostID || !seen.Online || !settled(seen.Phase) || !atTarget(seen, in.Releases[a.TargetVersion], h) {
			continue
		}
		since, known := in.Memory.back[a.ID]
		if !known {
			since = in.Now
		}
		if back == nil {
			back = map[string]time.Time{}
		}
		back[a.ID] = since
		if due := since.Add(in.Timeouts.Reason); in.Now.Before(due) {
			later = earliest(later, due)
			continue
		}
		steps = append(steps, step{Change: fleet.AlertResolved{AlertID: a.ID}})
	}
	return steps, back, later
}

// settled tells whether a host in this phase is not at work on an update: what
// it runs is what it has installed.
func settled(phase string) bool {
	return phase == phaseIdle || phase == phaseFailed || phase == phaseRolledBack
}

// atTarget tells whether a host runs a release: the version byte for byte, and
// the digest where both sides of it are known. Whether it runs it on trial is
// another question.
func atTarget(seen Observation, rel fleet.Release, h fleet.Host) bool {
	if seen.Version == "" || seen.Version != rel.Version {
		return false
	}
	a, ok := rel.Artifact(h.OS, h.Arch)
	return !ok || seen.Digest == "" || strings.HasPrefix(a.SHA256, seen.Digest)
}

// cannotRun says why a host cannot be given a release; "" when it can.
func cannotRun(target string, rel fleet.Release, h fleet.Host) string {
	if rel.Version == "" || rel.Withdrawn {
		return fmt.Sprintf("release %s is not available; publish it again or choose another one", target)
	}
	if _, ok := rel.Artifact(h.OS, h.Arch); !ok {
		return fmt.Sprintf("release %s has no artifact for %s/%s, which %s needs; publish one that has", target, h.OS, h.Arch, h.Name)
	}
	return ""
}

// earliest returns the earlier of two times, where zero is none.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
