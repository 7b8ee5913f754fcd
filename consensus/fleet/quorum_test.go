package fleet

import (
	"strings"
	"testing"
)

// A server restarts only where the others are a majority; groups of one and two
// cannot be, and there all others have to be healthy.
func TestHoldsUpRestart(t *testing.T) {
	// Each letter is a server, the first one is to restart: V votes, v votes and is
	// not healthy, N does not vote, n neither.
	for group, allowed := range map[string]bool{
		"V": true, "v": true, "VV": true, "Vv": false, "vV": true,
		"VVV": true, "VVv": false, "Vvv": false, "vVV": true,
		"VVVV": true, "VVVv": false,
		"VVVVV": true, "VVVVv": true, "VVVvv": false,
		"NVVV": true, "NVVv": true, "NVvv": false, "NV": true, "Nv": false, "NVv": false,
		"VVVn": true, "VVvN": false, // who does not vote counts for nothing
		"": false,
	} {
		var members []GroupMember
		for i, c := range group {
			id := string(rune('a' + i))
			members = append(members, GroupMember{ID: id, Name: "server-" + id, Voter: strings.ContainsRune("Vv", c), Healthy: strings.ContainsRune("VN", c)})
		}
		why := HoldsUpRestart(members, "a", "server-a")
		if (why == "") != allowed {
			t.Errorf("%s: %q, want allowed %v", group, why, allowed)
		}
		if group == "VVv" && !strings.Contains(why, "server-c") {
			t.Errorf("the one to bring back is not named: %s", why)
		}
	}
}

// Servers are updated by fleet updates that say so, and no others: servers of
// earlier versions refuse them.
func TestServersAreUpdatedOnlyWhereItIsSaid(t *testing.T) {
	s := fleetOf(t, 1)
	s.refused(CodeHostNotFound, FleetUpdateStarted{ID: "f", TargetVersion: "B", HostIDs: []string{"h1", "s1"}})
	s.refused(CodeHostNotFound, JobCreated{JobID: "j", HostID: "s1", TargetVersion: "B"})
	s.must(FleetUpdateStarted{ID: "f", TargetVersion: "B", HostIDs: []string{"h1"}})
	s.refused(CodeHostNotFound, JobDispatched{JobID: "j", HostID: "s1", FleetUpdateID: "f"})
	s.must(FleetUpdateCancelled{ID: "f"},
		FleetUpdateWithServersStarted{ID: "g", TargetVersion: "B", HostIDs: []string{"h1", "s1"}})
	s.refused(CodeFleetUpdateRunning, FleetUpdateWithServersStarted{ID: "h", TargetVersion: "B", HostIDs: []string{"s1"}})
	s.refused(CodeHostNotFound, JobDispatched{JobID: "j", HostID: "s1"})
	s.must(JobDispatched{JobID: "j", HostID: "s1", FleetUpdateID: "g"})
	if u := s.update("g"); !u.Servers || u.CurrentHostID != "s1" || u.Hosts.At(1).Status != TurnRunning {
		t.Errorf("%+v", u)
	}
	s.refused(CodeConflict, JobDispatched{JobID: "k", HostID: "h1", FleetUpdateID: "g"}) // one at a time
	s.must(JobFinished{JobID: "j", Status: JobFailed, Error: "rolled back"})
	if u := s.update("g"); u.Status != FleetHalted || !strings.Contains(u.HaltedReason, "rolled back") {
		t.Errorf("%+v", u)
	}
	for _, kind := range FirstKinds() {
		if kind == (FleetUpdateWithServersStarted{}).Kind() {
			t.Error("servers of earlier versions do not know it")
		}
	}
}
