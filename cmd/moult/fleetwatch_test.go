package main

import (
	"encoding/json"
	"fmt"
	"regexp"
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

var escapes = regexp.MustCompile("\x1b\\[[0-9;?]*[A-Za-z]")

// A table that is longer or wider than the terminal would be redrawn in the
// wrong place.
func TestLiveTableFitsTheTerminal(t *testing.T) {
	long := apiHost{Phase: strings.Repeat("long ", 40)}
	for _, n := range []int{1, 5, 24, 1000} {
		for _, rows := range []int{6, 23, 2000} {
			for _, columns := range []int{minColumns, 60, 200} {
				for current := 0; current <= n; current += max(1, n/7) {
					l := &liveWatch{colour: true}
					u := turns(n, current)
					u.Hosts[0].Name = strings.Repeat("name", 20)
					lines := l.table(u, map[string]apiHost{fmt.Sprint("h", current+1): long}, columns, rows)
					if len(lines) > rows {
						t.Fatalf("%d hosts in %d rows: %d lines", n, rows, len(lines))
					}
					for _, line := range lines {
						if seen := escapes.ReplaceAllString(line, ""); len([]rune(seen)) > columns-1 {
							t.Fatalf("a line of %d characters in %d columns: %s", len([]rune(seen)), columns, seen)
						}
					}
					if text := escapes.ReplaceAllString(strings.Join(lines, "\n"), ""); current > 0 && current < n && columns > minColumns && !strings.Contains(text, fmt.Sprintf("host-%d ", current+1)) {
						t.Fatalf("%d hosts, %d rows: the host whose turn it is, %d, is not shown:\n%s", n, rows, current, text)
					}
				}
			}
		}
	}
}

// A failure stays in sight, however long the fleet is.
func TestLiveTableShowsFailures(t *testing.T) {
	u := turns(100, 60)
	u.Hosts[3].Status, u.Hosts[3].FailedReason = "failed", "it never rejoined"
	text := strings.Join((&liveWatch{}).table(u, nil, 100, 20), "\n")
	if !strings.Contains(text, "✘ host-4") || !strings.Contains(text, "it never rejoined") || !strings.Contains(text, "1 failed") {
		t.Errorf("the failure is not shown:\n%s", text)
	}
	u.Status, u.Hosts[3].JobID = "halted", "j-7"
	if text := strings.Join((&liveWatch{}).table(u, nil, 100, 20), "\n"); !strings.Contains(text, "moult job log j-7") {
		t.Errorf("it is not said where to look:\n%s", text)
	}
	plain := strings.Join((&liveWatch{ascii: true}).table(u, nil, 100, 20), "\n")
	if strings.ContainsFunc(plain, func(r rune) bool { return r > 126 }) {
		t.Errorf("characters that the locale lacks:\n%s", plain)
	}
}

// What has not changed is not written again.
func TestLiveTableDoesNotFlicker(t *testing.T) {
	var out strings.Builder
	columns, now := 80, time.Now()
	l := &liveWatch{w: &out, size: func() (int, int) { return columns, 24 }, now: func() time.Time { return now }}
	u := turns(10, 3)
	draw := func() string {
		out.Reset()
		l.show(u, nil)
		return out.String()
	}
	if first := draw(); !strings.Contains(first, "host-10") || strings.Contains(first, "\x1b[2J") {
		t.Errorf("the first table: %q", first)
	}
	if again := draw(); again != "" {
		t.Errorf("the same again: %q", again)
	}
	u.Hosts[3].Status = "succeeded"
	changed := draw()
	if !strings.Contains(changed, "host-4") || strings.Contains(changed, "host-5") || strings.Contains(changed, "\x1b[2K") {
		t.Errorf("one host changed: %q", changed)
	}
	columns = 50
	if narrow := draw(); !strings.Contains(narrow, "\x1b[2J") || !strings.Contains(narrow, "host-10") {
		t.Errorf("another size: %q", narrow)
	}
}

func TestRemainingTime(t *testing.T) {
	start := time.Now()
	u := turns(10, 4)
	u.StartedAt = &start
	left, ok := remaining(u, tallyOf(u), start.Add(45*time.Second))
	if !ok || left != 55*time.Second {
		t.Errorf("%v, %v after 4 of 10 and half of another in 45 s; want 55 s", left, ok)
	}
	for name, change := range map[string]func(*apiFleetUpdate){
		"paused":       func(u *apiFleetUpdate) { u.Status = "paused" },
		"waiting":      func(u *apiFleetUpdate) { u.WaitingFor = "a majority" },
		"nothing done": func(u *apiFleetUpdate) { *u = turns(10, 0) },
		"all done":     func(u *apiFleetUpdate) { *u = turns(10, 10) },
	} {
		u := turns(10, 4)
		change(&u)
		if left, ok := remaining(u, tallyOf(u), start.Add(time.Minute)); ok {
			t.Errorf("%s: %v", name, left)
		}
	}
	if got := clock(3*time.Hour + 62*time.Second); got != "3:01:02" {
		t.Error(got)
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

// Status and watch tell how far each host to come is with the release.
func TestStagingInWords(t *testing.T) {
	u := turns(4, -1)
	u.Hosts[0].Staged = true
	for i, state := range []string{"fetching", "awaits_patch", "failed"} {
		s := &u.Hosts[i+1].Staging
		if err := json.Unmarshal([]byte(fmt.Sprintf(`{"state":%q,"done":30,"total":120,"reason":"no room"}`, state)), s); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []string{"yes", "25 %", "awaits a patch", "no: no room"} {
		if got := u.Hosts[i].stagingWords(); got != want {
			t.Errorf("%s: %q", want, got)
		}
	}
	if got := (apiTurn{}).stagingWords(); got != "" {
		t.Errorf("of a host that said nothing: %q", got)
	}
	text := escapes.ReplaceAllString(strings.Join((&liveWatch{}).table(u, nil, 100, 20), "\n"), "")
	for _, want := range []string{"staged: 1 of 4", "pending    staged", "staging: 25 %", "staging: awaits a patch", "staging: no: no room"} {
		if !strings.Contains(text, want) {
			t.Errorf("the table lacks %q:\n%s", want, text)
		}
	}
}
