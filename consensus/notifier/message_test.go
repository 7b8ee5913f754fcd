package notifier

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"moult/consensus/fleet"
)

// mustPostable reads a body as strictly as Alertmanager's API v2 describes it
// (postableAlerts in its openapi.yaml): label names, no empty labels, an alertname,
// times, and an end that is not before the start.
func mustPostable(t *testing.T, b []byte) []postableAlert {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var alerts []postableAlert
	if err := dec.Decode(&alerts); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	name := regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)
	for _, a := range alerts {
		if a.Labels["alertname"] == "" || a.StartsAt.IsZero() || a.EndsAt.Before(a.StartsAt) {
			t.Errorf("alert %+v", a)
		}
		for _, set := range []map[string]string{a.Labels, a.Annotations} {
			for k, v := range set {
				if !name.MatchString(k) || v == "" {
					t.Errorf("%q: %q is no label", k, v)
				}
			}
		}
	}
	return alerts
}

func exampleMessage(event fleet.AlertEvent) message {
	opened := time.Date(2026, 11, 25, 14, 3, 7, 0, time.UTC)
	closed := opened.Add(5 * time.Minute)
	m := message{
		ID: "c1-54-update_failed-" + string(event), Event: event, At: opened, Cluster: "c1", Host: "web-1",
		Alert: fleet.Alert{ID: "54-update_failed", Kind: "update_failed", HostID: "h1", TargetVersion: "1.3.0", Message: "update of web-1 to 1.3.0 failed: it crashed", Status: fleet.AlertStatusOpen, OpenedAt: opened},
	}
	if event != fleet.AlertEventOpened {
		m.At, m.Alert.Status, m.Alert.ResolvedAt = closed, fleet.AlertStatusResolved, &closed
	}
	if event == fleet.AlertEventAcknowledged {
		m.Alert.AcknowledgedBy = "user:ann"
	}
	return m
}

func mustBody(t *testing.T, f fleet.WebhookFormat, m message, now time.Time) string {
	t.Helper()
	b, err := body(f, m, now)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestBodies(t *testing.T) {
	now := time.Date(2026, 11, 25, 14, 10, 0, 0, time.UTC)
	for _, c := range []struct {
		format fleet.WebhookFormat
		event  fleet.AlertEvent
		want   string
	}{
		{fleet.WebhookJSON, fleet.AlertEventOpened, `{"id":"c1-54-update_failed-opened","type":"alert.opened","timestamp":"2026-11-25T14:03:07Z","cluster_id":"c1","alert":{"id":"54-update_failed","kind":"update_failed","status":"open","message":"update of web-1 to 1.3.0 failed: it crashed","host_id":"h1","host_name":"web-1","fleet_update_id":"","target_version":"1.3.0","opened_at":"2026-11-25T14:03:07Z","resolved_at":null,"acknowledged_by":""}}`},
		{fleet.WebhookJSON, fleet.AlertEventAcknowledged, `{"id":"c1-54-update_failed-acknowledged","type":"alert.acknowledged","timestamp":"2026-11-25T14:08:07Z","cluster_id":"c1","alert":{"id":"54-update_failed","kind":"update_failed","status":"resolved","message":"update of web-1 to 1.3.0 failed: it crashed","host_id":"h1","host_name":"web-1","fleet_update_id":"","target_version":"1.3.0","opened_at":"2026-11-25T14:03:07Z","resolved_at":"2026-11-25T14:08:07Z","acknowledged_by":"user:ann"}}`},
		{fleet.WebhookSlack, fleet.AlertEventOpened, `{"text":":red_circle: *Alert*: update of web-1 to 1.3.0 failed: it crashed"}`},
		{fleet.WebhookSlack, fleet.AlertEventAcknowledged, `{"text":":ok_hand: *Acknowledged* by ann: update of web-1 to 1.3.0 failed: it crashed"}`},
		{fleet.WebhookSlack, fleet.AlertEventResolved, `{"text":":white_check_mark: *Resolved*: update of web-1 to 1.3.0 failed: it crashed"}`},
		{fleet.WebhookAlertmanager, fleet.AlertEventOpened, `[{"labels":{"alert_id":"54-update_failed","alertname":"moult_update_failed","cluster_id":"c1","host_id":"h1","severity":"warning","target_version":"1.3.0"},"annotations":{"host":"web-1","summary":"update of web-1 to 1.3.0 failed: it crashed"},"startsAt":"2026-11-25T14:03:07Z","endsAt":"2026-11-25T14:20:00Z"}]`},
		{fleet.WebhookAlertmanager, fleet.AlertEventResolved, `[{"labels":{"alert_id":"54-update_failed","alertname":"moult_update_failed","cluster_id":"c1","host_id":"h1","severity":"warning","target_version":"1.3.0"},"annotations":{"host":"web-1","summary":"update of web-1 to 1.3.0 failed: it crashed"},"startsAt":"2026-11-25T14:03:07Z","endsAt":"2026-11-25T14:08:07Z"}]`},
	} {
		got := mustBody(t, c.format, exampleMessage(c.event), now)
		if got != c.want {
			t.Errorf("%s %s:\n%s\nwant\n%s", c.format, c.event, got, c.want)
		}
		if c.format == fleet.WebhookAlertmanager {
			mustPostable(t, []byte(got))
		}
	}
	if _, err := body("xml", exampleMessage(fleet.AlertEventOpened), now); err == nil {
		t.Error("a format that nobody knows was written")
	}
}

// A host's last words are no markup, and no flood.
func TestTextForPeopleIsHarmless(t *testing.T) {
	m := exampleMessage(fleet.AlertEventOpened)
	m.Alert.Message = "<!channel> &amp; <https://evil.example|click>" + strings.Repeat("€", maxText)
	slack := mustBody(t, fleet.WebhookSlack, m, m.At)
	var text struct{ Text string }
	if err := json.Unmarshal([]byte(slack), &text); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(text.Text, "<>") || !strings.Contains(text.Text, "&lt;!channel&gt; &amp;amp; ") || len(text.Text) > 2*maxText || strings.ContainsRune(text.Text, '\uFFFD') {
		t.Errorf("%.100s… of %d bytes", text.Text, len(text.Text))
	}
	if a := mustPostable(t, []byte(mustBody(t, fleet.WebhookAlertmanager, m, m.At)))[0]; len(a.Annotations["summary"]) > maxText+len("…") {
		t.Errorf("a summary of %d bytes", len(a.Annotations["summary"]))
	}
}

// An alert that changed before its opening was told is told as it was then; the
// change is told by what follows. And what names an alert in an Alertmanager is
// the same to its end, even when its host is removed.
func TestEventsAreToldAsTheyWere(t *testing.T) {
	s := startSite(t)
	s.webhook("w1", fleet.WebhookJSON)
	id := s.alert("j1")
	opened, _ := s.state.View().NextNotification("w1")
	before := postable(messageOf(s.state.View(), opened), opened.At)
	s.must(fleet.AlertAcknowledged{AlertID: id}, fleet.HostRemoved{HostID: "h1"})
	v := s.state.View()
	m := messageOf(v, opened)
	if m.Alert.Status != fleet.AlertStatusOpen || m.Alert.AcknowledgedBy != "" || m.Alert.ResolvedAt != nil || m.Host != "" {
		t.Errorf("%+v", m)
	}
	opened.Event = fleet.AlertEventAcknowledged
	after := postable(messageOf(v, opened), opened.At)
	if after.Annotations["acknowledged_by"] != "user:ann" || !after.EndsAt.Equal(*v.Alerts()[0].ResolvedAt) {
		t.Errorf("%+v", after)
	}
	a, _ := json.Marshal(before.Labels)
	b, _ := json.Marshal(after.Labels)
	if string(a) != string(b) {
		t.Errorf("the labels were %s and are %s", a, b)
	}
}
