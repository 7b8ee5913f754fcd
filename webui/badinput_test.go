package webui

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/chromedp"

	"moult/consensus/fleet"
	"moult/webui/browsertest"
)

// Names are made of a few characters, so that no script, path or escape is in one.
func TestScriptIsNoName(t *testing.T) {
	w := StartWorld(t)
	id := w.MustEnrol("a", "1.0.0", true)
	quotedEvil := strings.ReplaceAll(evil, `"`, `\"`)
	index := w.state.View().Audit(0, 1)[0].Index
	for call, field := range map[string]string{
		`POST /api/users {"name":"` + quotedEvil + `","role":"viewer","password":"long enough"}`:           "name",
		`POST /api/users {"name":"bob","role":"` + quotedEvil + `","password":"long enough"}`:              "role",
		`POST /api/tokens {"name":"` + quotedEvil + `","role":"viewer"}`:                                   "name",
		`POST /api/tokens {"name":"ci","role":"viewer","ttl":"` + quotedEvil + `"}`:                        "ttl",
		`POST /api/join-tokens {"segment":"` + quotedEvil + `"}`:                                           "segment",
		`POST /api/join-tokens {"role":"` + quotedEvil + `"}`:                                              "role",
		`POST /api/join-tokens {"arch":"` + quotedEvil + `"}`:                                              "arch",
		`POST /api/webhooks {"name":"` + quotedEvil + `","format":"json","url":"https://hooks.example/x"}`: "name",
		`POST /api/webhooks {"name":"x","format":"json","url":"` + quotedEvil + `"}`:                       "url",
		`PUT /api/hosts/` + id + `/labels {"labels":{"` + quotedEvil + `":"x"}}`:                           "labels",
		`PUT /api/hosts/` + id + `/labels {"labels":{"x":"` + quotedEvil + `"}}`:                           "labels",
	} {
		method, rest, _ := strings.Cut(call, " ")
		where, body, _ := strings.Cut(rest, " ")
		a := w.Admin(method, where, body)
		if msg := a.Refused(http.StatusBadRequest, "bad_request"); !strings.Contains(msg, field) {
			t.Errorf("%s: %s", call, msg)
		}
		if strings.Contains(a.Body.String(), "<script>") {
			t.Errorf("%s: the answer holds markup: %s", call, a.Body)
		}
	}
	manifest, signature, artifact := w.store.makeRelease(t, evil, 2)
	if msg := w.Upload(part{"manifest", manifest}, part{"signature", signature}, part{"artifact", artifact}).Refused(http.StatusBadRequest, "bad_request"); !strings.Contains(msg, "version") {
		t.Errorf("a release: %s", msg)
	}
	w.Admin("POST", "/api/hosts/"+id+"/update", `{"target_version":"`+quotedEvil+`"}`).Refused(http.StatusNotFound, "release_not_found")
	w.Admin("POST", "/api/fleet/update", `{"target_version":"`+quotedEvil+`"}`).Refused(http.StatusNotFound, "release_not_found")
	if now := w.state.View().Audit(0, 1)[0].Index; now != index {
		t.Errorf("a refused change was made: %+v", w.state.View().Audit(0, 1))
	}

	// Hosts name themselves when they join.
	hash := hashSecret("join evil")
	w.MustPropose("system", fleet.JoinTokenCreated{Token: fleet.JoinToken{ID: "j9", Hash: hash, Role: fleet.RoleAgent, ExpiresAt: w.clock.Now().Add(1e9)}})
	host := fleet.Host{ID: "h9", Name: evil, OS: "linux", Arch: "amd64", PublicKey: make([]byte, 32)}
	var refused *fleet.Error
	if _, err := w.log.Propose(t.Context(), "host:x", fleet.HostEnrolled{TokenHash: hash, Host: host}); !errors.As(err, &refused) || refused.Code != "bad_request" {
		t.Errorf("a host is called %q: %v", evil, err)
	}
}

func TestAbsurdNumbersAreRefusedByName(t *testing.T) {
	f := StartFurnished(t)
	for path, names := range map[string]string{
		"/": "page", "/alerts": "page", "/settings/fleet-update?id=fu-1": "page", "/audit": "before",
		"/api/hosts": "offset limit", "/api/audit": "before limit", "/api/jobs/" + f.job + "/log": "after",
	} {
		for name := range strings.SplitSeq(names, " ") {
			for _, value := range []string{"-1", "1e9", "99999999999999999999", "NaN", "0x10", "1.5", "<script>alert(1)</script>"} {
				sep := "?"
				if strings.Contains(path, "?") {
					sep = "&"
				}
				a := f.Admin("GET", path+sep+name+"="+url.QueryEscape(value), "")
				if a.Code != http.StatusBadRequest || !strings.Contains(a.Body.String(), name+": ") || strings.Contains(a.Body.String(), "<script>alert") {
					t.Errorf("%s with %s=%s: %d %s", path, name, value, a.Code, a.Body)
				}
			}
			if last := f.Admin("GET", strings.Split(path, "?")[0]+"?page=1000000", ""); name == "page" && last.Code != http.StatusOK {
				t.Errorf("%s: a page behind the end is %d", path, last.Code)
			}
		}
	}
}

func TestLoginFormIsBounded(t *testing.T) {
	w := StartWorld(t)
	index := w.state.View().Index()
	for _, form := range []string{"username=admin&password=" + strings.Repeat("x", maxLoginForm), "username=%zz&password=" + adminPassword} {
		r := httptest.NewRequest("POST", "/login", strings.NewReader(form))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if a := w.Do(r); a.Code != http.StatusBadRequest && a.Code != http.StatusRequestEntityTooLarge || len(a.Result().Cookies()) != 0 {
			t.Errorf("%d %v", a.Code, a.Result().Cookies())
		}
	}
	if w.state.View().Index() != index {
		t.Error("somebody was signed in")
	}
}

// Of those who start at once, one wins, and the others are told who that was.
func TestOfAdminsWhoStartAtOnceOneWins(t *testing.T) {
	w := StartWorld(t)
	w.MustEnrol("a", "1.0.0", true)
	w.MustRelease("2.0.0", 2)
	const admins = 8
	for i := range admins {
		w.MustPropose("system", fleet.APITokenCreated{Token: fleet.APIToken{ID: fmt.Sprint("a", i), Name: fmt.Sprint("admin-", i), Role: fleet.Admin, Hash: hashSecret(fmt.Sprint("moult_admin_", i))}})
	}
	answers := make([]answer, admins)
	begin := make(chan struct{})
	var all sync.WaitGroup
	for i := range admins {
		all.Go(func() {
			<-begin
			answers[i] = w.Call(fmt.Sprint("moult_admin_", i), "POST", "/api/fleet/update", "")
		})
	}
	close(begin)
	all.Wait()
	updates := w.state.View().FleetUpdates()
	if len(updates) != 1 {
		t.Fatalf("%d fleet updates", len(updates))
	}
	won := 0
	for i, a := range answers {
		if a.Code == http.StatusOK {
			won++
			if me := fmt.Sprint("token:admin-", i); updates[0].StartedBy != me {
				t.Errorf("%s was told that it won, and %s did", me, updates[0].StartedBy)
			}
		} else if msg := a.Refused(http.StatusConflict, "fleet_update_running"); !strings.Contains(msg, updates[0].StartedBy) {
			t.Errorf("who won? %s", msg)
		}
	}
	if won != 1 {
		t.Errorf("%d won", won)
	}
}

// clickTwice presses a button twice before anything can happen in between.
func clickTwice(id string) browsertest.Step {
	return browsertest.Script(fmt.Sprintf("(b => { b.click(); b.click() })(document.getElementById(%q))", id))
}

func (w *world) count(action string) (n int) {
	for _, e := range w.state.View().Audit(0, 1000) {
		if e.Action == action {
			n++
		}
	}
	return n
}

func TestDoubleClicksStartAndCancelOnce(t *testing.T) {
	w := StartWorld(t)
	w.MustEnrol("a", "1.0.0", true)
	w.MustRelease("2.0.0", 2)
	var mu sync.Mutex
	calls := map[string]int{} // by the last part of the path
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			mu.Lock()
			calls[path.Base(r.URL.Path)]++
			mu.Unlock()
		}
		w.handler.ServeHTTP(rw, r)
	}))
	t.Cleanup(srv.Close)
	b := browsertest.Start(t)
	MustSignIn(b, srv, fleetPath)
	b.Do(chromedp.SendKeys(chromedp.ID("expect"), "1"), clickTwice("start"))
	b.AwaitText("Fleet update to 2.0.0 running")
	b.Do(clickTwice("cancel"), confirm())
	b.AwaitText("cancelled")
	mu.Lock()
	if calls["update"] != 1 || calls["cancel"] != 1 {
		t.Errorf("sent %v", calls)
	}
	mu.Unlock()
	if started, cancelled := w.count("fleet_update_started"), w.count("fleet_update_cancelled"); started != 1 || cancelled != 1 {
		t.Errorf("started %d times, cancelled %d times", started, cancelled)
	}
	// Another page may still show the button.
	id := w.state.View().FleetUpdates()[0].ID
	w.Admin("POST", "/api/fleet-updates/"+id+"/cancel", "").Refused(http.StatusConflict, "not_running")
}

// A page that has not heard yet lets its reader press, and shows beside the button
// who was faster.
func TestSlowerAdminIsToldWhoStarted(t *testing.T) {
	w := StartWorld(t)
	id := w.MustEnrol("a", "1.0.0", true)
	w.MustRelease("2.0.0", 2)
	srv := w.MustServe("server-9")
	b := browsertest.Start(t)
	MustSignIn(b, srv, fleetPath)
	b.Do(chromedp.SendKeys(chromedp.ID("expect"), "1"))
	// What it asked for before is dropped, too.
	b.Text(`(() => { htmx.trigger = () => {}; addEventListener("htmx:beforeSwap", (e) => e.preventDefault()); return "deaf" })()`)
	w.MustPropose("user:bob", fleet.FleetUpdateStarted{ID: "theirs", TargetVersion: "2.0.0", HostIDs: []string{id}})
	b.Do(browsertest.Click(chromedp.ID("start")))
	b.AwaitText("a fleet update to 2.0.0 is running, started by user:bob")
	if where := b.Text(`document.querySelector("#start-form [data-note]")?.getAttribute("role")`); where != "alert" {
		t.Errorf("it is not told beside the button: %s", where)
	}
	if n := len(w.state.View().FleetUpdates()); n != 1 {
		t.Errorf("%d fleet updates", n)
	}
}

// What is refused is shown as it was typed, and does nothing.
func TestScriptInAFormIsShownAndInert(t *testing.T) {
	w := StartWorld(t)
	srv := w.MustServe("server-9")
	b := browsertest.Start(t)
	MustSignIn(b, srv, "/settings/users")
	typed := `<img src=x onerror="window.hit=1">`
	b.Do(chromedp.SendKeys(chromedp.CSS("#add-user [name=name]"), typed), chromedp.SendKeys(chromedp.CSS("#add-user [name=password]"), "long enough"),
		browsertest.Click(chromedp.CSS("#add-user button")))
	b.AwaitText(`name "<img src=x onerror=\"window.hit=1\">": give 1 to 64 of a-z A-Z 0-9 . _ -`)
	if hit := b.Text("window.hit"); hit != "undefined" {
		t.Error("it was run")
	}
	if kept := b.Text(`document.querySelector("#add-user [name=name]").value`); kept != typed {
		t.Errorf("what was typed is %q now", kept)
	}
}
