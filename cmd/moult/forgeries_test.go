package main

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"moult/consensus/fleet"
	"moult/mesh"
)

// Much that is refused within minutes raises an alert, which says from where; what
// comes now and then does not, and nothing is told twice an hour.
func TestForgeriesAreToldOf(t *testing.T) {
	start := time.Now()
	tick := 0
	w := newForgeryWatch()
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

// The alert over forgeries closes when there was no more of it for an hour at any
// server, and not while a server does not answer.
func TestForgeriesThatStopped(t *testing.T) {
	start := time.Now()
	w := newForgeryWatch()
	var c mesh.Counters
	at := func(tick int, more uint64) time.Duration {
		c.UnverifiedRecords += more
		now := start.Add(time.Duration(tick) * forgeryTick)
		w.look("server-1", c, now)
		return w.calm(now)
	}
	at(1, forgeryAlarm)
	if calm := at(2, 0); calm != 0 {
		t.Errorf("in the same minutes it is calm for %v", calm)
	}
	for tick := 3; tick < 200; tick++ {
		calm, want := at(tick, forgeryAlarm/forgeryTicks-1), time.Duration(tick-forgeryTicks)*forgeryTick
		if tick > 2*forgeryTicks && calm != want {
			t.Fatalf("at tick %d it is calm for %v, not %v", tick, calm, want)
		}
	}
	if calm := at(200, forgeryAlarm); calm != 0 {
		t.Errorf("it begins again, and it is calm for %v", calm)
	}
}

// A leader closes the alert over forgeries by itself.
func TestForgeryAlertCloses(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	raft, propose := startLoneCluster(ctx, t, "s1")
	propose(fleet.AlertRaised{AlertKind: fleet.AlertForgedRecords, Message: "m"})
	m := &membership{raft: raft, self: "s1"}
	w := newForgeryWatch()
	open := func() bool { return len(raft.State().View().OpenAlerts()) == 1 }
	w.close(ctx, m, quiet, time.Now().Add(forgeryCalm-time.Minute))
	if !open() {
		t.Error("it closes too early")
	}
	m.self = "another" // and so s1 is a server that has to be asked, and cannot be
	m.servers = &serverClient{http: http.DefaultClient, statusTimeout: time.Second}
	w.close(ctx, m, quiet, time.Now().Add(forgeryCalm+time.Minute))
	if !open() {
		t.Error("it closes while a server does not answer")
	}
	m.self = "s1"
	w.close(ctx, m, quiet, time.Now().Add(forgeryCalm+time.Minute))
	if open() {
		t.Error("it stays open")
	}
}
