package webui

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"moult/consensus/fleet"
)

// SignIn posts the login form.
func (w *world) SignIn(name, password, next string) answer {
	form := url.Values{"username": {name}, "password": {password}, "next": {next}}
	r := httptest.NewRequest("POST", "/login", strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return w.Do(r)
}

// MustSignIn returns the session cookie of the admin.
func (w *world) MustSignIn() *http.Cookie {
	w.tb.Helper()
	a := w.SignIn("admin", adminPassword, "/")
	if a.Code != http.StatusSeeOther || len(a.Result().Cookies()) != 1 {
		w.tb.Fatalf("sign in: %d %s", a.Code, a.Body)
	}
	return a.Result().Cookies()[0]
}

func withCookie(method, path string, c *http.Cookie) *http.Request {
	r := httptest.NewRequest(method, path, nil)
	r.AddCookie(c)
	return r
}

func TestBrowserSignsInAndOut(t *testing.T) {
	w := StartWorld(t)
	a := w.SignIn("admin", adminPassword, "/?updates=behind")
	if a.Code != http.StatusSeeOther || a.Header().Get("Location") != "/?updates=behind" {
		t.Fatalf("%d %v", a.Code, a.Header())
	}
	c := a.Result().Cookies()[0]
	if !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Path != "/" || c.Secure {
		t.Errorf("cookie %+v", c)
	}
	if _, kept := w.state.View().Session(hashSecret(c.Value)); !kept {
		t.Error("the session is not in the replicated state")
	}
	if page := w.Do(withCookie("GET", "/", c)); page.Code != 200 || !strings.Contains(page.Body.String(), "Sign out") {
		t.Errorf("%d %s", page.Code, page.Body)
	}
	w.Do(withCookie("GET", "/api/hosts", c)).OK()
	if page := w.Do(withCookie("GET", "/login", c)); page.Code != http.StatusSeeOther {
		t.Errorf("login page when signed in: %d", page.Code)
	}
	if entry := w.state.View().Audit(0, 1)[0]; entry.Actor != "user:admin" || entry.Action != "session_created" {
		t.Errorf("audit %+v", entry)
	}
	if out := w.Do(withCookie("POST", "/logout", c)); out.Code != http.StatusSeeOther || out.Result().Cookies()[0].MaxAge >= 0 {
		t.Errorf("%d %v", out.Code, out.Result().Cookies())
	}
	w.Do(withCookie("GET", "/api/hosts", c)).Refused(401, "unauthenticated")
}

func TestSessionsEnd(t *testing.T) {
	w := StartWorld(t)
	c := w.MustSignIn()
	w.clock.Advance(sessionLifetime - 1)
	w.Do(withCookie("GET", "/api/hosts", c)).OK()
	w.clock.Advance(1)
	w.Do(withCookie("GET", "/api/hosts", c)).Refused(401, "unauthenticated")
	c = w.MustSignIn()
	w.Admin("PATCH", "/api/users/u1", `{"password":"another password"}`).OK()
	w.Do(withCookie("GET", "/api/hosts", c)).Refused(401, "unauthenticated")
	if a := w.SignIn("admin", adminPassword, "/"); a.Code != http.StatusUnauthorized {
		t.Errorf("the old password: %d", a.Code)
	}
	if a := w.SignIn("admin", "another password", "/"); a.Code != http.StatusSeeOther {
		t.Errorf("the new password: %d", a.Code)
	}
}

func TestOtherSitesCannotUseASession(t *testing.T) {
	w := StartWorld(t)
	w.MustEnrol("a", "1.0.0", true)
	w.MustRelease("2.0.0", 2)
	c := w.MustSignIn()
	for name, header := range map[string][2]string{
		"by fetch metadata": {"Sec-Fetch-Site", "cross-site"},
		"from a sibling":    {"Sec-Fetch-Site", "same-site"},
		"by origin":         {"Origin", "https://evil.example"},
		"from a sandbox":    {"Origin", "null"},
	} {
		for _, path := range []string{"/api/fleet/update", "/api/users", "/logout", "/login"} {
			r := withCookie("POST", path, c)
			r.Header.Set(header[0], header[1])
			if a := w.Do(r); a.Code != http.StatusForbidden {
				t.Errorf("%s, %s: %d %s", name, path, a.Code, a.Body)
			}
		}
	}
	if _, active := w.state.View().ActiveFleetUpdate(); active {
		t.Fatal("a fleet update was started")
	}
	// A header that is no valid token does not bring the cookie past the check.
	r := withCookie("POST", "/api/fleet/update", c)
	r.Header.Set("Sec-Fetch-Site", "cross-site")
	r.Header.Set("Authorization", "Bearer x")
	w.Do(r).Refused(401, "unauthenticated")
	// A program with a token is not a browser; our own page is the same origin.
	r = httptest.NewRequest("POST", "/api/fleet/update", nil)
	r.Header.Set("Authorization", "Bearer "+adminToken)
	r.Header.Set("Origin", "https://evil.example")
	id := w.Do(r).OK()["fleet_update_id"].(string)
	r = withCookie("POST", "/api/fleet-updates/"+id+"/cancel", c)
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	w.Do(r).OK()
}

func TestLoginIsThrottledAndRecovers(t *testing.T) {
	w := StartWorld(t)
	for i := range loginBurst {
		if a := w.SignIn("admin", "wrong password", "/"); a.Code != http.StatusUnauthorized {
			t.Fatalf("attempt %d: %d", i, a.Code)
		}
	}
	if a := w.SignIn("admin", adminPassword, "/"); a.Code != http.StatusTooManyRequests || a.Header().Get("Retry-After") == "" {
		t.Fatalf("after %d wrong ones: %d", loginBurst, a.Code)
	}
	if a := w.SignIn("nobody", "wrong password", "/"); a.Code != http.StatusTooManyRequests {
		t.Errorf("another name from the same address: %d", a.Code)
	}
	w.clock.Advance(loginRefill)
	if a := w.SignIn("admin", adminPassword, "/"); a.Code != http.StatusSeeOther {
		t.Errorf("after waiting: %d", a.Code)
	}
	for range loginBurst {
		if a := w.SignIn("admin", "wrong password", "/"); a.Code != http.StatusUnauthorized {
			t.Fatalf("a right password gives the attempts back, got %d", a.Code)
		}
	}
}

func TestThrottleIsBounded(t *testing.T) {
	clock := &clockwork{now: time.Unix(1e9, 0)}
	th, v := newThrottle(clock.Now), fleet.New().View()
	begin := func(network string) time.Duration {
		_, wait := th.begin(v, "~abc", network)
		return wait
	}
	for i := range maxThrottleKeys {
		begin(fmt.Sprint("10.0.0.", i))
	}
	if len(th.limiters) > maxThrottleKeys {
		t.Errorf("%d keys are kept", len(th.limiters))
	}
	if begin("new") == 0 {
		t.Error("beyond the bound nothing is limited")
	}
	clock.Advance(loginRefill)
	begin("new")
	if len(th.limiters) > 2 {
		t.Errorf("%d keys are kept after all have recovered", len(th.limiters))
	}
}

func TestLoginDoesNotLeadAway(t *testing.T) {
	for next, want := range map[string]string{
		"/": "/", "/?q=a": "/?q=a", "": "/", "https://evil.example": "/", "//evil.example": "/", `/\evil.example`: "/",
		"javascript:alert(1)": "/", "/\t/evil.example": "/", "evil": "/",
	} {
		if got := localPath(next); got != want {
			t.Errorf("%q leads to %q", next, got)
		}
	}
	w := StartWorld(t)
	if a := w.SignIn("admin", adminPassword, "//evil.example/"); a.Header().Get("Location") != "/" {
		t.Errorf("leads to %s", a.Header().Get("Location"))
	}
}

func TestPasswordHashes(t *testing.T) {
	hash, err := HashPassword("a good password")
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^\$argon2id\$v=19\$m=19456,t=2,p=1\$[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}$`).MatchString(hash) {
		t.Errorf("not PHC format: %s", hash)
	}
	for password, want := range map[string]bool{"a good password": true, "a good passwore": false, "": false, strings.Repeat("a", maxPasswordBytes+1): false} {
		if got, err := CheckPassword(hash, password); got != want || err != nil {
			t.Errorf("%q: %v %v", password, got, err)
		}
	}
	if again, _ := HashPassword("a good password"); again == hash {
		t.Error("there is no salt")
	}
	// From the reference implementation: echo -n password | argon2 somesalt -id -t 2 -k 65536 -p 1
	const reference = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc"
	if ok, err := CheckPassword(reference, "password"); !ok || err != nil {
		t.Errorf("reference: %v %v", ok, err)
	}
	for _, bad := range []string{"", "x", "$2a$10$abc", strings.Replace(reference, "m=65536", "m=4194304", 1), strings.Replace(reference, "p=1", "p=0", 1), strings.TrimSuffix(reference, "PPc") + "!"} {
		if ok, err := CheckPassword(bad, "password"); ok || err == nil {
			t.Errorf("%q: %v %v", bad, ok, err)
		}
	}
	for _, bad := range []string{"short", strings.Repeat("a", maxPasswordBytes+1)} {
		if _, err := HashPassword(bad); err == nil {
			t.Errorf("%d bytes are taken", len(bad))
		}
	}
}

func TestRoleOfASessionFollowsTheUser(t *testing.T) {
	w := StartWorld(t)
	hash, err := adminHash()
	if err != nil {
		t.Fatal(err)
	}
	w.MustPropose("system", fleet.UserCreated{User: fleet.User{ID: "u2", Name: "vera", Role: fleet.Viewer, PasswordHash: hash}})
	c := w.SignIn("vera", adminPassword, "/").Result().Cookies()[0]
	w.Do(withCookie("GET", "/api/hosts", c)).OK()
	w.Do(withCookie("POST", "/api/join-tokens", c)).Refused(403, "forbidden")
	w.Admin("DELETE", "/api/users/u2", "").OK()
	w.Do(withCookie("GET", "/api/hosts", c)).Refused(401, "unauthenticated")
}
