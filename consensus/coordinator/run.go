package coordinator

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/google/uuid"

	"moult/consensus/fleet"
)

const (
	// proposeTimeout bounds the wait for one commit, after which Run plans anew.
	proposeTimeout = 10 * time.Second
	// sendTimeout bounds the sending of one order.
	sendTimeout = 5 * time.Second
	// handoverTimeout bounds handing leadership over, after which Run plans anew.
	handoverTimeout = 15 * time.Second
	// minRetry and maxRetry bound the pause after a change that was not accepted.
	minRetry = 200 * time.Millisecond
	maxRetry = 5 * time.Second
	// oversleep is how much later than asked Run may wake before it takes its
	// waits for worthless: a process that was stopped saw nobody meanwhile.
	oversleep = 5 * time.Second
)

// Run coordinates until ctx ends, and returns its error, or an error at once
// when cfg is not valid. Call it only while this server leads and its state is
// up to date, with a context that ends with the leadership. All goroutines that
// it starts have ended when it returns.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.validate(); err != nil {
		return err
	}
	c := &coordinator{Config: cfg, sending: make(chan struct{}, 1), telling: make(chan struct{}, 1), retry: minRetry}
	defer c.sends.Wait()
	events, stop := cfg.Log.State().Subscribe()
	defer stop()
	c.memory.since = time.Now()
	for ctx.Err() == nil {
		changed := cfg.Roster.Changed() // before looking, so that nothing is missed
		wake, again := c.round(ctx)
		if !again {
			c.flush(ctx) // what is said in the logs comes after what is to be done
			c.wait(ctx, wake, changed, events)
		}
	}
	return ctx.Err()
}

// coordinator is one Run. Its fields belong to Run's goroutine.
type coordinator struct {
	Config
	memory memory
	due    time.Time     // when the next round is, at the latest; zero: not set
	retry  time.Duration // the pause after the next change that is not accepted
	lines  []logLines    // not yet committed

	sight sight
	hosts hosts

	sending chan struct{} // holds a token while an order is being sent
	telling chan struct{} // and while a host is told that it is next
	sends   sync.WaitGroup
}

// logLines are lines for one job's log.
type logLines struct {
	jobID string
	lines []fleet.LogLine
}

// round plans and carries the plan out once. With again, the state moved by it
// and the next round is due at once; else it is due at wake (zero: never).
func (c *coordinator) round(ctx context.Context) (wake time.Time, again bool) {
	now := time.Now()
	if !c.due.IsZero() && now.Sub(c.due) > oversleep {
		c.Logger.Warn("the coordinator was held up; its waits begin anew", "for", now.Sub(c.due))
		c.memory = memory{since: now}
	}
	c.due = time.Time{}
	steps, mem, wake := plan(c.gather(ctx, now))
	c.memory = mem
	for _, s := range steps {
		switch {
		case s.Change != nil:
			if !c.commit(ctx, s.Change, proposeTimeout) {
				return c.pause(wake), false
			}
			c.retry, again = minRetry, true
		case s.Send:
			c.send(ctx, s.JobID)
		case s.Next != "":
			c.tellNext(ctx, s.Next)
		case s.HandOver:
			c.handOver(ctx)
			return c.pause(wake), false
		}
		c.say(s, now)
	}
	return wake, again
}

// pause returns when the next round is due after something that was in vain; the
// pauses grow.
func (c *coordinator) pause(wake time.Time) time.Time {
	wake = earliest(wake, time.Now().Add(c.retry))
	c.retry = min(2*c.retry, maxRetry)
	return wake
}

// handOver has another server lead. When that succeeds ctx ends soon.
func (c *coordinator) handOver(ctx context.Context) {
	c.Logger.Info("handing leadership over before this server is updated")
	ctx, cancel := context.WithTimeout(ctx, handoverTimeout)
	defer cancel()
	c.memory.handover = ""
	if err := c.Servers.TransferLeadership(ctx); err != nil && !errors.Is(ctx.Err(), context.Canceled) {
		c.memory.handover = err.Error()
		c.Logger.Warn("leadership was not handed over; trying again", "error", err)
	}
}

// wait returns when something has changed or wake has come.
func (c *coordinator) wait(ctx context.Context, wake time.Time, changed <-chan struct{}, events <-chan fleet.Event) {
	c.due = wake
	var alarm <-chan time.Time
	if !wake.IsZero() {
		t := time.NewTimer(time.Until(wake))
		defer t.Stop()
		alarm = t.C
	}
	select {
	case <-ctx.Done():
	case <-changed:
	case <-alarm:
	case <-events:
		for len(events) > 0 { // one look is enough for all
			<-events
		}
	}
}

// gather collects what plan looks at. Only what changed since the last time is
// copied: a plan is made at each change of any host's record, of which a fleet of ten
// thousand has dozens a second while it stages a release.
func (c *coordinator) gather(ctx context.Context, now time.Time) input {
	v := c.Log.State().View()
	in := input{
		Now: now, Timeouts: c.Timeouts, Memory: c.memory, NewJobID: uuid.NewString(),
		Releases: map[string]fleet.Release{}, Unreachable: c.Unreachable, StageWait: c.StageWait,
		Open: v.OpenJobs(), Alerts: v.OpenAlerts(), Self: c.Self,
	}
	release := func(version string) {
		if _, have := in.Releases[version]; !have {
			if r, ok := v.Release(version); ok {
				in.Releases[version] = r
			}
		}
	}
	for _, j := range in.Open {
		release(j.TargetVersion)
	}
	for _, a := range in.Alerts {
		release(a.TargetVersion)
	}
	_, busy := running(in.Open)
	if u, ok := v.ActiveFleetUpdate(); ok {
		in.Active = &u
		release(u.TargetVersion)
	}
	if in.Active == nil && len(in.Open) == 0 && len(in.Alerts) == 0 {
		return in // an idle fleet costs nothing
	}
	in.Hosts = c.hosts.of(v)
	if u := in.Active; u != nil && !busy && u.Status == fleet.FleetRunning && c.Servers != nil && serversNext(in.Hosts, *u) {
		in.Group = c.Servers.Group(ctx)
	}
	in.Seen = c.sight.look(c.Roster)
	in.Relays = c.hosts.relaysSeen(c.sight)
	return in
}

// commit proposes a change and tells whether it was accepted.
func (c *coordinator) commit(ctx context.Context, change fleet.Change, timeout time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	_, err := c.Log.Propose(ctx, Actor, change)
	var refused *fleet.Error
	switch {
	case err == nil:
		c.tellEnd(change)
		return true
	case errors.As(err, &refused):
		// The state moved on between planning and committing: plan again.
		c.Logger.Info("change refused", "change", change.Kind(), "code", refused.Code, "reason", refused.Message)
	case !errors.Is(ctx.Err(), context.Canceled):
		c.Logger.Warn("change not committed", "change", change.Kind(), "error", err)
	}
	return false
}

// tellEnd logs the end of a fleet update that came without a job: that of a job is told
// in its line.
func (c *coordinator) tellEnd(change fleet.Change) {
	switch end := change.(type) {
	case fleet.FleetUpdateHalted:
		c.Logger.Warn("fleet update halted", "fleet_update", end.ID, "host", end.HostID, "reason", end.Reason)
	case fleet.FleetUpdateCompleted:
		c.Logger.Info("fleet update completed", "fleet_update", end.ID)
	}
}

// send sends the order of a job, if its dispatch stands in the state. A slow
// peer does not hold the coordinator up: one order is on its way at a time, and
// one that would be the second is left to the next resend.
func (c *coordinator) send(ctx context.Context, jobID string) {
	v := c.Log.State().View()
	j, ok := v.Job(jobID)
	if !ok || j.Status != fleet.JobRunning || j.DispatchIndex == 0 {
		return
	}
	h, known := v.Host(j.HostID)
	r, published := v.Release(j.TargetVersion)
	if !known || !published {
		return
	}
	select {
	case c.sending <- struct{}{}:
	default:
		c.Logger.Warn("the order before is still on its way", "job", j.ID, "host", h.ID)
		return
	}
	c.sends.Go(func() {
		defer func() { <-c.sending }()
		ctx, cancel := context.WithTimeout(ctx, sendTimeout)
		defer cancel()
		if err := c.Orders.Send(ctx, j, r, h); err != nil && !errors.Is(ctx.Err(), context.Canceled) {
			c.Logger.Warn("send order", "job", j.ID, "host", h.ID, "error", err)
		}
	})
}

// tellNext tells a host that its turn comes next. It never holds an order up.
func (c *coordinator) tellNext(ctx context.Context, hostID string) {
	v := c.Log.State().View()
	u, active := v.ActiveFleetUpdate()
	h, known := v.Host(hostID)
	r, published := v.Release(u.TargetVersion)
	if !active || !known || !published {
		return
	}
	select {
	case c.telling <- struct{}{}:
	default:
		return // it does without
	}
	c.sends.Go(func() {
		defer func() { <-c.telling }()
		ctx, cancel := context.WithTimeout(ctx, sendTimeout)
		defer cancel()
		if err := c.Orders.Next(ctx, r, h); err != nil && !errors.Is(ctx.Err(), context.Canceled) {
			c.Logger.Debug("tell the next host", "host", h.ID, "error", err)
		}
	})
}

// say keeps a step's line for the job's log until the next flush.
func (c *coordinator) say(s step, now time.Time) {
	if s.Say == "" || s.JobID == "" {
		return
	}
	c.Logger.Info(s.Say, "job", s.JobID)
	line := fleet.LogLine{At: now.UTC(), Stream: fleet.StreamCoordinator, Line: s.Say}
	if n := len(c.lines); n > 0 && c.lines[n-1].jobID == s.JobID {
		c.lines[n-1].lines = append(c.lines[n-1].lines, line)
		return
	}
	c.lines = append(c.lines, logLines{jobID: s.JobID, lines: []fleet.LogLine{line}})
}

// flush commits the lines that were said. Those that are not accepted are lost:
// a line is only a line, and must not delay the next resend.
func (c *coordinator) flush(ctx context.Context) {
	for _, l := range c.lines {
		c.commit(ctx, fleet.JobLogAppended{JobID: l.jobID, Lines: l.lines}, c.Timeouts.Resend)
	}
	c.lines = nil
}
