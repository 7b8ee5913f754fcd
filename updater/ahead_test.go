//go:build linux

package updater

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"moult/updater/install"
)

// copies are what lies beside the installed binary and is no binary yet.
func (s *site) copies() (found []string) {
	s.t.Helper()
	found, err := filepath.Glob(filepath.Join(filepath.Dir(s.installed), ".moult-*"))
	must(s.t, err)
	return found
}

// hasOpen tells whether the supervisor has a file open whose path holds a text.
func (s *site) hasOpen(text string) bool {
	s.t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", s.cmd.Process.Pid))
	must(s.t, err)
	for _, link := range links {
		if path, err := os.Readlink(link); err == nil && strings.Contains(path, text) {
			return true
		}
	}
	return false
}

// stageLeaving stages a good binary with an agent that takes its time to leave, and
// waits until the copy is complete.
func (s *site) stageLeaving(version string) install.Marker {
	s.t.Helper()
	s.touch("leaving", "")
	m := s.stage(version, "good")
	s.await("the copy", func() bool {
		c := s.copies()
		return len(c) == 1 && mustDigest(s.t, c[0]) == m.Digest
	})
	return m
}

func (s *site) leave() { must(s.t, os.Remove(filepath.Join(s.data, "leaving"))) }

// While the agent leaves, the binary is verified and copied. Nothing is started and
// nothing replaced before the agent has ended; afterwards nothing is left.
func TestTrialIsPreparedWhileTheAgentLeaves(t *testing.T) {
	s := newSite(t)
	s.start()
	s.stageLeaving("1.1.0")
	if strings.Contains(s.events(), "agent 1.1.0") {
		t.Error("the trial began while the agent was there")
	}
	s.mustRun("1.0.0")
	s.leave()
	s.awaitOutcome(install.Committed)
	s.mustRun("1.1.0")
	if left := s.copies(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// What lies at the staged path when the trial begins is of no account once the bytes
// are verified: those are started, and those are installed.
func TestPreparedBytesAreTheOnesThatRun(t *testing.T) {
	s := newSite(t)
	s.start()
	m := s.stageLeaving("1.1.0")
	evil := filepath.Join(s.data, "evil")
	s.variant(evil, "6.6.6", "good")
	must(t, os.Rename(evil, m.StagedPath))
	s.leave()
	s.awaitOutcome(install.Committed)
	s.mustRun("1.1.0")
	if strings.Contains(s.events(), "agent 6.6.6") {
		t.Error("a file that was not verified was started")
	}
}

// Work ahead that leads to no commit of its own leaves nothing: another marker, a
// trial that fails, an agent that crashes after all, and a supervisor that is stopped.
func TestPreparedInVain(t *testing.T) {
	t.Run("another marker", func(t *testing.T) {
		s := newSite(t)
		s.start()
		m := s.stageLeaving("1.1.0")
		m.JobID, m.Version, m.StagedPath = "job-2", "1.2.0", filepath.Join(s.data, "other")
		m.Digest = s.variant(m.StagedPath, "1.2.0", "good")
		must(t, install.SaveMarker(s.data, m))
		s.leave()
		s.awaitOutcome(install.Committed)
		s.mustRun("1.2.0")
		if left := s.copies(); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	t.Run("rolled back", func(t *testing.T) {
		s := newSite(t)
		s.start()
		s.stage("1.1.0", "crash")
		s.awaitOutcome(install.RolledBack)
		s.await("the copy to go", func() bool { return len(s.copies()) == 0 })
		s.mustRun("1.0.0")
	})
	t.Run("stopped", func(t *testing.T) {
		s := newSite(t)
		s.start()
		s.stageLeaving("1.1.0")
		s.stop()
		if left := s.copies(); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		s.mustRun("1.0.0")
	})
}

// An agent of a version that says nothing of its restart is updated all the same.
func TestAgentThatDoesNotSayItRestarts(t *testing.T) {
	s := newSite(t)
	s.start("TEST_OLD_AGENT=1")
	s.stage("1.1.0", "good")
	s.awaitOutcome(install.Committed)
	s.mustRun("1.1.0")
}
