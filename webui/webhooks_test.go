package webui

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"moult/consensus/fleet"
	"moult/webui/browsertest"
)

const hookBody = `{"name":"pager","format":"json","url":"https://hooks.example:8443/P4TH/S3CRET?key=K3Y","bearer_token":"B34RER","signing_secret":"S1GNING-OF-16-OR-MORE","kinds":["update_failed"]}`

// hookSecrets are the parts of hookBody that nobody is shown.
var hookSecrets = []string{"P4TH", "S3CRET", "K3Y", "B34RER", "S1GNING"}

func (a answer) tellsNoSecret(what string) {
	a.tb.Helper()
	for _, secret := range hookSecrets {
		if strings.Contains(a.Body.String(), secret) {
			a.tb.Errorf("%s tells %s: %s", what, secret, a.Body)
		}
	}
}

// MustWebhook adds the webhook of hookBody and returns its id.
func (w *world) MustWebhook() string {
	w.tb.Helper()
	return w.Admin("POST", "/api/webhooks", hookBody).OK()["id"].(string)
}

func TestWebhookIsSetChangedAndDeleted(t *testing.T) {
	w := StartWorld(t)
	id := w.MustWebhook()
	path := "/api/webhooks/" + id
	hook := func() fleet.Webhook { h, _ := w.state.View().Webhook(id); return h }
	if h := hook(); h.URL != "https://hooks.example:8443/P4TH/S3CRET?key=K3Y" || h.BearerToken != "B34RER" || h.SigningSecret != "S1GNING-OF-16-OR-MORE" || !h.Enabled || h.CreatedBy != "token:bootstrap" {
		t.Errorf("%+v", h)
	}
	w.Admin("POST", "/api/webhooks", hookBody).Refused(409, "webhook_exists")
	got := w.Admin("PUT", path, `{"name":"night pager","enabled":false}`)
	if msg := got.Refused(400, "bad_request"); !strings.HasPrefix(msg, "name") {
		t.Error(msg)
	}
	every, err := json.Marshal(map[string]any{"kinds": fleet.AlertKinds})
	if err != nil || len(fleet.AlertKinds) < 5 {
		t.Fatal(err, fleet.AlertKinds)
	}
	if got, _ := w.Admin("PUT", path, string(every)).OK()["kinds"].([]any); len(got) != len(fleet.AlertKinds) {
		t.Errorf("of all kinds it keeps %v", got)
	}
	out := w.Admin("PUT", path, `{"name":"night-pager","enabled":false,"kinds":[]}`).OK()
	if h := hook(); h.Name != "night-pager" || h.Enabled || len(h.Kinds) != 0 || h.BearerToken != "B34RER" || h.URL == "" {
		t.Errorf("%+v", h)
	}
	if out["address"] != "https://hooks.example:8443" || out["has_bearer_token"] != true || out["signed"] != true || out["enabled"] != false {
		t.Errorf("%v", out)
	}
	// The token does not go to another receiver unless it is given again.
	if msg := w.Admin("PUT", path, `{"url":"https://evil.example/"}`).Refused(400, "bad_request"); !strings.HasPrefix(msg, "bearer_token") {
		t.Error(msg)
	}
	w.Admin("PUT", path, `{"url":"https://other.example/","bearer_token":"","signing_secret":""}`).OK()
	if h := hook(); h.BearerToken != "" || h.SigningSecret != "" || h.Address() != "https://other.example" {
		t.Errorf("%+v", h)
	}
	w.Admin("DELETE", path, "").OK()
	for _, method := range []string{"PUT", "DELETE"} {
		body := ""
		if method == "PUT" {
			body = `{"name":"x"}`
		}
		w.Admin(method, path, body).Refused(404, "webhook_not_found")
	}
	w.Admin("POST", path+"/test", "").Refused(404, "webhook_not_found")
	if all := w.Admin("GET", "/api/webhooks", "").OK()["webhooks"].([]any); len(all) != 0 {
		t.Errorf("%v", all)
	}
}

func TestBadWebhooksAreRefusedByField(t *testing.T) {
	w := StartWorld(t)
	id := w.MustWebhook()
	before := w.state.View().Webhooks()[0]
	for _, c := range []struct{ body, field string }{
		{`{"format":"json","url":"https://h/"}`, "name"},
		{`{"name":"` + strings.Repeat("a", 65) + `","format":"json","url":"https://h/"}`, "name"},
		{`{"name":"a","url":"https://h/"}`, "format"},
		{`{"name":"a","format":"xml","url":"https://h/"}`, "format"},
		{`{"name":"a","format":"json"}`, "url"},
		{`{"name":"a","format":"json","url":"S3CRET"}`, "url"},
		{`{"name":"a","format":"json","url":"file:///etc/S3CRET"}`, "url"},
		{`{"name":"a","format":"json","url":"ftp://h/S3CRET"}`, "url"},
		{`{"name":"a","format":"json","url":"https://u:S3CRET@h/"}`, "url"},
		{`{"name":"a","format":"json","url":"https://h:99999/S3CRET"}`, "url"},
		{`{"name":"a","format":"json","url":"https://h:x/S3CRET"}`, "url"},
		{`{"name":"a","format":"json","url":"https://h/%zzS3CRET"}`, "url"},
		{`{"name":"a","format":"json","url":"https:///S3CRET"}`, "url"},
		{`{"name":"a","format":"json","url":"https://h/","bearer_token":"B34RER\nX: y"}`, "bearer_token"},
		{`{"name":"a","format":"json","url":"https://h/","signing_secret":"S1GNING"}`, "signing_secret"},
		{`{"name":"a","format":"json","url":"https://h/","kinds":["moon"]}`, "kinds"},
		{`{"name":"a","format":"json","url":"https://h/","kinds":["host_silent","host_silent"]}`, "kinds"},
		{`{"name":"a","format":"json","url":"https://h/","kinds":"all"}`, "kinds"},
		{`{"name":"a","format":"json","url":"https://h/","enabled":"yes"}`, "enabled"},
		{`{"name":"a","format":"json","url":"https://h/","secret":"S3CRET"}`, "unknown field"},
		{`{"name":`, "body"},
	} {
		a := w.Admin("POST", "/api/webhooks", c.body)
		if msg := a.Refused(400, "bad_request"); !strings.HasPrefix(msg, c.field) {
			t.Errorf("%s: %s", c.body, msg)
		}
		a.tellsNoSecret(c.body)
	}
	if msg := w.Admin("PUT", "/api/webhooks/"+id, `{}`).Refused(400, "bad_request"); !strings.Contains(msg, "nothing would change") {
		t.Error(msg)
	}
	w.Admin("PUT", "/api/webhooks/"+id, `{"url":"https://h:x/S3CRET"}`).Refused(400, "bad_request")
	if after := w.state.View().Webhooks(); len(after) != 1 || fmt.Sprint(after[0]) != fmt.Sprint(before) {
		t.Errorf("a refused request changed %+v to %+v", before, after)
	}
	w.Admin("POST", "/api/webhooks", strings.Repeat(" ", maxJSONBody+1)).Refused(413, "too_large")
}

// Nobody is shown the secrets, in no answer, whatever the receiver says of them.
func TestWebhookSecretsAreWrittenAndNeverRead(t *testing.T) {
	w := StartWorld(t)
	created := w.Admin("POST", "/api/webhooks", hookBody)
	created.tellsNoSecret("the answer to its making")
	path := "/api/webhooks/" + created.OK()["id"].(string)
	w.Admin("PUT", path, `{"name":"other"}`).tellsNoSecret("the answer to a change")
	w.Admin("POST", path+"/test", "").tellsNoSecret("a test")
	for _, where := range []string{"/api/webhooks", "/settings/webhooks", "/api/audit", "/audit", "/api/audit/export?format=csv", "/metrics"} {
		a := w.Admin("GET", where, "")
		if a.Code != 200 {
			t.Errorf("%s: %d", where, a.Code)
		}
		a.tellsNoSecret(where)
	}
	w.Admin("GET", "/settings/webhooks", "").Shows("other", "JSON at hooks.example:8443 over https, with a bearer token, signed")
	w.Admin("GET", "/audit", "").Shows("webhook pager", "json to hooks.example:8443 over https, of update_failed")
}

func TestTestIsAuditedAndTellsWhatTheReceiverSaid(t *testing.T) {
	w := StartWorld(t)
	path := "/api/webhooks/" + w.MustWebhook() + "/test"
	if out := w.Admin("POST", path, "").OK(); out["status"] != 200.0 || out["name"] != "pager" {
		t.Errorf("%v", out)
	}
	if e := w.state.View().Audit(0, 1)[0]; e.Action != "webhook_tested" || e.Actor != "token:bootstrap" || e.Subject != "webhook pager" {
		t.Errorf("%+v", e)
	}
	w.tester.status, w.tester.err = 404, errors.New("the receiver answered 404; check the whole url")
	if msg := w.Admin("POST", path, "").Refused(http.StatusBadGateway, "receiver_failed"); !strings.Contains(msg, "answered 404") {
		t.Error(msg)
	}
	w.Admin("POST", path, `{"url":"https://elsewhere/"}`).Refused(400, "bad_request")
	// What is not in the audit is not sent.
	calls := w.tester.calls.Load()
	w.log.fail = errNoLeaderInTest
	w.Admin("POST", path, "").Refused(503, "unavailable")
	if got := w.tester.calls.Load(); got != calls {
		t.Errorf("%d tests were sent that the audit does not have", got-calls)
	}
}

func TestTestsUnderWayAreLimited(t *testing.T) {
	w := StartWorld(t)
	path := "/api/webhooks/" + w.MustWebhook() + "/test"
	w.tester.wait = make(chan struct{})
	ended := make(chan int, maxTests)
	for range maxTests {
		go func() { ended <- w.Admin("POST", path, "").Code }()
	}
	for w.tester.calls.Load() < maxTests {
		if t.Context().Err() != nil {
			t.Fatal("the tests did not begin")
		}
	}
	w.Admin("POST", path, "").Refused(503, "busy")
	close(w.tester.wait)
	for range maxTests {
		if code := <-ended; code != 200 {
			t.Errorf("answered %d", code)
		}
	}
	w.Admin("POST", path, "").OK()
}

func TestWebhooksPageTellsHowEachFares(t *testing.T) {
	w := StartWorld(t)
	w.Admin("GET", "/settings/webhooks", "").Shows("There is none: alerts show on the page of alerts", "Add a webhook")
	id := w.MustWebhook()
	page := func() answer { return w.Fragment(adminToken, "/settings/webhooks") }
	page().Shows("pager not used yet", "Told of update failed", "Last taken never", "0 delivered, 0 waiting")
	host := w.MustEnrol("a", "1.0.0", true)
	w.MustRelease("2.0.0", 2)
	w.MustPropose("user:admin", fleet.JobCreated{JobID: "j", HostID: host, TargetVersion: "2.0.0"})
	w.MustPropose("coordinator", fleet.JobFinished{JobID: "j", Status: fleet.JobFailed, Error: "x"})
	page().Shows("pager delivering", "0 delivered, 1 waiting")
	attempt := func(end fleet.AlertNotified) {
		h, _ := w.state.View().Webhook(id)
		n, _ := w.state.View().NextNotification(id)
		w.MustPropose("notifier", fleet.AlertNotifying{WebhookID: id, Seq: n.Seq, Revision: h.Delivery.Revision})
		h, _ = w.state.View().Webhook(id)
		end.WebhookID, end.Sending = id, h.Delivery.Sending
		w.MustPropose("notifier", end)
	}
	attempt(fleet.AlertNotified{Status: 500, Error: "the receiver answered 500"})
	page().Shows("pager failing", "Failing since", "the receiver answered 500. 1 attempt so far.", "0 delivered, 1 waiting")
	out := w.Admin("GET", "/api/webhooks", "").OK()["webhooks"].([]any)[0].(map[string]any)["delivery"].(map[string]any)
	if out["last_status"] != 500.0 || out["failing_since"] == nil || out["attempts"] != 1.0 || out["waiting"] != 1.0 {
		t.Errorf("%v", out)
	}
	attempt(fleet.AlertNotified{Status: 200})
	page().Shows("pager healthy", "1 delivered, 0 waiting")
	w.Admin("PUT", "/api/webhooks/"+id, `{"enabled":false}`).OK()
	page().Shows("pager disabled", "Enable")
}

// TestAdminConnectsAWebhookInABrowser adds one, tries it with and without luck,
// narrows it down, disables and deletes it.
func TestAdminConnectsAWebhookInABrowser(t *testing.T) {
	w := StartWorld(t)
	srv := w.MustServe("server-2")
	b := browsertest.Start(t)
	MustSignIn(b, srv, "/settings/webhooks")
	b.AwaitText("There is none")
	b.Do(chromedp.SendKeys(chromedp.CSS("#add-webhook [name=name]"), "pager"), chromedp.SendKeys(chromedp.CSS("#add-webhook [name=url]"), "https://u:p@hooks.example/S3CRET"),
		chromedp.SetValue(chromedp.CSS("#add-webhook [name=format]"), "slack"), browsertest.Click(chromedp.CSS("#add-webhook button")))
	b.AwaitText("url: it holds a user name or a password; give a bearer_token instead")
	b.Do(chromedp.Evaluate[chromedp.Void](`document.querySelector("#add-webhook [name=url]").value = ""`),
		chromedp.SendKeys(chromedp.CSS("#add-webhook [name=url]"), "https://hooks.example/S3CRET"), chromedp.SendKeys(chromedp.CSS("#add-webhook [name=bearer_token]"), "B34RER"),
		chromedp.Evaluate[chromedp.Void](`for (let i = 0; i < 2; i++) document.querySelector("#add-webhook button").click()`))
	b.AwaitText("Slack at hooks.example over https, with a bearer token")
	b.AwaitText("all alerts")
	if all := w.state.View().Webhooks(); len(all) != 1 || all[0].CreatedBy != "user:admin" || len(all[0].Kinds) != 0 {
		t.Fatalf("%+v", all)
	}
	hook := w.state.View().Webhooks()[0]
	card := "#webhook-" + hook.ID
	test := card + " [data-call$='/test']"
	b.Do(browsertest.Click(chromedp.CSS(test)))
	b.AwaitText("pager: The receiver took it (status 200)")
	b.Screenshot("webhooks-tested")
	w.tester.status, w.tester.err = 404, errors.New("the receiver answered 404; check the whole url")
	b.Do(browsertest.Click(chromedp.CSS(test)))
	b.AwaitText("The test was not taken: the receiver answered 404; check the whole url.")
	b.AwaitNoText("The receiver took it")
	b.CheckAccessibility("webhooks, a test failed")
	b.Screenshot("webhooks-test-failed")

	b.Do(browsertest.Click(chromedp.CSS(card+" summary")), browsertest.Click(chromedp.CSS(card+" [value=fleet_update_halted]")))
	other := "night-pager"
	w.MustPropose("user:bob", fleet.WebhookChanged{WebhookID: hook.ID, Name: &other})
	b.AwaitText(other) // and what was ticked meanwhile stays so
	b.Do(browsertest.Click(chromedp.CSS(card + " form button")))
	b.AwaitText("Told of fleet update halted")
	b.CheckAccessibility("webhooks, open")
	b.Screenshot("webhooks-open")
	b.Do(browsertest.Click(chromedp.CSS(card+` [data-body='{"bearer_token":""}']`)), confirm())
	b.AwaitNoText("with a bearer token")
	b.Do(browsertest.Click(chromedp.CSS(card + ` [data-body='{"enabled":false}']`)))
	b.AwaitText("disabled")
	if h, _ := w.state.View().Webhook(hook.ID); h.Enabled || h.BearerToken != "" || h.URL != "https://hooks.example/S3CRET" || fmt.Sprint(h.Kinds) != "[fleet_update_halted]" {
		t.Errorf("%+v", h)
	}
	b.Do(browsertest.Click(chromedp.CSS(card+" .danger")), confirm())
	b.AwaitText("There is none")
}
