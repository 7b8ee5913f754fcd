package consensus

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"moult/consensus/fleet"
	"moult/consensus/notifier"
)

// pager is a receiver of webhooks, over HTTP.
type pager struct {
	*httptest.Server
	mu       sync.Mutex
	status   int
	hold     chan struct{} // while it is not nil, no answer before it is closed
	attempts map[string]int
	taken    map[string]int
	order    []string // of what was taken
}

func startPager(tb testing.TB) *pager {
	p := &pager{status: http.StatusOK, attempts: map[string]int{}, taken: map[string]int{}}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		id := r.Header.Get("Webhook-Id")
		p.mu.Lock()
		p.attempts[id]++
		status, hold := p.status, p.hold
		if status == http.StatusOK {
			p.taken[id]++
			p.order = append(p.order, id)
		}
		p.mu.Unlock()
		if hold != nil {
			select {
			case <-hold:
			case <-r.Context().Done():
			}
		}
		w.WriteHeader(status)
	}))
	tb.Cleanup(p.Close)
	return p
}

// answers sets what it does from now on.
func (p *pager) answers(status int, hold chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status, p.hold = status, hold
}

func (p *pager) tried(id string) (attempts, taken int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.attempts[id], p.taken[id]
}

// notify runs the notifier on a server whenever it leads.
func (s *site) notify(server *server) {
	s.coordinating.Go(func() {
		server.Lead(s.leading, func(ctx context.Context) {
			err := notifier.Run(ctx, notifier.Config{
				Log: server.Node, Sender: notifier.NewClient("test"), Logger: slog.New(slog.NewTextHandler(&s.log, nil)).With("server", server.id),
			})
			if ctx.Err() == nil {
				s.tb.Errorf("the notifier of %s: %v", server.id, err)
			}
		})
	})
}

// startNotified starts three servers that tell a receiver of alerts.
func startNotified(t *testing.T) (*site, *pager) {
	p := startPager(t) // closed last: the notifiers use it
	// A leader that is lost by chance, between an answer and its commit, would have
	// every right to a repetition: it must be lost only when the test says so, however
	// long a busy machine stands still.
	s := startSite(t, 3, 1, func(cfg *Config) {
		cfg.Timing.Heartbeat, cfg.Timing.Election, cfg.Timing.Lease = 3*time.Second, 3*time.Second, 3*time.Second
		cfg.Timing.DiskStall = 10 * time.Second
	})
	mustPropose(t, s.AwaitLeader(), fleet.WebhookCreated{Webhook: fleet.Webhook{
		ID: "w1", Name: "pager", Format: fleet.WebhookJSON, URL: p.URL + "/S3CRET?key=K3Y", BearerToken: "B34RER", Enabled: true,
	}})
	for _, server := range s.all() {
		s.notify(server)
	}
	return s, p
}

// alert opens one through any server, and returns the id of its notification.
func (s *site) alert(job string) string {
	s.tb.Helper()
	leader := s.AwaitLeader()
	mustPropose(s.tb, leader, fleet.JobCreated{JobID: job, HostID: siteHost(0), TargetVersion: "B"})
	r := mustPropose(s.tb, leader, fleet.JobFinished{JobID: job, Status: fleet.JobFailed, Error: "it crashed"})
	return fmt.Sprintf("c1-%d-update_failed-opened", r.Index)
}

func (s *site) awaitTaken(p *pager, ids ...string) {
	s.tb.Helper()
	awaitSoon(s.tb, fmt.Sprintf("%v are taken, and that is recorded everywhere", ids), func() bool {
		for _, id := range ids {
			if _, taken := p.tried(id); taken == 0 {
				return false
			}
		}
		for _, server := range s.all() {
			if server.View().Waiting("w1") > 0 {
				return false
			}
		}
		return true
	})
}

// TestAlertsAreToldOnceWhoeverLeads kills one leader, takes another off the
// network and hands over from a third, while the receiver is well and while it
// fails. It must take each change once, in the order in which they were made.
func TestAlertsAreToldOnceWhoeverLeads(t *testing.T) {
	s, p := startNotified(t)
	ids := []string{s.alert("j1"), s.alert("j2")}
	s.awaitTaken(p, ids...)

	first := s.AwaitLeader()
	s.Kill(first)
	ids = append(ids, s.alert("j3"))
	s.awaitTaken(p, ids...)
	restarted := s.open(first.id, first.addr)
	s.notify(restarted)
	awaitSoon(t, "the server is back", func() bool { return restarted.Ready() == nil })

	p.answers(http.StatusServiceUnavailable, nil)
	failing := []string{s.alert("j4"), s.alert("j5")}
	awaitSoon(t, "an attempt has failed", func() bool { n, _ := p.tried(failing[0]); return n > 0 })
	second := s.AwaitLeader()
	before, _ := p.tried(failing[0])
	s.Cut(second)
	awaitSoon(t, "the next leader tries, too", func() bool { n, _ := p.tried(failing[0]); return n > before })
	s.Heal(second)
	awaitSoon(t, "the server is back", func() bool { return second.Ready() == nil })

	if attempts, _ := p.tried(failing[1]); attempts > 0 {
		t.Error("the second was tried before the first was taken")
	}
	third := s.AwaitLeader()
	awaitSoon(t, "the failure is recorded", func() bool {
		w, _ := third.View().Webhook("w1")
		return w.Delivery.Sending == 0 && w.Delivery.LastStatus == 503 && w.Delivery.FailingSince != nil
	})
	s.HandOver(third)
	p.answers(http.StatusOK, nil)
	other := "pager-2" // other settings are tried at once
	mustPropose(t, s.AwaitLeader(), fleet.WebhookChanged{WebhookID: "w1", Name: &other})
	ids = append(ids, failing...)
	s.awaitTaken(p, ids...)

	acknowledged := mustPropose(t, s.AwaitLeader(), fleet.AlertAcknowledged{AlertID: strings.TrimSuffix(strings.TrimPrefix(ids[0], "c1-"), "-opened")})
	ids = append(ids, strings.Replace(ids[0], "-opened", "-acknowledged", 1))
	s.awaitTaken(p, ids...)
	p.mu.Lock()
	order := strings.Join(p.order, " ")
	p.mu.Unlock()
	if want := strings.Join(ids, " "); order != want {
		t.Errorf("taken were\n%s\nwant\n%s (the last at %d)", order, want, acknowledged.Index)
	}
	s.AwaitEqual()
	if log := s.log.String(); !strings.Contains(log, "notification not delivered") || strings.Contains(log, "S3CRET") || strings.Contains(log, "K3Y") || strings.Contains(log, "B34RER") {
		t.Error("the log tells nothing, or a secret")
	}
}

// A leader that is lost after the receiver took it, and before that is committed,
// leaves the one case of a repetition. It carries the same id.
func TestLeaderLostBetweenSendAndCommitRepeatsUnderTheSameID(t *testing.T) {
	s, p := startNotified(t)
	hold := make(chan struct{})
	p.answers(http.StatusOK, hold)
	id := s.alert("j1")
	awaitSoon(t, "it is on its way", func() bool { _, n := p.tried(id); return n == 1 })
	first := s.AwaitLeader()
	p.answers(http.StatusOK, nil)
	s.Cut(first)
	close(hold) // the answer comes to a server that does not lead any more
	awaitSoon(t, "the next leader tells it and records that", func() bool {
		leader := s.AwaitLeader()
		w, _ := leader.View().Webhook("w1")
		return leader != first && w.Delivery.Delivered == 1
	})
	s.Heal(first)
	s.AwaitEqual()
	if _, taken := p.tried(id); taken > 2 {
		t.Errorf("it was told %d times", taken)
	}
	w, _ := first.View().Webhook("w1")
	if d := w.Delivery; d.Delivered != 1 || d.Sending != 0 || d.Attempts != 0 {
		t.Errorf("%+v", d)
	}
}
