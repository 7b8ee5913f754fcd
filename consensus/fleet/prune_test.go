package fleet

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// small are limits that a short history reaches.
var small = bounds{
	audit: 9, proposals: 9, jobs: 3, logBytes: 6 * lineOverhead, jobLines: 4, fleetUpdates: 2, turns: 5, alerts: 2,
	hosts: 6, releases: 2, joinTokens: 3, apiTokens: 2, users: 2, userSessions: 2,
	webhooks: 1, notifications: 2,
	loginRows: 4,
}

// within checks that each table keeps to its limit, unless what is at work
// fills it, and that nothing is left that belongs to a row that was dropped.
func (b bounds) within(v View) error {
	size := v.meta().size
	open, active := len(v.OpenJobs()), 0
	if _, ok := v.ActiveFleetUpdate(); ok {
		active = 1
	}
	jobs := all[jobRow](v.txn, false, tableJobs, "id")
	logBytes := 0
	for _, l := range all[lineRow](v.txn, false, tableJobLines, "id") {
		if _, ok := v.Job(l.JobID); !ok {
			return fmt.Errorf("a line of the dropped job %s", l.JobID)
		}
		logBytes += lineCost(l.LogLine)
	}
	turns := 0
	for _, u := range v.FleetUpdates() {
		turns += u.Hosts.Len()
	}
	counted := sizes{
		audit: len(v.Audit(0, 1000)), proposals: len(all[proposalRow](v.txn, false, tableProposals, "id")), jobs: len(jobs),
		alerts: len(v.Alerts()), fleetUpdates: len(v.FleetUpdates()), turns: turns, logBytes: logBytes,
		loginRows: len(all[loginRow](v.txn, false, tableLogins, "id")), hosts: len(v.Hosts()), joinTokens: len(v.JoinTokens()),
	}
	switch {
	case size != counted:
		return fmt.Errorf("it believes to have %+v and has %+v", size, counted)
	case size.audit > b.audit, size.proposals > b.proposals, size.alerts > b.alerts, size.loginRows > b.loginRows:
		return fmt.Errorf("too much of %+v", size)
	case size.jobs > b.jobs && open < len(jobs), size.logBytes > b.logBytes && open < len(jobs):
		return fmt.Errorf("%d jobs, %d open, logs of %d", size.jobs, open, logBytes)
	case size.fleetUpdates > b.fleetUpdates && size.fleetUpdates > active, size.turns > b.turns && size.fleetUpdates > active:
		return fmt.Errorf("%d fleet updates, %d active, with %d turns", size.fleetUpdates, active, turns)
	case len(v.Hosts()) > b.hosts, len(v.Releases()) > b.releases, len(v.JoinTokens()) > b.joinTokens, len(v.APITokens()) > b.apiTokens, len(v.Users()) > b.users:
		return fmt.Errorf("%d hosts, %d releases, %d join tokens, %d API tokens, %d users", len(v.Hosts()), len(v.Releases()), len(v.JoinTokens()), len(v.APITokens()), len(v.Users()))
	}
	if len(v.Webhooks()) > b.webhooks {
		return fmt.Errorf("%d webhooks", len(v.Webhooks()))
	}
	for _, n := range all[Notification](v.txn, false, tableNotifications, "id") {
		_, known := v.Webhook(n.WebhookID)
		if _, kept := v.Alert(n.AlertID); !known || !kept || v.Waiting(n.WebhookID) > b.notifications {
			return fmt.Errorf("%d notifications wait with %+v; its webhook is there: %v, its alert: %v", v.Waiting(n.WebhookID), n, known, kept)
		}
	}
	sessions := map[string]int{}
	for _, s := range all[Session](v.txn, false, tableSessions, "id") {
		if sessions[s.UserID]++; sessions[s.UserID] > b.userSessions {
			return fmt.Errorf("%d sessions of %s", sessions[s.UserID], s.UserID)
		}
	}
	return nil
}

// ends tells whether a change may end a fleet update.
func ends(c Change) bool {
	switch c.(type) {
	case JobFinished, FleetUpdateHalted, FleetUpdateCompleted, FleetUpdateCancelled, EpochBegun:
		return true
	}
	return false
}

// Whatever happens the state keeps to its limits, what is at work stays, and a
// server that comes from a snapshot drops the same rows as one that does not.
func TestStateStaysWithinItsLimits(t *testing.T) {
	const steps = 120
	dropped := map[string]bool{}
	rapid.Check(t, func(r *rapid.T) {
		s := fleetOf(t, 3)
		s.state.bounds = small
		cut := rapid.IntRange(0, steps-1).Draw(r, "cut")
		var restored *State
		for i := range steps {
			if i == cut {
				restored = reopened(r, s.state)
				restored.bounds = small
			}
			before := s.state.View()
			c := anyChange(r, before)
			_ = s.apply(c)
			if restored != nil {
				restored.Apply(uint64(len(s.log)), s.log[len(s.log)-1])
			}
			after := s.state.View()
			if i == 0 {
				continue // what was there before has just been brought down to the limits
			}
			if err := small.within(after); err != nil {
				r.Fatalf("step %d: %v", i, err)
			}
			for _, j := range before.OpenJobs() {
				finished, _ := c.(JobFinished)
				_, stopped := c.(EpochBegun)
				if _, ok := after.Job(j.ID); !ok && finished.JobID != j.ID && !stopped {
					r.Fatalf("the open job %s was dropped", j.ID)
				}
			}
			if u, ok := before.ActiveFleetUpdate(); ok {
				if _, ok := after.FleetUpdate(u.ID); !ok && !ends(c) {
					r.Fatalf("the fleet update %s was dropped while it was %s", u.ID, u.Status)
				}
			}
			for _, j := range before.Jobs("h1") {
				if _, ok := after.Job(j.ID); !ok {
					dropped["job"] = true
				}
			}
		}
		if restored.Hash() != s.state.Hash() {
			r.Fatalf("invariants 11 and 12: snapshot at %d and the rest of the log give another state", cut)
		}
	})
	if !dropped["job"] { // of fleet updates hardly any history has three; see TestActiveFleetUpdateIsKept
		t.Error("the histories were too short to drop anything")
	}
}

func TestOldestJobsGoWithTheirLogs(t *testing.T) {
	s := fleetOf(t, 1)
	s.state.bounds.jobs = 2
	for i := 1; i <= 4; i++ {
		id := fmt.Sprintf("j%d", i)
		s.must(
			JobCreated{JobID: id, HostID: "h1", TargetVersion: "B"},
			JobLogAppended{JobID: id, Lines: []LogLine{{Line: "one"}, {Line: "two"}}},
			JobDispatched{JobID: id, HostID: "h1"},
			JobFinished{JobID: id, Status: JobFailed, Error: "no"},
		)
	}
	v := s.state.View()
	var kept []string
	for _, j := range v.Jobs("h1") {
		kept = append(kept, fmt.Sprintf("%s/%d", j.ID, j.Attempt))
	}
	if !slices.Equal(kept, []string{"j4/4", "j3/3"}) {
		t.Errorf("kept %v", kept) // attempts go on counting (invariant 13)
	}
	if lines := all[lineRow](v.txn, false, tableJobLines, "id"); len(lines) != 4 || len(v.JobLog("j2", 0, 9)) != 0 {
		t.Errorf("kept lines %v", lines)
	}
}

// A job whose name begins like another's does not lose its log with that one.
func TestDroppedLogIsOfOneJobOnly(t *testing.T) {
	s := fleetOf(t, 2)
	s.must(
		JobCreated{JobID: "j", HostID: "h1", TargetVersion: "B"}, JobCreated{JobID: "j1", HostID: "h2", TargetVersion: "B"},
		JobLogAppended{JobID: "j", Lines: []LogLine{{Line: "x"}}}, JobLogAppended{JobID: "j1", Lines: []LogLine{{Line: "y"}}},
	)
	s.state.bounds.jobs = 1
	s.must(JobFinished{JobID: "j", Status: JobCancelled})
	v := s.state.View()
	if _, ok := v.Job("j"); ok || len(v.JobLog("j", 0, 9)) != 0 || len(v.JobLog("j1", 0, 9)) != 1 {
		t.Errorf("logs %v and %v", v.JobLog("j", 0, 9), v.JobLog("j1", 0, 9))
	}
}

func TestLongLogsGoFirst(t *testing.T) {
	s := fleetOf(t, 2)
	s.state.bounds.logBytes = 3*lineOverhead + 3
	s.must(
		JobCreated{JobID: "old", HostID: "h1", TargetVersion: "B"}, JobCreated{JobID: "new", HostID: "h2", TargetVersion: "B"},
		JobLogAppended{JobID: "old", Lines: []LogLine{{Line: "1"}, {Line: "2"}}},
		JobFinished{JobID: "old", Status: JobCancelled},
		JobLogAppended{JobID: "new", Lines: []LogLine{{Line: "3"}}},
	)
	if _, ok := s.state.View().Job("old"); !ok {
		t.Fatal("dropped at the limit, not above it")
	}
	s.must(JobLogAppended{JobID: "new", Lines: []LogLine{{Line: "4"}}})
	v := s.state.View()
	if _, ok := v.Job("old"); ok || len(v.JobLog("new", 0, 9)) != 2 {
		t.Error("the log of the job that is done was kept, or the other's was not")
	}
}

// An active fleet update stays however large it is, and goes when it has ended
// and still is too large.
func TestActiveFleetUpdateIsKept(t *testing.T) {
	s := fleetOf(t, 3)
	s.state.bounds.turns = 2
	s.must(FleetUpdateStarted{ID: "f", TargetVersion: "B", HostIDs: []string{"h1", "h2", "h3"}}, FleetUpdatePaused{ID: "f"}, FleetUpdateResumed{ID: "f"})
	if _, ok := s.state.View().FleetUpdate("f"); !ok {
		t.Fatal("it was dropped while it was active")
	}
	s.must(FleetUpdateCancelled{ID: "f"})
	if _, ok := s.state.View().FleetUpdate("f"); ok {
		t.Error("it was kept after its end")
	}
}

func TestResolvedAlertsGoBeforeOpenOnes(t *testing.T) {
	s := fleetOf(t, 1)
	s.state.bounds.alerts = 2
	fail := func(id string) {
		s.must(JobCreated{JobID: id, HostID: "h1", TargetVersion: "B"}, JobFinished{JobID: id, Status: JobFailed, Error: id})
	}
	fail("a")
	fail("b")
	second := s.state.View().Alerts()[0]
	s.must(AlertAcknowledged{AlertID: second.ID})
	fail("c")
	var kept []string
	for _, a := range s.state.View().Alerts() {
		kept = append(kept, a.Message[len(a.Message)-1:]+" "+string(a.Status))
	}
	if !slices.Equal(kept, []string{"c open", "a open"}) {
		t.Errorf("kept %v", kept)
	}
	fail("d")
	if a := s.state.View().Alerts(); len(a) != 2 || !strings.HasSuffix(a[1].Message, "c") {
		t.Errorf("kept %+v", a)
	}
}

func TestReleasesGiveWayWhenWithdrawn(t *testing.T) {
	s := fleetOf(t, 1) // release B, number 2
	s.state.bounds.releases = 2
	s.must(release("C", 3))
	s.refused(CodeLimitReached, release("D", 4))
	s.must(ReleaseWithdrawn{Version: "B"}, release("D", 4))
	v := s.state.View()
	if _, ok := v.Release("B"); ok || len(v.Releases()) != 2 {
		t.Errorf("releases %+v", v.Releases())
	}
}

// At the limit the token that expired first gives way, whatever its ID.
func TestExpiredJoinTokensGiveWay(t *testing.T) {
	s := newScript(t)
	s.state.bounds = small
	s.must(cluster())
	token := func(id string, good time.Duration) JoinTokenCreated {
		return JoinTokenCreated{Token: JoinToken{ID: id, Hash: id, Role: RoleAgent, ExpiresAt: epoch.Add(good)}}
	}
	s.must(token("a", 6*time.Second), token("b", 5*time.Second), token("c", time.Hour))
	s.refused(CodeLimitReached, token("d", time.Hour)) // the entry of second 5: b is good still
	s.must(SessionEnded{Hash: "nobody"})
	for _, step := range []struct{ comes, goes string }{{"d", "b"}, {"e", "a"}} {
		s.must(token(step.comes, time.Hour))
		if _, kept := s.state.View().JoinTokenByHash(step.goes); kept || len(s.state.View().JoinTokens()) != small.joinTokens {
			t.Errorf("%s came, and left are %+v", step.comes, s.state.View().JoinTokens())
		}
	}
	s.refused(CodeLimitReached, token("f", time.Hour))
}

func TestTokensAndSessionsAreLimited(t *testing.T) {
	s := newScript(t)
	s.state.bounds = small
	s.must(cluster()) // with one API token, one user, one host
	s.must(joinToken("a"), joinToken("b"), joinToken("c"))
	s.refused(CodeLimitReached, joinToken("d"))
	s.must(HostEnrolled{TokenHash: "b", Host: host(1)}, joinToken("d")) // b is spent and gives way
	if _, ok := s.state.View().JoinTokenByHash("b"); ok {
		t.Error("the spent token was kept")
	}
	apiToken := func(id string) APITokenCreated {
		end := epoch.Add(time.Hour)
		return APITokenCreated{Token: APIToken{ID: id, Name: id, Hash: id, Role: Viewer, ExpiresAt: &end}}
	}
	s.must(apiToken("k1"))
	s.refused(CodeLimitReached, apiToken("k2"))
	s.must(UserCreated{User: User{ID: "u2", Name: "bob", Role: Viewer, PasswordHash: "x"}})
	s.refused(CodeLimitReached, UserCreated{User: User{ID: "u3", Name: "eve", Role: Viewer, PasswordHash: "x"}})
	session := func(hash, user string) SessionCreated {
		return SessionCreated{Session: Session{Hash: hash, UserID: user, ExpiresAt: epoch.Add(time.Hour)}}
	}
	s.must(session("z", "u1"), session("x", "u1"), session("b", "u2"), session("a", "u1"))
	v := s.state.View()
	if _, ok := v.Session("z"); ok {
		t.Error("the user's oldest session goes on")
	}
	for _, hash := range []string{"x", "a", "b"} {
		if _, ok := v.Session(hash); !ok {
			t.Errorf("session %s has ended", hash)
		}
	}
	// A month after its end the API token makes room.
	late, err := NewEntry("late", "user:ann", epoch.Add(expiredTokenRetention+2*time.Hour), APITokenCreated{Token: APIToken{ID: "k3", Name: "k3", Hash: "k3", Role: Viewer}})
	if err != nil {
		t.Fatal(err)
	}
	if r := s.state.Apply(1000, late); r.Err != nil {
		t.Error(r.Err)
	}
}

func TestHostsAreLimited(t *testing.T) {
	s := newScript(t)
	s.state.bounds.hosts = 2
	s.must(cluster(), joinToken("a"), joinToken("b"), HostEnrolled{TokenHash: "a", Host: host(1)})
	s.refused(CodeLimitReached, HostEnrolled{TokenHash: "b", Host: host(2)})
	s.must(HostRemoved{HostID: "h1"}, HostEnrolled{TokenHash: "b", Host: host(2)}) // the token was not used up
}

// A host that starts again where it was leaves no trace.
func TestUnchangedAddressesAreNotAudited(t *testing.T) {
	s := fleetOf(t, 1)
	moved := HostAddressesChanged{HostID: "h1", GossipAddr: "10.0.0.1:1", PeerAddr: "10.0.0.1:2"}
	s.must(moved)
	before := decided(s.state)
	s.must(moved)
	if decided(s.state) != before {
		t.Error("repeating it changed the state")
	}
	moved.PeerAddr = "10.0.0.1:3"
	s.must(moved)
	if h, _ := s.state.View().Host("h1"); h.PeerAddr != "10.0.0.1:3" {
		t.Errorf("host at %s", h.PeerAddr)
	}
}
