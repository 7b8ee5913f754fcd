package coordinator

import (
	"fmt"
	"strings"
	"time"

	"moult/consensus/fleet"
)

// jobMemory is what a leader remembers of the job in flight.
type jobMemory struct {
	id        string
	inherited bool      // another leader dispatched it
	since     time.Time // when this leader first saw it running
	onlineAt  time.Time // when this leader first saw the host online since then

	sentAt time.Time // when this leader last sent the order; zero: not yet
	sent   int       // how often
	shown  bool      // the host's record has named the job

	best    progress // the furthest that the host was seen at
	movedAt time.Time
	sources []fleet.Source // the fullest list that the host gave

	cut   bool      // nobody can see the host, and
	cutAt time.Time // since when, the first time in this job

	held      string // the ruling that is held back, and
	heldSince time.Time

	told bool // who is next knows it
}

// progress orders the states of a host at work: by its start, then by the phase,
// then by the bytes that it has, or that relays moved for it.
type progress struct {
	boot         uint64
	phase        string
	done, pulled int64
}

func (p progress) less(o progress) bool {
	if p.boot != o.boot {
		return p.boot < o.boot
	}
	if a, b := rank(p.phase), rank(o.phase); a != b {
		return a < b
	}
	return p.done < o.done || p.pulled < o.pulled
}

// furthest is what counts when o came after p and is further in one way: what
// was reached before in the other is not lost.
func (p progress) furthest(o progress) progress {
	if p.boot == o.boot && p.phase == o.phase {
		o.done, o.pulled = max(p.done, o.done), max(p.pulled, o.pulled)
	}
	return o
}

func rank(phase string) int {
	switch phase {
	case phaseFetching:
		return 1
	case phaseVerifying:
		return 2
	case phasePreflight:
		return 3
	case phaseRestarting:
		return 4
	case phaseTrial:
		return 5
	default:
		return 0
	}
}

// flight is the job in flight with all that it is judged by.
type flight struct {
	input
	job      fleet.Job
	host     fleet.Host
	rel      fleet.Release
	seen     Observation
	mem      jobMemory
	mine     bool // the host's record is about this job
	rebooted bool // the host was started anew since the dispatch
	atTarget bool
}

// planJob judges the job in flight: a verdict, or the order (again), or a wait.
func planJob(in input, j fleet.Job) ([]step, jobMemory, time.Time) {
	f := flight{input: in, job: j, rel: in.Releases[j.TargetVersion], seen: in.Seen[j.HostID], mem: in.Memory.job}
	inherits := f.mem.id != j.ID && in.Memory.dispatched != j.ID
	if f.mem.id != j.ID {
		f.mem = jobMemory{id: j.ID, inherited: inherits, since: in.Now, movedAt: in.Now}
	}
	var ok bool
	if f.host, ok = in.Hosts[j.HostID]; !ok {
		return []step{finish(j, fleet.JobFailed, "host deleted", f.mem.sources)}, f.mem, time.Time{}
	}
	f.mine = f.seen.JobID == j.ID
	f.rebooted = f.seen.Boot > j.BootAtDispatch
	f.atTarget = atTarget(f.seen, f.rel, f.host)
	f.observe()
	f.observeCut()

	status, why, wake := f.verdict()
	if status != "" {
		return []step{finish(j, status, why, f.mem.sources)}, f.mem, time.Time{}
	}
	steps, again := f.order()
	if len(steps) == 0 && inherits {
		steps = []step{{JobID: j.ID, Say: "a new leader watches over this job"}}
	}
	return steps, f.mem, earliest(wake, again)
}

// observe brings the memory of the job up to what is seen now.
func (f *flight) observe() {
	if f.seen.Online && f.mem.onlineAt.IsZero() {
		f.mem.onlineAt = f.Now
	}
	if !f.mine {
		return
	}
	now := progress{f.seen.Boot, f.seen.Phase, f.seen.Done, f.seen.Pulled}
	if !f.mem.shown || f.mem.best.less(now) {
		f.mem.best, f.mem.movedAt = f.mem.best.furthest(now), f.Now
	}
	f.mem.shown = true
	if totalBytes(f.seen.Sources) >= totalBytes(f.mem.sources) && len(f.seen.Sources) > 0 {
		f.mem.sources = f.seen.Sources
	}
}

// observeCut notes whether the host is cut off. Where the policy is to wait, its
// waits begin anew when it is back, but for no longer than UnreachableWait in all.
func (f *flight) observeCut() {
	cut := !f.seen.Online && f.Unreachable == WaitForUnreachable && cutOff(f.input, f.host) != ""
	if cut && f.mem.cutAt.IsZero() {
		f.mem.cutAt = f.Now
	}
	if f.mem.cut && !cut && f.Now.Before(f.mem.cutAt.Add(UnreachableWait)) {
		f.mem.since, f.mem.movedAt = f.Now, f.Now
	}
	f.mem.cut = cut
}

func totalBytes(sources []fleet.Source) (n int64) {
	for _, s := range sources {
		n += s.Bytes
	}
	return n
}

// verdict returns how the job ended, or "" and when that has to be asked again.
func (f *flight) verdict() (status fleet.JobStatus, why string, wake time.Time) {
	r := f.ruling()
	if r.status == "" {
		f.mem.held = ""
		due, why := f.overdue()
		if limit := f.mem.cutAt.Add(UnreachableWait); f.mem.cut && due.Before(limit) {
			due = limit
		}
		if f.Now.Before(due) {
			return "", "", due
		}
		return fleet.JobFailed, why, time.Time{}
	}
	if r.hold <= 0 {
		return r.status, r.why, time.Time{}
	}
	// Held back: it counts only if it still stands when the time is over.
	if f.mem.held != r.name {
		f.mem.held, f.mem.heldSince = r.name, f.Now
	}
	if due := f.mem.heldSince.Add(r.hold); f.Now.Before(due) {
		return "", "", due
	}
	return r.status, r.why, time.Time{}
}

// ruling is a verdict by what the host says of itself.
type ruling struct {
	name   string // of the rule
	status fleet.JobStatus
	why    string
	hold   time.Duration // it must stand for this long before it is pronounced
}

func (f *flight) ruling() ruling {
	t, reason := f.Timeouts, reported(f.seen)
	untilReason := t.Reason
	if reason != "" {
		untilReason = 0
	}
	switch {
	case f.mine && f.seen.Phase == phaseFailed:
		why := orElse(reason, "the "+f.noun()+" gave up without a reason; look at its log")
		return ruling{"failed", fleet.JobFailed, why, untilReason}

	case f.mine && f.seen.Phase == phaseRolledBack:
		return ruling{"rolled back", fleet.JobFailed, f.rejoined(reason), untilReason}

	case !f.seen.Online:
		return ruling{}

	case f.mine && f.seen.Phase == phaseIdle && f.atTarget:
		return ruling{name: "succeeded", status: fleet.JobSucceeded}

	case f.mine && f.seen.Phase == phaseIdle && f.rebooted:
		return ruling{"rejoined", fleet.JobFailed, f.rejoined(reason), untilReason}

	case f.mine && f.seen.Phase == phaseIdle:
		// It says that it is done, without a restart. It may also just be about to begin.
		return ruling{"done elsewhere", fleet.JobFailed, f.rejoined(reason), t.NoSign}

	case f.rebooted && settled(f.seen.Phase) && f.atTarget:
		// It has lost its memory of the job, or was updated by hand. Held, so that
		// it may name the job, which it is asked to do by sending the order again.
		return ruling{name: "succeeded unnamed", status: fleet.JobSucceeded, hold: t.NoSign}

	case f.rebooted && settled(f.seen.Phase) && f.mem.shown:
		return ruling{"rejoined unnamed", fleet.JobFailed, f.rejoined(""), t.Reason}
	}
	return ruling{}
}

// overdue returns when patience with a silent host ends, and how the job failed
// then.
func (f *flight) overdue() (due time.Time, why string) {
	t := f.Timeouts
	offline := offline(f.input, f.host)
	if !f.mem.shown {
		switch {
		case !f.seen.Online && f.mem.inherited:
			// It may be restarting: what it said before, this leader has not heard.
			return f.mem.since.Add(t.Rejoin), offline
		case !f.seen.Online:
			return f.mem.since.Add(t.NoSign), offline
		}
		from := f.mem.since
		if f.mem.inherited {
			from = f.mem.onlineAt
		}
		if f.rebooted && settled(f.seen.Phase) {
			return from.Add(t.NoSign), f.rejoined("")
		}
		return from.Add(t.NoSign), fmt.Sprintf("%s did not acknowledge the order within %v; look at the %s's log", f.host.Name, t.NoSign, f.noun())
	}
	phase := f.mem.best.phase
	wait := t.Rejoin
	// With all bytes there, or after a goodbye, it is restarting, and only the
	// record that says so was missed.
	if complete := f.seen.Total > 0 && f.seen.Done >= f.seen.Total; phase == phaseFetching && !complete && !f.seen.Left {
		wait = t.Stalled
	}
	switch {
	case phase == phaseRestarting:
		why = fmt.Sprintf("%s did not rejoin within %v of restarting; look at the host", f.host.Name, wait)
	case phase == phaseTrial && !f.seen.Online:
		why = fmt.Sprintf("%s did not rejoin within %v of the start of its trial; look at the host", f.host.Name, wait)
	case !f.seen.Online:
		why = fmt.Sprintf("%s, while %s", offline, orElse(phase, "updating"))
	case phase == phaseFetching:
		have := fmt.Sprintf("%d of %d bytes", f.seen.Done, f.seen.Total)
		if f.seen.Pulled > 0 {
			have += fmt.Sprintf(", %d moved by relays", f.seen.Pulled)
		}
		why = fmt.Sprintf("the download made no progress for %v (%s); look at the peers and the network of %s", wait, have, f.host.Name)
	default:
		why = fmt.Sprintf("%s stays in phase %s for %v; look at the %s's log", f.host.Name, orElse(phase, "unknown"), wait, f.noun())
	}
	return f.mem.movedAt.Add(wait), why
}

// order sends the order, and again until the host has shown the job; again is
// when the next time is due (zero: none).
func (f *flight) order() (steps []step, again time.Time) {
	if f.mem.shown || !f.seen.Online {
		return nil, time.Time{}
	}
	if again = f.mem.sentAt.Add(f.Timeouts.Resend); !f.mem.sentAt.IsZero() && f.Now.Before(again) {
		return nil, again
	}
	f.mem.sentAt = f.Now
	f.mem.sent++
	s := step{JobID: f.job.ID, Send: true}
	switch {
	case f.mem.inherited && f.mem.sent == 1:
		s.Say = "a new leader sends the order again"
	case f.mem.sent == 2:
		s.Say = fmt.Sprintf("no answer for %v; the order is sent again until there is one", f.Timeouts.Resend)
	}
	return []step{s}, f.Now.Add(f.Timeouts.Resend)
}

// noun is what runs on the host.
func (f *flight) noun() string { return string(f.host.Role) }

// rejoined says that the host does not run what it should.
func (f *flight) rejoined(reason string) string {
	why := fmt.Sprintf("%s rejoined at %s, expected %s", f.noun(), orElse(f.seen.Version, "an unknown version"), f.job.TargetVersion)
	if a, ok := f.rel.Artifact(f.host.OS, f.host.Arch); ok && f.seen.Version == f.job.TargetVersion && !f.atTarget {
		why = fmt.Sprintf("%s rejoined at %s with sha256 %s…, expected %s…", f.noun(), f.seen.Version, f.seen.Digest, a.SHA256[:min(len(f.seen.Digest), len(a.SHA256))])
	}
	if reason != "" {
		why += ": " + reason
	}
	return why
}

// reported is the reason that the host gave, with the binary's last words.
func reported(seen Observation) string {
	if seen.LastOutput == "" || strings.Contains(seen.Error, seen.LastOutput) {
		return seen.Error
	}
	return strings.TrimPrefix(seen.Error+": "+seen.LastOutput, ": ")
}
