package webui

import (
	"net/http"
	"slices"
	"strings"

	"github.com/go-chi/chi/v5"

	"moult/consensus/fleet"
)

// public is the role of routes that need no login.
const public fleet.UserRole = ""

// route is one operation and the least role that may call it.
type route struct {
	method, pattern string
	role            fleet.UserRole
	handle          handler
}

// routes is the whole surface of the server, and its role matrix.
func (u *ui) routes() []route {
	return []route{
		{"GET", "/api/version", public, u.getVersion},
		{"GET", "/api/openapi.json", fleet.Viewer, getOpenAPI},
		{"GET", "/healthz", public, getHealth},
		{"GET", "/readyz", public, u.getReady},
		{"GET", "/metrics", fleet.Viewer, u.metrics},
		{"GET", "/agent/binary", public, u.getBinary},

		{"GET", "/api/hosts", fleet.Viewer, u.listHosts},
		{"GET", "/api/hosts/{id}", fleet.Viewer, u.getHost},
		{"DELETE", "/api/hosts/{id}", fleet.Admin, u.removeHost},
		{"PUT", "/api/hosts/{id}/labels", fleet.Admin, u.setLabels},
		{"POST", "/api/hosts/{id}/update", fleet.Admin, u.updateHost},
		{"GET", "/api/jobs/{id}", fleet.Viewer, u.getJob},
		{"GET", "/api/jobs/{id}/log", fleet.Viewer, u.getJobLog},

		{"POST", "/api/hosts/{id}/lift-quarantine", fleet.Admin, u.liftQuarantine},
		{"GET", "/api/denied", fleet.Viewer, u.listDenied},
		{"GET", "/api/segments", fleet.Viewer, u.listSegments},
		{"GET", "/api/gossip", fleet.Viewer, u.listGossip},
		{"POST", "/api/gossip/rotate", fleet.Admin, u.rotateGossip},
		{"POST", "/api/gossip/{segment}/force", fleet.Admin, u.forceGossip},

		{"GET", "/api/ca", fleet.Viewer, u.getCA},
		{"POST", "/api/ca/rotate", fleet.Admin, u.rotateCA},
		{"POST", "/api/ca/advance", fleet.Admin, u.advanceCA},

		{"GET", "/api/fleet/plan", fleet.Viewer, u.getPlan},
		{"POST", "/api/fleet/update", fleet.Admin, u.startFleetUpdate},
		{"GET", "/api/fleet-updates", fleet.Viewer, u.listFleetUpdates},
		{"GET", "/api/fleet-updates/{id}", fleet.Viewer, u.getFleetUpdate},
		{"POST", "/api/fleet-updates/{id}/cancel", fleet.Admin, u.cancelFleetUpdate},
		{"POST", "/api/fleet-updates/{id}/pause", fleet.Operator, u.pauseFleetUpdate},
		{"POST", "/api/fleet-updates/{id}/resume", fleet.Operator, u.resumeFleetUpdate},
		{"POST", "/api/fleet-updates/{id}/retry", fleet.Admin, u.retryFleetUpdate},

		{"GET", "/api/releases", fleet.Viewer, u.listReleases},
		{"POST", "/api/releases", fleet.Admin, u.publishRelease},
		{"DELETE", "/api/releases/{version}", fleet.Admin, u.withdrawRelease},
		{"POST", "/api/releases/{version}/stage", fleet.Admin, u.stageRelease},
		{"GET", "/api/release-keys", fleet.Viewer, u.listReleaseKeys},
		{"POST", "/api/release-keys", fleet.Admin, u.changeReleaseKeys},

		{"GET", "/api/alerts", fleet.Viewer, u.listAlerts},
		{"POST", "/api/alerts/{id}/acknowledge", fleet.Operator, u.acknowledgeAlert},
		{"GET", "/api/audit", fleet.Viewer, u.listAudit},
		{"GET", "/api/audit/export", fleet.Viewer, u.exportAudit},

		{"GET", "/api/users", fleet.Viewer, u.listUsers},
		{"POST", "/api/users", fleet.Admin, u.createUser},
		{"PATCH", "/api/users/{id}", fleet.Admin, u.changeUser},
		{"DELETE", "/api/users/{id}", fleet.Admin, u.deleteUser},
		{"POST", "/api/account/password", fleet.Viewer, u.changeOwnPassword},
		{"POST", "/api/account/confirm", fleet.Viewer, u.confirm},
		{"POST", "/api/account/end-sessions", fleet.Viewer, u.endOwnSessions},
		{"GET", "/api/tokens", fleet.Viewer, u.listTokens},
		{"POST", "/api/tokens", fleet.Admin, u.createToken},
		{"DELETE", "/api/tokens/{id}", fleet.Admin, u.revokeToken},
		{"POST", "/api/join-tokens", fleet.Admin, u.createJoinToken},

		{"GET", "/api/webhooks", fleet.Admin, u.listWebhooks},
		{"POST", "/api/webhooks", fleet.Admin, u.createWebhook},
		{"PUT", "/api/webhooks/{id}", fleet.Admin, u.changeWebhook},
		{"DELETE", "/api/webhooks/{id}", fleet.Admin, u.deleteWebhook},
		{"POST", "/api/webhooks/{id}/test", fleet.Admin, u.testWebhook},

		{"GET", "/api/servers", fleet.Viewer, u.listServers},
		{"GET", "/api/servers/state", fleet.Admin, u.serverStates},
		{"POST", "/api/servers/{id}/remove", fleet.Admin, u.removeServer},
		{"POST", "/api/servers/{id}/demote", fleet.Admin, u.demoteServer},
		{"POST", "/api/servers/{id}/promote", fleet.Admin, u.promoteServer},
		{"POST", "/api/servers/transfer-leadership", fleet.Admin, u.transferLeadership},
		{"GET", "/api/backup", fleet.Admin, u.getBackup},

		{"GET", "/api/events", fleet.Viewer, u.streamEvents},

		{"GET", "/login", public, u.loginPage},
		{"POST", "/login", public, u.login},
		{"POST", "/logout", public, u.logout},
		{"GET", choosePath, fleet.Viewer, u.choosePage},
		{"POST", choosePath, fleet.Viewer, u.choosePassword},
		{"GET", "/", fleet.Viewer, u.dashboard},
		{"GET", "/hosts/{id}", fleet.Viewer, u.hostPage},
		{"GET", "/jobs/{id}", fleet.Viewer, u.jobPage},
		{"GET", "/jobs/{id}/log", fleet.Viewer, u.jobLogLines},
		{"GET", "/segments", fleet.Viewer, u.segmentsPage},
		{"GET", "/settings/fleet-update", fleet.Viewer, u.fleetPage},
		{"GET", "/releases", fleet.Viewer, u.releasesPage},
		{"GET", "/alerts", fleet.Viewer, u.alertsPage},
		{"GET", "/audit", fleet.Viewer, u.auditPage},
		{"GET", "/settings/users", fleet.Viewer, u.usersPage},
		{"GET", "/settings/servers", fleet.Viewer, u.serversPage},
		{"GET", "/settings/webhooks", fleet.Admin, u.webhooksPage},
		{"GET", "/settings/add-host", fleet.Admin, u.joinPage},
		{"GET", "/static/{name}", public, u.pages.static},
		{"GET", "/static/vendor/{name}", public, u.pages.static},
	}
}

func (u *ui) router() *chi.Mux {
	mux := chi.NewRouter()
	mux.Use(u.secureHeaders, FromClients, headAsGet)
	for _, rt := range u.routes() {
		mux.Method(rt.method, rt.pattern, u.guard(rt))
	}
	mux.NotFound(func(w http.ResponseWriter, r *http.Request) {
		u.render(w, r, refuse(codeNotFound, "there is nothing at "+r.URL.Path))
	})
	mux.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) {
		allowed := allowedMethods(mux, r.URL.Path)
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		u.render(w, r, refuse(codeMethodNotAllowed, r.URL.Path+" takes "+strings.Join(allowed, ", ")+", not "+r.Method))
	})
	return mux
}

// headAsGet has a route answer HEAD that answers GET: none answers it alone. chi's
// middleware for it would bring Go's profiling pages into the program.
func headAsGet(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			chi.RouteContext(r.Context()).RouteMethod = http.MethodGet
		}
		next.ServeHTTP(w, r)
	})
}

func allowedMethods(mux *chi.Mux, path string) []string {
	var allowed []string
	for _, m := range []string{"GET", "POST", "PUT", "PATCH", "DELETE"} {
		if mux.Match(chi.NewRouteContext(), m, path) {
			allowed = append(allowed, m)
		}
	}
	if slices.Contains(allowed, "GET") {
		allowed = append(allowed, "HEAD")
	}
	return allowed
}

// contentSecurityPolicy allows what the pages use: their own script, style and
// requests. Nothing inline, nothing foreign, no framing.
const contentSecurityPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// hsts keeps browsers to TLS for a month, on this host name alone.
const hsts = "max-age=2592000"

func (u *ui) secureHeaders(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", contentSecurityPolicy)
		h.Set("X-Frame-Options", "DENY")
		h.Set("X-Content-Type-Options", "nosniff")
		// Not "no-referrer": with it browsers send "Origin: null" with forms, and on
		// plain HTTP the origin is all that the cross-origin check has to go by.
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		if u.HSTS && r.TLS != nil {
			h.Set("Strict-Transport-Security", hsts)
		}
		next.ServeHTTP(w, r)
	})
}
