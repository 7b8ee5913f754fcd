//go:build unix

package main

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestE2EFleetUpdate(t *testing.T) {
	c := startCluster(t, 3, 5)
	c.refused(http.StatusConflict, "nothing_to_update", http.MethodPost, "/api/fleet/update", map[string]any{})
	c.refused(http.StatusNotFound, "release_not_found", http.MethodPost, "/api/fleet/update", map[string]any{"target_version": "9"})
	first := c.hosts()["agent-1"]
	c.refused(http.StatusConflict, "already_up_to_date", http.MethodPost, "/api/hosts/"+first.ID+"/update", nil)

	c.publish(versionB, binary(t, versionB))
	id := c.startFleetUpdate(map[string]any{})
	c.refused(http.StatusConflict, "fleet_update_running", http.MethodPost, "/api/fleet/update", map[string]any{})
	c.refused(http.StatusConflict, "update_in_progress", http.MethodPost, "/api/hosts/"+first.ID+"/update", nil)
	u := c.awaitFleetUpdate(id, "completed", 2*time.Minute)
	c.allOn(versionB)

	// Agents get the binary from agents once one has it.
	var fromPeers int64
	for _, turn := range u.Hosts {
		var j apiJob
		c.get("/api/jobs/"+turn.JobID, &j)
		if j.Status != "succeeded" || j.Attempt != 1 {
			t.Errorf("job of %s: %+v", turn.Name, j)
		}
		for _, s := range j.Sources {
			if s.Role == "agent" {
				fromPeers += s.Bytes
			}
		}
	}
	st, err := os.Stat(binary(t, versionB))
	if err != nil {
		t.Fatal(err)
	}
	if want := 4 * st.Size(); fromPeers != want {
		t.Errorf("%d bytes were served by agents, want %d: all but the first host's", fromPeers, want)
	}
	log := c.moult("job", "log", u.Hosts[0].JobID)
	for _, want := range []string{"dispatched", "verified", "succeeded"} {
		if !strings.Contains(log, want) {
			t.Errorf("the job log lacks %q:\n%s", want, log)
		}
	}
	if _, err := os.Stat(filepath.Join(c.dir, "agent-1", "moult.old")); err != nil {
		t.Errorf("the last binary is not kept: %v", err)
	}
}

func TestE2ELeaderKilled(t *testing.T) {
	for name, moment := range map[string]func(*testCluster, string){
		"while a host downloads": func(c *testCluster, id string) {
			c.awaitTurn(id, 1, "running")
		},
		"while a host restarts": func(c *testCluster, id string) {
			c.awaitTurn(id, 1, "running")
			c.awaitPhase("agent-1", "restarting", "trial")
		},
		"between hosts": func(c *testCluster, id string) {
			c.awaitTurn(id, 1, "succeeded")
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := startCluster(t, 3, 3)
			c.publish(versionB, binary(t, versionB))
			id := c.startFleetUpdate(nil)
			moment(c, id)
			c.kill(c.leader())
			c.awaitFleetUpdate(id, "completed", 3*time.Minute)
			c.allOn(versionB)
		})
	}
}

func TestE2EBadReleaseIsRolledBack(t *testing.T) {
	for mode, reason := range map[string]string{
		"exit": "fatal: the frobnicator is missing",
		"hang": "waiting for a frobnicator that never comes",
		"lie":  "0.0.1",
	} {
		t.Run(mode, func(t *testing.T) {
			c := startCluster(t, 1, 3, "--agent-arg=--trial-timeout=6s")
			c.badRelease("6.6.6", mode)
			id := c.startFleetUpdate(nil)
			u := c.awaitFleetUpdate(id, "halted", time.Minute)
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
			want, err := fileDigest(binary(t, versionA))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := fileDigest(filepath.Join(c.dir, "agent-1", "moult")); err != nil || got != want {
				t.Errorf("the installed binary was replaced (%v)", err)
			}
			var alerts struct{ Alerts []apiAlert }
			c.get("/api/alerts", &alerts)
			open := 0
			for _, a := range alerts.Alerts {
				if a.Status == "open" {
					open++
				}
			}
			if open != 2 {
				t.Errorf("%d alerts are open, want update_failed and fleet_update_halted", open)
			}
			// A good release afterwards brings all up, and the alerts close.
			c.publish("7.0.0", buildVersion(t, "7.0.0"))
			c.awaitFleetUpdate(c.startFleetUpdate(nil), "completed", time.Minute)
		})
	}
}

func TestE2ECancel(t *testing.T) {
	c := startCluster(t, 1, 3)
	c.publish(versionB, binary(t, versionB))
	id := c.startFleetUpdate(nil)
	c.awaitTurn(id, 1, "running")
	if err := c.try(http.MethodPost, "/api/fleet-updates/"+id+"/cancel", nil, nil); err != nil {
		t.Fatal(err)
	}
	c.awaitTurn(id, 1, "succeeded") // the current job runs on and is judged
	u := c.fleetUpdate(id)
	if u.Status != "cancelled" || u.Hosts[1].Status != "skipped" || u.Hosts[2].Status != "skipped" {
		t.Errorf("fleet update: %+v", u)
	}
	c.refused(http.StatusConflict, "not_running", http.MethodPost, "/api/fleet-updates/"+id+"/cancel", nil)
}

func TestE2ESingleHost(t *testing.T) {
	c := startCluster(t, 1, 2)
	c.publish(versionB, binary(t, versionB))
	c.moult("host", "update", "--wait", "agent-2")
	hosts := c.hosts()
	if hosts["agent-2"].AgentVersion != versionB || hosts["agent-1"].AgentVersion != versionA {
		t.Errorf("hosts: %+v", hosts)
	}
	c.kill("agent-1")
	c.await(30*time.Second, "agent-1 to be offline", func() error {
		if c.hosts()["agent-1"].Online {
			return errors.New("online")
		}
		return nil
	})
	c.refused(http.StatusConflict, "host_offline", http.MethodPost, "/api/hosts/"+hosts["agent-1"].ID+"/update", nil)
	// Named by the admin all the same, it halts the fleet update at its turn.
	id := c.startFleetUpdate(map[string]any{"host_ids": []string{hosts["agent-2"].ID, hosts["agent-1"].ID}})
	u := c.awaitFleetUpdate(id, "halted", 30*time.Second)
	if u.Hosts[0].Status != "skipped" || u.Hosts[0].FailedReason != "already at target" || u.HaltedReason != "host went offline: agent-1" {
		t.Errorf("fleet update: %+v", u)
	}
}
