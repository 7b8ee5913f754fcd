//go:build linux

package updater

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"moult/updater/install"
)

// What an agent says of itself reaches the service manager through its supervisor, made
// fit, and through an update's change of supervisors too. The agent itself cannot
// speak with the service manager.
func TestServiceManagerHearsTheAgent(t *testing.T) {
	s := newSite(t, "NOTIFY_SOCKET=/nowhere", "TEST_SERVICE= works\nREADY=1\x07"+strings.Repeat("x", 300))
	s.start()
	pid := s.cmd.Process.Pid
	s.awaitEvent(fmt.Sprintf("service %d ready", pid))
	s.awaitEvent(`service status "agent 1.0.0 worksREADY=1xxx`)
	s.awaitEvent(fmt.Sprintf("service well for %v", silence))
	s.awaitEvent(`socket of the service manager: ""`)
	for line := range strings.Lines(s.events()) {
		if text, ok := strings.CutPrefix(line, "service status "); ok && len(text) > maxStatus+len("\"\"\n") {
			t.Errorf("a status of %d bytes: %s", len(text), text)
		}
	}
	s.stage("1.1.0", "good")
	s.awaitOutcome(install.Committed)
	s.awaitEvent(`service status "trying version 1.1.0"`)
	s.awaitEvent("supervisor 1.1.0")
	s.awaitEvent(fmt.Sprintf("service %d ready", pid)) // the process that systemd knows
	after := strings.Index(s.events(), "supervisor 1.1.0")
	s.await("signs of life after the handover", func() bool {
		return strings.Contains(s.events()[after:], `service status "agent 1.1.0`)
	})
}

// A service manager hears nothing of an agent that hangs, and nothing of one that
// was started and never said a word.
func TestServiceManagerHearsNothingOfWhatHangs(t *testing.T) {
	s := newSite(t, "TEST_SERVICE= works\nMAINPID=1")
	s.start()
	s.awaitEvent(`service status "agent 1.0.0 worksMAINPID=1"`) // a line break would begin another assignment
	agent := s.agentPID("1.0.0")
	if err := syscall.Kill(agent, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(agent, syscall.SIGKILL) }()
	var heard int
	quiet := func() bool { // what was under way has been written down
		now := strings.Count(s.events(), "service well")
		same := now == heard
		heard = now
		time.Sleep(time.Second) // each sign of life of the agent's comes after 20 ms
		return same
	}
	s.await("silence", quiet)
}
