package fleet

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// epochBegun is the change that a restore into server s makes.
func epochBegun(epoch uint64, server string) EpochBegun {
	s := host(9)
	s.ID, s.Name, s.Segment = server, "server-of-"+server, DefaultSegment
	return EpochBegun{Epoch: epoch, Statement: []byte("signed"), Reason: "the cluster was restored from a backup", Server: s}
}

// After a restore nothing is dispatched until somebody wants it.
func TestEpochStopsWhatWasUnderWay(t *testing.T) {
	for name, tc := range map[string]struct {
		before []Change
		jobs   string // status of j1 and j2
		status FleetUpdateStatus
		alerts string
	}{
		"a running turn": {
			[]Change{
				FleetUpdateStarted{ID: "f", TargetVersion: "B", HostIDs: []string{"h1", "h2"}},
				JobDispatched{JobID: "j1", HostID: "h1", FleetUpdateID: "f"},
			},
			"failed ", FleetHalted, "fleet_update_halted update_failed",
		},
		"between turns": {
			[]Change{
				FleetUpdateStarted{ID: "f", TargetVersion: "B", HostIDs: []string{"h1", "h2"}},
				JobDispatched{JobID: "j1", HostID: "h1", FleetUpdateID: "f"},
				JobFinished{JobID: "j1", Status: JobSucceeded},
			},
			"succeeded ", FleetHalted, "fleet_update_halted",
		},
		"paused": {
			[]Change{FleetUpdateStarted{ID: "f", TargetVersion: "B", HostIDs: []string{"h1", "h2"}}, FleetUpdatePaused{ID: "f"}},
			" ", FleetHalted, "fleet_update_halted",
		},
		"single hosts' jobs": {
			[]Change{
				JobCreated{JobID: "j1", HostID: "h1", TargetVersion: "B"},
				JobCreated{JobID: "j2", HostID: "h2", TargetVersion: "B"},
				JobDispatched{JobID: "j1", HostID: "h1"},
			},
			"failed cancelled", "", "update_failed",
		},
		"nothing": {nil, " ", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := fleetOf(t, 2)
			s.must(tc.before...)
			s.must(epochBegun(3, "s2"))
			v := s.state.View()
			j1, _ := v.Job("j1")
			j2, _ := v.Job("j2")
			if got := fmt.Sprintf("%s %s", j1.Status, j2.Status); got != tc.jobs {
				t.Errorf("jobs are %s, want %s", got, tc.jobs)
			}
			if j1.Status == JobFailed && !strings.Contains(j1.Error, "restored from a backup while this job ran") {
				t.Errorf("the job says %q", j1.Error)
			}
			u := s.update("f")
			if u.Status != tc.status || u.Status == FleetHalted && !strings.Contains(u.HaltedReason, "restored from a backup") {
				t.Errorf("fleet update: %+v", u)
			}
			var alerts []string
			for _, a := range v.OpenAlerts() {
				alerts = append(alerts, a.Kind)
			}
			if got := strings.Join(alerts, " "); got != tc.alerts {
				t.Errorf("alerts %q, want %q", got, tc.alerts)
			}
			if len(v.OpenJobs()) != 0 {
				t.Errorf("open jobs: %+v", v.OpenJobs())
			}
			if _, active := v.ActiveFleetUpdate(); active {
				t.Error("a fleet update is active")
			}
		})
	}
}

// The servers of the lost timeline are no hosts any more, and what was good for
// one use, or for a browser, is good for none.
func TestEpochLeavesOneServerAndNoOpenDoor(t *testing.T) {
	s := fleetOf(t, 1)
	server := JoinToken{ID: "k", Hash: "k", Role: RoleServer, ExpiresAt: epoch.Add(time.Hour)}
	second := host(5)
	second.ID, second.Name = "s2", "server-2"
	s.must(JoinTokenCreated{Token: server}, HostEnrolled{TokenHash: "k", Host: second}, joinToken("unused"),
		SessionCreated{Session: Session{Hash: "cookie", UserID: "u1", ExpiresAt: epoch.AddDate(1, 0, 0)}},
		ServerStandbyChanged{HostID: "s2", Standby: true})
	c := epochBegun(3, "s9")
	c.Server.Name = "server-1" // of a server that is lost
	s.must(c)
	v := s.state.View()
	var names []string
	for _, h := range v.Hosts() {
		names = append(names, string(h.Role)+" "+h.ID+" "+h.Name)
	}
	if got := strings.Join(names, ", "); got != "agent h1 agent-1, server s9 server-1" {
		t.Errorf("hosts: %s", got)
	}
	if cl, _ := v.Cluster(); cl.ID != "c1" || cl.Epoch != 3 || string(cl.EpochStatement) != "signed" {
		t.Errorf("cluster: %+v", cl)
	}
	if _, ok := v.JoinTokenByHash("unused"); ok {
		t.Error("an unused join token survived: it may have been used since the backup")
	}
	if _, ok := v.JoinTokenByHash("k"); !ok {
		t.Error("a used join token is gone: its late use would get the wrong error")
	}
	if _, ok := v.Session("cookie"); ok {
		t.Error("a session survived: it may have been ended since the backup")
	}
	for _, epoch := range []uint64{0, 2, 3} {
		s.refused(CodeConflict, epochBegun(epoch, "s9"))
	}
	s.must(epochBegun(4, "s9"))
	taken := epochBegun(5, "s9")
	taken.Server.Name = "agent-1"
	s.refused(CodeNameTaken, taken)
	newScript(t).refused(CodeConflict, epochBegun(1, "s1"))
	if again := reopened(t, s.state); again.Hash() != s.state.Hash() {
		t.Error("a snapshot loses the epoch")
	}
}

func TestServerStandby(t *testing.T) {
	s := fleetOf(t, 1)
	s.must(ServerStandbyChanged{HostID: "s1", Standby: true})
	if h, _ := s.state.View().Host("s1"); !h.Standby {
		t.Error("it is not on standby")
	}
	before := len(s.state.View().Audit(0, 100))
	s.must(ServerStandbyChanged{HostID: "s1", Standby: true})
	if got := len(s.state.View().Audit(0, 100)); got != before {
		t.Error("a repetition is audited")
	}
	s.must(ServerStandbyChanged{HostID: "s1"})
	if h, _ := s.state.View().Host("s1"); h.Standby {
		t.Error("it is on standby")
	}
	s.refused(CodeHostNotFound, ServerStandbyChanged{HostID: "nobody"})
}
