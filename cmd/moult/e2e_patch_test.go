//go:build unix

package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// From the second release on hosts take a patch of what they run, which the
// leader has made, and pass it on.
func TestE2EHostsTakePatches(t *testing.T) {
	t.Parallel()
	const versionC = "3.0.0"
	c := startCluster(t, 1, 3)
	c.publish(versionB, binary(t, versionB))
	c.awaitFleetUpdate(c.startFleetUpdate(map[string]any{}), "completed", 2*time.Minute)
	newest := buildVersion(t, versionC)
	c.publish(versionC, newest)
	c.await(2*time.Minute, "the leader to have made a patch", func() error {
		made, err := filepath.Glob(filepath.Join(c.dir, "server-1", "data", "patches", "*-*"))
		if err == nil && len(made) == 0 {
			err = errors.New("there is none")
		}
		return err
	})
	u := c.awaitFleetUpdate(c.startFleetUpdate(map[string]any{}), "completed", 2*time.Minute)
	c.allOn(versionC)
	st, err := os.Stat(newest)
	if err != nil {
		t.Fatal(err)
	}
	byAgents := 0
	for _, turn := range u.Hosts {
		var j apiJob
		c.get("/api/jobs/"+turn.JobID, &j)
		total := int64(0)
		for _, s := range j.Sources {
			total += s.Bytes
			if s.Role == "agent" {
				byAgents++
			}
		}
		if total == 0 || total > st.Size()/20 {
			t.Errorf("%s got %d bytes for a binary of %d", turn.Name, total, st.Size())
		}
		if log := c.moult("job", "log", turn.JobID); !strings.Contains(log, "took it as a patch of") {
			t.Errorf("the job log of %s tells of no patch:\n%s", turn.Name, log)
		}
	}
	if byAgents == 0 {
		t.Error("no agent passed the patch on")
	}
}
