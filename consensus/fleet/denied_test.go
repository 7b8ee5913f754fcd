package fleet

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func ringKey(fill byte) []byte { return bytes.Repeat([]byte{fill}, 32) }

func segmentKey(segment string, fill byte) SegmentKey {
	return SegmentKey{Segment: segment, Key: ringKey(fill), Base: [][]byte{ringKey(0)}}
}

func denied(id string, fill byte) HostDenied {
	return HostDenied{HostID: id, Until: epoch.Add(24 * time.Hour), GossipKeys: []SegmentKey{segmentKey("default", fill)}}
}

func (s *script) ring(segment string) string {
	s.tb.Helper()
	r, ok := s.state.View().GossipRing(segment)
	if !ok {
		return ""
	}
	out := string(r.Stage) + ":"
	for _, k := range r.Keys {
		out += fmt.Sprintf(" %d", k[0])
	}
	return out
}

// A removed host is on the deny-list, cannot come back as it was, and its
// segments' keys begin to change, all in one entry.
func TestDeniedHost(t *testing.T) {
	s := fleetOf(t, 3)
	s.must(denied("h2", 1))
	v := s.state.View()
	number, list := v.DenyList()
	if _, known := v.Host("h2"); known || number != v.Index() || len(list) != 1 || list[0].HostID != "h2" || list[0].Name != "agent-2" ||
		list[0].By != "user:ann" || !bytes.Equal(list[0].PublicKey, host(2).PublicKey) || !list[0].Until.Equal(epoch.Add(24*time.Hour)) {
		t.Errorf("the list is number %d: %+v", number, list)
	}
	if got := s.ring("default"); got != "installing: 0 1" {
		t.Errorf("the keys are %s", got)
	}
	s.refused(CodeHostNotFound, denied("h2", 2))
	s.must(joinToken("again"))
	s.refused(CodeConflict, HostEnrolled{TokenHash: "again", Host: host(2)})
	stolen := host(9)
	stolen.PublicKey = host(2).PublicKey
	s.refused(CodeConflict, HostEnrolled{TokenHash: "again", Host: stolen})
	fresh := host(9)
	fresh.Name = "agent-2"
	s.must(HostEnrolled{TokenHash: "again", Host: fresh})
	if e := s.state.View().Audit(0, 3); !slices.ContainsFunc(e, func(a AuditEntry) bool {
		return a.Action == "host_denied" && a.Subject == "host agent-2" && strings.Contains(a.Detail, "denied until")
	}) {
		t.Errorf("the audit says %+v", e)
	}
}

func TestDeniedHostRefusals(t *testing.T) {
	s := fleetOf(t, 1)
	past := denied("h1", 1)
	past.Until = epoch
	s.refused(CodeBadRequest, past)
	never := denied("h1", 1)
	never.Until = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	s.refused(CodeBadRequest, never)
	s.must(HostSegmentsChanged{HostID: "h1", Also: []HostSegment{{Segment: "dmz", GossipAddr: "10.0.0.1:1"}}})
	s.refused(CodeConflict, denied("h1", 1)) // a relay by now
	short := denied("h1", 1)
	short.GossipKeys = append(short.GossipKeys, SegmentKey{Segment: "dmz", Key: []byte("short"), Base: [][]byte{ringKey(0)}})
	s.refused(CodeBadRequest, short)
	if s.ring("default") != "" {
		t.Error("a refused removal has begun to change keys")
	}
	whole := denied("h1", 1)
	whole.GossipKeys = append(whole.GossipKeys, segmentKey("dmz", 2), segmentKey("elsewhere", 3))
	s.must(whole)
	if s.ring("dmz") != "installing: 0 2" || s.ring("elsewhere") != "" {
		t.Errorf("dmz: %s, elsewhere: %s", s.ring("dmz"), s.ring("elsewhere"))
	}
}

// The list forgets who could not show a certificate any more and, at its limit,
// the host whose certificate ends next.
func TestDenyListIsBounded(t *testing.T) {
	s := fleetOf(t, 5)
	s.state.bounds.denied = 2
	until := func(id string, hours int) HostDenied {
		c := denied(id, byte(len(s.log)))
		c.Until = epoch.Add(time.Duration(hours) * time.Hour)
		return c
	}
	names := func() (out string) {
		_, list := s.state.View().DenyList()
		for _, d := range list {
			out += d.HostID + " "
		}
		return out
	}
	ended := until("h1", 1)
	ended.Until = epoch.Add(time.Duration(len(s.log)+3) * time.Second) // an entry is a second
	s.must(ended, until("h2", 2))
	if got := names(); got != "h1 h2 " {
		t.Errorf("on the list are %s", got)
	}
	s.must(until("h3", 5))
	if got := names(); got != "h2 h3 " {
		t.Errorf("after h1's end, on the list are %s", got)
	}
	s.must(until("h4", 4))
	if got := names(); got != "h3 h4 " {
		t.Errorf("at the limit, on the list are %s", got)
	}
	if e := s.state.View().Audit(0, 1)[0]; !strings.Contains(e.Detail, "forgets agent-2") {
		t.Errorf("the audit says %q", e.Detail)
	}
}

// A rotation goes from stage to stage, each with a revision of its own, and begins
// anew when a host is removed meanwhile: that one may know the new key.
func TestGossipRotation(t *testing.T) {
	s := fleetOf(t, 4)
	advance := func() Change {
		r, _ := s.state.View().GossipRing("default")
		return GossipRotationAdvanced{Segment: "default", Revision: r.Revision}
	}
	is := func(want string) {
		t.Helper()
		if got := s.ring("default"); got != want {
			t.Errorf("the keys are %q, want %q", got, want)
		}
	}
	s.refused(CodeNotRunning, GossipRotationAdvanced{Segment: "default"})
	s.refused(CodeBadRequest, GossipRotationBegun{})
	s.refused(CodeBadRequest, GossipRotationBegun{Keys: []SegmentKey{{Segment: "default", Key: ringKey(1)}}}) // on what?
	s.refused(CodeBadRequest, GossipRotationBegun{Keys: []SegmentKey{segmentKey("default", 0)}})
	s.refused(CodeBadRequest, GossipRotationBegun{Keys: []SegmentKey{segmentKey("a b", 1)}})
	s.refused(CodeBadRequest, GossipRotationBegun{Keys: []SegmentKey{segmentKey("x", 1), segmentKey("x", 2)}})
	is("")
	s.must(GossipRotationBegun{Keys: []SegmentKey{segmentKey("default", 1)}, Reason: "yearly"})
	is("installing: 0 1")
	s.refused(CodeRotationRunning, GossipRotationBegun{Keys: []SegmentKey{segmentKey("default", 9)}})
	stale := advance()
	s.must(advance())
	is("using: 1 0")
	s.refused(CodeConflict, stale)
	s.must(advance())
	is(": 1")
	s.refused(CodeNotRunning, advance())
	r, _ := s.state.View().GossipRing("default")
	if r.Done != 1 || r.CompletedAt == nil || r.Reason != "yearly" || r.StartedBy != "user:ann" {
		t.Errorf("at its end it is %+v", r)
	}

	s.must(denied("h1", 2))
	is("installing: 1 2")
	s.must(denied("h2", 3)) // h2 may have got key 2
	is("installing: 1 3")
	s.must(advance())
	is("using: 3 1")
	s.must(denied("h3", 4))
	is("installing: 3 1 4")
	s.must(advance())
	is("using: 4 3 1")
	s.must(GossipRotationAdvanced{Segment: "default", Revision: s.state.View().Index(), Forced: true, Missing: []string{"agent-4"}})
	is(": 4")
	if e := s.state.View().Audit(0, 1)[0]; !strings.Contains(e.Detail, "forced, without waiting for 1 hosts: agent-4") {
		t.Errorf("the audit says %q", e.Detail)
	}
	// However often a rotation begins anew, a ring is bounded.
	for i := range 20 {
		s.must(joinToken(fmt.Sprint("t", i)))
		h := host(50 + i)
		s.must(HostEnrolled{TokenHash: fmt.Sprint("t", i), Host: h}, denied(h.ID, byte(100+i)))
		s.must(advance())
	}
	if r, _ := s.state.View().GossipRing("default"); len(r.Keys) > MaxRingKeys || r.Keys[0][0] != 119 {
		t.Errorf("%d keys, the first is %d", len(r.Keys), r.Keys[0][0])
	}
	s.state.bounds.rings = 1
	s.refused(CodeLimitReached, GossipRotationBegun{Keys: []SegmentKey{segmentKey("other", 1)}})
}

// What was decided survives a snapshot.
func TestTrustSurvivesASnapshot(t *testing.T) {
	s := fleetOf(t, 3)
	s.must(denied("h1", 1), HostQuarantined{HostID: "h2", Why: "two machines"}, AlertRaised{AlertKind: AlertHostSilent, HostID: "h3", Message: "m"})
	var b bytes.Buffer
	if err := s.state.Snapshot(&b); err != nil {
		t.Fatal(err)
	}
	again := New()
	if err := again.Restore(&b); err != nil {
		t.Fatal(err)
	}
	if again.Hash() != s.state.Hash() {
		t.Error("the restored state differs")
	}
	if number, list := again.View().DenyList(); number == 0 || len(list) != 1 {
		t.Errorf("the restored deny-list is %d, %+v", number, list)
	}
}

// A host in quarantine gets no order, whatever way it was asked for.
func TestQuarantine(t *testing.T) {
	s := fleetOf(t, 2)
	s.must(JobCreated{JobID: "queued", HostID: "h1", TargetVersion: "B"})
	s.refused(CodeBadRequest, HostQuarantined{HostID: "h1"})
	s.refused(CodeConflict, HostQuarantineLifted{HostID: "h1"})
	s.must(HostQuarantined{HostID: "h1", Why: "two machines answer as agent-1"})
	s.must(HostQuarantined{HostID: "h1", Why: "again"}) // known
	open := s.state.View().OpenAlerts()
	if len(open) != 1 || open[0].Kind != AlertClonedHost || open[0].HostID != "h1" || open[0].Message != "two machines answer as agent-1" {
		t.Errorf("the alerts are %+v", open)
	}
	s.refused(CodeHostQuarantined, JobDispatched{JobID: "queued", HostID: "h1"})
	s.must(JobFinished{JobID: "queued", Status: JobFailed, Error: "in quarantine"})
	s.refused(CodeHostQuarantined, JobCreated{JobID: "j", HostID: "h1", TargetVersion: "B"})
	s.must(FleetUpdateStarted{ID: "f", TargetVersion: "B", HostIDs: []string{"h1", "h2"}})
	s.refused(CodeHostQuarantined, JobDispatched{JobID: "j", HostID: "h1", FleetUpdateID: "f"})
	s.must(FleetUpdateCancelled{ID: "f"}, HostQuarantineLifted{HostID: "h1"}, JobCreated{JobID: "j", HostID: "h1", TargetVersion: "B"})
	for _, a := range s.state.View().OpenAlerts() {
		if a.Kind == AlertClonedHost {
			t.Errorf("open is %+v", a)
		}
	}
	s.must(HostQuarantined{HostID: "h1", Why: "w"}, JobFinished{JobID: "j", Status: JobCancelled}, denied("h1", 1))
	for _, a := range s.state.View().OpenAlerts() {
		if a.Kind == AlertClonedHost {
			t.Errorf("after the removal, open is %+v", a)
		}
	}
}

func TestRaisedAlerts(t *testing.T) {
	s := fleetOf(t, 2)
	s.refused(CodeBadRequest, AlertRaised{AlertKind: "moon", Message: "m"})
	s.refused(CodeBadRequest, AlertRaised{AlertKind: AlertClonedHost, HostID: "h1", Message: "m"}) // HostQuarantined is how
	s.refused(CodeBadRequest, AlertRaised{AlertKind: AlertForgedRecords})
	s.refused(CodeHostNotFound, AlertRaised{AlertKind: AlertHostSilent, HostID: "h9", Message: "m"})
	s.must(AlertRaised{AlertKind: AlertForgedRecords, Message: "m"}, AlertRaised{AlertKind: AlertForgedRecords, Message: "m2"},
		AlertRaised{AlertKind: AlertHostSilent, HostID: "h1", Message: "m"}, AlertRaised{AlertKind: AlertHostSilent, HostID: "h2", Message: "m"},
		AlertRaised{AlertKind: AlertForkedReleaseKeys, HostID: "h1", Message: "m"}, AlertRaised{AlertKind: AlertForkedReleaseKeys, HostID: "h1", Message: "m2"})
	if open := s.state.View().OpenAlerts(); len(open) != 4 || open[3].Kind != AlertForkedReleaseKeys || open[3].HostID != "h1" {
		t.Errorf("open are %+v", open)
	}
	s.must(denied("h1", 1)) // nobody waits for a host that was removed
	for _, a := range s.state.View().OpenAlerts() {
		if a.HostID == "h1" {
			t.Errorf("open is %+v", a)
		}
	}
}
