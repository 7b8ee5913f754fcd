//go:build unix

package main

import (
	"errors"
	"testing"
	"time"
)

// slowServing makes a download last some seconds, and the first turn not wait for it.
var slowServing = []string{"--server-arg=--stage-wait=0s", "--server-arg=--serve-rate=5MB", "--agent-arg=--serve-rate=5MB"}

// The leader is killed with -9 at each stage of a host's turn: nothing changes
// but who coordinates, and each agent reaches B exactly once.
func TestE2ELeaderKilled(t *testing.T) {
	for _, tt := range []struct {
		name   string
		args   []string
		moment func(c *testCluster, id string)
	}{
		{"while a host downloads", slowServing, func(c *testCluster, _ string) {
			c.await(time.Minute, "agent-1 to be in mid-download", func() error {
				p := c.hosts()["agent-1"].Progress
				if p == nil || p.Done == 0 || p.Done >= p.Total {
					return errors.New("it is not")
				}
				return nil
			})
		}},
		{"while a host restarts", []string{longSoak}, func(c *testCluster, _ string) {
			c.awaitPhase("agent-1", "restarting", "trial")
		}},
		{"between hosts", nil, func(c *testCluster, id string) {
			c.awaitTurn(id, 1, "succeeded")
		}},
	} {
		rounds := 1
		if longForm() {
			rounds = 10
		}
		for range rounds {
			t.Run(tt.name, func(t *testing.T) {
				t.Parallel()
				killLeader(t, tt.args, tt.moment)
			})
		}
	}
}

func killLeader(t *testing.T, args []string, moment func(c *testCluster, id string)) {
	c := startCluster(t, 3, 3, args...)
	c.publish(versionB, binary(t, versionB))
	id := c.startFleetUpdate(nil)
	moment(c, id)
	c.kill(c.leader())
	u := c.awaitFleetUpdate(id, "completed", 3*time.Minute)
	c.allOn(versionB)
	for _, turn := range u.Hosts {
		var j apiJob
		c.get("/api/jobs/"+turn.JobID, &j)
		if len(j.Sources) == 0 {
			c.t.Errorf("of %s nobody knows any more who sent the release", turn.Name)
		}
	}
}
