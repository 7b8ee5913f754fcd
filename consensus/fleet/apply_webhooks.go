package fleet

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"time"
)

// What webhooks' settings accept, told for people. No message repeats a URL, a
// token or a secret: refusals are remembered and shown.
const (
	formatRule = "give json, slack or alertmanager"
	urlRule    = "give http:// or https://, a host, and at most 2048 printable ASCII characters without spaces"
	bearerRule = "give at most 1024 printable ASCII characters without spaces"
	secretRule = "give 16 to 256 printable ASCII characters without spaces; what begins with whsec_ goes on in base64"
)

// signingPrefix begins a secret that is written in base64.
const signingPrefix = "whsec_"

// SigningKey returns the bytes that a webhook's requests are signed with; nil
// when it has no secret.
func (w Webhook) SigningKey() []byte {
	encoded, isBase64 := strings.CutPrefix(w.SigningSecret, signingPrefix)
	if !isBase64 {
		return []byte(w.SigningSecret)
	}
	key, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return nil // refused when it was set
	}
	return key
}

// checkWebhook refuses settings that are not complete. The rules are this
// package's own: what net/url accepts changes with the version of Go.
func checkWebhook(w Webhook) *Error {
	switch {
	case !validID(w.ID):
		return refuse(CodeBadRequest, "webhook.id %q: %s", w.ID, nameRule)
	case !ValidName(w.Name):
		return refuse(CodeBadRequest, "name %q: %s", w.Name, nameRule)
	case w.Format != WebhookJSON && w.Format != WebhookSlack && w.Format != WebhookAlertmanager:
		return refuse(CodeBadRequest, "format %q: %s", w.Format, formatRule)
	case len(w.BearerToken) > MaxBearerBytes || !printable(w.BearerToken):
		return refuse(CodeBadRequest, "bearer_token: %s", bearerRule)
	case w.SigningSecret != "" && !validSecret(w):
		return refuse(CodeBadRequest, "signing_secret: %s", secretRule)
	}
	if refused := checkKinds(w.Kinds); refused != nil {
		return refused
	}
	return checkURL(w.URL)
}

func validSecret(w Webhook) bool {
	s := w.SigningSecret
	return len(s) >= MinSecretBytes && len(s) <= MaxSecretBytes && printable(s) && len(w.SigningKey()) > 0
}

func checkKinds(kinds []string) *Error {
	for i, k := range kinds {
		switch {
		case !slices.Contains(AlertKinds, k):
			return refuse(CodeBadRequest, "kinds[%d] %q: give one of %s", i, k, strings.Join(AlertKinds, ", "))
		case slices.Contains(kinds[:i], k):
			return refuse(CodeBadRequest, "kinds names %s twice; give each once", k)
		}
	}
	return nil
}

func checkURL(url string) *Error {
	rest, known := strings.CutPrefix(url, "https://")
	if !known {
		rest, known = strings.CutPrefix(url, "http://")
	}
	authority := authorityOf(rest)
	switch {
	case !known || len(url) > MaxURLBytes || !printable(url):
		return refuse(CodeBadRequest, "url: %s", urlRule)
	case strings.Contains(authority, "@"):
		return refuse(CodeBadRequest, "url: it holds a user name or a password; give a bearer_token instead")
	case authority == "" || strings.HasPrefix(authority, ":"):
		return refuse(CodeBadRequest, "url: it names no host; %s", urlRule)
	case strings.ContainsAny(url, `#\`):
		return refuse(CodeBadRequest, "url: it holds a # or a backslash; give the address as the receiver names it")
	}
	return nil
}

// printable tells whether a text is of visible ASCII characters.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func (t *tx) webhook(id string) (Webhook, *Error) {
	w, ok := t.view().Webhook(id)
	if !ok {
		return w, refuse(CodeWebhookNotFound, "no webhook has the id %q; the page of webhooks lists them", id)
	}
	return w, nil
}

// putWebhook stores settings that are whole, under a name that is free.
func (t *tx) putWebhook(w Webhook) *Error {
	if refused := checkWebhook(w); refused != nil {
		return refused
	}
	if other, taken := t.view().WebhookByName(w.Name); taken && other.ID != w.ID {
		return refuse(CodeWebhookExists, "a webhook called %q exists already; choose another name", w.Name)
	}
	if len(w.Kinds) == 0 {
		w.Kinds = nil // as it comes back from a snapshot
	}
	t.put(tableWebhooks, w)
	t.touch("webhooks")
	return nil
}

// describeWebhook tells the settings without the secrets.
func describeWebhook(w Webhook) string {
	scheme, host, _ := strings.Cut(w.Address(), "://")
	what := string(w.Format) + " to " + host + " over " + scheme
	if len(w.Kinds) > 0 {
		what += ", of " + strings.Join(w.Kinds, " and ")
	}
	if !w.Enabled {
		what += ", disabled"
	}
	return what
}

func applyWebhookCreated(t *tx, c WebhookCreated) *Error {
	w := c.Webhook
	if _, exists := t.view().Webhook(w.ID); exists {
		return refuse(CodeWebhookExists, "a webhook with the id %q exists already; give the new one another id", clip(w.ID, MaxIDBytes))
	}
	if n := len(t.view().Webhooks()); n >= t.bounds.webhooks {
		return refuse(CodeLimitReached, "there are %d webhooks, and no more fit; delete one", n)
	}
	w.CreatedAt, w.CreatedBy = t.at, t.actor
	w.Delivery = Delivery{Revision: t.index}
	if refused := t.putWebhook(w); refused != nil {
		return refused
	}
	t.audit("webhook "+w.Name, describeWebhook(w))
	return nil
}

func applyWebhookChanged(t *tx, c WebhookChanged) *Error {
	w, refused := t.webhook(c.WebhookID)
	if refused != nil {
		return refused
	}
	moved := c.URL != nil && *c.URL != w.URL
	if moved && w.BearerToken != "" && c.BearerToken == nil {
		return refuse(CodeBadRequest, "bearer_token: give it again with another url, or \"\" for none; it would go to a receiver that it was not made for")
	}
	what := []string{}
	set(&w.Name, c.Name, "name", &what)
	set(&w.Format, c.Format, "format", &what)
	set(&w.URL, c.URL, "url", &what)
	set(&w.BearerToken, c.BearerToken, "bearer token", &what)
	set(&w.SigningSecret, c.SigningSecret, "signing secret", &what)
	set(&w.Enabled, c.Enabled, "enabled", &what)
	if c.Kinds != nil && !slices.Equal(*c.Kinds, w.Kinds) {
		w.Kinds, what = *c.Kinds, append(what, "kinds")
	}
	if len(what) == 0 {
		return refuse(CodeBadRequest, "nothing would change; give a field with another value")
	}
	if !w.Enabled {
		t.forget(&w, func(Notification) bool { return true })
	}
	// An attempt under way keeps its place: what was taken by the settings before
	// was taken. What waits is tried at once by the new ones.
	w.Delivery.Revision, w.Delivery.Attempts = t.index, 0
	if refused := t.putWebhook(w); refused != nil {
		return refused
	}
	t.audit("webhook "+w.Name, strings.Join(what, ", ")+" changed: "+describeWebhook(w))
	return nil
}

// set changes a field that was given another value, and notes its name.
func set[T comparable](field, value *T, name string, changed *[]string) {
	if value != nil && *value != *field {
		*field = *value
		*changed = append(*changed, name)
	}
}

func applyWebhookDeleted(t *tx, c WebhookDeleted) *Error {
	w, refused := t.webhook(c.WebhookID)
	if refused != nil {
		return refused
	}
	t.forget(&w, func(Notification) bool { return true })
	t.remove(tableWebhooks, w)
	t.touch("webhooks")
	t.audit("webhook "+w.Name, "")
	return nil
}

func applyWebhookTested(t *tx, c WebhookTested) *Error {
	w, refused := t.webhook(c.WebhookID)
	if refused != nil {
		return refused
	}
	t.audit("webhook "+w.Name, "a test is sent")
	return nil
}

// notify has the webhooks that want it told of a change of an alert's state.
func (t *tx) notify(a Alert, event AlertEvent) {
	for _, w := range t.view().Webhooks() {
		if !w.Wants(a.Kind) {
			continue
		}
		for n, over := 0, t.view().Waiting(w.ID)+1-t.bounds.notifications; n < over; n++ {
			if oldest, ok := t.view().NextNotification(w.ID); ok {
				t.drop(&w, oldest)
			}
		}
		w.Delivery.LastSeq++
		t.put(tableNotifications, Notification{WebhookID: w.ID, Seq: w.Delivery.LastSeq, AlertID: a.ID, Event: event, At: t.at})
		t.put(tableWebhooks, w)
		t.touch("webhooks")
	}
}

// drop forgets a notification that was not delivered.
func (t *tx) drop(w *Webhook, n Notification) {
	t.remove(tableNotifications, n)
	w.Delivery.Dropped++
	if d := &w.Delivery; d.Trying == n.Seq {
		d.Trying, d.Attempts, d.Sending = 0, 0, 0
	}
}

// forget drops those of a webhook's notifications that are so.
func (t *tx) forget(w *Webhook, so func(Notification) bool) {
	for _, n := range all[Notification](t.Txn, false, tableNotifications, "webhook", w.ID) {
		if so(n) {
			t.drop(w, n)
		}
	}
}

// forgetAlert drops what was to be told of an alert that is dropped itself.
func (t *tx) forgetAlert(id string) {
	for _, n := range all[Notification](t.Txn, false, tableNotifications, "alert", id) {
		if w, ok := t.view().Webhook(n.WebhookID); ok {
			t.drop(&w, n)
			t.put(tableWebhooks, w)
			t.touch("webhooks")
		}
	}
}

func applyAlertNotifying(t *tx, c AlertNotifying) *Error {
	w, refused := t.webhook(c.WebhookID)
	if refused != nil {
		return refused
	}
	n, waits := t.view().NextNotification(w.ID)
	if !waits || n.Seq != c.Seq || w.Delivery.Revision != c.Revision {
		return refuse(CodeConflict, "notification %d is not the next one of webhook %s, or its settings changed; look again", c.Seq, w.Name)
	}
	d := &w.Delivery
	if d.Trying != n.Seq {
		d.Trying, d.Attempts = n.Seq, 0
	}
	d.Attempts++
	d.Sending = t.index
	t.put(tableWebhooks, w)
	t.unaudited() // nobody decided it
	return nil
}

func applyAlertNotified(t *tx, c AlertNotified) *Error {
	w, refused := t.webhook(c.WebhookID)
	if refused != nil {
		return refused
	}
	d := &w.Delivery
	n, waits := t.view().NextNotification(w.ID)
	if c.Sending == 0 || d.Sending != c.Sending || !waits || d.Trying != n.Seq {
		return refuse(CodeConflict, "no attempt %d of webhook %s is under way; look again", c.Sending, w.Name)
	}
	d.report(c.Status, c.Error, t.at)
	d.Sending = 0
	t.unaudited()
	if c.Error == "" || c.GivenUp {
		t.remove(tableNotifications, n)
		if c.Error == "" {
			d.Delivered++
		} else {
			d.GivenUp++
			t.silent = false
			t.audit("webhook "+w.Name, fmt.Sprintf("gave up after %d attempts to tell that alert %s was %s: %s", d.Attempts, n.AlertID, n.Event, d.LastError))
		}
		d.Trying, d.Attempts = 0, 0
	}
	t.put(tableWebhooks, w)
	t.touch("webhooks")
	return nil
}

func applyWebhookRefreshed(t *tx, c WebhookRefreshed) *Error {
	w, refused := t.webhook(c.WebhookID)
	if refused != nil {
		return refused
	}
	if w.Delivery.Revision != c.Revision {
		return refuse(CodeConflict, "the settings of webhook %s changed meanwhile; look again", w.Name)
	}
	w.Delivery.report(c.Status, c.Error, t.at)
	t.put(tableWebhooks, w)
	t.touch("webhooks")
	t.unaudited()
	return nil
}

// report notes how an attempt ended; no error is a success.
func (d *Delivery) report(status int, reason string, at time.Time) {
	d.LastStatus, d.LastError, d.LastAttemptAt = status, clip(reason, MaxDetailBytes), &at
	switch {
	case reason == "":
		d.LastSuccessAt, d.FailingSince = &at, nil
	case d.FailingSince == nil:
		d.FailingSince = &at
	}
}
