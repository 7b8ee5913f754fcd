package notifier

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"moult/consensus/fleet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errNoMajority = errors.New("no majority")

// site is a state with a log in memory, and a receiver that tests arrange.
type site struct {
	tb    testing.TB
	state *fleet.State
	logs  strings.Builder

	mu      sync.Mutex
	index   uint64
	entries []string // kinds, of the notifier's own
	refuse  func(fleet.Change) error
	answer  func(w fleet.Webhook, r Request) Outcome
	sent    []sending
}

type sending struct {
	webhook string
	at      time.Time
	Request
}

func startSite(tb testing.TB) *site {
	s := &site{tb: tb, state: fleet.New(), answer: func(fleet.Webhook, Request) Outcome { return Outcome{Status: 200} }}
	s.must(fleet.ClusterInitialized{
		Cluster: fleet.Cluster{ID: "c1"}, Server: fleet.Host{ID: "s1", Name: "server-1"},
		Admin: fleet.User{ID: "u1", Name: "admin"}, Token: fleet.APIToken{ID: "t1", Name: "bootstrap", Hash: "h1"},
	}, fleet.JoinTokenCreated{Token: fleet.JoinToken{ID: "j", Hash: "j", Role: fleet.RoleAgent, ExpiresAt: time.Now().Add(time.Hour)}},
		fleet.HostEnrolled{TokenHash: "j", Host: fleet.Host{ID: "h1", Name: "web-1", OS: "linux", Arch: "amd64", PublicKey: make([]byte, 32)}},
		fleet.ReleasePublished{Release: fleet.Release{Version: "B", Number: 2, Artifacts: []fleet.Artifact{{OS: "linux", Arch: "amd64", Size: 1, SHA256: strings.Repeat("a", 64)}}}})
	return s
}

// Propose implements Log.
func (s *site) Propose(ctx context.Context, actor string, c fleet.Change) (fleet.Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse != nil && actor == Actor {
		if err := s.refuse(c); err != nil {
			return fleet.Result{}, err
		}
	}
	if err := ctx.Err(); err != nil {
		return fleet.Result{}, err
	}
	s.index++
	e, err := fleet.NewEntry(fmt.Sprint("p", s.index), actor, time.Now(), c)
	if err != nil {
		return fleet.Result{}, err
	}
	r := s.state.Apply(s.index, e)
	if actor == Actor {
		s.entries = append(s.entries, c.Kind())
	}
	if r.Err != nil {
		return r, r.Err
	}
	return r, nil
}

// State implements Log.
func (s *site) State() *fleet.State { return s.state }

// Send implements Sender.
func (s *site) Send(_ context.Context, w fleet.Webhook, r Request) Outcome {
	s.mu.Lock()
	s.sent = append(s.sent, sending{w.ID, time.Now(), r})
	answer := s.answer
	s.mu.Unlock()
	return answer(w, r)
}

func (s *site) must(changes ...fleet.Change) {
	s.tb.Helper()
	for _, c := range changes {
		if _, err := s.Propose(context.Background(), "user:ann", c); err != nil {
			s.tb.Fatalf("%s: %v", c.Kind(), err)
		}
	}
}

// alert opens one, and returns its ID.
func (s *site) alert(job string) string {
	s.tb.Helper()
	s.must(fleet.JobCreated{JobID: job, HostID: "h1", TargetVersion: "B"}, fleet.JobFinished{JobID: job, Status: fleet.JobFailed, Error: "it crashed"})
	return s.state.View().Alerts()[0].ID
}

func (s *site) webhook(id string, f fleet.WebhookFormat) {
	s.tb.Helper()
	s.must(fleet.WebhookCreated{Webhook: fleet.Webhook{ID: id, Name: id, Format: f, URL: "https://hooks.example/" + id, Enabled: true}})
}

func (s *site) delivery(id string) fleet.Delivery {
	w, _ := s.state.View().Webhook(id)
	return w.Delivery
}

// to returns what was sent to a webhook, and when.
func (s *site) to(id string) (out []sending) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.sent {
		if r.webhook == id {
			out = append(out, r)
		}
	}
	return out
}

func (s *site) setAnswer(f func(w fleet.Webhook, r Request) Outcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = f
}

func (s *site) setRefuse(f func(fleet.Change) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = f
}

func (s *site) kinds() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.entries...)
}

// lead runs a notifier until the returned function is called.
func (s *site) lead() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, Config{Log: s, Sender: s, Logger: slog.New(slog.NewTextHandler(&lockedWriter{s: s}, nil))})
	}()
	return func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			s.tb.Errorf("Run: %v", err)
		}
	}
}

type lockedWriter struct{ s *site }

func (l *lockedWriter) Write(b []byte) (int, error) {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	return l.s.logs.Write(b)
}
