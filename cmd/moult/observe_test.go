package main

import (
	"testing"
	"testing/synctest"
	"time"

	"moult/consensus/coordinator"
	"moult/consensus/fleet"
	"moult/mesh"
	"moult/mesh/identity"
	"moult/updater"
)

// The coordinator is told of a host again when its record or its report is another,
// and of nobody else.
func TestObservationsOfWhatChanged(t *testing.T) {
	roster := mesh.NewFedRoster(mesh.Config{Identity: identity.Identity{HostID: "s1"}})
	rec := func(id string, seq uint64) mesh.SignedRecord {
		return mesh.SignedRecord{Raw: []byte{byte(seq)}, Record: mesh.Record{
			HostID: id, Boot: 1, Seq: seq, Role: "agent", Version: "A", Segments: []string{"dmz"}, Phase: mesh.PhaseFetching, JobID: "j",
		}}
	}
	for _, id := range []string{"h1", "h0"} {
		must(t, roster.Feed(mesh.Sighting{Relay: "r", Segment: "dmz", Alive: true, Record: rec(id, 1)}))
	}
	state := newStagingFleet(t, 2).state
	o := newObserver(roster.Roster)
	all, now, whole := o.Observations(0)
	if len(all) != 2 || !whole || !all["h1"].Online {
		t.Fatalf("at first %+v, whole %t", all, whole)
	}
	if changed, _, whole := o.Observations(now); len(changed) != 0 || whole {
		t.Errorf("nothing has changed, and told is %+v, whole %t", changed, whole)
	}

	before := o.Changed()
	o.store("h1", updater.Report{JobID: "j", Done: 5, Total: 9}, state.View())
	select {
	case <-before:
	default:
		t.Error("a report wakes nobody")
	}
	changed, now, _ := o.Observations(now)
	if len(changed) != 1 || changed["h1"].Done != 5 {
		t.Errorf("after a report of h1 told is %+v", changed)
	}
	must(t, roster.Feed(mesh.Sighting{Relay: "r", Segment: "dmz", Alive: false, Record: rec("h0", 2)}))
	changed, _, _ = o.Observations(now)
	if len(changed) != 1 || changed["h0"].Seq != 2 || changed["h0"].Online || time.Since(changed["h0"].Since) > time.Minute {
		t.Errorf("after a record of h0, which went away, told is %+v", changed)
	}
}

// What a host stages is told as soon as it is another; its progress wakes nobody more
// often than once in a progressPause, and is seen when somebody looks.
func TestStagingIsObserved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // on a machine that stands still, a progressPause goes by between two lines
		roster := mesh.NewFedRoster(mesh.Config{})
		must(t, roster.Feed(mesh.Sighting{Relay: "r", Segment: "dmz", Alive: true, Record: mesh.SignedRecord{
			Raw: []byte{1}, Record: mesh.Record{HostID: "h0", Boot: 1, Seq: 1, Role: "agent", Segments: []string{"dmz"}},
		}}))
		view := newStagingFleet(t, 1).state.View()
		o := newObserver(roster.Roster)
		_, now, _ := o.Observations(0)
		stage := func(state updater.StagingState, done int64) (woken bool) {
			before := o.Changed()
			o.storeKept("h0", updater.Report{Stored: done, Staging: &updater.Staging{Digest: wantedDigest, State: state, Done: done, Total: 9}}, view)
			select {
			case <-before:
				return true
			default:
				return false
			}
		}
		seen := func() coordinator.StageObservation {
			changed, upTo, _ := o.Observations(now)
			now = upTo
			return changed["h0"].Stage
		}
		if !stage(updater.StageFetching, 1) || seen().Done != 1 {
			t.Error("that a host stages is not told")
		}
		if stage(updater.StageFetching, 2) {
			t.Error("progress wakes at once")
		}
		if got := seen(); got.Done != 2 {
			t.Errorf("who looks sees %+v, not the progress", got)
		}
		if !stage(updater.StageFailed, 2) || !seen().Failed {
			t.Error("that staging failed is not told at once")
		}
		if stage(updater.StageFailed, 2) || seen() != (coordinator.StageObservation{}) {
			t.Error("what is repeated counts as news")
		}
	})
}

// Reports of hosts that were removed are dropped.
func TestReportsOfRemovedHostsAreDropped(t *testing.T) {
	f := newStagingFleet(t, 2)
	o := newObserver(mesh.NewFedRoster(mesh.Config{}).Roster)
	for _, id := range []string{"h0", "h1"} {
		o.store(id, updater.Report{JobID: "j"}, f.state.View())
	}
	f.apply(fleet.HostRemoved{HostID: "h0"})
	o.store("h1", updater.Report{JobID: "k"}, f.state.View())
	if got := o.reports; len(got) != 1 || got["h1"].JobID != "k" {
		t.Errorf("kept are %+v", got)
	}
}

// Pages and lists are shown what was made for the one before, as far as nothing has
// changed since, and who holds an earlier picture sees it as it was. When a host that is
// online was seen last is renewed with time alone.
func TestWhatIsShownIsMadeOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		roster := mesh.NewFedRoster(mesh.Config{Identity: identity.Identity{HostID: "s1"}})
		feed := func(id string, seq uint64, alive bool) {
			t.Helper()
			must(t, roster.Feed(mesh.Sighting{Relay: "r", Segment: "dmz", Alive: alive, Record: mesh.SignedRecord{
				Raw: []byte{byte(seq)}, Record: mesh.Record{HostID: id, Boot: 1, Seq: seq, Role: "agent", Version: "A", Segments: []string{"dmz"}, JobID: "j"},
			}}))
		}
		feed("h0", 1, true)
		feed("h1", 1, true)
		state := newStagingFleet(t, 3).state
		o := newObserver(roster.Roster)
		first := o.observed()
		if len(first) != 2 || !first["h0"].Online {
			t.Fatalf("at first %+v", first)
		}
		if n := testing.AllocsPerRun(5, func() { o.observed() }); n > 0 {
			t.Errorf("%.0f allocations though nothing has changed", n)
		}

		o.store("h0", updater.Report{JobID: "j", Done: 5, Total: 9}, state.View())
		o.storeKept("h1", updater.Report{Stored: 7}, state.View())
		feed("h2", 1, true)
		second := o.observed()
		if second["h0"].Total != 9 || second["h1"].KeptBytes != 7 || !second["h2"].Online {
			t.Errorf("after two reports and a record: %+v", second)
		}
		if len(first) != 2 || first["h0"].Total != 0 || first["h1"].KeptBytes != 0 {
			t.Errorf("the earlier picture is %+v now", first)
		}

		seen := second["h1"].LastSeen
		time.Sleep(shownFor)
		feed("h1", 1, true)
		if got := o.observed()["h1"]; !got.LastSeen.After(seen) || got.KeptBytes != 7 {
			t.Errorf("after %v: %+v", shownFor, got)
		}
		feed("h1", 2, false)
		if o.observed()["h1"].Online {
			t.Error("a host that went away is shown as online")
		}
	})
}
