package updater

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"moult/consensus/fleet"
	"moult/mesh/identity"
	"moult/updater/install"
	"moult/updater/order"
)

// Updater carries out orders on this host. Methods are safe for concurrent use.
type Updater struct {
	cfg  Config
	slog *slog.Logger

	orders chan received
	kick   chan struct{} // the reporter
	acked  chan struct{}

	staged stager // the store's lock comes after its

	trustMu sync.Mutex // held from reading DATA/trust.json to writing it

	mu     sync.Mutex
	status status
	log    *jobLog
	busy   bool // a job runs
	// runsFrom is Report.RunsFrom; a trial comes to it by its commit.
	runsFrom string
	keyFork  *KeyFork // as Report.KeyFork
}

// received is a sealed order, and the server that it came from.
type received struct {
	from   string
	sealed []byte
}

// status is what the host shows of its present or last job.
type status struct {
	job, phase         string
	since              time.Time
	done, total        int64
	pulled             int64 // bytes that relays moved on their way to here
	reason, lastOutput string
	sources            map[string]fleet.Source
}

func (s status) namedSources() []fleet.Source {
	out := slices.Collect(maps.Values(s.sources))
	slices.SortFunc(out, func(a, b fleet.Source) int { return int(b.Bytes - a.Bytes) })
	return out
}

// recall takes over who sent the artifact, as it was known before a restart.
func (s *status) recall(sources []fleet.Source) {
	if len(sources) == 0 {
		return
	}
	s.sources = map[string]fleet.Source{}
	for _, from := range sources {
		s.sources[from.HostID] = from
	}
}

// maxResumes is how often a job goes on after the agent was restarted in it.
const maxResumes = 3

// flushTimeout is how long a restart waits for the servers to have the job's log; longer in
// tests, on machines that stand still.
var flushTimeout = 2 * time.Second

// HandleOrder takes a sealed order that came from a server. It does not block: the
// order is opened and judged by Run. One job runs at a time; an order for the
// running or the last job makes the host say again how it stands, any other one
// waits for its resend.
func (u *Updater) HandleOrder(from identity.Identity, sealed []byte) {
	if from.Role != identity.RoleServer {
		u.slog.Warn("order refused: its sender is no server", "host", from.HostID)
		return
	}
	select {
	case u.orders <- received{from.HostID, sealed}:
	default: // the server sends it again
	}
}

// Run works until ctx ends (nil) or a trial is due (ErrRestart). First it says
// how the last job ended, and goes on with one that was interrupted.
func (u *Updater) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer func() {
		cancel()
		running.Wait()
		u.staged.end()
		u.closeLog()
	}()
	ended := make(chan error, 1)
	begin := func(o order.Order, sealed []byte, resumes int) {
		u.setBusy(true)
		running.Go(func() { ended <- u.job(ctx, o, sealed, resumes) })
	}
	if err := u.pinKeys(); err != nil {
		u.slog.Error("pin the release keys", "error", err)
	}
	running.Go(func() { u.watchExpiry(ctx) })
	u.recallStaged()
	u.keep()
	committed := u.recall(begin)
	running.Go(func() { u.report(ctx) })
	u.wake()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-committed:
			committed = nil
			u.settle()
		case r := <-u.orders:
			if o, ok := u.judge(ctx, r); ok {
				begin(o, r.sealed, 0)
			}
		case err := <-ended:
			u.setBusy(false)
			if errors.Is(err, ErrRestart) {
				u.flush(ctx, flushTimeout)
				return ErrRestart
			}
		}
	}
}

// judge opens and fences an order; ok: it is a new job for this host.
func (u *Updater) judge(ctx context.Context, r received) (o order.Order, ok bool) {
	o, err := order.Open(r.sealed, u.cfg.Verifier, u.cfg.HostID, time.Now())
	if err != nil {
		u.slog.Warn("order refused", "error", err)
		return o, false
	}
	if o.Action != order.ActionUpdate {
		u.stage(ctx, o)
		return o, false
	}
	job, phase, busy := u.standing()
	if o.JobID == job {
		u.announce(phase, job)
		return o, false
	}
	if busy || (u.cfg.Link != nil && u.cfg.Link.OnTrial() && phase == PhaseTrial) {
		u.slog.Info("order waits: another job runs", "job", o.JobID, "running", job)
		return o, false
	}
	err = u.cfg.Fence.Accept(o)
	switch {
	case err == nil:
		u.slog.Info("order accepted", "job", o.JobID, "index", o.Index, "server", r.from)
		return o, true
	case errors.Is(err, order.ErrRepeated):
		u.lost(o)
	case errors.Is(err, order.ErrStale):
		u.slog.Warn("order refused", "job", o.JobID, "index", o.Index, "error", err)
	default:
		u.openLog(o.JobID)
		u.fail(outcomeOf(o), fmt.Sprintf("%v; check that %s exists, can be written and is not full, then start the update again", err, u.cfg.DataDir))
	}
	return o, false
}

func outcomeOf(o order.Order) install.Outcome {
	return install.Outcome{JobID: o.JobID, Attempt: o.Attempt, Index: o.Index, Version: o.Version}
}

// lost ends a job that was accepted before but is not the one on record: the
// agent was stopped between the two, or the record is damaged. How far it came
// is not known, so it does not run again.
func (u *Updater) lost(o order.Order) {
	u.openLog(o.JobID)
	out := outcomeOf(o)
	if off, err := u.verify(o); err == nil && off.Digest == u.cfg.Digest && off.Version == u.cfg.Version {
		out.Result = install.Committed
		out.Digest, out.Number, out.Floor, out.Expires = off.Digest, off.Number, off.Floor, off.Expires
		u.end(out)
		return
	}
	u.fail(out, "this host accepted the order before, but its record of the job in "+u.cfg.DataDir+" is lost or damaged; start the update again")
}

// StartPhase returns the phase and the job to announce before the mesh is
// joined, so that no peer ever sees a trial as idle.
func StartPhase(dataDir string, link *SupervisorLink) (phase, jobID string) {
	if link != nil && link.OnTrial() {
		if m, err := install.LoadMarker(dataDir); err == nil {
			return PhaseTrial, m.JobID
		}
		// No marker: committed between the start and this line.
	}
	o, err := install.LoadOutcome(dataDir)
	if err != nil {
		return PhaseIdle, ""
	}
	if o.Result == install.Running && o.Staged {
		return PhaseRestarting, o.JobID // Run finds out how it ended
	}
	return phaseOf(o.Result), o.JobID
}

func phaseOf(r install.Result) string {
	switch r {
	case install.Running:
		return PhaseFetching
	case install.RolledBack, install.Interrupted:
		return PhaseRolledBack
	case install.Failed:
		return PhaseFailed
	default:
		return PhaseIdle
	}
}

// recall says what the files say: a trial under way (the returned channel tells
// its commit), how the last job ended, or a job to go on with.
func (u *Updater) recall(begin func(order.Order, []byte, int)) (committed <-chan struct{}) {
	u.locate()
	if u.cfg.Link != nil && u.cfg.Link.OnTrial() {
		m, err := install.LoadMarker(u.cfg.DataDir)
		if err == nil {
			u.openLog(m.JobID)
			if o, err := install.LoadOutcome(u.cfg.DataDir); err == nil && o.JobID == m.JobID {
				u.mu.Lock()
				u.status.recall(o.Sources)
				u.mu.Unlock()
			}
			u.note(fmt.Sprintf("version %s runs on trial (start %d)", m.Version, m.Starts))
			u.enter(PhaseTrial, m.JobID)
			return u.cfg.Link.Committed()
		}
		if !errors.Is(err, install.ErrNoMarker) {
			// The supervisor knows what it tries; a trial must not judge itself.
			u.slog.Error("read trial marker", "error", err)
			o, _ := install.LoadOutcome(u.cfg.DataDir)
			u.enter(PhaseTrial, o.JobID)
			return u.cfg.Link.Committed()
		}
		// No marker: committed between the start and this line.
	} else if err := install.RemoveMarker(u.cfg.DataDir); err != nil {
		// The supervisor has dealt with a due trial before it started this one.
		u.slog.Warn("remove stale trial marker", "error", err)
	}
	o, err := install.LoadOutcome(u.cfg.DataDir)
	if errors.Is(err, install.ErrNoOutcome) {
		u.enter(PhaseIdle, "")
		return nil
	}
	if err != nil {
		u.slog.Error("the last job's outcome is lost", "error", err)
		u.enter(PhaseIdle, "")
		return nil
	}
	u.openLog(o.JobID)
	if o.Result == install.Running && !o.Staged {
		u.resume(o, begin)
		return nil
	}
	u.settle()
	return nil
}

// resume goes on with a job that the agent was stopped in.
func (u *Updater) resume(o install.Outcome, begin func(order.Order, []byte, int)) {
	if o.Resumes >= maxResumes {
		u.fail(o, fmt.Sprintf("the agent was restarted %d times during the update; look at its log", o.Resumes+1))
		return
	}
	// Judged by the time it was accepted: it was in time then.
	opened, err := order.Open(o.Order, u.cfg.Verifier, u.cfg.HostID, o.At)
	if err != nil {
		u.fail(o, "the agent was restarted during the update and cannot go on: "+err.Error())
		return
	}
	u.note("the agent was restarted; going on with the update")
	begin(opened, o.Order, o.Resumes+1)
}

// locate finds out whether this process is the active binary.
func (u *Updater) locate() {
	a, err := install.LoadActive(u.cfg.DataDir)
	if err != nil || a.Digest != u.cfg.Digest {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.runsFrom = install.ActivePath(u.cfg.DataDir, a.Digest)
}

// settle says how the last job ended, by its outcome.
func (u *Updater) settle() {
	u.locate()
	o, err := install.LoadOutcome(u.cfg.DataDir)
	if err != nil {
		u.slog.Error("the last job's outcome is lost", "error", err)
		job, _, _ := u.standing()
		u.enter(PhaseIdle, job)
		return
	}
	if o.Result == install.Running {
		u.end(u.unrecorded(o))
		return
	}
	u.show(o)
}

// unrecorded is how a job ended whose trial was due and of whose verdict nothing
// is on disk: no marker, or a corrupt one, or the disk was full. What runs tells.
func (u *Updater) unrecorded(o install.Outcome) install.Outcome {
	if o.Digest == u.cfg.Digest {
		o.Result = install.Committed
		return o
	}
	o.Result = install.Interrupted
	o.Reason = fmt.Sprintf("interrupted: how the trial of version %s ended could not be written to %s, or was lost there; version %s runs on; look for a full or failing disk, then start the update again",
		o.Version, u.cfg.DataDir, u.cfg.Version)
	return o
}

// end writes down how a job ended and shows it; the latter even when the former
// is not possible.
func (u *Updater) end(o install.Outcome) {
	o.Order, o.At = nil, time.Now()
	if err := install.SaveOutcome(u.cfg.DataDir, o); err != nil {
		u.slog.Error("save outcome", "job", o.JobID, "error", err)
	}
	u.show(o)
}

// show reports how a job ended.
func (u *Updater) show(o install.Outcome) {
	if o.Result == install.Committed {
		u.trustMu.Lock()
		err := raiseTrust(u.cfg.DataDir, installed{Version: o.Version, Number: o.Number, Digest: o.Digest, Expires: o.Expires, Previous: o.FromDigest}, o.Floor)
		u.keep()
		u.trustMu.Unlock()
		if err != nil {
			u.slog.Error("remember installed release", "error", err)
		}
	}
	text := map[install.Result]string{
		install.Committed: "committed: version " + o.Version + " is installed",
		install.Failed:    "failed: " + o.Reason,
	}[o.Result]
	if text == "" {
		text = "rolled back: " + o.Reason
	}
	u.mu.Lock()
	u.status.reason = o.Reason
	u.status.recall(o.Sources)
	if n := len(o.LastOutput); n > 0 {
		u.status.lastOutput = o.LastOutput[n-1]
	}
	known := u.log != nil && u.log.has(fleet.StreamAgent, text)
	u.mu.Unlock()
	if !known {
		for _, line := range o.LastOutput {
			u.noteStream(fleet.StreamOutput, line)
		}
		u.note(text)
	}
	u.enter(phaseOf(o.Result), o.JobID)
}

// fail ends a job that never came to a trial.
func (u *Updater) fail(o install.Outcome, reason string) {
	o.Result, o.Reason = install.Failed, reason
	u.end(o)
}

// enter moves to a phase of a job and says so.
func (u *Updater) enter(phase, job string) {
	u.mu.Lock()
	if u.status.job != job {
		u.status = status{job: job, reason: u.status.reason, lastOutput: u.status.lastOutput}
	}
	u.status.phase, u.status.since = phase, time.Now()
	u.mu.Unlock()
	u.announce(phase, job)
}

func (u *Updater) announce(phase, job string) {
	u.cfg.Mesh.Announce(phase, job)
	u.wake()
}

func (u *Updater) standing() (job, phase string, busy bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.status.job, u.status.phase, u.busy
}

func (u *Updater) setBusy(b bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.busy = b
}

// note adds a line to the job's log.
func (u *Updater) note(text string) { u.noteStream(fleet.StreamAgent, text) }

func (u *Updater) noteStream(stream, text string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.log == nil {
		return
	}
	u.slog.Info(text, "job", u.log.job, "stream", stream)
	if err := u.log.add(time.Now(), stream, text); err != nil {
		u.slog.Warn("write job log", "job", u.log.job, "error", err)
	}
}

// openLog makes job's log the current one. Without it the job goes on, silently.
func (u *Updater) openLog(job string) {
	l, err := openJobLog(u.cfg.DataDir, job)
	if err != nil {
		u.slog.Error("open job log", "job", job, "error", err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.log != nil {
		_ = u.log.close() // all lines were written through
	}
	u.log = l
	u.status = status{job: job, phase: u.status.phase, since: time.Now()}
}

func (u *Updater) closeLog() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.log != nil {
		_ = u.log.close() // all lines were written through
		u.log = nil
	}
}
