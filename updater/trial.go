package updater

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"moult/updater/install"
)

// The ends of one start of the staged binary.
var (
	errTrialEnded   = errors.New("ended") // this start failed; another may follow
	errTrialOver    = errors.New("over")  // no further start would help
	errTrialStopped = errors.New("supervisor stopped")
	errSwapLeft     = errors.New("stopped; the swap is left to the restart")
)

// trial runs the staged binary until it is committed or rolled back. It returns
// the child to go on with: the new one after a commit, nil (start the installed
// one) after a roll back.
func (s *supervisor) trial(ctx context.Context) *child {
	if c := s.tryStaged(ctx); c != nil {
		return s.handOver(ctx, c)
	}
	return nil
}

// tryStaged is trial up to the commit: it returns the running child that was
// committed, or nil.
func (s *supervisor) tryStaged(ctx context.Context) *child {
	defer s.dropAhead()
	m, err := s.loadMarker()
	if errors.Is(err, install.ErrNoMarker) {
		s.log.Error("the agent asked for a trial but left no marker; running the installed binary")
	}
	if err != nil {
		return nil
	}
	if f, failed := install.FailedBefore(s.DataDir, m.JobID, m.Digest); failed {
		s.rollBack(m, "this binary was rolled back before in this job: "+f.Reason, nil)
		return nil
	}
	s.takeAhead(m)
	s.log.Info("trial begins", "job", m.JobID, "release", m.Version)
	s.status("trying version " + m.Version)
	s.Service.Well(s.TrialTimeout + s.StopTimeout + slack)
	deadline := time.Now().Add(s.TrialTimeout)
	reason := fmt.Sprintf("the marker says that version %s was started %d times already", m.Version, m.Starts)
	var output []string
	for m.Starts < s.MaxStarts {
		m.Starts++
		m.State = install.OnTrial
		// Counted before the start, or a binary that takes the host down with it
		// would be tried forever.
		if err := install.SaveMarker(s.DataDir, m); err != nil {
			reason = "save trial marker: " + err.Error()
			break
		}
		c, err := s.tryOnce(ctx, m, deadline)
		if err == nil {
			return c
		}
		reason = trimReason(err)
		if c != nil {
			output = c.tail.all()
		}
		if errors.Is(err, errSwapLeft) {
			return nil
		}
		if errors.Is(err, errTrialStopped) {
			o := install.OutcomeOf(m, install.Interrupted, time.Now())
			o.Reason = "interrupted: the supervisor was stopped before version " + m.Version + " had proved itself; start the update again"
			s.settle(m, o)
			return nil
		}
		if errors.Is(err, errTrialOver) {
			break
		}
		s.log.Warn("trial start failed", "job", m.JobID, "start", m.Starts, "reason", reason)
		if m.Starts < s.MaxStarts && !s.pauseWithin(ctx, deadline, m.Starts) {
			break
		}
	}
	s.rollBack(m, reason, output)
	return nil
}

// pauseWithin waits before the next start of a trial, but not past its end.
func (s *supervisor) pauseWithin(ctx context.Context, deadline time.Time, starts int) bool {
	d := min(s.RestartDelay<<(starts-1), s.MaxRestartDelay)
	if time.Now().Add(d).After(deadline) {
		return false
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done(): // the next start ends at once, as stopped
	}
	return true
}

func trimReason(err error) string {
	return strings.TrimSuffix(strings.TrimSuffix(err.Error(), ": "+errTrialEnded.Error()), ": "+errTrialOver.Error())
}

// tryOnce starts the staged binary and judges it. A nil error means committed.
// The child is returned for its output even when it failed; it has ended then.
func (s *supervisor) tryOnce(ctx context.Context, m install.Marker, deadline time.Time) (*child, error) {
	if ctx.Err() != nil {
		return nil, errTrialStopped
	}
	c, err := s.startTrial(m)
	if errors.Is(err, install.ErrDigest) {
		return nil, fmt.Errorf("%w: %w", err, errTrialOver)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errTrialEnded)
	}
	timeout := time.NewTimer(time.Until(deadline))
	defer timeout.Stop()
	soak := time.NewTimer(time.Hour)
	soak.Stop()
	defer soak.Stop()
	joined, failing := false, false
	for {
		select {
		case <-ctx.Done():
			s.stop(c)
			return c, errTrialStopped
		case <-c.exited:
			return c, fmt.Errorf("%s: %w", c.ending(), errTrialEnded)
		case <-timeout.C:
			c.kill()
			<-c.exited
			doing := "it had not joined the mesh"
			if joined {
				doing = "it had joined the mesh, but not for long enough"
			}
			return c, fmt.Errorf("no commit within %v (%s)%s: %w", s.TrialTimeout, doing, colon(c.tail.last()), errTrialOver)
		case msg := <-c.messages:
			if msg.Event == eventFailing {
				failing = true
				soak.Stop() // its end follows, or the trial's
			}
			if msg.Event != eventJoined || joined || failing {
				continue
			}
			if lie := falsehood(msg, m); lie != "" {
				c.kill()
				<-c.exited
				return c, fmt.Errorf("%s: %w", lie, errTrialOver)
			}
			joined = true
			s.log.Info("trial joined the mesh", "job", m.JobID, "soak", s.Soak)
			soak.Reset(s.Soak)
		case <-soak.C:
			// Both may be due at once, and select chooses by lot: an ended child
			// is never committed.
			select {
			case <-c.exited:
				return c, fmt.Errorf("%s: %w", c.ending(), errTrialEnded)
			default:
			}
			if c.saysFailing() {
				failing = true
				continue
			}
			switch err := s.commit(ctx, c, m); {
			case errors.Is(err, errSwapLeft):
				s.stop(c)
				return c, err
			case err != nil:
				c.kill()
				<-c.exited
				return c, fmt.Errorf("%w: %w", err, errTrialOver)
			}
			return c, nil
		}
	}
}

// saysFailing looks for that message among those that came and were not read yet.
func (c *child) saysFailing() bool {
	for {
		select {
		case msg := <-c.messages:
			if msg.Event == eventFailing {
				return true
			}
		default:
			return false
		}
	}
}

// falsehood tells what a joined child says about itself that is not so.
func falsehood(msg message, m install.Marker) string {
	if msg.Version != m.Version {
		return fmt.Sprintf("the new binary says it is version %q, the release is %q", msg.Version, m.Version)
	}
	// The descriptor was hashed; a digest given by the child is a cross-check, and
	// where the child was told it, no more than an echo.
	if len(msg.Digest) >= 16 && !strings.HasPrefix(m.Digest, msg.Digest) {
		return fmt.Sprintf("the new binary says its sha256 is %s, the release's is %s", msg.Digest, m.Digest)
	}
	return ""
}

// commit makes the trial the installed binary, then says so.
func (s *supervisor) commit(ctx context.Context, c *child, m install.Marker) error {
	err := s.put(m)
	if errors.Is(err, install.ErrInUse) && s.Restart != nil {
		return s.leaveSwap(ctx, c, m, err)
	}
	if err != nil {
		// The last steps can fail after the rename: then the new one is installed,
		// and taking the marker for a failure would part the record from the disk.
		if !s.committed(m) {
			return fmt.Errorf("install: %w", err)
		}
		s.log.Error("swap done, but perhaps not durable", "job", m.JobID, "error", err)
	}
	s.Active = m.Place == install.InData
	s.settle(m, install.OutcomeOf(m, install.Committed, time.Now()))
	s.log.Info("committed", "job", m.JobID, "release", m.Version)
	s.status("version " + m.Version + " is kept")
	s.Service.Well(startPatience)
	c.trial, c.done = false, m
	if !s.alone && s.Restart == nil {
		s.tellCommitted(c)
	}
	return nil
}

func (s *supervisor) tellCommitted(c *child) {
	if err := c.say(message{Event: eventCommitted}); err != nil {
		s.log.Warn("tell the agent that it is committed", "error", err)
	}
}

// put puts the staged binary where preflight said.
func (s *supervisor) put(m install.Marker) error {
	if m.Place == install.InData {
		return s.activate(m)
	}
	if err := s.swapStaged(m); err != nil {
		return err
	}
	// Afterwards: until then the active one is the last good binary.
	return install.RemoveActive(s.DataDir)
}

func (s *supervisor) rollBack(m install.Marker, reason string, output []string) {
	s.log.Warn("rolled back", "job", m.JobID, "release", m.Version, "reason", reason)
	s.status("version " + m.Version + " was rolled back: " + reason)
	s.Service.Well(startPatience)
	o := install.OutcomeOf(m, install.RolledBack, time.Now())
	o.Reason, o.LastOutput = reason, output
	s.settle(m, o)
}

// colon puts a reason's detail behind it, if there is one.
func colon(detail string) string {
	if detail == "" {
		return ""
	}
	return ": " + detail
}
