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
	// One host first: the others stage as soon as the fleet update starts, and take
	// the patch from the one of their segment that has it.
	jobs := []string{c.update("agent-1", versionC).ID}
	u := c.awaitFleetUpdate(c.startFleetUpdate(map[string]any{}), "completed", 2*time.Minute)
	for _, turn := range u.Hosts {
		jobs = append(jobs, turn.JobID)
	}
	c.allOn(versionC)
	st, err := os.Stat(newest)
	if err != nil {
		t.Fatal(err)
	}
	if len(jobs) != 3 {
		t.Fatalf("there were %d jobs, want one for each host", len(jobs))
	}
	for n, id := range jobs {
		var j apiJob
		c.get("/api/jobs/"+id, &j)
		log := c.moult("job", "log", id)
		if !strings.Contains(log, "as a patch of") {
			t.Errorf("the job log of %s tells of no patch:\n%s", j.HostName, log)
		}
		total := int64(0)
		for _, s := range j.Sources {
			total += s.Bytes
			if byAgent := s.Role == "agent"; byAgent != (n > 0) {
				t.Errorf("%s took %d bytes from %s; want them of the server for the first host, of that one for the others", j.HostName, s.Bytes, s.Name)
			}
		}
		if total == 0 || total > st.Size()/20 {
			t.Errorf("%s got %d bytes for a binary of %d", j.HostName, total, st.Size())
		}
	}
}
