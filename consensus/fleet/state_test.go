package fleet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// script applies changes one after the other, an entry a second.
type script struct {
	tb    testing.TB
	state *State
	log   []Entry
}

func newScript(tb testing.TB) *script { return &script{tb: tb, state: New()} }

func (s *script) apply(c Change) *Error {
	s.tb.Helper()
	index := uint64(len(s.log) + 1)
	e, err := NewEntry(fmt.Sprintf("p%d", index), "user:ann", epoch.Add(time.Duration(index)*time.Second), c)
	if err != nil {
		s.tb.Fatal(err)
	}
	s.log = append(s.log, e)
	return s.state.Apply(index, e).Err
}

func (s *script) must(changes ...Change) {
	s.tb.Helper()
	for _, c := range changes {
		if err := s.apply(c); err != nil {
			s.tb.Fatalf("%s: refused with %s: %s", c.Kind(), err.Code, err.Message)
		}
	}
}

func (s *script) refused(code string, c Change) {
	s.tb.Helper()
	if err := s.apply(c); err == nil || err.Code != code {
		s.tb.Fatalf("%s: got %v, want %s", c.Kind(), err, code)
	}
}

func cluster() ClusterInitialized {
	return ClusterInitialized{
		Cluster: Cluster{ID: "c1"},
		Server:  Host{ID: "s1", Name: "server-1"},
		Admin:   User{ID: "u1", Name: "admin"},
		Token:   APIToken{ID: "t1", Name: "bootstrap", Hash: "h1"},
	}
}

func joinToken(hash string) JoinTokenCreated {
	return JoinTokenCreated{Token: JoinToken{ID: "id-" + hash, Hash: hash, Role: RoleAgent, ExpiresAt: epoch.Add(time.Hour)}}
}

func host(n int) Host {
	key := make([]byte, 32)
	key[0] = byte(n)
	return Host{ID: fmt.Sprintf("h%d", n), Name: fmt.Sprintf("agent-%d", n), OS: "linux", Arch: "amd64", PublicKey: key}
}

func release(version string, number uint64) ReleasePublished {
	return ReleasePublished{Release: Release{Version: version, Number: number, Artifacts: []Artifact{{OS: "linux", Arch: "amd64", Size: 1, SHA256: strings.Repeat("a", 64)}}}}
}

// fleetOf makes a cluster with n agents and release B.
func fleetOf(tb testing.TB, n int) *script {
	tb.Helper()
	s := newScript(tb)
	s.must(cluster())
	for i := 1; i <= n; i++ {
		hash := fmt.Sprintf("tok%d", i)
		s.must(joinToken(hash), HostEnrolled{TokenHash: hash, Host: host(i)})
	}
	s.must(release("B", 2))
	return s
}

func (s *script) update(id string) FleetUpdate {
	u, _ := s.state.View().FleetUpdate(id)
	return u
}

func TestFleetUpdateRunsHostByHost(t *testing.T) {
	s := fleetOf(t, 2)
	s.must(FleetUpdateStarted{ID: "f", TargetVersion: "B", HostIDs: []string{"h1", "h2"}})
	s.must(JobDispatched{JobID: "j1", HostID: "h1", FleetUpdateID: "f", FromVersion: "A", Boot: 7})
	s.refused(CodeConflict, JobDispatched{JobID: "j2", HostID: "h2", FleetUpdateID: "f"}) // one at a time
	j, _ := s.state.View().Job("j1")
	if j.DispatchIndex == 0 || j.BootAtDispatch != 7 || j.Attempt != 1 || j.Status != JobRunning {
		t.Fatalf("dispatched job: %+v", j)
	}
	s.must(JobFinished{JobID: "j1", Status: JobSucceeded})
	s.refused(CodeConflict, JobFinished{JobID: "j1", Status: JobFailed}) // a verdict is final
	s.refused(CodeConflict, FleetUpdateCompleted{ID: "f"})
	s.must(JobDispatched{JobID: "j2", HostID: "h2", FleetUpdateID: "f"}, JobFinished{JobID: "j2", Status: JobSucceeded}, FleetUpdateCompleted{ID: "f"})
	if u := s.update("f"); u.Status != FleetCompleted || u.CompletedAt == nil || u.Hosts.At(1).Status != TurnSucceeded || u.CurrentHostID != "" {
		t.Fatalf("fleet update: %+v", u)
	}
}

// Invariant 15: after the first recorded failure no new dispatch commits.
func TestFailureHaltsInTheSameEntry(t *testing.T) {
	s := fleetOf(t, 2)
	s.must(FleetUpdateStarted{ID: "f", TargetVersion: "B", HostIDs: []string{"h1", "h2"}},
		JobDispatched{JobID: "j1", HostID: "h1", FleetUpdateID: "f"},
		JobFinished{JobID: "j1", Status: JobFailed, Error: "it crashed"})
	s.refused(CodeNotRunning, JobDispatched{JobID: "j2", HostID: "h2", FleetUpdateID: "f"})
	u := s.update("f")
	if u.Status != FleetHalted || u.HaltedReason != "agent-1: it crashed" || u.Hosts.At(0).Status != TurnFailed || u.Hosts.At(1).Status != TurnPending {
		t.Fatalf("fleet update: %+v", u)
	}
	if n := len(s.state.View().OpenAlerts()); n != 2 {
		t.Fatalf("%d open alerts, want update_failed and fleet_update_halted", n)
	}
	// A later success of the host resolves them.
	s.must(JobCreated{JobID: "j3", HostID: "h1", TargetVersion: "B"}, JobDispatched{JobID: "j3", HostID: "h1"}, JobFinished{JobID: "j3", Status: JobSucceeded})
	if n := len(s.state.View().OpenAlerts()); n != 0 {
		t.Fatalf("%d alerts are open after the host reached the target", n)
	}
	if j, _ := s.state.View().Job("j3"); j.Attempt != 2 {
		t.Fatalf("attempt %d, want 2", j.Attempt)
	}
}

func TestCancelLetsTheCurrentJobBeJudged(t *testing.T) {
	s := fleetOf(t, 2)
	s.must(FleetUpdateStarted{ID: "f", TargetVersion: "B", HostIDs: []string{"h1", "h2"}},
		JobDispatched{JobID: "j1", HostID: "h1", FleetUpdateID: "f"}, FleetUpdateCancelled{ID: "f"})
	s.refused(CodeNotRunning, FleetUpdateCancelled{ID: "f"})
	s.must(JobFinished{JobID: "j1", Status: JobSucceeded})
	s.refused(CodeNotRunning, JobDispatched{JobID: "j2", HostID: "h2", FleetUpdateID: "f"})
	u := s.update("f")
	if u.Status != FleetCancelled || u.Hosts.At(0).Status != TurnSucceeded || u.Hosts.At(1).FailedReason != "cancelled" || u.CurrentHostID != "" {
		t.Fatalf("fleet update: %+v", u)
	}
}

func TestRefusals(t *testing.T) {
	s := fleetOf(t, 2)
	start := FleetUpdateStarted{ID: "f", TargetVersion: "B", HostIDs: []string{"h1"}}
	s.refused(CodeClusterExists, cluster())
	s.refused(CodeReleaseNotFound, FleetUpdateStarted{ID: "f", TargetVersion: "C", HostIDs: []string{"h1"}})
	s.refused(CodeNothingToUpdate, FleetUpdateStarted{ID: "f", TargetVersion: "B"})
	s.refused(CodeHostNotFound, FleetUpdateStarted{ID: "f", TargetVersion: "B", HostIDs: []string{"s1"}}) // a server
	s.refused(CodeBadRequest, FleetUpdateStarted{ID: "f", TargetVersion: "B", HostIDs: []string{"h1", "h1"}})
	s.must(start)
	s.refused(CodeFleetUpdateRunning, FleetUpdateStarted{ID: "g", TargetVersion: "B", HostIDs: []string{"h2"}})
	s.refused(CodeUpdateInProgress, JobCreated{JobID: "j", HostID: "h1", TargetVersion: "B"})
	s.refused(CodeConflict, ReleaseWithdrawn{Version: "B"})
	s.refused(CodeReleaseExists, release("B", 9))
	s.refused(CodeReleaseExists, release("C", 2))
	s.refused(CodeBadRequest, release("../etc", 9))
	s.must(FleetUpdatePaused{ID: "f"})
	s.refused(CodeNotRunning, JobDispatched{JobID: "j1", HostID: "h1", FleetUpdateID: "f"})
	s.must(FleetUpdateResumed{ID: "f"}, FleetUpdateHostSkipped{ID: "f", HostID: "h1", Reason: "already at target"}, FleetUpdateCompleted{ID: "f"})
	s.refused(CodeLastAdmin, UserDeleted{UserID: "u1"})
	s.refused(CodeLastAdmin, UserChanged{UserID: "u1", Role: Viewer})
	s.refused(CodeAlertNotFound, AlertAcknowledged{AlertID: "x"})
	s.refused(CodeFleetUpdateNotFound, FleetUpdateCancelled{ID: "x"})
}

func TestStaging(t *testing.T) {
	s := fleetOf(t, 2)
	staged := func(version string) (index uint64, update string) {
		r, _ := s.state.View().Release(version)
		return r.StageIndex, r.StageFor
	}
	s.refused(CodeReleaseNotFound, ReleaseStaged{Version: "C"})
	s.refused(CodeConflict, ReleaseStaged{Version: "B", FleetUpdateID: "f"})
	s.must(FleetUpdateStarted{ID: "f", TargetVersion: "B", HostIDs: []string{"h1"}}, ReleaseStaged{Version: "B", FleetUpdateID: "f"})
	first, update := staged("B")
	if first != s.state.View().Index() || update != "f" {
		t.Errorf("staged by entry %d for %q", first, update)
	}
	// For all hosts is more than for some, and stays when a fleet update says it again.
	s.must(ReleaseStaged{Version: "B"}, ReleaseStaged{Version: "B", FleetUpdateID: "f"})
	if again, update := staged("B"); again <= first || update != "" {
		t.Errorf("staged by entry %d for %q", again, update)
	}
	s.must(FleetUpdateCancelled{ID: "f"}, release("C", 9), ReleaseStaged{Version: "C"})
	if b, _ := staged("B"); b != 0 {
		t.Error("two releases are staged for all hosts")
	}
	s.must(ReleaseWithdrawn{Version: "C"})
	if c, _ := staged("C"); c != 0 {
		t.Error("a withdrawn release is staged")
	}
	s.refused(CodeReleaseNotFound, ReleaseStaged{Version: "C"})
}

func TestJoinTokenWorksOnceAndExpires(t *testing.T) {
	s := newScript(t)
	s.must(cluster(), joinToken("k"))
	s.refused(CodeTokenInvalid, HostEnrolled{TokenHash: "other", Host: host(1)})
	s.must(HostEnrolled{TokenHash: "k", Host: host(1)})
	s.must(HostEnrolled{TokenHash: "k", Host: host(1)}) // the answer was lost: the same host asks again
	stranger := host(2)
	s.refused(CodeTokenUsed, HostEnrolled{TokenHash: "k", Host: stranger})
	thief := host(1)
	thief.PublicKey = host(3).PublicKey
	s.refused(CodeTokenUsed, HostEnrolled{TokenHash: "k", Host: thief})
	s.must(joinToken("k2"))
	taken := host(4)
	taken.Name = "agent-1"
	s.refused(CodeNameTaken, HostEnrolled{TokenHash: "k2", Host: taken})
	short := joinToken("k3")
	short.Token.ExpiresAt = epoch.Add(time.Duration(len(s.log)+2) * time.Second)
	s.must(short, joinToken("k4"))
	s.refused(CodeTokenExpired, HostEnrolled{TokenHash: "k3", Host: host(5)})
}

func TestUnknownAndMalformedEntriesChangeNothing(t *testing.T) {
	s := fleetOf(t, 1)
	before := len(s.state.View().Audit(0, 1000))
	for i, e := range []Entry{
		{Type: "from_the_future", Version: 1, Actor: "a", Body: json.RawMessage(`{}`)},
		{Type: "job_created", Version: 2, Actor: "a", Body: json.RawMessage(`{}`)},
		{Type: "job_created", Version: 1, Actor: "a", Body: json.RawMessage(`{"job_id":7}`)},
		{Type: "job_created", Version: 1, Actor: "a", Body: json.RawMessage(`nonsense`)},
		{Type: "job_created", Version: 1, Actor: "", Body: json.RawMessage(`{}`)}, // invariant 20
	} {
		e.ID = fmt.Sprintf("bad%d", i)
		r := s.state.Apply(uint64(1000+i), e)
		want := CodeBadRequest
		if i < 2 {
			want = CodeUnknownChange
		}
		if r.Err == nil || r.Err.Code != want {
			t.Errorf("entry %d: got %v, want %s", i, r.Err, want)
		}
	}
	if s.state.View().Unknown() != 2 || s.state.View().Index() != 1004 {
		t.Errorf("unknown %d, index %d", s.state.View().Unknown(), s.state.View().Index())
	}
	if got := len(s.state.View().Audit(0, 1000)); got != before {
		t.Errorf("refused entries left %d audit entries", got-before)
	}
}

func TestRetryOfAProposalReturnsTheFirstResult(t *testing.T) {
	s := fleetOf(t, 1)
	e, _ := NewEntry("same", "user:ann", epoch, JobCreated{JobID: "j", HostID: "h1", TargetVersion: "B"})
	one := s.state.Apply(500, e)
	two := s.state.Apply(501, e)
	if one.Err != nil || two != one {
		t.Fatalf("first %+v, retry %+v", one, two)
	}
	if n := len(s.state.View().Jobs("h1")); n != 1 {
		t.Fatalf("%d jobs", n)
	}
}

func TestJobLogDropsResentLinesAndIsBounded(t *testing.T) {
	s := fleetOf(t, 1)
	s.must(JobCreated{JobID: "j", HostID: "h1", TargetVersion: "B"})
	lines := func(texts ...string) (out []LogLine) {
		for _, x := range texts {
			out = append(out, LogLine{Stream: StreamAgent, Line: x})
		}
		return out
	}
	s.must(JobLogAppended{JobID: "j", First: 1, Lines: lines("a", "b")},
		JobLogAppended{JobID: "j", First: 2, Lines: lines("b", "c")},
		JobLogAppended{JobID: "j", Lines: lines("decided")})
	var got []string
	for _, l := range s.state.View().JobLog("j", 0, 100) {
		got = append(got, fmt.Sprintf("%d%s", l.Seq, l.Line))
	}
	if text := strings.Join(got, " "); text != "1a 2b 3c 4decided" {
		t.Fatalf("log: %s", text)
	}
	many := make([]LogLine, MaxJobLogLines+10)
	s.must(JobLogAppended{JobID: "j", Lines: many}, JobLogAppended{JobID: "j", Lines: many})
	all := s.state.View().JobLog("j", 0, 2*MaxJobLogLines)
	if len(all) != MaxJobLogLines+1 || !strings.Contains(all[len(all)-1].Line, "ends here") {
		t.Fatalf("%d lines, the last is %q", len(all), all[len(all)-1].Line)
	}
	long := strings.Repeat("x", 2*MaxLogLineBytes)
	s.must(JobCreated{JobID: "k", HostID: "h1", TargetVersion: "B"}.orConflict(s), JobLogAppended{JobID: "j", Lines: lines(long)})
}

// orConflict finishes the host's open job first.
func TestFullJobLogIsTold(t *testing.T) {
	s := fleetOf(t, 1)
	s.state.bounds.jobLines = 2
	s.must(JobCreated{JobID: "j", HostID: "h1", TargetVersion: "B"})
	for i, full := range []bool{false, false, true, true} {
		s.must(JobLogAppended{JobID: "j", First: uint64(i + 1), Lines: []LogLine{{Line: ClipLine(strings.Repeat("x", MaxLogLineBytes+i))}}})
		if got := s.state.View().JobLogFull("j"); got != full {
			t.Errorf("after %d lines: full is %t", i+1, got)
		}
	}
	if !s.state.View().JobLogFull("nothing") {
		t.Error("a job that is not there takes lines")
	}
}

func (c JobCreated) orConflict(s *script) Change {
	s.must(JobFinished{JobID: "j", Status: JobCancelled})
	return c
}

func TestSlowSubscriberIsToldToLookAtAll(t *testing.T) {
	s := fleetOf(t, 1)
	events, stop := s.state.Subscribe()
	defer stop()
	s.must(JobCreated{JobID: "j", HostID: "h1", TargetVersion: "B"})
	for range 2 * subscriberBuffer {
		s.must(JobLogAppended{JobID: "j", Lines: []LogLine{{Line: "x"}}})
	}
	var last Event
	for len(events) > 0 {
		last = <-events
	}
	if len(last.Topics) != 1 || last.Topics[0] != "*" {
		t.Fatalf("last event: %+v", last)
	}
}

func TestErrorIsAnError(t *testing.T) {
	var e *Error
	if !errors.As(fmt.Errorf("propose: %w", refuse(CodeConflict, "x")), &e) || e.Code != CodeConflict {
		t.Fatal("a refusal does not survive wrapping")
	}
}

// Readers, snapshots and subscribers don't disturb Apply and Restore, nor they
// them: each view is whole. The race detector looks on.
func TestReadersWhileApplying(t *testing.T) {
	s := fleetOf(t, 2)
	snap := snapshotOf(t, s.state)
	done := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				v := s.state.View()
				queries(v)
				if first, second := v.Hash(), v.Hash(); first != second {
					t.Error("a view changed")
				}
				events, stop := s.state.Subscribe()
				select {
				case <-events:
				default:
				}
				stop()
				stop() // once more does nothing
			}
		})
	}
	index := uint64(1000)
	for i := range 300 {
		index++
		e, _ := NewEntry(fmt.Sprint(index), "a", epoch, HostAddressesChanged{HostID: "h1", PeerAddr: fmt.Sprint(i)})
		s.state.Apply(index, e)
		if i%50 == 0 {
			if err := s.state.Restore(bytes.NewReader(snap)); err != nil {
				t.Error(err)
			}
		}
	}
	close(done)
	readers.Wait()
}

func TestHostsVersionFollowsTheHosts(t *testing.T) {
	s := fleetOf(t, 2)
	version := func() any { return s.state.View().HostsVersion() }
	before := version()
	s.must(JobCreated{JobID: "j1", HostID: "h1", TargetVersion: "B"})
	s.refused(CodeHostNotFound, HostRemoved{HostID: "nobody"})
	if version() != before {
		t.Error("it changes with what is not a host")
	}
	for _, c := range []Change{
		HostAddressesChanged{HostID: "h1", PeerAddr: "10.0.0.7:7947"},
		HostSegmentsChanged{HostID: "h1", Also: []HostSegment{{"dmz", "10.2.0.7:7946"}}},
		HostRemoved{HostID: "h2"},
		joinToken("again"),
		HostEnrolled{TokenHash: "again", Host: host(2)},
	} {
		last := version()
		s.must(c)
		if _, isToken := c.(JoinTokenCreated); (version() == last) != isToken {
			t.Errorf("%s: the version changed: %v", c.Kind(), version() != last)
		}
	}
	old := s.state.View()
	if err := s.state.Restore(bytes.NewReader(snapshotOf(t, s.state))); err != nil {
		t.Fatal(err)
	}
	if version() == old.HostsVersion() || old.HostsVersion() == before {
		t.Error("a restored state, or an older one, counts as the same")
	}
	s.must(HostRemoved{HostID: "h1"})
	if len(old.Hosts()) != 3 || len(s.state.View().Hosts()) != 2 {
		t.Errorf("%d and %d hosts", len(old.Hosts()), len(s.state.View().Hosts()))
	}
}

// The cost of an entry when a table is full or sparse must stay that of one row.
func BenchmarkApply(b *testing.B) {
	for _, c := range []struct {
		name string
		rows int
		step uint64 // from one index to the next: log lines leave no audit entry
	}{{"empty", 0, 1}, {"full", 2 * MaxProposals, 1}, {"sparse", 2 * MaxProposals, 7}} {
		b.Run(c.name, func(b *testing.B) {
			s := fleetOf(b, 1)
			index := uint64(len(s.log))
			apply := func() {
				index += c.step
				// Each one moves the host: a repetition would leave no audit entry.
				e, _ := NewEntry(fmt.Sprint(index), "user:ann", epoch, HostAddressesChanged{HostID: "h1", PeerAddr: fmt.Sprint("10.0.0.1:", index%65536)})
				s.state.Apply(index, e)
			}
			for range c.rows {
				apply()
			}
			for b.Loop() {
				apply()
			}
		})
	}
}

// A turn (dispatch and verdict) of a large fleet update, whose row is one value.
func BenchmarkDispatchInLargeFleet(b *testing.B) {
	s := newScript(b)
	s.must(cluster(), release("B", 1))
	var ids []string
	for i := range 1000 {
		hash := fmt.Sprintf("k%d", i)
		s.must(joinToken(hash), HostEnrolled{TokenHash: hash, Host: host(i)})
		ids = append(ids, fmt.Sprintf("h%d", i))
	}
	i, current := len(ids), ""
	for b.Loop() {
		if i == len(ids) {
			b.StopTimer()
			i = 0
			if u, active := s.state.View().ActiveFleetUpdate(); active {
				s.must(FleetUpdateCompleted{ID: u.ID})
			}
			current = fmt.Sprintf("f%d", len(s.log))
			s.must(FleetUpdateStarted{ID: current, TargetVersion: "B", HostIDs: ids})
			b.StartTimer()
		}
		job := fmt.Sprintf("j%d", s.state.View().Index())
		s.must(JobDispatched{JobID: job, HostID: ids[i], FleetUpdateID: current}, JobFinished{JobID: job, Status: JobSucceeded})
		i++
	}
}
