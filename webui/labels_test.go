package webui

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"moult/webui/browsertest"
)

func TestLabelsAreSetFoundAndFiltered(t *testing.T) {
	w := StartWorld(t)
	a := w.MustEnrol("a", "1.0.0", true)
	b := w.MustEnrol("b", "1.0.0", true)
	w.MustEnrol("c", "1.0.0", true)
	got := w.Admin("PUT", "/api/hosts/"+a+"/labels", `{"labels":{"rack":"A1","tier":"web"}}`).OK()
	if labels := got["labels"].(map[string]any); !maps.Equal(labels, map[string]any{"rack": "A1", "tier": "web"}) {
		t.Errorf("%v", labels)
	}
	w.Admin("PUT", "/api/hosts/"+b+"/labels", `{"labels":{"rack":"A2","spare":""}}`).OK()
	for query, want := range map[string]string{
		"label=rack%3DA1": "a", "label=rack": "a b", "label=rack%3D": "", "label=spare%3D": "b", "label=tier%3Dweb&q=A2": "",
		"q=rack": "a b", "q=a1": "a", "q=tier%3DWEB": "a", "q=spare": "b", "label=none": "",
	} {
		if names := strings.Join(column(w.Call(viewerToken, "GET", "/api/hosts?"+query, "").OK()["hosts"], "name"), " "); names != want {
			t.Errorf("%s: %q, not %q", query, names, want)
		}
	}
	w.Admin("GET", "/?label=rack%3DA1", "").Shows("1 of 3")
	w.Admin("GET", "/hosts/"+b, "").Shows("Labels rack=A2 spare Address")
	entry := w.state.View().Audit(0, 1)[0]
	if entry.Actor != "token:bootstrap" || entry.Action != "host_labels_set" || entry.Subject != "host b" {
		t.Errorf("%+v", entry)
	}
	w.Admin("PUT", "/api/hosts/"+b+"/labels", `{"labels":{}}`).OK()
	w.Admin("GET", "/hosts/"+b, "").Shows("Labels none")
}

func TestBadLabelsAreRefused(t *testing.T) {
	w := StartWorld(t)
	id := w.MustEnrol("a", "1.0.0", true)
	w.Admin("PUT", "/api/hosts/"+id+"/labels", `{"labels":{"rack":"a"}}`).OK()
	before := w.state.View().Audit(0, 1)[0].Index
	many := `{"labels":{"k0":""`
	for i := range 32 {
		many += `,"k` + strings.Repeat("x", i+1) + `":""`
	}
	many += `}}`
	for body, field := range map[string]string{
		"": "labels: give", `{"labels":null}`: "labels: give", `{"labels":{"a b":"x"}}`: `key "a b"`, `{"labels":{"":"x"}}`: `key ""`,
		`{"labels":{"a":"<script>"}}`: "value", `{"labels":{"a":"` + strings.Repeat("x", 65) + `"}}`: "value", many: "33 entries",
		`{"labels":{"` + strings.Repeat("k", 65) + `":"x"}}`: "key", `{"labels":{"a":1}}`: "labels", `{"labels":[]}`: "labels", `{"label":{}}`: `unknown field "label"`,
	} {
		if msg := w.Admin("PUT", "/api/hosts/"+id+"/labels", body).Refused(http.StatusBadRequest, "bad_request"); !strings.Contains(msg, field) {
			t.Errorf("%s: %s", body, msg)
		}
	}
	w.Admin("PUT", "/api/hosts/gone/labels", `{"labels":{}}`).Refused(http.StatusNotFound, "host_not_found")
	w.Admin("PUT", "/api/hosts/s1/labels", `{"labels":{}}`).Refused(http.StatusNotFound, "host_not_found")
	if msg := w.Admin("PUT", "/api/hosts/"+id+"/labels", `{"labels":{"rack":"b"},"expect_labels":{}}`).Refused(http.StatusConflict, "labels_changed"); !strings.Contains(msg, "rack=a") {
		t.Error(msg)
	}
	if w.state.View().Audit(0, 1)[0].Index != before {
		t.Error("a refused change was made")
	}
	if msg := w.Admin("GET", "/api/hosts?label=%3Cscript%3E", "").Refused(http.StatusBadRequest, "bad_request"); !strings.Contains(msg, "label") {
		t.Error(msg)
	}
}

// TestLabelsAreEditedOnTheHostsPage types labels, sees a refusal beside the form,
// and is told when somebody else was faster.
func TestLabelsAreEditedOnTheHostsPage(t *testing.T) {
	w := StartWorld(t)
	id := w.MustEnrol("web-1", "1.0.0", true)
	srv := w.MustServe("server-9")
	b := browsertest.Start(t)
	MustSignIn(b, srv, "/hosts/"+id)
	typed := func(text string) {
		b.Do(chromedp.WaitVisible(chromedp.ID("label-lines")))
		b.Text(fmt.Sprintf(`document.getElementById("label-lines").value = %q`, text)) // in place of what is there
		b.Do(browsertest.Click(chromedp.CSS("#labels button")))
	}
	typed("rack=a\n\n spare \ntier = web")
	b.Do(chromedp.WaitReady(chromedp.CSS(`#labels input[value*=tier]`))) // the page is there anew
	b.AwaitText("rack=a spare tier=web")
	if h, _ := w.state.View().Host(id); !maps.Equal(h.Labels, map[string]string{"rack": "a", "spare": "", "tier": "web"}) {
		t.Errorf("%v", h.Labels)
	}
	typed("rack=<script>alert(1)</script>")
	b.AwaitText(`labels: value "<script>alert(1)</script>" of rack`)
	w.Admin("PUT", "/api/hosts/"+id+"/labels", `{"labels":{"rack":"z"}}`).OK()
	typed("rack=mine")
	b.AwaitText("were changed meanwhile to rack=z")
	if h, _ := w.state.View().Host(id); h.Labels["rack"] != "z" {
		t.Errorf("%v", h.Labels)
	}
	b.Do(chromedp.Reload())
	typed("")
	b.AwaitText("Labels none")
	if body := w.Call(operatorToken, "GET", "/hosts/"+id, "").Body.String(); strings.Contains(body, "label-lines") {
		t.Error("an operator is offered the form of an admin")
	}
}
