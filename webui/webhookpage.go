package webui

import (
	"net/http"
	"slices"
	"strings"

	"moult/consensus/fleet"
)

var webhooksPageKind = pageKind{name: "webhooks", title: "Webhooks", topics: "webhooks"}

// webhooksView is what the page of webhooks shows.
type webhooksView struct {
	shell
	Webhooks []webhookRow
	Formats  []webhookFormat
	Kinds    []string
}

// webhookRow is a webhook and how it stands, in a word.
type webhookRow struct {
	webhookJSON
	State string // disabled, failing, delivering, healthy or not used yet
}

// Host is where it goes.
func (r webhookRow) Host() string {
	_, host, _ := strings.Cut(r.Address, "://")
	return host
}

// Scheme is http or https.
func (r webhookRow) Scheme() string {
	scheme, _, _ := strings.Cut(r.Address, "://")
	return scheme
}

// webhookFormat is a format as people know it.
type webhookFormat struct {
	Name  fleet.WebhookFormat
	Label string
}

var webhookFormats = []webhookFormat{
	{fleet.WebhookJSON, "JSON"}, {fleet.WebhookSlack, "Slack"}, {fleet.WebhookAlertmanager, "Alertmanager"},
}

// FormatLabel is what people call the row's format.
func (r webhookRow) FormatLabel() string {
	for _, f := range webhookFormats {
		if f.Name == r.Format {
			return f.Label
		}
	}
	return string(r.Format)
}

// kindChoice is a kind of alerts that can be ticked.
type kindChoice struct {
	Name   string
	Chosen bool
}

func kindChoices(kinds, chosen []string) (out []kindChoice) {
	for _, k := range kinds {
		out = append(out, kindChoice{k, slices.Contains(chosen, k)})
	}
	return out
}

func (u *ui) webhooksPage(w http.ResponseWriter, r *http.Request) error {
	state, v := u.View(), &webhooksView{Formats: webhookFormats, Kinds: fleet.AlertKinds}
	for _, hook := range state.Webhooks() {
		row := webhookRow{webhookJSON: showWebhook(state, hook)}
		switch {
		case !hook.Enabled:
			row.State = "disabled"
		case hook.Delivery.FailingSince != nil:
			row.State = "failing"
		case row.Delivery.Waiting > 0:
			row.State = "delivering"
		case hook.Delivery.LastSuccessAt != nil:
			row.State = "healthy"
		default:
			row.State = "not used yet"
		}
		v.Webhooks = append(v.Webhooks, row)
	}
	return u.show(w, r, webhooksPageKind, v)
}
