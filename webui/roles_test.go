package webui

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/go-chi/chi/v5"

	"moult/consensus/fleet"
)

// roleMatrix is who may do what, written down a second time: a route that
// changes its role, or a new one, must be entered here too.
var roleMatrix = map[string]fleet.UserRole{
	"GET /api/version": public, "GET /healthz": public, "GET /readyz": public, "GET /agent/binary": public,
	"GET /login": public, "POST /login": public, "POST /logout": public, "GET /static/{name}": public, "GET /static/vendor/{name}": public,

	"GET /api/openapi.json": fleet.Viewer, "GET /metrics": fleet.Viewer, "GET /api/hosts": fleet.Viewer,
	"GET /api/hosts/{id}": fleet.Viewer, "GET /api/jobs/{id}": fleet.Viewer, "GET /api/jobs/{id}/log": fleet.Viewer,
	"GET /api/fleet-updates": fleet.Viewer, "GET /api/fleet-updates/{id}": fleet.Viewer, "GET /api/releases": fleet.Viewer,
	"GET /api/alerts": fleet.Viewer, "GET /api/audit": fleet.Viewer, "GET /api/audit/export": fleet.Viewer, "GET /api/users": fleet.Viewer, "GET /api/tokens": fleet.Viewer,
	"GET /api/servers": fleet.Viewer, "GET /api/events": fleet.Viewer, "GET /": fleet.Viewer,
	"GET /hosts/{id}": fleet.Viewer, "GET /jobs/{id}": fleet.Viewer, "GET /jobs/{id}/log": fleet.Viewer,
	"GET /settings/fleet-update": fleet.Viewer, "GET /releases": fleet.Viewer,
	"GET /settings/users": fleet.Viewer, "GET /settings/servers": fleet.Viewer, "GET /settings/add-host": fleet.Admin,
	"POST /api/account/password": fleet.Viewer, "POST /api/account/end-sessions": fleet.Viewer, "GET /alerts": fleet.Viewer, "GET /audit": fleet.Viewer,

	"GET /api/segments": fleet.Viewer, "GET /segments": fleet.Viewer, "GET /api/fleet/plan": fleet.Viewer,

	"POST /api/fleet-updates/{id}/pause": fleet.Operator, "POST /api/fleet-updates/{id}/resume": fleet.Operator,
	"POST /api/alerts/{id}/acknowledge": fleet.Operator,

	"DELETE /api/hosts/{id}": fleet.Admin, "POST /api/hosts/{id}/update": fleet.Admin, "POST /api/fleet/update": fleet.Admin,
	"POST /api/fleet-updates/{id}/cancel": fleet.Admin, "POST /api/fleet-updates/{id}/retry": fleet.Admin, "POST /api/releases": fleet.Admin, "DELETE /api/releases/{version}": fleet.Admin,
	"POST /api/users": fleet.Admin, "PATCH /api/users/{id}": fleet.Admin, "DELETE /api/users/{id}": fleet.Admin,
	"POST /api/tokens": fleet.Admin, "DELETE /api/tokens/{id}": fleet.Admin, "POST /api/join-tokens": fleet.Admin,
	"GET /api/webhooks": fleet.Admin, "POST /api/webhooks": fleet.Admin, "PUT /api/webhooks/{id}": fleet.Admin, "DELETE /api/webhooks/{id}": fleet.Admin,
	"POST /api/webhooks/{id}/test": fleet.Admin, "GET /settings/webhooks": fleet.Admin,
	"POST /api/servers/{id}/remove": fleet.Admin, "GET /api/servers/state": fleet.Admin, "POST /api/servers/transfer-leadership": fleet.Admin,
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

func TestEachRoleReachesWhatItMayAndNothingElse(t *testing.T) {
	w := StartWorld(t)
	tokens := map[fleet.UserRole]string{public: "", fleet.Viewer: viewerToken, fleet.Operator: operatorToken, fleet.Admin: adminToken}
	for op, need := range roleMatrix {
		method, pattern, _ := strings.Cut(op, " ")
		path := strings.NewReplacer("{id}", "nobody", "{version}", "0.0.0", "{name}", "app.css").Replace(pattern)
		for role, token := range tokens {
			ctx, cancel := context.WithCancel(t.Context())
			if pattern == "/api/events" {
				cancel() // the stream would go on
			}
			r := httptest.NewRequestWithContext(ctx, method, path, nil)
			if token != "" {
				r.Header.Set("Authorization", "Bearer "+token)
			}
			before := w.state.View().Index()
			got := w.Do(r)
			cancel()
			page := isPage(pattern)
			switch {
			case need == public && pattern == "/login" && method == "POST":
				if got.Code != http.StatusUnauthorized || !strings.Contains(got.Body.String(), "Wrong name") {
					t.Errorf("%s as %q: %d %s", op, role, got.Code, got.Body)
				}
				continue
			case need == public || role.Includes(need):
				if got.Code == http.StatusUnauthorized || got.Code == http.StatusForbidden || got.Code == http.StatusInternalServerError {
					t.Errorf("%s as %q: %d %s", op, role, got.Code, got.Body)
				}
				continue
			case role == public && page:
				fragment := httptest.NewRequest(method, path, nil)
				fragment.Header.Set("HX-Request", "true")
				if f := w.Do(fragment); f.Code != http.StatusUnauthorized || f.Header().Get("HX-Redirect") != got.Header().Get("Location") {
					t.Errorf("%s without login as a fragment: %d %s", op, f.Code, f.Header())
				}
				if got.Code != http.StatusSeeOther || !strings.HasPrefix(got.Header().Get("Location"), "/login?next=") {
					t.Errorf("%s without login: %d %s", op, got.Code, got.Header())
				}
			case role == public:
				if got.Code != http.StatusUnauthorized {
					t.Errorf("%s without login: %d", op, got.Code)
				}
			default:
				if got.Code != http.StatusForbidden {
					t.Errorf("%s as %q: %d", op, role, got.Code)
				}
			}
			if w.state.View().Index() != before {
				t.Errorf("%s as %q was refused and still changed the state", op, role)
			}
		}
	}
	if len(w.servers.removed) != 0 {
		t.Errorf("removed %v", w.servers.removed)
	}
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
