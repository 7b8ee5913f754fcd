package fleet

import (
	"slices"
	"strings"
	"time"
)

// WebhookFormat is what a webhook's receiver understands.
type WebhookFormat string

// The formats of webhooks.
const (
	WebhookJSON         WebhookFormat = "json"
	WebhookSlack        WebhookFormat = "slack"
	WebhookAlertmanager WebhookFormat = "alertmanager"
)

// AlertKinds are the kinds of alerts, to which a webhook may be narrowed down.
var AlertKinds = append(slices.Clone(firstAlertKinds), raisedKinds...)

// firstAlertKinds are those that every version with webhooks knows.
var firstAlertKinds = []string{AlertUpdateFailed, AlertFleetUpdateHalted}

// Webhook is a receiver of alerts. URL, BearerToken and SigningSecret are
// secrets: they are shown to nobody, and told only to the receiver.
type Webhook struct {
	ID            string        `json:"id"`
	Name          string        `json:"name"`
	Format        WebhookFormat `json:"format"`
	URL           string        `json:"url"`
	BearerToken   string        `json:"bearer_token,omitempty"`
	SigningSecret string        `json:"signing_secret,omitempty"`
	Enabled       bool          `json:"enabled"`
	Kinds         []string      `json:"kinds,omitempty"` // of the alerts it is told of; none: all
	CreatedAt     time.Time     `json:"created_at"`
	CreatedBy     string        `json:"created_by"`
	Delivery      Delivery      `json:"delivery"`
}

// Delivery is how a webhook fares.
type Delivery struct {
	Revision uint64 `json:"revision"` // index of the entry that changed the settings last
	LastSeq  uint64 `json:"last_seq"` // the highest number given to one of its notifications

	// Trying is the notification that Attempts counts for, and Sending is the index
	// of the entry behind the attempt under way; 0: none.
	Trying   uint64 `json:"trying,omitempty"`
	Attempts int    `json:"attempts,omitempty"`
	Sending  uint64 `json:"sending,omitempty"`

	Delivered uint64 `json:"delivered"`
	GivenUp   uint64 `json:"given_up"` // not delivered in time, or refused too often
	Dropped   uint64 `json:"dropped"`  // never tried to the end: more than MaxNotifications waited, or the alert is gone

	LastStatus    int        `json:"last_status,omitempty"` // HTTP; 0: no answer
	LastError     string     `json:"last_error,omitempty"`  // of the last attempt
	LastAttemptAt *time.Time `json:"last_attempt_at,omitempty"`
	LastSuccessAt *time.Time `json:"last_success_at,omitempty"`
	FailingSince  *time.Time `json:"failing_since,omitempty"` // the first failure after the last success
}

// Wants tells whether a webhook is told of alerts of a kind.
func (w Webhook) Wants(kind string) bool {
	return w.Enabled && (len(w.Kinds) == 0 || slices.Contains(w.Kinds, kind))
}

// Address is the part of the URL that may be shown: scheme and host.
func (w Webhook) Address() string {
	scheme, rest, _ := strings.Cut(w.URL, "://")
	return scheme + "://" + authorityOf(rest)
}

// AlertEvent is a change of an alert's state.
type AlertEvent string

// The changes of an alert's state; after each but the first the alert is closed.
const (
	AlertEventOpened       AlertEvent = "opened"
	AlertEventAcknowledged AlertEvent = "acknowledged"
	AlertEventResolved     AlertEvent = "resolved"
)

// Notification is a change of an alert's state that a webhook is to be told of.
// It is there until it was delivered or given up.
type Notification struct {
	WebhookID string     `json:"webhook_id"`
	Seq       uint64     `json:"seq"` // rises from one to the next of the webhook
	AlertID   string     `json:"alert_id"`
	Event     AlertEvent `json:"event"`
	At        time.Time  `json:"at"` // when the state changed
}

// Webhooks returns all webhooks by name.
func (v View) Webhooks() []Webhook { return all[Webhook](v.txn, false, tableWebhooks, "name") }

// Webhook returns a webhook by its ID.
func (v View) Webhook(id string) (Webhook, bool) {
	return first[Webhook](v.txn, tableWebhooks, "id", id)
}

// WebhookByName returns a webhook by its name.
func (v View) WebhookByName(name string) (Webhook, bool) {
	return first[Webhook](v.txn, tableWebhooks, "name", name)
}

// NextNotification returns what a webhook is to be told next.
func (v View) NextNotification(webhookID string) (Notification, bool) {
	it, err := v.txn.LowerBound(tableNotifications, "id", webhookID, uint64(0))
	must(err)
	if raw := it.Next(); raw != nil && raw.(Notification).WebhookID == webhookID {
		return raw.(Notification), true
	}
	return Notification{}, false
}

// Waiting returns how many notifications of a webhook wait.
func (v View) Waiting(webhookID string) int {
	return len(all[Notification](v.txn, false, tableNotifications, "webhook", webhookID))
}

// authorityOf returns host and port, and whatever else stands there, of a URL
// without its scheme.
func authorityOf(rest string) string {
	if i := strings.IndexAny(rest, `/?#\`); i >= 0 {
		return rest[:i]
	}
	return rest
}
