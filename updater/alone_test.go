//go:build linux

package updater

import (
	"strings"
	"syscall"
	"testing"

	"moult/updater/install"
)

func newSiteAlone(t *testing.T) *site {
	t.Helper()
	return newSite(t, "TEST_ALONE=1")
}

// A program without a supervisor becomes the new binary, in its own process.
func TestAloneBecomesTheCommittedBinary(t *testing.T) {
	s := newSiteAlone(t)
	s.start()
	pid := s.cmd.Process.Pid
	s.stage("1.1.0", "good")
	s.awaitEvent("trial ended: committed true, error <nil>")
	s.awaitOutcome(install.Committed)
	s.await("1.1.0 to run by itself", func() bool {
		return strings.HasSuffix(strings.TrimSpace(s.events()), " alone") && s.agentPID("1.1.0") == pid
	})
	s.mustRun("1.1.0")
	if !strings.Contains(s.events(), "agent 1.1.0 stopped") {
		t.Errorf("the trial was not stopped before its place was taken:\n%s", s.events())
	}
	if strings.Contains(s.events(), "agent 1.1.0 committed") {
		t.Errorf("the trial was told of its commit, and would have shown itself as done before it was replaced:\n%s", s.events())
	}
	// And again, from the new one.
	s.stage("1.2.0", "good")
	s.await("1.2.0 to run by itself", func() bool { return s.agentPID("1.2.0") == pid && strings.Count(s.events(), "alone") == 3 })
}

func TestAloneRollsBack(t *testing.T) {
	for _, behave := range []string{"crash", "lie", "joins-and-dies"} {
		t.Run(behave, func(t *testing.T) {
			s := newSiteAlone(t)
			s.start("TEST_SOAK=10s") // a busy machine may let a dying one live for a while
			pid := s.cmd.Process.Pid
			s.stage("1.1.0", behave)
			o := s.awaitOutcome(install.RolledBack)
			if o.Reason == "" {
				t.Error("no reason is given")
			}
			s.awaitEvent("trial ended: committed false, error <nil>")
			s.await("1.0.0 to run again", func() bool { return strings.Count(s.events(), "agent 1.0.0 pid") == 2 && s.agentPID("1.0.0") == pid })
			s.mustRun("1.0.0")
		})
	}
}

// Killed in the middle of the trial, the trial ends with it, and the next start
// says what became of it.
func TestAloneKilledInTheTrial(t *testing.T) {
	s := newSiteAlone(t)
	s.start("TEST_SOAK=30s")
	s.stage("1.1.0", "good")
	s.await("the trial", func() bool { return strings.Contains(s.events(), "on trial") })
	trial := s.agentPID("1.1.0")
	if err := s.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-s.ended
	s.await("the trial's end", func() bool { return s.gone(trial) })
	s.start()
	if o := s.awaitOutcome(install.Interrupted); !strings.Contains(o.Reason, "start the update again") {
		t.Errorf("reason: %s", o.Reason)
	}
	s.mustRun("1.0.0")
	if _, err := install.LoadMarker(s.data); err == nil {
		t.Error("the marker is still there")
	}
}

func TestAloneStoppedInTheTrial(t *testing.T) {
	s := newSiteAlone(t)
	s.start("TEST_SOAK=30s")
	s.stage("1.1.0", "good")
	s.await("the trial", func() bool { return strings.Contains(s.events(), "on trial") })
	trial := s.agentPID("1.1.0")
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-s.ended
	s.awaitOutcome(install.Interrupted)
	if !s.gone(trial) {
		t.Error("the trial outlives the process")
	}
	s.mustRun("1.0.0")
}
