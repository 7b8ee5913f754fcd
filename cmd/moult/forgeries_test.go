package main

import (
	"strings"
	"testing"
	"time"

	"moult/mesh"
)

// Much that is refused within minutes raises an alert, which says from where; what
// comes now and then does not, and nothing is told twice an hour.
func TestForgeriesAreToldOf(t *testing.T) {
	start := time.Now()
	tick := 0
	w := &forgeryWatch{}
	var c mesh.Counters
	look := func(more uint64) string {
		tick++
		c.UnverifiedRecords += more
		return w.look("server-1", c, start.Add(time.Duration(tick)*forgeryTick))
	}
	for range 200 {
		if m := look(forgeryAlarm/forgeryTicks - 1); m != "" {
			t.Fatalf("a little now and then: %s", m)
		}
	}
	for range forgeryTicks {
		look(0)
	}
	c.LastForged = `host id "h1" at 10.0.0.9`
	c.StaleRecords, c.ReplayedMessages, c.DroppedMessages = 1e6, 1e6, 1e6 // happen in a healthy mesh
	if m := look(forgeryAlarm - 1); m != "" {
		t.Errorf("just below: %s", m)
	}
	m := look(1)
	if !strings.Contains(m, "server-1 refused 50 ") || !strings.Contains(m, "10.0.0.9") || !strings.Contains(m, "moult gossip rotate") {
		t.Errorf("it says %q", m)
	}
	for range int(forgeryQuiet/forgeryTick) - 1 {
		if m := look(forgeryAlarm); m != "" {
			t.Fatalf("once more: %s", m)
		}
	}
	if look(0) == "" {
		t.Error("it goes on for an hour, and nobody is told")
	}
}
