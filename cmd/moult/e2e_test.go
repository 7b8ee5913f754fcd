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

	"moult/cmd/internal/nodekit"
)

func TestE2EFleetUpdate(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, 5)
	c.refused(http.StatusConflict, "nothing_to_update", http.MethodPost, "/api/fleet/update", map[string]any{})
	c.refused(http.StatusNotFound, "release_not_found", http.MethodPost, "/api/fleet/update", map[string]any{"target_version": "9"})
	last := c.hosts()["agent-5"] // its turn is not over before the fleet update is
	c.refused(http.StatusConflict, "already_up_to_date", http.MethodPost, "/api/hosts/"+last.ID+"/update", nil)

	c.publish(versionB, binary(t, versionB))
	id := c.startFleetUpdate(map[string]any{})
	c.refused(http.StatusConflict, "fleet_update_running", http.MethodPost, "/api/fleet/update", map[string]any{})
	c.refused(http.StatusConflict, "update_in_progress", http.MethodPost, "/api/hosts/"+last.ID+"/update", nil)
	u := c.awaitFleetUpdate(id, "completed", 2*time.Minute)
	c.allOn(versionB)

	// The first host's turn begins before anybody has staged, so it takes a copy of its
	// own. The others stage one between them; what the first would have passed on while
	// it restarts they take elsewhere.
	var byServers, byAgents int64
	for _, turn := range u.Hosts {
		var j apiJob
		c.get("/api/jobs/"+turn.JobID, &j)
		if j.Status != "succeeded" || j.Attempt != 1 {
			t.Errorf("job of %s: %+v", turn.Name, j)
		}
		for _, s := range j.Sources {
			if s.Role == "agent" {
				byAgents += s.Bytes
			} else {
				byServers += s.Bytes
			}
		}
	}
	st, err := os.Stat(binary(t, versionB))
	if err != nil {
		t.Fatal(err)
	}
	copies := float64(byServers) / float64(st.Size())
	t.Logf("servers sent %.2f copies, agents %.2f", copies, float64(byAgents)/float64(st.Size()))
	if copies > 2.5 {
		t.Errorf("5 hosts took %.2f copies from servers, want about 2 at most", copies)
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

func TestE2ECancel(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, 3, longSoak)
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
	t.Parallel()
	c := startCluster(t, 1, 2)
	c.publish(versionB, binary(t, versionB))
	c.moult("host", "update", "--wait", "agent-2")
	hosts := c.hosts()
	if hosts["agent-2"].AgentVersion != versionB || hosts["agent-1"].AgentVersion != versionA {
		t.Errorf("hosts: %+v", hosts)
	}
	c.kill("agent-1")
	c.awaitOffline("agent-1")
	c.refused(http.StatusConflict, "host_offline", http.MethodPost, "/api/hosts/"+hosts["agent-1"].ID+"/update", nil)
	// Named by the admin all the same, it halts the fleet update at its turn.
	id := c.startFleetUpdate(map[string]any{"host_ids": []string{hosts["agent-2"].ID, hosts["agent-1"].ID}})
	u := c.awaitFleetUpdate(id, "halted", 30*time.Second)
	if u.Hosts[0].Status != "skipped" || u.Hosts[0].FailedReason != "already at target" || u.HaltedReason != "host went offline: agent-1" {
		t.Errorf("fleet update: %+v", u)
	}
}

// Who serves bytes is not trusted: a peer whose artifact was damaged is passed
// over, its bytes are executed nowhere, and the host gets the release elsewhere.
func TestE2EPeerWithCorruptBytesIsPassedOver(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, 2)
	c.publish(versionB, binary(t, versionB))
	c.moult("host", "update", "--wait", "agent-1")
	digest, err := nodekit.FileDigest(binary(t, versionB))
	if err != nil {
		t.Fatal(err)
	}
	c.corrupt(filepath.Join("agent-1", "data", "artifacts", digest))

	id := strings.TrimSpace(c.moult("host", "update", "--wait", "agent-2"))
	c.allOn(versionB)
	var j apiJob
	c.get("/api/jobs/"+id, &j)
	if len(j.Sources) != 1 || j.Sources[0].Role != "server" {
		t.Errorf("the bytes came from %+v, want them from the server alone", j.Sources)
	}
}

// The servers are gone altogether while a host is on trial: the agents run on,
// the trial is judged without them, and the fleet update ends once they are back.
func TestE2EAllServersGoneAndBack(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, 2, longSoak)
	c.publish(versionB, binary(t, versionB))
	id := c.startFleetUpdate(nil)
	c.awaitPhase("agent-1", "restarting", "trial")
	servers := []string{"server-1", "server-2", "server-3"}
	var restart []func()
	for _, name := range servers {
		restart = append(restart, c.killForRestart(name))
	}
	want, err := nodekit.FileDigest(binary(t, versionB))
	if err != nil {
		t.Fatal(err)
	}
	c.await(time.Minute, "agent-1 to commit without any server", func() error {
		got, err := nodekit.FileDigest(filepath.Join(c.dir, "agent-1", "moult"))
		if err == nil && got != want {
			err = errors.New("the old binary is still installed")
		}
		return err
	})
	for _, f := range restart {
		f()
	}
	c.awaitFleetUpdate(id, "completed", 2*time.Minute)
	c.allOn(versionB)
	for _, name := range []string{"agent-1", "agent-2"} {
		if n := c.starts(name, versionA); n != 1 {
			t.Errorf("%s started %d times in %s: it did not run on", name, n, versionA)
		}
	}
}

// The same command starts the same cluster again: who was in it, what it was told,
// and the releases' bytes, however old, though no server knows at first that a
// release offers them.
func TestE2EDevStartsAgain(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, 1)
	c.publish(versionB, binary(t, versionB))
	id := c.hosts()["agent-1"].ID
	c.stop()
	c.age("server-*/data/artifacts/*")
	c.up(3, 2) // and one agent more
	hosts := c.hosts()
	if len(hosts) != 2 || hosts["agent-1"].ID != id || !hosts["agent-1"].UpdateAvailable {
		t.Errorf("hosts: %+v", hosts)
	}
	c.awaitFleetUpdate(c.startFleetUpdate(nil), "completed", time.Minute)
	c.allOn(versionB)
}
