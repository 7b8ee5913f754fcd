package consensus

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"moult/consensus/fleet"
)

// Servers of two versions are the normal case during an upgrade: what an older one
// does not know waits until it is updated, wherever it is proposed.
func TestNewKindsWaitForTheOldestServer(t *testing.T) {
	var mu sync.Mutex
	knows := map[string][]string{}
	c := startCluster(t, 3, func(cfg *Config) {
		cfg.Kinds = func(_ context.Context, id, _ string) ([]string, error) {
			mu.Lock()
			defer mu.Unlock()
			if known, ok := knows[id]; ok {
				return known, nil
			}
			return fleet.Known(), nil
		}
	})
	leader := c.AwaitLeader()
	older := c.all()[slices.IndexFunc(c.all(), func(s *server) bool { return s != leader })].id
	mu.Lock()
	knows[older] = fleet.FirstKinds()
	mu.Unlock()
	newer := fleet.SessionsEnded{UserID: "first"}
	for _, s := range c.all() {
		if s.id == older {
			continue // it could not propose it
		}
		before := leader.View().Index()
		_, err := s.Propose(c.within(patience), "user:test", newer)
		var refused *fleet.Error
		if !errors.As(err, &refused) || refused.Code != fleet.CodeUnknownChange || !strings.Contains(refused.Message, older) || !strings.Contains(refused.Message, "update all servers") {
			t.Errorf("through %s: %v", s.id, err)
		}
		if got := leader.View().Index(); got != before {
			t.Errorf("through %s: something was appended", s.id)
		}
	}
	mustPropose(t, leader, user("ann")) // what all know goes on

	later := func(known []string) {
		mu.Lock()
		knows[older] = known
		mu.Unlock()
		leader.kinds.mu.Lock()
		clear(leader.kinds.asked) // as kindsLive later
		leader.kinds.mu.Unlock()
	}
	// Of a server that knows webhooks, but alerts of two kinds alone.
	later(fleet.Kinds())
	hook := fleet.WebhookCreated{Webhook: fleet.Webhook{ID: "w1", Name: "pager", Format: fleet.WebhookJSON, URL: "https://h/", Kinds: []string{fleet.AlertUpdateFailed}}}
	mustPropose(t, leader, hook)
	all := []string{fleet.AlertHostSilent}
	for _, change := range []fleet.Change{
		fleet.WebhookCreated{Webhook: fleet.Webhook{ID: "w2", Name: "pager-2", Format: fleet.WebhookJSON, URL: "https://h/", Kinds: all}},
		fleet.WebhookChanged{WebhookID: "w1", Kinds: &all},
	} {
		if _, err := leader.Propose(c.within(patience), "user:test", change); !errors.As(err, new(*fleet.Error)) || !strings.Contains(err.Error(), "update all servers") {
			t.Errorf("%s with a later kind of alerts: %v", change.Kind(), err)
		}
	}
	// Of a server that knows all alerts of its time.
	later(append(fleet.Kinds(), "webhooks_of_all_alert_kinds"))
	mustPropose(t, leader, fleet.WebhookChanged{WebhookID: "w1", Kinds: &all})
	forked := []string{fleet.AlertForkedReleaseKeys}
	for _, change := range []fleet.Change{
		fleet.AlertRaised{AlertKind: fleet.AlertForkedReleaseKeys, Message: "m"},
		fleet.WebhookCreated{Webhook: fleet.Webhook{ID: "w2", Name: "pager-2", Format: fleet.WebhookJSON, URL: "https://h/", Kinds: forked}},
		fleet.WebhookChanged{WebhookID: "w1", Kinds: &forked},
	} {
		if _, err := leader.Propose(c.within(patience), "user:test", change); !errors.As(err, new(*fleet.Error)) || !strings.Contains(err.Error(), "update all servers") {
			t.Errorf("%s with the newest kind of alerts: %v", change.Kind(), err)
		}
	}
	later(fleet.Known())
	mustPropose(t, leader, fleet.WebhookChanged{WebhookID: "w1", Kinds: &forked})
	mustPropose(t, leader, fleet.AlertRaised{AlertKind: fleet.AlertForkedReleaseKeys, Message: "m"})
	if _, err := leader.Propose(c.within(patience), "user:test", newer); errors.As(err, new(*fleet.Error)) && strings.Contains(err.Error(), "update all servers") {
		t.Errorf("after the update: %v", err)
	}
}

// A server that is down holds nothing up, unless it is known to be older.
func TestKindsOfAServerThatIsDown(t *testing.T) {
	down := errors.New("down")
	answer, fail := fleet.FirstKinds(), error(nil)
	k := newKinds(func(context.Context, string, string) ([]string, error) { return answer, fail })
	s, never := ServerStatus{ID: "s2"}, ServerStatus{ID: "s3"}
	if known := k.of(t.Context(), t.Context(), s); !slices.Equal(known, answer) {
		t.Errorf("it knows %v", known)
	}
	fail = down
	clear(k.asked)
	if known := k.of(t.Context(), t.Context(), s); !slices.Equal(known, answer) {
		t.Errorf("what it said is forgotten: %v", known)
	}
	if known := k.of(t.Context(), t.Context(), never); known != nil {
		t.Errorf("a server that never answered knows %v", known)
	}
}

func TestFirstKindsNeverChange(t *testing.T) {
	const first = 27
	if got := len(fleet.FirstKinds()); got != first {
		t.Errorf("there are %d; what came later is not known to every server", got)
	}
	for _, kind := range fleet.FirstKinds() {
		if !slices.Contains(fleet.Kinds(), kind) {
			t.Errorf("%s is no longer known: logs of earlier versions have it", kind)
		}
	}
}
