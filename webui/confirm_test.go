package webui

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"moult/consensus/fleet"
	"moult/webui/browsertest"
)

// Each dangerous operation, and no other, takes the password again from a session
// that is older than it may be, and does nothing before.
func TestDangerousTakesThePasswordAgain(t *testing.T) {
	w := StartWorld(t)
	if want := []string{
		"DELETE /api/hosts/{id}", "DELETE /api/tokens/{id}", "DELETE /api/users/{id}", "GET /api/backup", "PATCH /api/users/{id}",
		"POST /api/ca/advance", "POST /api/ca/rotate", "POST /api/gossip/rotate", "POST /api/gossip/{segment}/force", "POST /api/hosts/{id}/lift-quarantine", "POST /api/join-tokens", "POST /api/release-keys", "POST /api/servers/{id}/remove", "POST /api/tokens", "POST /api/users",
	}; !slices.Equal(slices.Sorted(maps.Keys(dangerous)), want) {
		t.Errorf("dangerous are %v", slices.Sorted(maps.Keys(dangerous)))
	}
	found := walk(t, w.handler)
	for op := range dangerous {
		if !found[op] {
			t.Errorf("%s is dangerous but not served", op)
		}
	}
	old := w.MustSession(t, "u1")
	w.clock.Advance(confirmedFor - 1)
	fresh := w.MustSession(t, "u1")
	asked := func(op string, c credential) bool {
		r, end := requestFor(t, op, c)
		defer end()
		before := w.state.View().Index()
		got := w.Do(r)
		if got.Code != http.StatusForbidden || !strings.Contains(got.Body.String(), codeConfirmFirst) {
			return false
		}
		if w.state.View().Index() != before {
			t.Errorf("%s: the state has changed", op)
		}
		return true
	}
	by := func(c *http.Cookie) credential {
		return credential{"a session", fleet.Admin, func(r *http.Request) { r.AddCookie(c) }}
	}
	if asked("POST /api/users", by(old)) {
		t.Error("asked too early")
	}
	w.clock.Advance(1)
	for op := range found {
		if op == "POST /logout" || op == "POST /api/account/end-sessions" {
			continue // ends the session
		}
		if got := asked(op, by(old)); got != dangerous[op] {
			t.Errorf("%s with an old session: asked for the password: %t", op, got)
		}
		if asked(op, by(fresh)) {
			t.Errorf("%s with a fresh session: asked for the password", op)
		}
		token := credential{"token", fleet.Admin, func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+adminToken) }}
		if asked(op, token) {
			t.Errorf("%s with an API token: asked for the password", op)
		}
	}
	// Who may not do it at all hears that.
	w.MustPropose("system", fleet.UserCreated{User: fleet.User{ID: "u9", Name: "vera", Role: fleet.Viewer, PasswordHash: mustAdminHash(t)}})
	vera := w.MustSession(t, "u9")
	w.clock.Advance(confirmedFor)
	w.Do(withCookie("POST", "/api/users", vera)).Refused(403, "forbidden")
}

// confirmAs sends the password again.
func (w *world) confirmAs(session *http.Cookie, password string) answer {
	r := httptest.NewRequest("POST", "/api/account/confirm", strings.NewReader(`{"password":"`+password+`"}`))
	r.AddCookie(session)
	return w.Do(r)
}

func TestConfirming(t *testing.T) {
	w := StartWorld(t)
	old := w.MustSession(t, "u1")
	w.clock.Advance(confirmedFor)
	if msg := w.confirmAs(old, "not the password").Refused(400, "bad_request"); !strings.Contains(msg, "password: this is not your password") {
		t.Error(msg)
	}
	w.Do(withCookie("POST", "/api/users", old)).Refused(403, codeConfirmFirst)
	a := w.confirmAs(old, adminPassword)
	until, err := time.Parse(time.RFC3339Nano, a.OK()["confirmed_until"].(string))
	if err != nil || !until.Equal(w.clock.Now().Add(confirmedFor)) {
		t.Errorf("until %v, %v", until, err)
	}
	fresh := a.Result().Cookies()[0]
	if fresh.Value == old.Value || fresh.Name != sessionCookie || !fresh.HttpOnly {
		t.Errorf("%+v", fresh)
	}
	w.Do(withCookie("GET", "/api/hosts", old)).Refused(401, "unauthenticated") // it is replaced
	w.as(fresh, "POST", "/api/users", `{"name":"bob","role":"viewer","password":"long enough"}`).OK()
	w.clock.Advance(confirmedFor)
	w.as(fresh, "POST", "/api/users", `{"name":"rob","role":"viewer","password":"long enough"}`).Refused(403, codeConfirmFirst)

	// Guesses count as those at the login do.
	for range loginBurst {
		w.confirmAs(fresh, "not the password").Refused(400, "bad_request")
	}
	w.confirmAs(fresh, adminPassword).Refused(429, "too_many_attempts")
	// A program has no password.
	w.Admin("POST", "/api/account/confirm", `{"password":"x"}`).Refused(409, "no_account")
}

// mustServeSlowConfirmations holds a new session back until the page has asked for
// something with the one that it replaces, which has ended.
func (w *world) mustServeSlowConfirmations(t *testing.T) *httptest.Server {
	refused := make(chan struct{}, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		confirms, fragment := r.URL.Path == "/api/account/confirm", r.Header.Get("HX-Request") == "true"
		if !confirms && !fragment {
			w.handler.ServeHTTP(rw, r)
			return
		}
		rec := httptest.NewRecorder()
		w.handler.ServeHTTP(rec, r)
		switch {
		case fragment && rec.Code == http.StatusUnauthorized:
			select {
			case refused <- struct{}{}:
			default:
			}
		case confirms && rec.Code == http.StatusOK:
			select {
			case <-refused:
			case <-r.Context().Done():
				t.Error("the page did not wait for the answer")
			}
		}
		maps.Copy(rw.Header(), rec.Header())
		rw.WriteHeader(rec.Code)
		_, _ = rw.Write(rec.Body.Bytes())
	}))
	t.Cleanup(srv.Close)
	return srv
}

// In a browser the page asks, and then does what was wanted.
func TestPageAsksForThePasswordAgain(t *testing.T) {
	w := StartWorld(t)
	srv := w.mustServeSlowConfirmations(t)
	b := browsertest.Start(t)
	MustSignIn(b, srv, "/settings/users")
	w.clock.Advance(confirmedFor)
	password := chromedp.ID("reauth-password")
	b.Do(
		chromedp.SendKeys(chromedp.CSS("form[data-call='POST /api/users'] [name=name]"), "bob"),
		chromedp.SendKeys(chromedp.CSS("form[data-call='POST /api/users'] [name=password]"), "long enough"),
		browsertest.Click(chromedp.CSS("form[data-call='POST /api/users'] [type=submit]")),
		chromedp.WaitVisible(password),
		chromedp.SendKeys(password, "not the password\r"),
	)
	b.AwaitText("this is not your password")
	if _, ok := w.state.View().UserByName("bob"); ok {
		t.Fatal("bob was added without the password")
	}
	b.Do(chromedp.Evaluate[chromedp.Void](`document.getElementById("reauth-password").value = ""`), chromedp.SendKeys(password, adminPassword+"\r"))
	b.AwaitText("bob")
	b.Do(answered())
	b.AwaitNoText("this is not your password")
	if _, ok := w.state.View().UserByName("bob"); !ok {
		t.Error("bob is not there")
	}

	// Whoever gives none has done nothing, and can try again.
	w.clock.Advance(confirmedFor)
	b.Do(
		chromedp.SendKeys(chromedp.CSS("form[data-call='POST /api/users'] [name=name]"), "rob"),
		chromedp.SendKeys(chromedp.CSS("form[data-call='POST /api/users'] [name=password]"), "long enough"),
		browsertest.Click(chromedp.CSS("form[data-call='POST /api/users'] [type=submit]")),
		chromedp.WaitVisible(password),
		browsertest.Click(chromedp.CSS("#reauth [type=button]")),
	)
	b.AwaitText("this takes the password once more")
	if _, ok := w.state.View().UserByName("rob"); ok {
		t.Error("rob was added without the password")
	}
}
