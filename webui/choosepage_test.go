package webui

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"moult/consensus/fleet"
	"moult/webui/browsertest"
)

// MustPending makes a user whose password an admin set, and signs it in.
func (w *world) MustPending(name, password string) *http.Cookie {
	w.tb.Helper()
	user := w.Admin("POST", "/api/users", `{"name":"`+name+`","role":"viewer","password":"`+password+`","must_change_password":true}`).OK()
	if user["must_change_password"] != true {
		w.tb.Fatalf("%v", user)
	}
	a := w.SignIn(name, password, "/alerts")
	if a.Code != http.StatusSeeOther || a.Header().Get("Location") != "/choose-password?next=%2Falerts" {
		w.tb.Fatalf("sign in: %d %v", a.Code, a.Header())
	}
	return a.Result().Cookies()[0]
}

// choose posts the form of the page.
func (w *world) choose(session *http.Cookie, current, chosen, repeated string) answer {
	form := url.Values{"current_password": {current}, "new_password": {chosen}, "repeated": {repeated}, "next": {"/alerts"}}
	r := httptest.NewRequest("POST", choosePath, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.AddCookie(session)
	return w.Do(r)
}

func TestFirstPasswordIsChangedAtFirstUse(t *testing.T) {
	w := StartWorld(t)
	const given, own = "given by an admin", "chosen by vera"
	session := w.MustPending("vera", given)
	w.Do(withCookie("GET", "/choose-password?next=/alerts", session)).Shows("Choose a password", "The password of vera was set for you", "At least 8 characters")
	for name, c := range map[string]struct{ current, chosen, repeated, says, field string }{
		"wrong present one": {"nonsense", own, own, "This is not your password.", "current-error"},
		"the same":          {given, given, given, "It is the present one; choose another.", "new-error"},
		"short":             {given, "short", "short", "The password has 5 bytes; give 8 to 1024.", "new-error"},
		"two different":     {given, own, own + "x", "The two passwords differ.", "repeated-error"},
		"nothing":           {"", "", "", "The password has 0 bytes; give 8 to 1024.", "new-error"},
	} {
		a := w.choose(session, c.current, c.chosen, c.repeated)
		if a.Code != http.StatusBadRequest || !strings.Contains(a.Body.String(), `id="`+c.field+`"`) || !strings.Contains(textOf(a.Body.String()), c.says) {
			t.Errorf("%s: %d %s", name, a.Code, textOf(a.Body.String()))
		}
		if strings.Contains(a.Body.String(), own) {
			t.Errorf("%s: the answer holds the password", name)
		}
	}
	other := w.MustSession(t, "u1")
	a := w.choose(session, given, own, own)
	if a.Code != http.StatusSeeOther || a.Header().Get("Location") != "/alerts" {
		t.Fatalf("%d %s", a.Code, a.Body)
	}
	fresh := a.Result().Cookies()[0]
	w.Do(withCookie("GET", "/api/hosts", session)).Refused(401, "unauthenticated") // of the old password
	w.Do(withCookie("GET", "/api/hosts", fresh)).OK()
	w.Do(withCookie("GET", "/api/hosts", other)).OK()
	if page := w.Do(withCookie("GET", choosePath, fresh)); page.Code != http.StatusSeeOther || page.Header().Get("Location") != "/settings/users" {
		t.Errorf("the page when nothing is to be changed: %d %v", page.Code, page.Header())
	}
	if a := w.choose(fresh, own, "yet another one", "yet another one"); a.Code != http.StatusSeeOther || a.Header().Get("Location") != "/settings/users" {
		t.Errorf("sent twice: %d", a.Code)
	}
	if a := w.SignIn("vera", own, "/"); a.Header().Get("Location") != "/" {
		t.Errorf("the next sign-in: %d %v", a.Code, a.Header())
	}
	users := w.Admin("GET", "/api/users", "").OK()["users"]
	if got := strings.Join(column(users, "must_change_password"), " "); got != "false false" {
		t.Error(got)
	}
	// An admin who sets it anew asks for another change; a role does not.
	id := column(users, "id")[1]
	w.Admin("PATCH", "/api/users/"+id, `{"role":"operator"}`).OK()
	if a := w.SignIn("vera", own, "/"); a.Header().Get("Location") != "/" {
		t.Errorf("after a change of role: %v", a.Header())
	}
	w.Admin("PATCH", "/api/users/"+id, `{"password":"`+given+`","must_change_password":true}`).OK()
	if a := w.SignIn("vera", given, "/"); !strings.HasPrefix(a.Header().Get("Location"), choosePath) {
		t.Errorf("after a reset: %v", a.Header())
	}
	w.Admin("GET", "/settings/users", "").Shows("vera operator has to choose a password")
}

func TestChoosingKeepsToItsBounds(t *testing.T) {
	w := StartWorld(t)
	session := w.MustPending("vera", "given by an admin")
	cross := withCookie("POST", choosePath, session)
	cross.Header.Set("Sec-Fetch-Site", "cross-site")
	if a := w.Do(cross); a.Code != http.StatusForbidden {
		t.Errorf("from another site: %d", a.Code)
	}
	if a := w.Call(adminToken, "GET", choosePath, ""); a.Code != http.StatusConflict {
		t.Errorf("with a token: %d", a.Code)
	}
	if out := w.Do(withCookie("POST", "/logout", session)); out.Code != http.StatusSeeOther {
		t.Errorf("signing out: %d", out.Code)
	}
	session = w.SignIn("vera", "given by an admin", "//evil.example").Result().Cookies()[0]
	a := w.Do(withCookie("GET", "/choose-password?next=//evil.example", session))
	if strings.Contains(a.Body.String(), "evil") {
		t.Error("leads away")
	}
	if csp := a.Header().Get("Content-Security-Policy"); csp != contentSecurityPolicy {
		t.Errorf("policy %q", csp)
	}
	for range loginBurst {
		w.choose(session, "wrong", "long enough", "long enough")
	}
	if a := w.choose(session, "wrong", "long enough", "long enough"); a.Code != http.StatusTooManyRequests || a.Header().Get("Retry-After") == "" ||
		!strings.Contains(a.Body.String(), "Too many wrong passwords; wait 6 s, then try again.") {
		t.Errorf("guessing here: %d %s", a.Code, textOf(a.Body.String()))
	}
}

// TestPeopleChooseAPasswordInABrowser looks at the page in light, dark and at the
// width of a phone, and goes through it.
func TestPeopleChooseAPasswordInABrowser(t *testing.T) {
	w := StartWorld(t)
	srv := w.MustServe("server-2")
	w.MustPropose("user:admin", fleet.UserChanged{UserID: "u1", PasswordHash: mustAdminHash(t), MustChange: true})
	b := browsertest.Start(t)
	b.Do(chromedp.Navigate(srv.URL+"/alerts"), chromedp.WaitVisible(chromedp.ID("password")),
		chromedp.SendKeys(chromedp.ID("username"), "admin"), chromedp.SendKeys(chromedp.ID("password"), adminPassword),
		chromedp.Submit(chromedp.ID("password")), chromedp.WaitVisible(chromedp.ID("repeated")))
	look := func(name string) {
		t.Helper()
		for _, scheme := range []browsertest.Scheme{browsertest.Dark, browsertest.Light} {
			b.Prefer(scheme)
			b.CheckAccessibility(name + ", " + string(scheme))
			b.Screenshot(name + "-" + string(scheme))
		}
		b.Do(chromedp.EmulateViewport(390, 844))
		b.CheckAccessibility(name + ", phone")
		b.Screenshot(name + "-phone")
		if wide := b.Text("document.documentElement.scrollWidth > innerWidth"); wide != "false" {
			t.Errorf("%s scrolls sideways on a phone", name)
		}
		b.Do(chromedp.EmulateViewport(1280, 900))
	}
	look("choose-password")
	fill := func(current, chosen, repeated string) {
		b.Do(chromedp.SendKeys(chromedp.ID("current"), current), chromedp.SendKeys(chromedp.ID("new"), chosen),
			chromedp.SendKeys(chromedp.ID("repeated"), repeated), chromedp.Submit(chromedp.ID("repeated")))
	}
	fill(adminPassword, adminPassword, adminPassword)
	b.AwaitText("It is the present one; choose another.")
	look("choose-password-refused")
	fill(adminPassword, "a password of my own", "a password of my own")
	b.Do(chromedp.WaitVisible(chromedp.ID("live")))
	b.AwaitText("Nothing asks for you")
	if at := b.Text("location.pathname"); at != "/alerts" {
		t.Errorf("went on to %s", at)
	}
}

func mustAdminHash(tb testing.TB) string {
	tb.Helper()
	hash, err := adminHash()
	if err != nil {
		tb.Fatal(err)
	}
	return hash
}

// A program that makes a user, or sets a password, says whether it is for the
// first sign-in only.
func TestPasswordsThatProgramsSetStay(t *testing.T) {
	w := StartWorld(t)
	user := w.Admin("POST", "/api/users", `{"name":"ci","role":"viewer","password":"long enough"}`).OK()
	if user["must_change_password"] != false {
		t.Errorf("made: %v", user)
	}
	path := "/api/users/" + user["id"].(string)
	if got := w.Admin("PATCH", path, `{"password":"another one","must_change_password":true}`).OK(); got["must_change_password"] != true {
		t.Errorf("changed: %v", got)
	}
	if msg := w.Admin("PATCH", path, `{"role":"operator","must_change_password":true}`).Refused(http.StatusBadRequest, "bad_request"); !strings.Contains(msg, "must_change_password: ") {
		t.Error(msg)
	}
}
