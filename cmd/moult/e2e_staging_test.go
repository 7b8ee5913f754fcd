//go:build unix

package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// A release is staged hours before: who waits for it hears when all hosts have it, and
// the fleet update then finds it.
func TestE2EReleaseIsStagedBeforeItsUpdate(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, 2)
	c.publish(versionB, binary(t, versionB))
	waited := func() (end struct{ Hosts, Staged int }) {
		t.Helper()
		if err := json.Unmarshal([]byte(c.moult("release", "stage", versionB, "--wait", "--json")), &end); err != nil {
			t.Fatal(err)
		}
		return end
	}
	if end := waited(); end.Hosts != 2 || end.Staged != 2 {
		t.Errorf("who waits is told %+v", end)
	}
	var list struct {
		Releases []apiRelease `json:"releases"`
	}
	if err := json.Unmarshal([]byte(c.moult("release", "list", "--json")), &list); err != nil {
		t.Fatal(err)
	}
	if s := list.Releases[0].Staging; s == nil || s.Staged != 2 || s.Done != s.Total || s.Total == 0 {
		t.Errorf("the list tells %+v", s)
	}
	for name, h := range c.hosts() {
		if !h.Staged || h.AgentVersion != versionA {
			t.Errorf("%s: staged %v, runs %s", name, h.Staged, h.AgentVersion)
		}
	}
	u := c.awaitFleetUpdate(c.startFleetUpdate(map[string]any{}), "completed", 2*time.Minute)
	for _, turn := range u.Hosts {
		if log := c.moult("job", "log", turn.JobID); !strings.Contains(log, "staged ahead of this job") {
			t.Errorf("%s did not find it:\n%s", turn.Name, log)
		}
	}
	if end := waited(); end.Hosts != 0 {
		t.Errorf("when all run it, who waits is told %+v", end)
	}
}
