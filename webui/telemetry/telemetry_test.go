package telemetry

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	gometrics "github.com/hashicorp/go-metrics"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"moult/consensus/fleet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func wants(t *testing.T, c prometheus.Collector, metric, text string) {
	t.Helper()
	if err := testutil.CollectAndCompare(c, strings.NewReader(text), metric); err != nil {
		t.Error(err)
	}
}

func TestLibrariesAreTranslated(t *testing.T) {
	l := NewLibraries()
	l.IncrCounter([]string{"raft", "apply"}, 2)
	l.IncrCounterWithLabels([]string{"raft", "replication", "appendEntries", "logs"}, 3, []gometrics.Label{{Name: "peer_id", Value: "a"}})
	l.IncrCounterWithLabels([]string{"raft", "replication", "appendEntries", "logs"}, 4, []gometrics.Label{{Name: "peer_id", Value: "b"}})
	l.IncrCounter([]string{"raft", "state", "leader"}, 1)
	l.IncrCounter([]string{"raft", "apply"}, -1) // a counter never falls
	l.SetGauge([]string{"memberlist", "health", "score"}, 4)
	l.SetGaugeWithLabels([]string{"memberlist", "health", "score"}, 1, nil)
	l.AddSampleWithLabels([]string{"memberlist", "queue", "broadcasts"}, 5, nil)
	l.AddSample([]string{"raft", "leader", "lastContact"}, 20) // ms
	wants(t, l, "moult_raft_applies_total", "# HELP moult_raft_applies_total Changes that this server appended to the log as leader.\n# TYPE moult_raft_applies_total counter\nmoult_raft_applies_total 2\n")
	wants(t, l, "moult_raft_replicated_entries_total", "# HELP moult_raft_replicated_entries_total Entries that this leader sent to followers.\n# TYPE moult_raft_replicated_entries_total counter\nmoult_raft_replicated_entries_total 7\n")
	wants(t, l, "moult_raft_state_changes_total", `# HELP moult_raft_state_changes_total How often this server became a follower, a candidate or the leader.
# TYPE moult_raft_state_changes_total counter
moult_raft_state_changes_total{to="candidate"} 0
moult_raft_state_changes_total{to="follower"} 0
moult_raft_state_changes_total{to="leader"} 1
`)
	wants(t, l, "moult_memberlist_health_score", "# HELP moult_memberlist_health_score How unwell memberlist holds this host to be; 0 is well.\n# TYPE moult_memberlist_health_score gauge\nmoult_memberlist_health_score 1\n")
	wants(t, l, "moult_memberlist_queued_broadcasts", "# HELP moult_memberlist_queued_broadcasts Broadcasts that waited at the last round of gossip.\n# TYPE moult_memberlist_queued_broadcasts gauge\nmoult_memberlist_queued_broadcasts 5\n")
	if text := gathered(t, l); !strings.Contains(text, "moult_raft_leader_last_contact_seconds_sum 0.02") {
		t.Errorf("milliseconds are not made seconds: %s", text)
	}
}

// Timers of the libraries arrive in seconds, which Install asks for.
func TestTimersAreInSeconds(t *testing.T) {
	l := NewLibraries()
	if err := l.Install(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = gometrics.NewGlobal(&gometrics.Config{FilterDefault: true}, &gometrics.BlackholeSink{}) })
	gometrics.MeasureSince([]string{"raft", "commitTime"}, time.Now().Add(-2*time.Second))
	text := gathered(t, l)
	if !strings.Contains(text, `moult_raft_commit_seconds_bucket{le="1"} 0`) || !strings.Contains(text, `moult_raft_commit_seconds_bucket{le="2.5"} 1`) {
		t.Errorf("2 s are %s", text)
	}
}

// Whatever the libraries emit, and of whomever, no series comes to those that are
// there at the start.
func TestNoSeriesIsAdded(t *testing.T) {
	l := NewLibraries()
	before := testutil.CollectAndCount(l)
	for i := range 1000 {
		peer := fmt.Sprint("peer-", i)
		label := []gometrics.Label{{Name: "peer_id", Value: peer}}
		l.AddSampleWithLabels([]string{"raft", "replication", "heartbeat"}, 1, label)
		l.IncrCounter([]string{"raft", "replication", "appendEntries", "logs", peer}, 1)
		l.SetGaugeWithLabels([]string{"memberlist", "node", "instances"}, 1, label)
		l.EmitKey([]string{peer}, 1)
	}
	if after := testutil.CollectAndCount(l); after != before || before < len(table) {
		t.Errorf("%d series, then %d", before, after)
	}
}

func TestNamesFollowConventions(t *testing.T) {
	for _, c := range []prometheus.Collector{NewLibraries(), NewJobs(nil, time.Now())} {
		problems, err := testutil.CollectAndLint(c)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range problems {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

func TestSinkIsSafeForConcurrentUse(t *testing.T) {
	l := NewLibraries()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 200 {
				l.IncrCounter([]string{"raft", "apply"}, 1)
				l.AddSample([]string{"raft", "commitTime"}, 0.1)
				l.SetGauge([]string{"memberlist", "health", "score"}, 1)
			}
		})
		all.Go(func() { testutil.CollectAndCount(l) })
	}
	all.Wait()
	if text := gathered(t, l); !strings.Contains(text, "moult_raft_applies_total 1600") {
		t.Error(text)
	}
}

// gathered is what a scrape of a collector gives.
func gathered(t *testing.T, c prometheus.Collector) string {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	rec := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	return rec.Body.String()
}

// story is a state in which jobs run and end.
type story struct {
	t     *testing.T
	state *fleet.State
	index uint64
	now   time.Time
}

func startStory(t *testing.T) *story {
	s := &story{t: t, state: fleet.New(), now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	s.propose(fleet.ClusterInitialized{
		Cluster: fleet.Cluster{ID: "c"}, Server: fleet.Host{ID: "s1", Name: "s1", OS: "linux", Arch: "amd64"},
		Admin: fleet.User{ID: "u", Name: "admin", PasswordHash: "x"}, Token: fleet.APIToken{ID: "t", Name: "t", Hash: strings.Repeat("a", 64)},
	})
	s.propose(fleet.JoinTokenCreated{Token: fleet.JoinToken{ID: "j", Hash: strings.Repeat("b", 64), Role: fleet.RoleAgent, ExpiresAt: s.now.Add(time.Hour)}})
	s.propose(fleet.HostEnrolled{TokenHash: strings.Repeat("b", 64), Host: fleet.Host{ID: "h", Name: "h", OS: "linux", Arch: "amd64", PublicKey: make([]byte, ed25519.PublicKeySize)}})
	s.propose(fleet.ReleasePublished{Release: fleet.Release{
		Version: "2.0.0", Number: 2, Manifest: []byte("m"), Signature: []byte("s"),
		Artifacts: []fleet.Artifact{{OS: "linux", Arch: "amd64", Size: 3, SHA256: strings.Repeat("ab", 32)}},
	}})
	return s
}

func (s *story) propose(c fleet.Change) {
	s.t.Helper()
	s.index++
	e, err := fleet.NewEntry(fmt.Sprint("p", s.index), "user:x", s.now, c)
	if err != nil {
		s.t.Fatal(err)
	}
	if r := s.state.Apply(s.index, e); r.Err != nil {
		s.t.Fatal(r.Err)
	}
}

// job runs one job for a time.
func (s *story) job(id string, took time.Duration, status fleet.JobStatus, sources ...fleet.Source) {
	s.t.Helper()
	s.propose(fleet.JobCreated{JobID: id, HostID: "h", TargetVersion: "2.0.0"})
	s.propose(fleet.JobDispatched{JobID: id, HostID: "h", FromVersion: "1.0.0", Boot: 1})
	s.now = s.now.Add(took)
	s.propose(fleet.JobFinished{JobID: id, Status: status, Sources: sources})
}

func TestJobsAreCountedOnceAsTheyEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startStory(t)
		s.job("before", 5*time.Second, fleet.JobSucceeded)
		s.now = s.now.Add(time.Second)
		j := NewJobs(s.state.View, s.now)
		events, end := s.state.Subscribe()
		defer end()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go j.Run(ctx, events)
		s.job("a", 12*time.Second, fleet.JobSucceeded, fleet.Source{HostID: "s1", Role: "server", Bytes: 100}, fleet.Source{HostID: "x", Role: "agent", Bytes: 7})
		s.job("b", 100*time.Second, fleet.JobFailed, fleet.Source{HostID: "x", Role: "someone", Bytes: 5})
		s.propose(fleet.JobCreated{JobID: "c", HostID: "h", TargetVersion: "2.0.0"})
		s.propose(fleet.JobFinished{JobID: "c", Status: fleet.JobCancelled}) // never ran
		s.job("d", 3*time.Second, fleet.JobSucceeded, fleet.Source{HostID: "s1", Role: "server", Bytes: 1})
		synctest.Wait()
		text := gathered(t, j)
		for _, want := range []string{
			`moult_job_seconds_count{status="succeeded"} 2`, `moult_job_seconds_sum{status="succeeded"} 15`,
			`moult_job_seconds_bucket{status="succeeded",le="10"} 1`, `moult_job_seconds_sum{status="failed"} 100`,
			`moult_job_fetched_bytes_total{source="server"} 101`, `moult_job_fetched_bytes_total{source="agent"} 7`,
		} {
			if !strings.Contains(text, want+"\n") {
				t.Errorf("no %s in %s", want, text)
			}
		}
		if strings.Contains(text, "someone") || strings.Contains(text, "cancelled") {
			t.Error(text)
		}
	})
}

// What was missed is folded into "*": jobs that were open before are counted all
// the same, and those that the events before it named are not counted twice.
func TestJobsAreCountedOnceBySlowReader(t *testing.T) {
	s := startStory(t)
	j := NewJobs(s.state.View, s.now)
	s.propose(fleet.JobCreated{JobID: "a", HostID: "h", TargetVersion: "2.0.0"})
	j.look(nil)
	s.propose(fleet.JobDispatched{JobID: "a", HostID: "h", FromVersion: "1.0.0", Boot: 1})
	s.now = s.now.Add(time.Second)
	s.propose(fleet.JobFinished{JobID: "a", Status: fleet.JobSucceeded})
	for _, topics := range [][]string{{"jobs", "job:a"}, {"*"}, {"job:a"}, {"hosts"}} {
		j.follow(fleet.Event{Topics: topics})
	}
	if text := gathered(t, j); !strings.Contains(text, `moult_job_seconds_count{status="succeeded"} 1`+"\n") {
		t.Error(text)
	}
}
