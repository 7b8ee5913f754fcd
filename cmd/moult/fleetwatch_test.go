package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func turns(n, current int) apiFleetUpdate {
	started := time.Now()
	u := apiFleetUpdate{TargetVersion: "2.0.0", Status: "running", StartedAt: &started}
	for i := range n {
		t := apiTurn{HostID: fmt.Sprint("h", i+1), Name: fmt.Sprint("host-", i+1), Position: i + 1, Status: "pending"}
		switch {
		case i < current:
			t.Status = "succeeded"
		case i == current:
			t.Status = "running"
		}
		u.Hosts = append(u.Hosts, t)
	}
	return u
}

// A table that is longer or wider than the terminal would be redrawn in the
// wrong place.
func TestLiveTableFitsTheTerminal(t *testing.T) {
	long := apiHost{Phase: strings.Repeat("long ", 40)}
	for _, n := range []int{1, 5, 24, 1000} {
		for _, rows := range []int{5, 23, 2000} {
			for current := 0; current <= n; current += max(1, n/7) {
				l := &liveWatch{}
				u := turns(n, current)
				lines := l.table(u, map[string]apiHost{fmt.Sprint("h", current+1): long}, 60, rows)
				if len(lines) > rows {
					t.Fatalf("%d hosts in %d rows: %d lines", n, rows, len(lines))
				}
				for _, line := range lines {
					if len([]rune(line)) > 60 {
						t.Fatalf("a line of %d characters: %s", len([]rune(line)), line)
					}
				}
				if current < n && !strings.Contains(strings.Join(lines, "\n"), fmt.Sprintf("host-%d ", current+1)) {
					t.Fatalf("the host whose turn it is is not shown:\n%s", strings.Join(lines, "\n"))
				}
			}
		}
	}
}

// What hosts and releases are called comes from others; it must not steer the
// reader's terminal.
func TestLiveTableShowsNoControlCharacters(t *testing.T) {
	u := turns(1, 1)
	u.TargetVersion, u.Hosts[0].Name, u.Hosts[0].FailedReason = "\x1b[2J", "\x1b]0;x\a", "a\x1b[31mb"
	if text := strings.Join((&liveWatch{}).table(u, nil, 80, 24), "\n"); strings.ContainsAny(text, "\x1b\a") {
		t.Errorf("%q", text)
	}
}
