package fleet

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func ptr[T any](v T) *T { return &v }

func webhook(id string) WebhookCreated {
	return WebhookCreated{Webhook: Webhook{ID: id, Name: "hook-" + id, Format: WebhookJSON, URL: "https://hooks.example:8443/services/T0P/S3CRET?key=K3Y", Enabled: true}}
}

// failing has a job of h1 fail, outside of a fleet update: one alert opens.
func (s *script) failing(job string) string {
	s.tb.Helper()
	s.must(JobCreated{JobID: job, HostID: "h1", TargetVersion: "B"}, JobFinished{JobID: job, Status: JobFailed, Error: "it crashed"})
	return s.state.View().Alerts()[0].ID
}

// waiting lists what a webhook is to be told, in order.
func (s *script) waiting(id string) (out []string) {
	for _, n := range all[Notification](s.state.View().txn, false, tableNotifications, "id") {
		if n.WebhookID == id {
			out = append(out, fmt.Sprintf("%d %s %s", n.Seq, n.AlertID, n.Event))
		}
	}
	return out
}

func (s *script) hook(id string) Webhook {
	w, _ := s.state.View().Webhook(id)
	return w
}

// attempt commits the intent behind the next attempt and returns what ends it.
func (s *script) attempt(id string) AlertNotified {
	s.tb.Helper()
	n, _ := s.state.View().NextNotification(id)
	s.must(AlertNotifying{WebhookID: id, Seq: n.Seq, Revision: s.hook(id).Delivery.Revision})
	return AlertNotified{WebhookID: id, Sending: s.hook(id).Delivery.Sending}
}

func (s *script) expectWaiting(id string, want ...string) {
	s.tb.Helper()
	if got := s.waiting(id); !slices.Equal(got, want) {
		s.tb.Fatalf("%s waits for %q, want %q", id, got, want)
	}
}

func TestEachStateChangeOfAnAlertIsToBeToldOnce(t *testing.T) {
	s := fleetOf(t, 1)
	before := s.failing("j0") // nobody is told of what was before
	s.must(webhook("w1"), webhook("w2"), WebhookChanged{WebhookID: "w2", Kinds: &[]string{AlertFleetUpdateHalted}})
	s.must(AlertAcknowledged{AlertID: before})
	first := s.failing("j1")
	s.must(AlertResolved{AlertID: first})
	s.expectWaiting("w1", "1 "+before+" acknowledged", "2 "+first+" opened", "3 "+first+" resolved")
	s.expectWaiting("w2")

	// One entry opens two alerts; a success of the host closes them.
	s.must(FleetUpdateStarted{ID: "f", TargetVersion: "B", HostIDs: []string{"h1"}}, JobDispatched{JobID: "j2", HostID: "h1", FleetUpdateID: "f"},
		JobFinished{JobID: "j2", Status: JobFailed, Error: "no"},
		JobCreated{JobID: "j3", HostID: "h1", TargetVersion: "B"}, JobDispatched{JobID: "j3", HostID: "h1"}, JobFinished{JobID: "j3", Status: JobSucceeded})
	if got := s.waiting("w1"); len(got) != 7 {
		t.Errorf("%q", got)
	}
	if got := s.waiting("w2"); len(got) != 2 || !strings.HasSuffix(got[0], "fleet_update_halted opened") || !strings.HasSuffix(got[1], "fleet_update_halted resolved") {
		t.Errorf("%q", got)
	}
}

func TestAttemptsTakeAnIntentEach(t *testing.T) {
	s := fleetOf(t, 1)
	s.must(webhook("w1"))
	alert := s.failing("j1")
	rev := s.hook("w1").Delivery.Revision
	s.refused(CodeConflict, AlertNotified{WebhookID: "w1", Status: 200}) // without an intent
	s.refused(CodeConflict, AlertNotifying{WebhookID: "w1", Seq: 2, Revision: rev})
	s.refused(CodeConflict, AlertNotifying{WebhookID: "w1", Seq: 1, Revision: rev + 1})
	s.refused(CodeWebhookNotFound, AlertNotifying{WebhookID: "none", Seq: 1})

	// A leader that was lost between the intent and the result: the next one tries
	// again, and a late result of the first counts for nothing.
	lost := s.attempt("w1")
	second := s.attempt("w1")
	s.refused(CodeConflict, lost)
	second.Status, second.Error = 503, "the receiver answered 503"
	s.must(second)
	s.refused(CodeConflict, second) // a result is told once
	d := s.hook("w1").Delivery
	if d.Attempts != 2 || d.LastStatus != 503 || d.FailingSince == nil || d.LastError != second.Error || d.Sending != 0 {
		t.Errorf("after a failure: %+v", d)
	}
	s.expectWaiting("w1", "1 "+alert+" opened")
	since := *d.FailingSince
	third := s.attempt("w1")
	third.Error = "no answer within 10s"
	s.must(third)
	if d := s.hook("w1").Delivery; !d.FailingSince.Equal(since) || d.LastStatus != 0 || d.Attempts != 3 {
		t.Errorf("after two failures: %+v", d)
	}
	last := s.attempt("w1")
	last.Status = 200
	s.must(last)
	if d := s.hook("w1").Delivery; d.Attempts != 0 || d.Delivered != 1 || d.FailingSince != nil || d.LastError != "" || d.LastSuccessAt == nil {
		t.Errorf("after the success: %+v", d)
	}
	s.expectWaiting("w1")
	s.refused(CodeConflict, AlertNotifying{WebhookID: "w1", Seq: 1, Revision: rev})
}

func TestGivingUpIsAudited(t *testing.T) {
	s := fleetOf(t, 1)
	s.must(webhook("w1"))
	first, second := s.failing("j1"), s.failing("j2")
	entries := len(s.state.View().Audit(0, 1000))
	end := s.attempt("w1")
	end.Error, end.GivenUp = "the receiver answered 500", true
	s.must(end)
	audit := s.state.View().Audit(0, 1000)
	if len(audit) != entries+1 || audit[0].Subject != "webhook hook-w1" || !strings.Contains(audit[0].Detail, "gave up after 1 attempts to tell that alert "+first+" was opened: the receiver answered 500") {
		t.Errorf("%+v", audit[0])
	}
	if d := s.hook("w1").Delivery; d.GivenUp != 1 || d.Delivered != 0 || d.FailingSince == nil {
		t.Errorf("%+v", d)
	}
	s.expectWaiting("w1", "2 "+second+" opened")
}

func TestChangedWebhookStartsAnew(t *testing.T) {
	s := fleetOf(t, 1)
	s.must(webhook("w1"), webhook("w2"))
	alert := s.failing("j1")
	under := s.attempt("w1")
	s.must(WebhookChanged{WebhookID: "w1", BearerToken: ptr("t0ken"), Name: ptr("pager")})
	s.expectWaiting("w1", "1 "+alert+" opened")
	s.refused(CodeConflict, AlertNotifying{WebhookID: "w1", Seq: 1, Revision: 1}) // by settings that are no more
	if d := s.hook("w1").Delivery; d.Attempts != 0 || d.Revision != s.state.View().Index()-1 {
		t.Errorf("%+v", d)
	}
	under.Status = 200
	s.must(under) // what was taken is not told again
	s.expectWaiting("w1")

	s.refused(CodeBadRequest, WebhookChanged{WebhookID: "w1"})
	s.refused(CodeBadRequest, WebhookChanged{WebhookID: "w1", Name: ptr("pager")})
	s.refused(CodeBadRequest, WebhookChanged{WebhookID: "w1", URL: ptr("https://other.example/")}) // the token would go there
	s.must(WebhookChanged{WebhookID: "w1", URL: ptr("https://other.example/"), BearerToken: ptr("")})
	s.refused(CodeWebhookExists, WebhookChanged{WebhookID: "w1", Name: ptr("hook-w2")})
	s.refused(CodeWebhookExists, webhook("w2"))
	s.refused(CodeBadRequest, WebhookChanged{WebhookID: "w1", Format: ptr(WebhookFormat("xml"))})
	if w := s.hook("w1"); w.BearerToken != "" || w.Name != "pager" || w.Address() != "https://other.example" || w.CreatedBy != "user:ann" {
		t.Errorf("%+v", w)
	}

	s.must(WebhookChanged{WebhookID: "w1", Enabled: ptr(false)})
	s.failing("j2")
	s.expectWaiting("w1")
	s.must(WebhookChanged{WebhookID: "w1", Enabled: ptr(true)})
	third := s.failing("j3")
	s.expectWaiting("w1", "2 "+third+" opened")
	s.must(WebhookDeleted{WebhookID: "w1"})
	s.expectWaiting("w1")
	if got := s.waiting("w2"); len(got) != 3 {
		t.Errorf("another webhook's went too: %q", got)
	}
	s.refused(CodeWebhookNotFound, WebhookDeleted{WebhookID: "w1"})
	s.refused(CodeWebhookNotFound, WebhookTested{WebhookID: "w1"})
}

func TestWebhooksAndNotificationsAreLimited(t *testing.T) {
	s := fleetOf(t, 1)
	s.state.bounds.webhooks, s.state.bounds.notifications = 1, 2
	s.must(webhook("w1"))
	s.refused(CodeLimitReached, webhook("w2"))
	s.failing("j1")
	under := s.attempt("w1")
	second, third := s.failing("j2"), s.failing("j3")
	s.expectWaiting("w1", "2 "+second+" opened", "3 "+third+" opened")
	under.Status = 200
	s.refused(CodeConflict, under) // what it was for is dropped
	if d := s.hook("w1").Delivery; d.Dropped != 1 || d.Attempts != 0 {
		t.Errorf("%+v", d)
	}
	// An alert that is dropped takes what was to be told of it along.
	s.state.bounds.alerts = 1
	s.must(WebhookTested{WebhookID: "w1"}, AlertResolved{AlertID: third})
	s.expectWaiting("w1", "3 "+third+" opened", "4 "+third+" resolved")
	if d := s.hook("w1").Delivery; d.Dropped != 2 {
		t.Errorf("%+v", d)
	}
}

func TestRefreshTellsHowTheReceiverFares(t *testing.T) {
	s := fleetOf(t, 1)
	s.must(webhook("w1"))
	rev := s.hook("w1").Delivery.Revision
	s.refused(CodeConflict, WebhookRefreshed{WebhookID: "w1", Revision: rev + 1, Error: "x"})
	s.must(WebhookRefreshed{WebhookID: "w1", Revision: rev, Error: "no answer"})
	if d := s.hook("w1").Delivery; d.FailingSince == nil || d.Delivered != 0 {
		t.Errorf("%+v", d)
	}
	s.must(WebhookRefreshed{WebhookID: "w1", Revision: rev, Status: 200})
	if d := s.hook("w1").Delivery; d.FailingSince != nil || d.LastSuccessAt == nil {
		t.Errorf("%+v", d)
	}
}

// The secrets are in the state, and nowhere that people look: not in the audit,
// not in a refusal.
func TestWebhookSecretsStayOutOfAuditAndRefusals(t *testing.T) {
	s := fleetOf(t, 1)
	c := webhook("w1")
	c.Webhook.BearerToken, c.Webhook.SigningSecret = "B34RER", "S1GNING-S3CRET-OF-16"
	s.must(c, WebhookTested{WebhookID: "w1"}, WebhookChanged{WebhookID: "w1", SigningSecret: ptr("S1GNING-S3CRET-TWO-2"), BearerToken: ptr("B34RER2")})
	bad := c
	bad.Webhook.ID, bad.Webhook.Name = "w2", "two"
	for _, spoil := range []func(*Webhook){
		func(w *Webhook) { w.URL = "https://u:S3CRET@host/" },
		func(w *Webhook) { w.URL = "gopher://host/S3CRET" },
		func(w *Webhook) { w.BearerToken += " B34RER" },
		func(w *Webhook) { w.SigningSecret = "S1GNING" },
	} {
		b := bad
		spoil(&b.Webhook)
		s.refused(CodeBadRequest, b)
	}
	s.must(WebhookDeleted{WebhookID: "w1"})
	var told strings.Builder
	for _, a := range s.state.View().Audit(0, 1000) {
		fmt.Fprintln(&told, a)
	}
	for _, p := range all[proposalRow](s.state.View().txn, false, tableProposals, "id") {
		fmt.Fprintln(&told, p.Result.Err)
	}
	if !strings.Contains(told.String(), "json to hooks.example:8443 over https") {
		t.Error("the audit does not tell where it goes")
	}
	for _, secret := range []string{"S3CRET", "K3Y", "T0P", "B34RER", "S1GNING"} {
		if strings.Contains(told.String(), secret) {
			t.Errorf("%s is told:\n%s", secret, told.String())
		}
	}
}

// The time of a change of state is that of its entry, in UTC.
func TestNotificationsCarryTheTimeOfTheChange(t *testing.T) {
	s := fleetOf(t, 1)
	s.must(webhook("w1"))
	s.failing("j1")
	n, ok := s.state.View().NextNotification("w1")
	if at := s.state.View().OpenAlerts()[0].OpenedAt; !ok || !n.At.Equal(at) || n.At.Location() != time.UTC {
		t.Errorf("%+v, opened at %s", n, at)
	}
}
