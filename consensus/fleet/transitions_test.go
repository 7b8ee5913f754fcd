package fleet

import (
	"encoding/json"
	"fmt"
	"testing"
)

// Every change of a job in every state of the job.
func TestJobTransitions(t *testing.T) {
	created := JobCreated{JobID: "j", HostID: "h1", TargetVersion: "B"}
	dispatched := JobDispatched{JobID: "j", HostID: "h1"}
	finished := func(s JobStatus) Change { return JobFinished{JobID: "j", Status: s} }
	states := map[string][]Change{
		"none":      nil,
		"queued":    {created},
		"running":   {created, dispatched},
		"succeeded": {created, dispatched, finished(JobSucceeded)},
		"failed":    {created, dispatched, finished(JobFailed)},
		"cancelled": {created, finished(JobCancelled)},
	}
	// Per change: what it gives in each state. "" is accepted.
	for _, row := range []struct {
		change                                              Change
		none, queued, running, succeeded, failed, cancelled string
	}{
		{created, "", CodeConflict, CodeConflict, CodeConflict, CodeConflict, CodeConflict},
		{JobCreated{JobID: "other", HostID: "h1", TargetVersion: "B"}, "", CodeUpdateInProgress, CodeUpdateInProgress, "", "", ""},
		{JobCreated{JobID: "other", HostID: "h2", TargetVersion: "B"}, "", "", "", "", "", ""},
		{JobCreated{JobID: "other", HostID: "h2", TargetVersion: "C"}, CodeReleaseNotFound, CodeReleaseNotFound, CodeReleaseNotFound, CodeReleaseNotFound, CodeReleaseNotFound, CodeReleaseNotFound},
		{dispatched, CodeJobNotFound, "", CodeConflict, CodeConflict, CodeConflict, CodeConflict},
		{JobDispatched{JobID: "j", HostID: "h2"}, CodeJobNotFound, CodeConflict, CodeConflict, CodeConflict, CodeConflict, CodeConflict},
		{finished(JobSucceeded), CodeJobNotFound, CodeConflict, "", CodeConflict, CodeConflict, CodeConflict},
		{finished(JobFailed), CodeJobNotFound, "", "", CodeConflict, CodeConflict, CodeConflict},
		{finished(JobCancelled), CodeJobNotFound, "", CodeConflict, CodeConflict, CodeConflict, CodeConflict},
		{finished(JobQueued), CodeJobNotFound, CodeBadRequest, CodeBadRequest, CodeBadRequest, CodeBadRequest, CodeBadRequest},
		{finished("done"), CodeJobNotFound, CodeBadRequest, CodeBadRequest, CodeBadRequest, CodeBadRequest, CodeBadRequest},
		{JobLogAppended{JobID: "j", Lines: []LogLine{{Line: "x"}}}, CodeJobNotFound, "", "", "", "", ""},
		{ReleaseWithdrawn{Version: "B"}, "", CodeConflict, CodeConflict, "", "", ""},
		{HostRemoved{HostID: "h1"}, "", "", "", "", "", ""},
	} {
		for state, want := range map[string]string{
			"none": row.none, "queued": row.queued, "running": row.running,
			"succeeded": row.succeeded, "failed": row.failed, "cancelled": row.cancelled,
		} {
			t.Run(fmt.Sprintf("%+v/%s", row.change, state), func(t *testing.T) {
				s := fleetOf(t, 2)
				s.must(states[state]...)
				s.wants(want, row.change)
			})
		}
	}
}

// Every change of a fleet update in every state of it, h1's turn being over and
// h2's to come.
func TestFleetUpdateTransitions(t *testing.T) {
	started := FleetUpdateStarted{ID: "f", TargetVersion: "B", HostIDs: []string{"h1", "h2"}}
	skip := func(host string) Change { return FleetUpdateHostSkipped{ID: "f", HostID: host, Reason: "r"} }
	dispatch := JobDispatched{JobID: "j2", HostID: "h2", FleetUpdateID: "f"}
	states := map[string][]Change{
		"none":      nil,
		"running":   {started, skip("h1")},
		"paused":    {started, skip("h1"), FleetUpdatePaused{ID: "f"}},
		"completed": {started, skip("h1"), skip("h2"), FleetUpdateCompleted{ID: "f"}},
		"halted":    {started, skip("h1"), FleetUpdateHalted{ID: "f", HostID: "h2", Reason: "host went offline: agent-2"}},
		"cancelled": {started, skip("h1"), FleetUpdateCancelled{ID: "f"}},
	}
	const missing, stopped, taken = CodeFleetUpdateNotFound, CodeNotRunning, CodeConflict
	for _, row := range []struct {
		change                                              Change
		none, running, paused, completed, halted, cancelled string
	}{
		{started, "", CodeFleetUpdateRunning, CodeFleetUpdateRunning, taken, taken, taken},
		{FleetUpdateStarted{ID: "g", TargetVersion: "B", HostIDs: []string{"h1"}}, "", CodeFleetUpdateRunning, CodeFleetUpdateRunning, "", "", ""},
		{dispatch, missing, "", stopped, stopped, stopped, stopped},
		{JobDispatched{JobID: "j1", HostID: "h1", FleetUpdateID: "f"}, missing, CodeConflict, stopped, stopped, stopped, stopped},
		{JobDispatched{JobID: "j3", HostID: "h3", FleetUpdateID: "f"}, missing, CodeHostNotFound, stopped, stopped, stopped, stopped},
		{skip("h1"), missing, CodeConflict, stopped, stopped, stopped, stopped},
		{skip("h2"), missing, "", stopped, stopped, stopped, stopped},
		{skip("h3"), missing, CodeHostNotFound, stopped, stopped, stopped, stopped},
		{FleetUpdateHalted{ID: "f", HostID: "h2"}, missing, "", stopped, stopped, stopped, stopped},
		{FleetUpdateHalted{ID: "f", HostID: "h1"}, missing, CodeConflict, stopped, stopped, stopped, stopped},
		{FleetUpdateCompleted{ID: "f"}, missing, CodeConflict, stopped, stopped, stopped, stopped}, // h2 is pending
		{FleetUpdatePaused{ID: "f"}, missing, "", stopped, stopped, stopped, stopped},
		{FleetUpdateResumed{ID: "f"}, missing, stopped, "", stopped, stopped, stopped},
		{FleetUpdateCancelled{ID: "f"}, missing, "", "", stopped, stopped, stopped},
		{JobCreated{JobID: "x", HostID: "h2", TargetVersion: "B"}, "", CodeUpdateInProgress, CodeUpdateInProgress, "", "", ""},
		{JobCreated{JobID: "x", HostID: "h1", TargetVersion: "B"}, "", "", "", "", "", ""}, // its turn is over
		{ReleaseWithdrawn{Version: "B"}, "", CodeConflict, CodeConflict, "", "", ""},
	} {
		for state, want := range map[string]string{
			"none": row.none, "running": row.running, "paused": row.paused,
			"completed": row.completed, "halted": row.halted, "cancelled": row.cancelled,
		} {
			t.Run(fmt.Sprintf("%+v/%s", row.change, state), func(t *testing.T) {
				s := fleetOf(t, 3)
				s.must(states[state]...)
				s.wants(want, row.change)
			})
		}
	}
}

func TestAlertTransitions(t *testing.T) {
	failed := []Change{JobCreated{JobID: "j", HostID: "h1", TargetVersion: "B"}, JobFinished{JobID: "j", Status: JobFailed, Error: "no"}}
	for _, end := range []string{"resolve", "acknowledge"} {
		s := fleetOf(t, 1)
		s.must(failed...)
		id := s.state.View().OpenAlerts()[0].ID
		change := map[string]Change{"resolve": AlertResolved{AlertID: id}, "acknowledge": AlertAcknowledged{AlertID: id}}[end]
		s.must(change)
		a, _ := s.state.View().Alert(id)
		if a.Status != AlertStatusResolved || a.ResolvedAt == nil || (a.AcknowledgedBy != "") != (end == "acknowledge") {
			t.Errorf("%s: %+v", end, a)
		}
		s.refused(CodeConflict, AlertResolved{AlertID: id})
		s.refused(CodeConflict, AlertAcknowledged{AlertID: id})
	}
}

// A success settles the host's own failures, and the halt when it reached what
// the halt was about; not another host's alert, nor a halt over another target.
func TestSuccessResolvesAlerts(t *testing.T) {
	s := fleetOf(t, 2)
	s.must(release("C", 3),
		JobCreated{JobID: "j2", HostID: "h2", TargetVersion: "B"}, JobFinished{JobID: "j2", Status: JobFailed},
		FleetUpdateStarted{ID: "f", TargetVersion: "B", HostIDs: []string{"h1"}},
		JobDispatched{JobID: "j1", HostID: "h1", FleetUpdateID: "f"}, JobFinished{JobID: "j1", Status: JobFailed, Error: "no"})
	succeed := func(job, version string) {
		s.must(JobCreated{JobID: job, HostID: "h1", TargetVersion: version}, JobDispatched{JobID: job, HostID: "h1"}, JobFinished{JobID: job, Status: JobSucceeded})
	}
	open := func() (out string) {
		for _, a := range s.state.View().OpenAlerts() {
			out += a.Kind + " " + a.HostID + ";"
		}
		return out
	}
	succeed("j3", "C")
	if got := open(); got != "update_failed h2;fleet_update_halted h1;" && got != "fleet_update_halted h1;update_failed h2;" {
		t.Errorf("after a success with another target: %s", got)
	}
	succeed("j4", "B")
	if got := open(); got != "update_failed h2;" {
		t.Errorf("after a success with the target: %s", got)
	}
}

// A halt over a release that was replaced is settled by the fleet update that
// brings its host to the next one; that of a host left out stays open.
func TestCompletedFleetUpdateSettlesHalts(t *testing.T) {
	s := fleetOf(t, 2)
	halt := func(id, host string) []Change {
		return []Change{
			FleetUpdateStarted{ID: id, TargetVersion: "B", HostIDs: []string{host}},
			FleetUpdateHalted{ID: id, HostID: host, Reason: "host went offline"},
		}
	}
	s.must(release("C", 3))
	s.must(halt("f1", "h1")...)
	s.must(halt("f2", "h2")...)
	s.must(FleetUpdateStarted{ID: "f3", TargetVersion: "C", HostIDs: []string{"h1"}},
		JobDispatched{JobID: "j", HostID: "h1", FleetUpdateID: "f3"}, JobFinished{JobID: "j", Status: JobSucceeded})
	if n := len(s.state.View().OpenAlerts()); n != 2 {
		t.Fatalf("%d alerts are open before the end, want both", n)
	}
	s.must(FleetUpdateCompleted{ID: "f3"})
	if a := s.state.View().OpenAlerts(); len(a) != 1 || a[0].HostID != "h2" {
		t.Errorf("open alerts: %+v", a)
	}
}

// A fleet update that was cancelled still shows how its last job ended.
func TestFailureAfterCancelFailsTheTurnOnly(t *testing.T) {
	s := fleetOf(t, 2)
	s.must(FleetUpdateStarted{ID: "f", TargetVersion: "B", HostIDs: []string{"h1", "h2"}},
		JobDispatched{JobID: "j1", HostID: "h1", FleetUpdateID: "f"}, FleetUpdateCancelled{ID: "f"},
		JobFinished{JobID: "j1", Status: JobFailed, Error: "no"})
	u := s.update("f")
	if u.Status != FleetCancelled || u.Hosts.At(0).Status != TurnFailed || u.Hosts.At(0).FailedReason != "no" {
		t.Errorf("fleet update: %+v", u)
	}
	if a := s.state.View().OpenAlerts(); len(a) != 1 || a[0].Kind != AlertUpdateFailed {
		t.Errorf("alerts: %+v", a)
	}
}

// The failure of the job that was in flight when the fleet update was paused
// halts it: a resume must not go on after a failure.
func TestFailureWhilePausedHalts(t *testing.T) {
	s := fleetOf(t, 2)
	s.must(FleetUpdateStarted{ID: "f", TargetVersion: "B", HostIDs: []string{"h1", "h2"}},
		JobDispatched{JobID: "j1", HostID: "h1", FleetUpdateID: "f"}, FleetUpdatePaused{ID: "f"},
		JobFinished{JobID: "j1", Status: JobFailed, Error: "no"})
	if u := s.update("f"); u.Status != FleetHalted {
		t.Fatalf("fleet update: %+v", u)
	}
	s.refused(CodeNotRunning, FleetUpdateResumed{ID: "f"})
}

// A host that has a job of its own is not given a second one by its turn.
func TestTurnWaitsForTheHostsOwnJob(t *testing.T) {
	s := fleetOf(t, 1)
	s.must(JobCreated{JobID: "own", HostID: "h1", TargetVersion: "B"},
		FleetUpdateStarted{ID: "f", TargetVersion: "B", HostIDs: []string{"h1"}})
	turn := JobDispatched{JobID: "j1", HostID: "h1", FleetUpdateID: "f"}
	s.wants(CodeUpdateInProgress, turn)
	s.must(JobFinished{JobID: "own", Status: JobCancelled}, turn)
}

// What a change wrote before it was refused is gone.
func TestRefusalUndoesWhatWasWritten(t *testing.T) {
	const kind = "test_writes_then_refuses"
	appliers[kind] = func(t *tx, _ json.RawMessage) *Error {
		h, _ := t.view().Host("h1")
		t.remove(tableHosts, h)
		t.audit("host", "")
		t.touch("hosts")
		return refuse(CodeConflict, "no")
	}
	defer delete(appliers, kind)
	s := fleetOf(t, 1)
	events, stop := s.state.Subscribe()
	defer stop()
	before := decided(s.state)
	if err := s.state.Apply(1000, Entry{Type: kind, Version: 1, ID: "p", Actor: "a", At: epoch}).Err; err == nil || err.Code != CodeConflict {
		t.Fatalf("got %v", err)
	}
	if decided(s.state) != before || len(events) != 0 {
		t.Error("the refused change left something behind")
	}
}

// A change that names no subject is audited all the same.
func TestForgottenSubjectIsAudited(t *testing.T) {
	const kind = "test_forgets_its_subject"
	appliers[kind] = func(*tx, json.RawMessage) *Error { return nil }
	defer delete(appliers, kind)
	s := fleetOf(t, 1)
	s.state.Apply(1000, Entry{Type: kind, Version: 1, ID: "p", Actor: "ann", At: epoch})
	if a := s.state.View().Audit(0, 1)[0]; a.Index != 1000 || a.Action != kind || a.Actor != "ann" {
		t.Errorf("audit: %+v", a)
	}
}

// A host may be removed with its job in flight or its turn to come.
func TestRemovedHost(t *testing.T) {
	s := fleetOf(t, 2)
	s.must(FleetUpdateStarted{ID: "f", TargetVersion: "B", HostIDs: []string{"h1", "h2"}},
		JobDispatched{JobID: "j1", HostID: "h1", FleetUpdateID: "f"},
		HostRemoved{HostID: "h1"}, HostRemoved{HostID: "h2"},
		JobFinished{JobID: "j1", Status: JobSucceeded})
	s.refused(CodeHostNotFound, JobDispatched{JobID: "j2", HostID: "h2", FleetUpdateID: "f"})
	s.must(FleetUpdateHostSkipped{ID: "f", HostID: "h2", Reason: "host deleted"}, FleetUpdateCompleted{ID: "f"})
	if u := s.update("f"); u.Hosts.At(0).Status != TurnSucceeded || u.Hosts.At(1).FailedReason != "host deleted" {
		t.Errorf("fleet update: %+v", u)
	}
}

// wants applies a change and checks its code; "" is accepted.
func (s *script) wants(code string, c Change) {
	s.tb.Helper()
	before := decided(s.state)
	err := s.apply(c)
	switch {
	case code == "" && err != nil:
		s.tb.Fatalf("refused with %s: %s", err.Code, err.Message)
	case code != "" && (err == nil || err.Code != code):
		s.tb.Fatalf("got %v, want %s", err, code)
	case code != "" && decided(s.state) != before:
		s.tb.Fatalf("the refused change changed the state")
	}
}

// What a relay is, is recorded when it joins and when it is started otherwise, and
// the audit tells both.
func TestFurtherSegmentsOfAHost(t *testing.T) {
	s := fleetOf(t, 1)
	relay := host(7)
	relay.Name, relay.GossipAddr, relay.PeerAddr = "relay-1", "10.1.0.7:7946", "10.1.0.7:7947"
	relay.Also = []HostSegment{{"dmz", "10.2.0.7:7946"}}
	s.must(joinToken("relay"), HostEnrolled{TokenHash: "relay", Host: relay})
	said := func(want string) {
		t.Helper()
		if e := s.state.View().Audit(0, 1)[0]; e.Subject != "host relay-1" || e.Detail != want {
			t.Errorf("the audit says %q of %s, not %q", e.Detail, e.Subject, want)
		}
	}
	said("agent in segments default, dmz")
	s.must(HostSegmentsChanged{HostID: "h7", Also: []HostSegment{{"dmz", "10.2.0.7:7946"}, {"plant", "10.3.0.7:7956"}}})
	said("now in segments default, dmz, plant")
	before := s.state.View().Audit(0, 1)[0].Index
	s.must(HostSegmentsChanged{HostID: "h7", Also: []HostSegment{{"dmz", "10.2.0.7:7946"}, {"plant", "10.3.0.7:7956"}}})
	if after := s.state.View().Audit(0, 1)[0].Index; after != before {
		t.Error("a repetition is audited")
	}
	h, _ := s.state.View().Host("h7")
	for segment, want := range map[string][2]string{
		"default": {"10.1.0.7:7946", "10.1.0.7:7947"}, "dmz": {"10.2.0.7:7946", "10.2.0.7:7947"}, "plant": {"10.3.0.7:7956", "10.3.0.7:7947"}, "other": {"", ""},
	} {
		if got := [2]string{h.GossipAddrIn(segment), h.PeerAddrIn(segment)}; got != want {
			t.Errorf("in segment %s it is at %v, not %v", segment, got, want)
		}
	}
	s.must(HostSegmentsChanged{HostID: "h7"})
	said("now in segment default")
	s.refused(CodeHostNotFound, HostSegmentsChanged{HostID: "nobody"})
}
