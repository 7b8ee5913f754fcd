package notifier

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"moult/consensus/fleet"
)

// Request is what one attempt sends.
type Request struct {
	ID   string // the same in each attempt, so that a receiver can tell a repetition
	Body []byte // JSON
}

// testEvent stands in place of a change of state where somebody tries a webhook.
const testEvent fleet.AlertEvent = "test"

// message is what a webhook is told.
type message struct {
	ID      string
	Event   fleet.AlertEvent
	At      time.Time // of the event
	Cluster string
	Alert   fleet.Alert
	Host    string // name; "" when the alert is about none, or it was removed
}

// messageID names a change of an alert's state, in all clusters.
func messageID(cluster, alertID string, event fleet.AlertEvent) string {
	return cluster + "-" + alertID + "-" + string(event)
}

// body writes a message in a webhook's format.
func body(f fleet.WebhookFormat, m message, now time.Time) ([]byte, error) {
	switch f {
	case fleet.WebhookJSON:
		return json.Marshal(plainBody(m))
	case fleet.WebhookSlack:
		return json.Marshal(map[string]string{"text": slackText(m)})
	case fleet.WebhookAlertmanager:
		return json.Marshal([]postableAlert{postable(m, now)})
	}
	return nil, fmt.Errorf("this server does not know the format %q; update it", f)
}

// plain is the body of the format json.
type plain struct {
	ID        string     `json:"id"`
	Type      string     `json:"type"` // alert.opened, alert.acknowledged, alert.resolved or test
	Timestamp time.Time  `json:"timestamp"`
	ClusterID string     `json:"cluster_id"`
	Alert     plainAlert `json:"alert"`
}

type plainAlert struct {
	ID             string            `json:"id"`
	Kind           string            `json:"kind"`
	Status         fleet.AlertStatus `json:"status"`
	Message        string            `json:"message"`
	HostID         string            `json:"host_id"`
	HostName       string            `json:"host_name"`
	FleetUpdateID  string            `json:"fleet_update_id"`
	TargetVersion  string            `json:"target_version"`
	OpenedAt       time.Time         `json:"opened_at"`
	ResolvedAt     *time.Time        `json:"resolved_at"`
	AcknowledgedBy string            `json:"acknowledged_by"`
}

func plainBody(m message) plain {
	a := m.Alert
	kind := "alert." + string(m.Event)
	if m.Event == testEvent {
		kind = string(testEvent)
	}
	return plain{ID: m.ID, Type: kind, Timestamp: m.At, ClusterID: m.Cluster, Alert: plainAlert{
		ID: a.ID, Kind: a.Kind, Status: a.Status, Message: a.Message, HostID: a.HostID, HostName: m.Host, FleetUpdateID: a.FleetUpdateID,
		TargetVersion: a.TargetVersion, OpenedAt: a.OpenedAt, ResolvedAt: a.ResolvedAt, AcknowledgedBy: a.AcknowledgedBy,
	}}
}

// slackEscaper keeps text from being markup: a host's last words could call a
// whole channel.
var slackEscaper = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")

func slackText(m message) string {
	head := map[fleet.AlertEvent]string{
		fleet.AlertEventOpened:       ":red_circle: *Alert*",
		fleet.AlertEventAcknowledged: ":ok_hand: *Acknowledged* by " + slackEscaper.Replace(strings.TrimPrefix(m.Alert.AcknowledgedBy, "user:")),
		fleet.AlertEventResolved:     ":white_check_mark: *Resolved*",
		testEvent:                    ":bell: *Test*",
	}[m.Event]
	return head + ": " + slackEscaper.Replace(clip(m.Alert.Message))
}

// postableAlert is an alert of Alertmanager's API v2.
type postableAlert struct {
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	StartsAt    time.Time         `json:"startsAt"`
	EndsAt      time.Time         `json:"endsAt"`
}

// postable makes an alert as Alertmanager has it. The labels are its identity
// there, so they are only of what never changes about an alert.
func postable(m message, now time.Time) postableAlert {
	a := m.Alert
	p := postableAlert{
		Labels:      map[string]string{"alertname": "moult_" + a.Kind, "severity": "warning", "cluster_id": m.Cluster, "alert_id": a.ID},
		Annotations: map[string]string{"summary": clip(a.Message)},
		StartsAt:    a.OpenedAt, EndsAt: now.UTC().Add(Expiry),
	}
	// Empty ones would be no labels.
	for label, value := range map[string]string{"host_id": a.HostID, "fleet_update_id": a.FleetUpdateID, "target_version": a.TargetVersion} {
		if value != "" {
			p.Labels[label] = value
		}
	}
	for note, value := range map[string]string{"host": m.Host, "acknowledged_by": a.AcknowledgedBy} {
		if value != "" {
			p.Annotations[note] = value
		}
	}
	if m.Event == testEvent {
		p.Labels["severity"] = "none"
		p.EndsAt = now.UTC().Add(RefreshInterval) // goes by itself
	}
	if a.ResolvedAt != nil {
		p.EndsAt = *a.ResolvedAt
	}
	return p
}

// clip cuts a text between runes.
func clip(s string) string {
	if len(s) <= maxText {
		return s
	}
	end := maxText
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + "…"
}

// asOf returns the alert as it was when an event was new: what happened since is
// told by the next one.
func asOf(a fleet.Alert, event fleet.AlertEvent) fleet.Alert {
	if event == fleet.AlertEventOpened {
		a.Status, a.ResolvedAt, a.AcknowledgedBy = fleet.AlertStatusOpen, nil, ""
	}
	return a
}

// messageOf joins a notification with what it is about.
func messageOf(v fleet.View, n fleet.Notification) message {
	c, _ := v.Cluster()
	a, _ := v.Alert(n.AlertID)
	return message{
		ID: messageID(c.ID, n.AlertID, n.Event), Event: n.Event, At: n.At, Cluster: c.ID,
		Alert: asOf(a, n.Event), Host: hostName(v, a.HostID),
	}
}

func hostName(v fleet.View, id string) string {
	h, _ := v.Host(id)
	return h.Name
}

// refreshes writes alerts for an Alertmanager, at most MaxBatch to a request.
func refreshes(v fleet.View, alerts []fleet.Alert, now time.Time) ([]Request, error) {
	c, _ := v.Cluster()
	var out []Request
	for len(alerts) > 0 {
		n := min(len(alerts), MaxBatch)
		var batch []postableAlert
		for _, a := range alerts[:n] {
			batch = append(batch, postable(message{Cluster: c.ID, Alert: a, Host: hostName(v, a.HostID)}, now))
		}
		b, err := json.Marshal(batch)
		if err != nil {
			return nil, err
		}
		out, alerts = append(out, Request{ID: fmt.Sprintf("%s-refresh-%d-%d", c.ID, now.Unix(), len(out)), Body: b}), alerts[n:]
	}
	return out, nil
}
