package webui

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/go-chi/chi/v5"

	"moult/consensus/fleet"
)

// roleMatrix is who may do what, written down a second time: a route that
// changes its role, or a new one, must be entered here too.
var roleMatrix = map[string]fleet.UserRole{
	"GET /api/version": public, "GET /healthz": public, "GET /readyz": public, "GET /agent/binary": public,
	"GET /choose-password": fleet.Viewer, "POST /choose-password": fleet.Viewer,
	"GET /login": public, "POST /login": public, "POST /logout": public, "GET /static/{name}": public, "GET /static/vendor/{name}": public,

	"GET /api/openapi.json": fleet.Viewer, "GET /metrics": fleet.Viewer, "GET /api/hosts": fleet.Viewer,
	"GET /api/hosts/{id}": fleet.Viewer, "GET /api/jobs/{id}": fleet.Viewer, "GET /api/jobs/{id}/log": fleet.Viewer,
	"GET /api/fleet-updates": fleet.Viewer, "GET /api/fleet-updates/{id}": fleet.Viewer, "GET /api/releases": fleet.Viewer,
	"GET /api/release-keys": fleet.Viewer, "GET /api/alerts": fleet.Viewer, "GET /api/audit": fleet.Viewer, "GET /api/audit/export": fleet.Viewer, "GET /api/users": fleet.Viewer, "GET /api/tokens": fleet.Viewer,
	"GET /api/servers": fleet.Viewer, "GET /api/events": fleet.Viewer, "GET /": fleet.Viewer,
	"GET /hosts/{id}": fleet.Viewer, "GET /jobs/{id}": fleet.Viewer, "GET /jobs/{id}/log": fleet.Viewer,
	"GET /settings/fleet-update": fleet.Viewer, "GET /releases": fleet.Viewer,
	"GET /settings/users": fleet.Viewer, "GET /settings/servers": fleet.Viewer, "GET /settings/add-host": fleet.Admin,
	"POST /api/account/password": fleet.Viewer, "POST /api/account/confirm": fleet.Viewer, "POST /api/account/end-sessions": fleet.Viewer, "GET /alerts": fleet.Viewer, "GET /audit": fleet.Viewer,

	"GET /api/denied": fleet.Viewer, "GET /api/gossip": fleet.Viewer, "POST /api/gossip/rotate": fleet.Admin, "POST /api/gossip/{segment}/force": fleet.Admin,
	"GET /api/ca": fleet.Viewer, "POST /api/ca/rotate": fleet.Admin, "POST /api/ca/advance": fleet.Admin,
	"POST /api/hosts/{id}/lift-quarantine": fleet.Admin,
	"GET /api/segments":                    fleet.Viewer, "GET /segments": fleet.Viewer, "GET /api/fleet/plan": fleet.Viewer,

	"POST /api/fleet-updates/{id}/pause": fleet.Operator, "POST /api/fleet-updates/{id}/resume": fleet.Operator,
	"POST /api/alerts/{id}/acknowledge": fleet.Operator,

	"DELETE /api/hosts/{id}": fleet.Admin, "PUT /api/hosts/{id}/labels": fleet.Admin, "POST /api/hosts/{id}/update": fleet.Admin, "POST /api/fleet/update": fleet.Admin,
	"POST /api/fleet-updates/{id}/cancel": fleet.Admin, "POST /api/fleet-updates/{id}/retry": fleet.Admin, "POST /api/releases": fleet.Admin, "POST /api/release-keys": fleet.Admin, "DELETE /api/releases/{version}": fleet.Admin, "POST /api/releases/{version}/stage": fleet.Admin,
	"POST /api/users": fleet.Admin, "PATCH /api/users/{id}": fleet.Admin, "DELETE /api/users/{id}": fleet.Admin,
	"POST /api/tokens": fleet.Admin, "DELETE /api/tokens/{id}": fleet.Admin, "POST /api/join-tokens": fleet.Admin,
	"GET /api/webhooks": fleet.Admin, "POST /api/webhooks": fleet.Admin, "PUT /api/webhooks/{id}": fleet.Admin, "DELETE /api/webhooks/{id}": fleet.Admin,
	"POST /api/webhooks/{id}/test": fleet.Admin, "GET /settings/webhooks": fleet.Admin,
	"POST /api/servers/{id}/remove": fleet.Admin, "POST /api/servers/{id}/demote": fleet.Admin, "POST /api/servers/{id}/promote": fleet.Admin, "GET /api/backup": fleet.Admin, "GET /api/servers/state": fleet.Admin, "POST /api/servers/transfer-leadership": fleet.Admin,
}

// isPage tells browsers' paths from those of programs.
func isPage(path string) bool { return !wantsJSON(httptest.NewRequest("GET", path, nil)) }

func walk(t *testing.T, h http.Handler) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	err := chi.Walk(h.(chi.Routes), func(method, pattern string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		found[method+" "+pattern] = true
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestEveryRouteIsInTheRoleMatrix(t *testing.T) {
	found := walk(t, StartWorld(t).handler)
	for op := range found {
		if _, known := roleMatrix[op]; !known {
			t.Errorf("%s is served but not in the matrix", op)
		}
	}
	for op := range roleMatrix {
		if !found[op] {
			t.Errorf("%s is in the matrix but not served", op)
		}
	}
}

// credential is what a request is signed in with.
type credential struct {
	name   string
	role   fleet.UserRole
	attach func(*http.Request)
}

// everybody is nobody, and a token and a session of each role.
func (w *world) everybody(t *testing.T) []credential {
	all := []credential{{"nobody", public, func(*http.Request) {}}}
	for role, token := range map[fleet.UserRole]string{fleet.Viewer: viewerToken, fleet.Operator: operatorToken, fleet.Admin: adminToken} {
		all = append(all, credential{"token of " + string(role), role, func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }})
		id := "u-" + string(role)
		w.MustPropose("system", fleet.UserCreated{User: fleet.User{ID: id, Name: id, Role: role, PasswordHash: mustAdminHash(t)}})
		all = append(all, credential{"session of " + string(role), role, func(r *http.Request) {
			r.AddCookie(w.MustSession(t, id)) // a new one each time: some routes end it
		}})
	}
	return all
}

// concrete is a path of a pattern, with nothing behind it.
func concrete(pattern string) string {
	return strings.NewReplacer("{id}", "nobody", "{version}", "0.0.0", "{name}", "app.css").Replace(pattern)
}

// requestFor is a request of a route; end ends what would go on.
func requestFor(t *testing.T, op string, c credential) (r *http.Request, end context.CancelFunc) {
	method, pattern, _ := strings.Cut(op, " ")
	ctx, end := context.WithCancel(t.Context())
	if pattern == "/api/events" {
		end() // the stream would go on
	}
	r = httptest.NewRequestWithContext(ctx, method, concrete(pattern), nil)
	c.attach(r)
	return r, end
}

// TestEachRoleReachesWhatItMayAndNothingElse asks the router for its routes, and
// calls each as everybody.
func TestEachRoleReachesWhatItMayAndNothingElse(t *testing.T) {
	w := StartWorld(t)
	who := w.everybody(t)
	for op := range walk(t, w.handler) {
		need, known := roleMatrix[op]
		if !known {
			t.Errorf("%s is served but not in the matrix", op)
			continue
		}
		method, pattern, _ := strings.Cut(op, " ")
		for _, c := range who {
			r, end := requestFor(t, op, c)
			before := w.state.View().Index()
			got := w.Do(r)
			end()
			page := isPage(pattern)
			switch {
			case need == public && pattern == "/login" && method == "POST":
				if got.Code != http.StatusUnauthorized || !strings.Contains(got.Body.String(), "Wrong name") {
					t.Errorf("%s as %s: %d %s", op, c.name, got.Code, got.Body)
				}
				w.clock.Advance(loginRefill)
				continue
			case need == public || c.role.Includes(need):
				if got.Code == http.StatusUnauthorized || got.Code == http.StatusForbidden || got.Code == http.StatusInternalServerError {
					t.Errorf("%s as %s: %d %s", op, c.name, got.Code, got.Body)
				}
				continue
			case c.role == public && page:
				fragment := httptest.NewRequest(method, r.URL.Path, nil)
				fragment.Header.Set("HX-Request", "true")
				if f := w.Do(fragment); f.Code != http.StatusUnauthorized || f.Header().Get("HX-Redirect") != got.Header().Get("Location") {
					t.Errorf("%s without login as a fragment: %d %s", op, f.Code, f.Header())
				}
				if got.Code != http.StatusSeeOther || !strings.HasPrefix(got.Header().Get("Location"), "/login?next=") {
					t.Errorf("%s without login: %d %s", op, got.Code, got.Header())
				}
			case c.role == public:
				if got.Code != http.StatusUnauthorized {
					t.Errorf("%s without login: %d", op, got.Code)
				}
			default:
				if got.Code != http.StatusForbidden {
					t.Errorf("%s as %s: %d", op, c.name, got.Code)
				}
			}
			if w.state.View().Index() != before {
				t.Errorf("%s as %s was refused and still changed the state", op, c.name)
			}
		}
	}
	if len(w.servers.removed) != 0 {
		t.Errorf("removed %v", w.servers.removed)
	}
}

// TestWhoHasToChooseAPasswordReachesNothingElse calls each route with a session
// of each role whose user's password somebody else has set.
func TestWhoHasToChooseAPasswordReachesNothingElse(t *testing.T) {
	w := StartWorld(t)
	for _, role := range []fleet.UserRole{fleet.Viewer, fleet.Operator, fleet.Admin} {
		id := "p-" + string(role)
		w.MustPropose("system", fleet.UserCreated{User: fleet.User{ID: id, Name: id, Role: role, PasswordHash: "x", MustChangePassword: true}})
		c := credential{"pending " + string(role), role, func(r *http.Request) { r.AddCookie(w.MustSession(t, id)) }}
		for op := range walk(t, w.handler) {
			method, pattern, _ := strings.Cut(op, " ")
			if roleMatrix[op] == public || pattern == choosePath {
				continue
			}
			r, end := requestFor(t, op, c)
			before := w.state.View().Index()
			got := w.Do(r)
			end()
			if w.state.View().Index() != before {
				t.Errorf("%s changed the state", op)
			}
			if !isPage(pattern) {
				if msg := got.Refused(http.StatusForbidden, "password_change_required"); !strings.Contains(msg, "/choose-password") {
					t.Errorf("%s: %s", op, msg)
				}
				continue
			}
			to := "/choose-password?next=" + url.QueryEscape(r.URL.Path)
			if got.Code != http.StatusSeeOther || got.Header().Get("Location") != to {
				t.Errorf("%s as %s: %d %s", op, c.name, got.Code, got.Header())
			}
			fragment := httptest.NewRequest(method, r.URL.Path, nil)
			fragment.Header.Set("HX-Request", "true")
			c.attach(fragment)
			if f := w.Do(fragment); f.Code != http.StatusForbidden || f.Header().Get("HX-Redirect") != to {
				t.Errorf("%s as a fragment: %d %s", op, f.Code, f.Header())
			}
		}
	}
	w.Admin("PATCH", "/api/users/u1", `{"password":"set by a token"}`).OK()
	w.Admin("GET", "/api/hosts", "").OK() // tokens are nobody's password
}

// A server that starts, or that has fallen behind, does not know everybody yet: it
// must not tell those it does not know that their token is wrong.
func TestServerThatIsNotReadyRefusesNoLogin(t *testing.T) {
	w := StartWorld(t)
	w.ready = errors.New("catching up with the leader")
	w.Call("moult_of_a_minute_ago", "GET", "/api/hosts", "").Refused(http.StatusServiceUnavailable, "not_ready")
	w.Call("", "GET", "/api/hosts", "").Refused(http.StatusUnauthorized, "unauthenticated")
	w.Call(viewerToken, "GET", "/api/hosts", "").OK()
	r := httptest.NewRequest("GET", "/", nil)
	r.AddCookie(&http.Cookie{Name: sessionCookie, Value: "of a minute ago"})
	if a := w.Do(r); a.Code != http.StatusServiceUnavailable {
		t.Errorf("a browser with a session is answered %d: it would be signed out", a.Code)
	}
}

func TestBadLoginsAreUnauthenticated(t *testing.T) {
	w := StartWorld(t)
	expires := w.clock.Now().Add(1)
	w.MustPropose("system", fleet.APITokenCreated{Token: fleet.APIToken{ID: "t9", Name: "old", Role: fleet.Admin, Hash: hashSecret("moult_old"), ExpiresAt: &expires}})
	w.Call("moult_old", "GET", "/api/hosts", "").OK()
	w.clock.Advance(1)
	for _, header := range []string{"Bearer moult_old", "Bearer wrong", "Bearer", "Basic " + adminToken, adminToken} {
		r := httptest.NewRequest("GET", "/api/hosts", nil)
		r.Header.Set("Authorization", header)
		a := w.Do(r)
		a.Refused(http.StatusUnauthorized, "unauthenticated")
		if a.Header().Get("WWW-Authenticate") == "" {
			t.Error("no WWW-Authenticate")
		}
	}
	w.Admin("DELETE", "/api/tokens/t3", "").OK()
	w.Call(viewerToken, "GET", "/api/hosts", "").Refused(http.StatusUnauthorized, "unauthenticated")
}
