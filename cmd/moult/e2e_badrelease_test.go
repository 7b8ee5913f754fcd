//go:build unix

package main

import (
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A release that does not work is rolled back on the one host that got it: no
// other host is touched, the fleet update halts and tells the last output line.
func TestE2EBadReleaseIsRolledBack(t *testing.T) {
	t.Parallel()
	for mode, reason := range map[string]string{
		"exit":     "fatal: the frobnicator is missing",
		"hang":     "waiting for a frobnicator that never comes",
		"mute":     "no peer answers",
		"lie":      "0.0.1",
		"impostor": versionA,
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			c := startCluster(t, 1, 3, "--agent-arg=--trial-timeout=20s", longReason) // a good one has to come up in it, too
			c.badRelease("6.6.6", mode)
			id := c.startFleetUpdate(nil)
			u := c.awaitFleetUpdate(id, "halted", 2*time.Minute)
			if u.Hosts[0].Status != "failed" || !strings.Contains(u.Hosts[0].FailedReason, reason) || !strings.Contains(u.HaltedReason, "agent-1") {
				t.Errorf("first host: %+v; halted: %s", u.Hosts[0], u.HaltedReason)
			}
			for _, turn := range u.Hosts[1:] {
				if turn.Status != "pending" || turn.JobID != "" {
					t.Errorf("%s was touched: %+v", turn.Name, turn)
				}
			}
			c.await(30*time.Second, "agent-1 to be back on its old binary", func() error {
				if h := c.hosts()["agent-1"]; !h.Online || h.AgentVersion != versionA {
					return errors.New(h.AgentVersion)
				}
				return nil
			})
			c.installedIs("agent-1", versionA)
			if open := c.openAlerts(); open != 2 {
				t.Errorf("%d alerts are open, want update_failed and fleet_update_halted", open)
			}
			// A good release afterwards brings all up, and the alerts close.
			c.publish("7.0.0", buildVersion(t, "7.0.0"))
			c.awaitFleetUpdate(c.startFleetUpdate(nil), "completed", 2*time.Minute)
			c.await(30*time.Second, "the alerts to close", func() error {
				if c.openAlerts() > 0 {
					return errors.New("some are open")
				}
				return nil
			})
		})
	}
}

// What a host's own disk refuses is reported, and the old binary runs on.
func TestE2EHostThatCannotTakeTheUpdate(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, reason string
		prepare      func(c *testCluster) (args []string)
	}{
		{"full disk", "full", func(c *testCluster) []string {
			c.mountSmallDisk(filepath.Join("agent-1", "data"), "12m")
			return nil
		}},
		{"read-only binary that has to be replaced", "read-only", func(*testCluster) []string {
			dir := filepath.Join(t.TempDir(), "usr")
			mount(t, dir, "size=100m")
			if err := copyExecutable(binary(t, versionA), filepath.Join(dir, "moult")); err != nil {
				t.Fatal(err)
			}
			remountReadOnly(t, dir)
			return []string{"--agent-arg=--binary=" + filepath.Join(dir, "moult"), "--agent-arg=--install-to=installed"}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCluster(t)
			c.up(1, 2, tt.prepare(c)...)
			c.publish(versionB, binary(t, versionB))
			u := c.awaitFleetUpdate(c.startFleetUpdate(nil), "halted", time.Minute)
			if !strings.Contains(u.Hosts[0].FailedReason, tt.reason) {
				t.Errorf("the reason lacks %q: %s", tt.reason, u.Hosts[0].FailedReason)
			}
			if h := c.hosts()["agent-1"]; !h.Online || h.AgentVersion != versionA || c.starts("agent-1", versionA) != 1 {
				t.Errorf("agent-1 did not run on: %+v", h)
			}
			c.nothingHalfWritten("agent-1")
		})
	}
}

func remountReadOnly(t testing.TB, path string) {
	t.Helper()
	if out, err := exec.Command("mount", "-o", "remount,ro", path).CombinedOutput(); err != nil {
		t.Fatalf("remount %s read-only: %s", path, out)
	}
}
