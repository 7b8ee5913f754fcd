package updater

import (
	"os"
	"sync"

	"moult/updater/install"
)

// ahead is the work on a trial that is done while the agent that staged it still
// leaves the mesh: the staged binary is verified and copied beside the installed one,
// in one reading. Nothing is started, nothing replaced. What becomes of it is
// looked at when the trial is due; without it the trial does the same by itself.
type ahead struct {
	m        install.Marker
	verified chan struct{} // closed when staged and swap are set, or are not to be had
	staged   *os.File      // through which it was verified; nil: it was not, or is taken
	swap     *install.PreparedSwap
	work     sync.WaitGroup
}

// workAhead begins with it, once the agent says that it restarts. Errors are left to
// the trial, which meets them again.
func (s *supervisor) workAhead() {
	m, err := install.LoadMarker(s.DataDir)
	if err != nil || m.State != install.Staged || s.begun != nil {
		return
	}
	a := &ahead{m: m, verified: make(chan struct{})}
	s.begun = a
	a.work.Go(func() {
		defer close(a.verified)
		var err error
		if m.Place == install.InData {
			a.staged, err = install.OpenVerified(m.StagedPath, m.Digest)
		} else {
			a.swap, a.staged, err = install.PrepareSwap(s.swapOf(m))
		}
		if err != nil {
			s.log.Debug("work ahead of the trial", "job", m.JobID, "error", err)
			return
		}
		if swap := a.swap; swap != nil {
			a.work.Go(swap.Flush)
		}
	})
}

// swapOf is what puts a marker's binary in the installed one's place.
func (s *supervisor) swapOf(m install.Marker) install.SwapRequest {
	return install.SwapRequest{Staged: m.StagedPath, Digest: m.Digest, Installed: s.Installed, Step: s.SwapStep}
}

// takeAhead waits for what was begun ahead, not for the disk, and keeps it if it is of
// this trial and in order.
func (s *supervisor) takeAhead(m install.Marker) {
	a := s.begun
	if a == nil {
		return
	}
	<-a.verified
	if a.staged == nil || a.m.JobID != m.JobID || a.m.Attempt != m.Attempt || a.m.Digest != m.Digest || a.m.StagedPath != m.StagedPath || a.m.Place != m.Place {
		s.dropAhead()
	}
}

// openStaged returns the staged binary, verified through the descriptor.
func (s *supervisor) openStaged(m install.Marker) (f *os.File, err error) {
	if a := s.begun; a != nil && a.staged != nil {
		f, a.staged = a.staged, nil // each start has a descriptor of its own
		return f, nil
	}
	return install.OpenVerified(m.StagedPath, m.Digest)
}

// swapStaged puts the staged binary in the installed one's place.
func (s *supervisor) swapStaged(m install.Marker) error {
	a := s.begun
	if a == nil || a.swap == nil {
		return install.Swap(s.swapOf(m))
	}
	a.work.Wait()
	return a.swap.Finish()
}

// dropAhead takes away what is left of the work ahead.
func (s *supervisor) dropAhead() {
	a := s.begun
	if a == nil {
		return
	}
	s.begun = nil
	a.work.Wait()
	if a.staged != nil {
		a.staged.Close()
	}
	if a.swap != nil {
		if err := a.swap.Discard(); err != nil {
			s.log.Warn("take the copy of a binary away that is not installed", "error", err)
		}
	}
}
