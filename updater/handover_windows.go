package updater

import (
	"context"
	"errors"
	"fmt"
	"time"

	"moult/updater/install"
)

// restartPatience is how long the service manager may take to ask this process
// to stop, once it was told to replace it.
const restartPatience = 60 * time.Second

// handOver: Windows has no exec, so the service manager replaces this process.
// The agent shows itself on trial until then, and the one that the new supervisor
// starts says how the job ended: others would else take the host for done while it
// is about to restart once more. Where nobody can replace this process, or does,
// it goes on; the new binary's supervisor runs from the next start.
func (s *supervisor) handOver(ctx context.Context, c *child) *child {
	if s.Restart == nil {
		return c
	}
	if err := s.askForRestart(ctx, c, c.done); err != nil {
		s.log.Warn("the supervisor is not replaced by the new binary's; this one goes on until the service is started anew", "error", err)
		s.tellCommitted(c)
	}
	return c
}

// askForRestart has the service manager replace this process. A nil error means
// that it was asked to stop.
func (s *supervisor) askForRestart(ctx context.Context, c *child, m install.Marker) error {
	if err := s.Restart(m); err != nil {
		return err
	}
	s.side.flush(flushOutput)
	t := time.NewTimer(restartPatience)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return nil
	case <-c.exited:
		return errors.New("the agent ended meanwhile")
	case <-t.C:
		return fmt.Errorf("the service manager did not stop this process within %v", restartPatience)
	}
}

// leaveSwap is for an installed binary that cannot be renamed while it runs:
// whoever restarts the service swaps it in between. It returns errSwapLeft once
// this process has been asked to stop; the marker stays, and tells the next one
// how it went.
func (s *supervisor) leaveSwap(ctx context.Context, c *child, m install.Marker, inUse error) error {
	s.log.Info("the installed binary cannot be renamed now; it is replaced while the service restarts", "job", m.JobID, "error", inUse)
	if err := s.askForRestart(ctx, c, m); err != nil {
		return fmt.Errorf("%w; %w", inUse, err)
	}
	return errSwapLeft
}

func (s *supervisor) adopt() *child { return nil }
