package webui

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/google/uuid"

	"moult/consensus/fleet"
)

// maxTests bounds how many tests of webhooks are under way on this server.
const maxTests = 4

// webhookJSON is a webhook as the API shows it. Of the URL there is the part that
// is no secret; of the token and the secret, whether there is one.
type webhookJSON struct {
	ID             string              `json:"id"`
	Name           string              `json:"name"`
	Format         fleet.WebhookFormat `json:"format"`
	Address        string              `json:"address"` // scheme and host
	HasBearerToken bool                `json:"has_bearer_token"`
	Signed         bool                `json:"signed"`
	Enabled        bool                `json:"enabled"`
	Kinds          []string            `json:"kinds"`
	CreatedAt      time.Time           `json:"created_at"`
	CreatedBy      string              `json:"created_by"`
	Delivery       deliveryJSON        `json:"delivery"`
}

// deliveryJSON is how a webhook fares.
type deliveryJSON struct {
	Waiting       int        `json:"waiting"`
	Attempts      int        `json:"attempts"` // of what waits first
	Delivered     uint64     `json:"delivered"`
	GivenUp       uint64     `json:"given_up"`
	Dropped       uint64     `json:"dropped"`
	LastStatus    *int       `json:"last_status"`
	LastError     string     `json:"last_error"`
	LastAttemptAt *time.Time `json:"last_attempt_at"`
	LastSuccessAt *time.Time `json:"last_success_at"`
	FailingSince  *time.Time `json:"failing_since"`
}

func showWebhook(v fleet.View, w fleet.Webhook) webhookJSON {
	d := w.Delivery
	out := webhookJSON{
		ID: w.ID, Name: w.Name, Format: w.Format, Address: w.Address(), HasBearerToken: w.BearerToken != "", Signed: w.SigningSecret != "",
		Enabled: w.Enabled, Kinds: []string{}, CreatedAt: w.CreatedAt, CreatedBy: w.CreatedBy,
		Delivery: deliveryJSON{
			Waiting: v.Waiting(w.ID), Attempts: d.Attempts, Delivered: d.Delivered, GivenUp: d.GivenUp, Dropped: d.Dropped, LastError: d.LastError,
			LastAttemptAt: d.LastAttemptAt, LastSuccessAt: d.LastSuccessAt, FailingSince: d.FailingSince,
		},
	}
	out.Kinds = append(out.Kinds, w.Kinds...)
	if d.LastStatus != 0 {
		out.Delivery.LastStatus = &d.LastStatus
	}
	return out
}

func (u *ui) listWebhooks(w http.ResponseWriter, _ *http.Request) error {
	v, all := u.View(), []webhookJSON{}
	for _, hook := range v.Webhooks() {
		all = append(all, showWebhook(v, hook))
	}
	return ok(w, map[string]any{"webhooks": all})
}

// webhookSettings are what people set of a webhook. What is left out stays as it
// is; "" takes a token or a secret away.
type webhookSettings struct {
	Name          *string              `json:"name"`
	Format        *fleet.WebhookFormat `json:"format"`
	URL           *string              `json:"url"`
	BearerToken   *string              `json:"bearer_token"`
	SigningSecret *string              `json:"signing_secret"`
	Enabled       *bool                `json:"enabled"`
	Kinds         *[]string            `json:"kinds"`
}

// checkAddress refuses a URL that no request can be made to. Errors of net/url
// repeat it, so they are not told.
func checkAddress(text *string) error {
	if text == nil {
		return nil
	}
	a, err := url.Parse(*text)
	if err != nil || a.Hostname() == "" {
		return badRequest("url: this is not an address; give one such as https://hooks.example/path")
	}
	if a.User != nil {
		return badRequest("url: it holds a user name or a password; give a bearer_token instead")
	}
	if port := a.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return badRequest("url: its port is not from 1 to 65535")
		}
	}
	return nil
}

func orZero[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func (u *ui) createWebhook(w http.ResponseWriter, r *http.Request) error {
	enabled := true
	in := webhookSettings{Enabled: &enabled}
	if err := decode(w, r, &in); err != nil {
		return err
	}
	if err := checkAddress(in.URL); err != nil {
		return err
	}
	id := uuid.NewString()
	err := u.propose(r, fleet.WebhookCreated{Webhook: fleet.Webhook{
		ID: id, Name: orZero(in.Name), Format: orZero(in.Format), URL: orZero(in.URL), BearerToken: orZero(in.BearerToken),
		SigningSecret: orZero(in.SigningSecret), Enabled: orZero(in.Enabled), Kinds: orZero(in.Kinds),
	}})
	if err != nil {
		return err
	}
	return u.answerWebhook(w, id)
}

func (u *ui) changeWebhook(w http.ResponseWriter, r *http.Request) error {
	var in webhookSettings
	if err := decode(w, r, &in); err != nil {
		return err
	}
	if err := checkAddress(in.URL); err != nil {
		return err
	}
	id := chi.URLParam(r, "id")
	err := u.propose(r, fleet.WebhookChanged{
		WebhookID: id, Name: in.Name, Format: in.Format, URL: in.URL, BearerToken: in.BearerToken, SigningSecret: in.SigningSecret,
		Enabled: in.Enabled, Kinds: in.Kinds,
	})
	if err != nil {
		return err
	}
	return u.answerWebhook(w, id)
}

// answerWebhook answers with a webhook as it is now.
func (u *ui) answerWebhook(w http.ResponseWriter, id string) error {
	v := u.View()
	hook, exists := v.Webhook(id)
	if !exists { // deleted meanwhile
		return noWebhook(id)
	}
	return ok(w, showWebhook(v, hook))
}

func noWebhook(id string) error {
	return refuse(fleet.CodeWebhookNotFound, "no webhook has the id "+quoted(id)+"; the page of webhooks lists them")
}

func (u *ui) deleteWebhook(w http.ResponseWriter, r *http.Request) error {
	if err := noBody(w, r); err != nil {
		return err
	}
	if err := u.propose(r, fleet.WebhookDeleted{WebhookID: chi.URLParam(r, "id")}); err != nil {
		return err
	}
	return done(w)
}

// webhookTestJSON is how a test went that the receiver took.
type webhookTestJSON struct {
	Name    string `json:"name"`
	Status  int    `json:"status"`
	Message string `json:"message"`
}

// testWebhook sends a test from this server. Who asked for it is in the audit
// before it is sent.
func (u *ui) testWebhook(w http.ResponseWriter, r *http.Request) error {
	if err := noBody(w, r); err != nil {
		return err
	}
	hook, exists := u.View().Webhook(chi.URLParam(r, "id"))
	if !exists {
		return noWebhook(chi.URLParam(r, "id"))
	}
	if !u.tests.take() {
		return refuse(codeBusy, fmt.Sprintf("%d tests of webhooks are under way on this server; wait until one has ended", maxTests))
	}
	defer u.tests.give()
	if err := u.propose(r, fleet.WebhookTested{WebhookID: hook.ID}); err != nil {
		return err
	}
	status, err := u.Webhooks.Test(r.Context(), hook)
	if err != nil {
		return refuse(codeReceiverFailed, "The test was not taken: "+err.Error()+".")
	}
	return ok(w, webhookTestJSON{Name: hook.Name, Status: status, Message: fmt.Sprintf("The receiver took it (status %d). Look there whether it arrived.", status)})
}
