package webui

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// Each answer of each route, to whomever, refuses frames and guesses of its type,
// keeps to the policy, and is kept by no cache, unless it is one of the files that
// are the same for everybody.
func TestEveryAnswerIsPrivate(t *testing.T) {
	w := StartWorld(t)
	who := w.everybody(t)
	for op := range walk(t, w.handler) {
		for _, c := range who {
			r, end := requestFor(t, op, c)
			got := w.Do(r)
			end()
			h := got.Header()
			cache := "no-store"
			if strings.Contains(op, "/static/") && got.Code == http.StatusOK {
				cache = "no-cache" // kept, and asked for again each time
			}
			for name, want := range map[string]string{
				"Cache-Control": cache, "X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff",
				"Referrer-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
			} {
				if h.Get(name) != want {
					t.Errorf("%s as %s: %s: %q, not %q", op, c.name, name, h.Get(name), want)
				}
			}
			policy := h.Get("Content-Security-Policy")
			for _, part := range []string{"default-src 'none'", "script-src 'self';", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"} {
				if !strings.Contains(policy, part) {
					t.Errorf("%s as %s: the policy %q lacks %s", op, c.name, policy, part)
				}
			}
			if h.Get("Access-Control-Allow-Origin") != "" || h.Get("Strict-Transport-Security") != "" {
				t.Errorf("%s as %s: %v", op, c.name, h)
			}
		}
	}
}

// No route that changes something takes a request from another site, whatever the
// session's role, and none does anything before it has looked.
func TestNoRouteTakesWhatOtherSitesSend(t *testing.T) {
	w := StartWorld(t)
	who := w.everybody(t)
	changing := 0
	for op := range walk(t, w.handler) {
		method, _, _ := strings.Cut(op, " ")
		if method == "GET" || method == "HEAD" {
			continue
		}
		changing++
		for _, c := range who {
			if strings.HasPrefix(c.name, "token") {
				continue // no other site has it
			}
			for header, value := range map[string]string{"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"} {
				r, end := requestFor(t, op, c)
				r.Header.Set(header, value)
				before := w.state.View().Index()
				got := w.Do(r)
				end()
				refused := got.Code == http.StatusForbidden || c.role == public && (got.Code == http.StatusUnauthorized || got.Code == http.StatusSeeOther && r.URL.Path == choosePath)
				if !refused {
					t.Errorf("%s as %s by %s: %d %s", op, c.name, header, got.Code, got.Body)
				}
				if now := w.state.View().Index(); now != before {
					t.Errorf("%s as %s by %s changed the state", op, c.name, header)
				}
			}
		}
	}
	if changing < 20 {
		t.Errorf("only %d routes change something", changing)
	}
}

// overTLS is a request that came by TLS.
func overTLS(r *http.Request) *http.Request {
	r.TLS = &tls.ConnectionState{}
	return r
}

// Over TLS the session's cookie has a name that browsers take from this host alone,
// and only over TLS; a cookie of the other name counts for nothing there.
func TestCookieOverTLS(t *testing.T) {
	w := StartWorld(t)
	login := httptest.NewRequest("POST", "/login", strings.NewReader("username=admin&password="+strings.ReplaceAll(adminPassword, " ", "+")))
	login.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	a := w.Do(overTLS(login))
	if a.Code != http.StatusSeeOther || len(a.Result().Cookies()) != 1 {
		t.Fatalf("%d %s", a.Code, a.Body)
	}
	c := a.Result().Cookies()[0]
	if c.Name != "__Host-moult_session" || !c.Secure || !c.HttpOnly || c.Path != "/" || c.Domain != "" || c.SameSite != http.SameSiteLaxMode {
		t.Errorf("%+v", c)
	}
	w.Do(overTLS(withCookie("GET", "/api/hosts", c))).OK()
	w.Do(withCookie("GET", "/api/hosts", c)).Refused(401, "unauthenticated")
	put := &http.Cookie{Name: sessionCookie, Value: c.Value}
	w.Do(overTLS(withCookie("GET", "/api/hosts", put))).Refused(401, "unauthenticated")
	out := w.Do(overTLS(withCookie("POST", "/logout", c)))
	if cookies := out.Result().Cookies(); len(cookies) != 1 || cookies[0].Name != c.Name || cookies[0].MaxAge >= 0 || !cookies[0].Secure {
		t.Errorf("signing out: %v", cookies)
	}
	w.Do(overTLS(withCookie("GET", "/api/hosts", c))).Refused(401, "unauthenticated")
}

// Browsers are kept to TLS where it is asked for, and only by what came over TLS.
func TestHSTS(t *testing.T) {
	for _, tc := range []struct {
		asked, tls bool
		want       string
	}{{true, true, "max-age=2592000"}, {true, false, ""}, {false, true, ""}} {
		w := StartWorld(t)
		w.config.HSTS = tc.asked
		var err error
		if w.handler, err = New(w.config); err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest("GET", "/login", nil)
		if tc.tls {
			overTLS(r)
		}
		if got := w.Do(r).Header().Get("Strict-Transport-Security"); got != tc.want {
			t.Errorf("%+v: %q", tc, got)
		}
	}
}

// A name that nobody has costs what a wrong password costs, from the first attempt
// on: counted in computed hashes, since clocks lie.
func TestLoginCostsTheSameForUnknownNames(t *testing.T) {
	calls, real := 0, idKey
	idKey = func(password, salt []byte, time, memory uint32, threads uint8, keyLen uint32) []byte {
		calls++
		if time != argonTime || memory != argonMemory || threads != argonThreads || keyLen != argonKey {
			t.Errorf("a hash of another cost: t=%d m=%d p=%d, %d bytes", time, memory, threads, keyLen)
		}
		return real(password, salt, time, memory, threads, keyLen)
	}
	defer func() { idKey = real }()
	w := StartWorld(t)
	for _, name := range []string{"nobody", "admin", "another nobody", "", strings.Repeat("x", 300)} {
		calls = 0
		if a := w.SignIn(name, "not the password", "/"); a.Code != http.StatusUnauthorized {
			t.Errorf("%.20q: %d", name, a.Code)
		}
		if calls != 1 {
			t.Errorf("%.20q: %d hashes were computed", name, calls)
		}
	}
	if right, err := CheckPassword(unknownUserHash, ""); right || err != nil {
		t.Errorf("an unknown user's hash: %t, %v", right, err)
	}
}

// Secrets are looked up by their hashes: what is compared byte by byte tells
// nothing of a secret, and none is kept.
func TestSecretsAreKeptAsHashes(t *testing.T) {
	w := StartWorld(t)
	c := w.MustSignIn()
	made := w.Admin("POST", "/api/tokens", `{"name":"ci","role":"viewer"}`).OK()["token"].(string)
	joining := w.Admin("POST", "/api/join-tokens", `{}`).OK()["token"].(string)
	v := w.state.View()
	for name, byItself := range map[string]func() bool{
		"session":    func() bool { _, ok := v.Session(c.Value); return ok },
		"API token":  func() bool { _, ok := v.APITokenByHash(made); return ok },
		"join token": func() bool { _, ok := v.JoinTokenByHash(joining); return ok },
	} {
		if byItself() {
			t.Errorf("a %s is found by its secret", name)
		}
	}
	if _, ok := v.Session(hashSecret(c.Value)); !ok {
		t.Error("a session is not found by its hash")
	}
	if _, ok := v.APITokenByHash(hashSecret(made)); !ok {
		t.Error("an API token is not found by its hash")
	}
}

// The owner of a connection hears when it is somebody's who is known, and only then.
func TestKnownSendersAreTold(t *testing.T) {
	w := StartWorld(t)
	for token, want := range map[string]bool{viewerToken: true, "": false, "wrong": false} {
		known := false
		r := httptest.NewRequest("GET", "/api/hosts", nil)
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		w.Do(r.WithContext(WithKnown(r.Context(), func() { known = true })))
		if known != want {
			t.Errorf("token %q: known: %t", token, known)
		}
	}
}
