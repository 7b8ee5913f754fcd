package coordinator

import (
	"slices"
	"strings"
	"time"

	"moult/consensus/fleet"
)

// Limits of the wait for the first host of a fleet update to have the release staged.
const (
	// DefaultStageWait is how long it is waited for in all.
	DefaultStageWait = 15 * time.Second
	// stageSign is how long without a sign that it stages: it may run an older version,
	// which knows no staging, or be told of it late.
	stageSign = 3 * time.Second
	// stageStalled is how long without progress, once it has begun.
	stageStalled = 10 * time.Second
)

// StageObservation is what a host says of an artifact that it fetches ahead of its
// turn.
type StageObservation struct {
	Digest string // sha256
	// Awaits: it waits for a patch that is being made. Failed: it cannot have it now.
	Awaits, Failed bool
	Done           int64 // bytes
}

// stageMemory is what a leader remembers of the staging that the first turn of a
// fleet update waits for.
type stageMemory struct {
	update, host string
	since        time.Time // of the update
	begun        bool
	done         int64
	movedAt      time.Time // the host's last sign of progress
}

// awaitStaging returns until when the turn of a host is to wait, that it be a restart
// and nothing else; zero: it is not. Only the first turn of a fleet update waits:
// after it the others have had as long. Who is not staged fetches at its turn.
func awaitStaging(in input, u fleet.FleetUpdate, h fleet.Host, mem *stageMemory) time.Time {
	a, fits := in.Releases[u.TargetVersion].Artifact(h.OS, h.Arch)
	if in.StageWait <= 0 || !fits || h.Role == fleet.RoleServer || begun(u) {
		return time.Time{}
	}
	if mem.update != u.ID {
		*mem = stageMemory{update: u.ID, since: in.Now}
	}
	if mem.host != h.ID {
		mem.host, mem.begun, mem.done, mem.movedAt = h.ID, false, 0, in.Now
	}
	seen := in.Seen[h.ID]
	stage := seen.Stage
	if stage.Digest != a.SHA256 {
		stage = StageObservation{}
	}
	if stage.Failed || seen.holds(a.SHA256) {
		return time.Time{}
	}
	if stage.Awaits || stage.Digest != "" && (!mem.begun || stage.Done > mem.done) {
		mem.movedAt = in.Now
	}
	mem.begun, mem.done = mem.begun || stage.Digest != "", max(mem.done, stage.Done)
	limit, patience := mem.since.Add(in.StageWait), stageSign
	switch {
	case stage.Awaits:
		patience = in.StageWait
	case mem.begun:
		patience = stageStalled
	}
	return earliest(limit, mem.movedAt.Add(patience))
}

// planAhead tells the agent whose turn comes next, once in each turn, so that it does its
// preflight now and not in its turn. It is told only when the host in flight has
// passed its own, as told by its phase: what a release does when it is asked for its
// version shows on one host before it can on the next.
func planAhead(in input, mem *jobMemory) []step {
	u := in.Active
	j, busy := running(in.Open)
	passed := mem.best.phase == phaseRestarting || mem.best.phase == phaseTrial
	if u == nil || u.Status != fleet.FleetRunning || !busy || j.FleetUpdateID != u.ID || mem.told || !passed {
		return nil
	}
	rel := in.Releases[u.TargetVersion]
	for turn := range turnsInOrder(in, *u) {
		h, seen := in.Hosts[turn.HostID], in.Seen[turn.HostID]
		if h.Role == fleet.RoleServer {
			return nil
		}
		if h.ID == "" || h.ID == j.HostID || h.Quarantine != nil || !seen.Online || atTarget(seen, rel, h) || cannotRun(u.TargetVersion, rel, h) != "" {
			continue
		}
		if a, _ := rel.Artifact(h.OS, h.Arch); !seen.holds(a.SHA256) {
			return nil // it fetches in its turn, or is told in the next look
		}
		mem.told = true
		return []step{{Next: h.ID}}
	}
	return nil
}

// begun tells whether any turn of a fleet update was more than passed over.
func begun(u fleet.FleetUpdate) bool {
	for _, t := range u.Hosts.All() {
		if t.Status != fleet.TurnPending && t.Status != fleet.TurnSkipped {
			return true
		}
	}
	return false
}

// holds tells whether a host says that it runs or holds an artifact.
func (o Observation) holds(sha256 string) bool {
	return o.Digest != "" && strings.HasPrefix(sha256, o.Digest) ||
		slices.ContainsFunc(o.Holds, func(prefix string) bool { return prefix != "" && strings.HasPrefix(sha256, prefix) })
}
