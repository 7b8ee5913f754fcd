package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"moult/consensus/fleet"
)

// scaleRun is what a fleet update of a whole fleet leaves behind.
type scaleRun struct {
	*scaleFleet
	enrolled, midway, after []byte // snapshots: before it, when half of it was done, and in the end
	atFirst                 int    // entries before it
	lasted                  time.Duration
	cpu                     time.Duration
	look                    []time.Duration // of the leader at a record that concerns no turn
	halts, changes          int
}

// playScale updates a fleet to its end, through two hosts on which the release does
// not start, of which each halts it, and a change of the leader in the middle of a
// turn. It holds the parts to the invariants.
func playScale(t *testing.T, segments, perSegment int) (r scaleRun) {
	synctest.Test(t, func(t *testing.T) {
		f := newScaleFleet(t, segments, perSegment)
		r.scaleFleet = f
		r.enrolled, r.atFirst = scaleSnapshot(t, f.leader.state), len(f.log)
		n := len(f.hosts)
		f.hosts[n/4].fails, f.hosts[n*7/10].fails = true, true
		f.took = scaleTimes{}
		begin, used := time.Now(), cpuTime()
		f.start(f.leader)
		for round := 1; ; round++ {
			u := f.startUpdate(round)
			f.run(func() bool {
				v := f.leader.state.View()
				if len(f.began) >= n/2 && r.changes == 0 && midTurn(v) {
					r.midway = scaleSnapshot(t, f.leader.state)
					r.look = f.lookAtOthers(100)
					f.lead(f.servers[1])
					r.changes++
				}
				_, active := v.ActiveFleetUpdate()
				return !active
			})
			f.compare()
			ended, _ := f.leader.state.View().FleetUpdate(u)
			if ended.Status == fleet.FleetCompleted {
				break
			}
			r.halts++
			f.mend(ended)
		}
		r.lasted, r.cpu = time.Since(begin), cpuTime()-used
		f.leader.stop()
		r.after = scaleSnapshot(t, f.leader.state)
		f.checkEnd(r)
		f.t = nil // the bubble is over
	})
	return r
}

func scaleSnapshot(t testing.TB, s *fleet.State) []byte {
	t.Helper()
	var b bytes.Buffer
	must(t, s.Snapshot(&b))
	return b.Bytes()
}

// midTurn tells whether a host is at work on its turn.
func midTurn(v fleet.View) bool { return len(v.OpenJobs()) == 1 }

// startUpdate starts a fleet update of all hosts that are behind.
func (f *scaleFleet) startUpdate(round int) (id string) {
	id = fmt.Sprint("update-", round)
	c := fleet.FleetUpdateStarted{ID: id, TargetVersion: scaleTarget}
	for _, h := range f.hosts {
		if h.rec.Version != scaleTarget {
			c.HostIDs = append(c.HostIDs, h.id)
		}
	}
	f.must("user:ann", c)
	return id
}

// mend checks that a fleet update halted for the one host that failed, and repairs it.
func (f *scaleFleet) mend(u fleet.FleetUpdate) {
	f.t.Helper()
	if u.Status != fleet.FleetHalted {
		f.t.Fatalf("fleet update %s is %s", u.ID, u.Status)
	}
	for _, turn := range u.Hosts.All() {
		h := f.byID[turn.HostID]
		if failed := turn.Status == fleet.TurnFailed; failed != h.fails && (failed || turn.Status != fleet.TurnPending) {
			f.t.Fatalf("the turn of %s is %s, and whether it fails is %t", h.name, turn.Status, h.fails)
		} else if failed {
			h.fails = false
		}
	}
}

// checkEnd: every host was brought to the target by one job that succeeded, and
// nothing else happened than what was to.
func (f *scaleFleet) checkEnd(r scaleRun) {
	f.t.Helper()
	v := f.leader.state.View()
	for _, h := range f.hosts {
		succeeded := 0
		for _, j := range v.Jobs(h.id) {
			if j.Status == fleet.JobSucceeded {
				succeeded++
			}
		}
		if succeeded != 1 || h.rec.Version != scaleTarget {
			f.t.Errorf("%s runs %s after %d jobs that succeeded", h.name, h.rec.Version, succeeded)
		}
	}
	if r.halts != 2 || r.changes != 1 || len(v.OpenAlerts()) != 0 {
		f.t.Errorf("%d halts, %d changes of the leader, %d open alerts", r.halts, r.changes, len(v.OpenAlerts()))
	}
	if len(f.problem) > 0 {
		f.t.Error(f.problem)
	}
}

// lookAtOthers measures what a server does when a host that has no turn shows a new
// record, as all do while they stage a release.
func (f *scaleFleet) lookAtOthers(times int) (took []time.Duration) {
	for i := range times {
		h := f.hosts[len(f.hosts)-1-i%(len(f.hosts)/4)]
		h.rec.Holds = []string{scaleDigest(fmt.Sprint(i))[:16]}
		h.sign()
		begin := realTime()
		f.show(f.leader, h, nil)
		synctest.Wait()
		took = append(took, realTime()-begin)
		for _, s := range f.servers {
			if s != f.leader {
				f.show(s, h, nil)
			}
		}
	}
	return took
}

// A fleet of some dozen hosts in segments is updated to its end, in made-up time;
// `make bench-scale` plays ten thousand.
func TestFleetUpdateOfManyHosts(t *testing.T) {
	t.Parallel()
	r := playScale(t, 3, 25)
	t.Logf("%d hosts in %v of their time, %d entries, %v of processor time", len(r.hosts), r.lasted, len(r.log)-r.atFirst, r.cpu)
}

// What TestScale plays: scaleSegments segments of a hundred hosts, then of a thousand.
const (
	scaleVar      = "MOULT_SCALE" // the file that its results go to
	scaleSegments = 10
	scaleSmall    = 100
	scaleLarge    = 1000
)

// scaleRow is one line of the table. Growth is the larger fleet's value over the
// smaller one's: what is proportional to the fleet grows tenfold.
type scaleRow struct {
	Part   string  `json:"part"`
	What   string  `json:"what"`
	Unit   string  `json:"unit"`
	Small  float64 `json:"small"`
	Large  float64 `json:"large"`
	Growth float64 `json:"growth"`
}

// TestScale measures what ten thousand hosts cost a server, beside a thousand, in one
// run. It is run by `make bench-scale`.
func TestScale(t *testing.T) {
	out := os.Getenv(scaleVar)
	if out == "" {
		t.Skip("run by make bench-scale")
	}
	small := measureScale(t, playScale(t, scaleSegments, scaleSmall))
	large := measureScale(t, playScale(t, scaleSegments, scaleLarge))
	var rows []scaleRow
	for i, f := range small {
		row := scaleRow{Part: f.Part, What: f.What, Unit: f.Unit, Small: f.Value, Large: large[i].Value}
		if f.Value > 0 {
			row.Growth = row.Large / row.Small
		}
		rows = append(rows, row)
	}
	t.Log(scaleTable(rows))
	text, err := json.MarshalIndent(rows, "", "  ")
	must(t, err)
	must(t, os.MkdirAll(filepath.Dir(out), 0o755))
	must(t, os.WriteFile(out, append(text, '\n'), 0o644))
}

func scaleTable(rows []scaleRow) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n| | | %d hosts | %d hosts | ÷ |\n|---|---|---|---|---|\n", scaleSegments*scaleSmall, scaleSegments*scaleLarge)
	part := ""
	for _, r := range rows {
		shown := r.Part
		if shown == part {
			shown = ""
		}
		part = r.Part
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", shown, r.What, quantity(r.Small, r.Unit), quantity(r.Large, r.Unit), quantity(r.Growth, ""))
	}
	return b.String()
}

// quantity writes a number with three digits or more.
func quantity(v float64, unit string) string {
	digits := 0
	for limit := 100.0; digits < 3 && v < limit && v != float64(int(v)); limit /= 10 {
		digits++
	}
	return strings.TrimSpace(strconv.FormatFloat(v, 'f', digits, 64) + " " + unit)
}
