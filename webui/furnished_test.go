package webui

import (
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"moult/consensus/fleet"
)

// evil is what a host, a person or a link may say wherever text is free.
const evil = `"><script>alert(1)</script><img src=x onerror=alert(2)>'`

// furnished is a world in which each page has something to show, and where each
// text that is not checked on its way in is evil.
type furnished struct {
	*world
	failed, fine string // ids of hosts
	job          string // that failed
}

func StartFurnished(tb testing.TB) *furnished {
	tb.Helper()
	f := &furnished{world: StartWorld(tb), job: "job-1"}
	f.servers.list = append(f.servers.list, ServerStatus{ID: "s2", Name: evil, Address: evil, Version: evil, Voter: true})
	f.failed = f.MustEnrol("web-1", "1.0.0", true)
	f.fine = f.MustEnrol("web-2", "1.0.0", true)
	f.MustEnrol("web-3", evil, true)
	f.MustEnrol("db-1", "1.0.0", false)
	f.MustEnrol("new-1", "", false)
	f.mustEnrol("edge-1", fleet.RoleAgent, "dmz", "2.0.0", true)
	f.MustPropose("user:admin", fleet.HostLabelsSet{HostID: f.failed, Labels: map[string]string{"rack": "a-1", "spare": ""}})
	f.MustRelease("2.0.0", 2)
	now := f.clock.Now()
	f.MustPropose("user:admin", fleet.JobCreated{JobID: "job-0", HostID: f.fine, TargetVersion: "2.0.0"})
	f.MustPropose("coordinator", fleet.JobDispatched{JobID: "job-0", HostID: f.fine, FromVersion: "1.0.0", Boot: 1})
	f.roster.set(f.fine, Observation{Online: true, Version: "2.0.0", Digest: strings.Repeat("cd", 32), Phase: "idle", LastSeen: now})
	f.MustPropose("coordinator", fleet.JobFinished{JobID: "job-0", Status: fleet.JobSucceeded, Sources: []fleet.Source{
		{HostID: "id-edge-1", Name: evil, Role: "agent", Bytes: 17_300_000}, {HostID: "s1", Name: "server-1", Role: "server", Bytes: 512},
	}})
	f.MustPropose("user:admin", fleet.FleetUpdateStarted{ID: "fu-1", TargetVersion: "2.0.0", HostIDs: []string{f.fine, f.failed, "id-web-3"}})
	f.MustPropose("coordinator", fleet.FleetUpdateHostSkipped{ID: "fu-1", HostID: f.fine, Reason: evil})
	f.MustPropose("coordinator", fleet.JobDispatched{JobID: f.job, HostID: f.failed, FleetUpdateID: "fu-1", FromVersion: evil, Boot: 1})
	f.MustPropose("host:web-1", fleet.JobLogAppended{JobID: f.job, First: 1, Lines: []fleet.LogLine{
		{At: now, Stream: fleet.StreamAgent, Line: "order accepted: update from 1.0.0 to 2.0.0"},
		{At: now, Stream: fleet.StreamOutput, Line: evil},
	}})
	f.MustPropose("coordinator", fleet.JobFinished{JobID: f.job, Status: fleet.JobFailed, Error: "the new binary exited at once: " + evil})
	f.roster.set(f.failed, Observation{Online: true, Version: "1.0.0", Phase: evil, LastSeen: now})
	staged, _ := f.state.View().Release("2.0.0")
	f.MustPropose("user:admin", fleet.ReleaseStaged{Version: "2.0.0"})
	f.roster.set("id-web-3", Observation{Online: true, Version: evil, Phase: "idle", LastSeen: now, Staging: Staging{Digest: staged.Artifacts[0].SHA256, State: "failed", Error: evil}})
	f.MustPropose("user:admin", fleet.WebhookCreated{Webhook: fleet.Webhook{ID: "wh-1", Name: "pager", Format: fleet.WebhookJSON, URL: "https://hooks.example/x", Enabled: true}})
	cas := f.config.CAs.(*casWorld)
	begun, err := cas.Begin()
	if err != nil {
		f.tb.Fatal(err)
	}
	begun.Reason = evil
	f.MustPropose("user:admin", begun)
	cas.pending = []CAHost{{Name: evil, Why: evil}, {Name: "server-1", Server: true, Why: "online, and does not trust the same CAs yet"}}
	hook, _ := f.state.View().Webhook("wh-1")
	f.MustPropose("notifier", fleet.WebhookRefreshed{WebhookID: "wh-1", Revision: hook.Delivery.Revision, Error: evil})
	return f
}

// pages lists every page, at addresses that have something to show.
func (f *furnished) pages() []string {
	q := "q=" + strings.NewReplacer(`"`, "%22", "<", "%3C", ">", "%3E", " ", "%20", "'", "%27").Replace(evil)
	return []string{
		"/", "/?" + q, "/?updates=behind&status=online", "/?label=rack%3D" + q[2:], "/?version=" + q[2:] + "&segment=" + q[2:],
		"/hosts/" + f.failed, "/hosts/" + f.fine, "/hosts/id-web-3", "/hosts/id-db-1", "/hosts/id-new-1",
		"/settings/fleet-update", "/settings/fleet-update?id=fu-1",
		"/segments", "/settings/users", "/settings/servers", "/settings/webhooks", "/settings/add-host", "/releases", "/alerts", "/audit", "/audit?actor=" + q[2:] + "&" + q, "/audit?action=job_finished&since=2026-01-01&until=2026-12-31",
		"/jobs/" + f.job, "/jobs/job-0", "/jobs/" + f.job + "/log?after=1",
	}
}

func TestEveryPageIsAmongThePages(t *testing.T) {
	f := StartFurnished(t)
	for op := range walk(t, f.handler) {
		method, pattern, _ := strings.Cut(op, " ")
		if method != "GET" || !isPage(pattern) || strings.HasPrefix(pattern, "/static/") || pattern == "/login" || pattern == choosePath {
			continue // they are for who is not, or not quite, signed in; others look at them
		}
		shape := regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(pattern), `\{id\}`, "[^/]+") + "$")
		var found bool
		for _, path := range f.pages() {
			found = found || shape.MatchString(strings.SplitN(path, "?", 2)[0])
		}
		if !found {
			t.Errorf("%s is not tested as a page", pattern)
		}
	}
}

func TestNothingThatPeopleOrHostsSayIsMarkup(t *testing.T) {
	f := StartFurnished(t)
	shown := 0
	for _, path := range f.pages() {
		for _, token := range []string{adminToken, operatorToken, viewerToken} {
			for _, a := range []answer{f.Call(token, "GET", path, ""), f.Fragment(token, path)} {
				body := a.Body.String()
				if (path == "/settings/add-host" || path == "/settings/webhooks") && token != adminToken {
					a.Refused403()
					continue
				}
				if a.Code != 200 {
					t.Errorf("%s: %d %s", path, a.Code, body)
				}
				if strings.Contains(body, "<script>") || strings.Contains(body, "<img") {
					t.Errorf("%s lets markup through: %s", path, body)
				}
				if strings.Contains(body, "&lt;script&gt;") {
					shown++
				}
			}
		}
	}
	if shown == 0 {
		t.Error("nothing evil was shown: this tested nothing")
	}
	for _, path := range []string{"/" + evil, "/hosts/%22%3E%3Cscript%3E", "/jobs/%22%3E%3Cscript%3E", "/?sort=%3Cscript%3E", "/?page=%3Cscript%3E", "/login?next=/%22%3E%3Cscript%3E"} {
		r := httptest.NewRequest("GET", "/", nil)
		r.URL.Path, r.URL.RawQuery, _ = strings.Cut(strings.NewReplacer("%22", `"`, "%3E", ">").Replace(path), "?")
		if body := f.Do(r).Body.String(); strings.Contains(body, "<script>") {
			t.Errorf("%s: %s", path, body)
		}
	}
}

// TestNoPageOffersWhatItsReaderMayNot reads the calls that pages offer and asks
// the role matrix.
func TestNoPageOffersWhatItsReaderMayNot(t *testing.T) {
	f := StartFurnished(t)
	offered := map[fleet.UserRole]int{}
	for role, token := range map[fleet.UserRole]string{fleet.Viewer: viewerToken, fleet.Operator: operatorToken, fleet.Admin: adminToken} {
		for _, path := range f.pages() {
			for _, call := range regexp.MustCompile(`data-call="([A-Z]+) ([^"]+)"`).FindAllStringSubmatch(f.Call(token, "GET", path, "").Body.String(), -1) {
				need, known := roleOf(call[1], call[2])
				if !known || !role.Includes(need) {
					t.Errorf("%s offers %s to a %s", path, call[0], role)
				}
				offered[role]++
			}
		}
	}
	if offered[fleet.Admin] == 0 || offered[fleet.Admin] <= offered[fleet.Viewer] {
		t.Errorf("offered %v", offered)
	}
}

func TestNavigationLeadsWhereItsReaderMayGo(t *testing.T) {
	f := StartFurnished(t)
	links := regexp.MustCompile(`<li><a href="([^"]+)"`)
	for token, want := range map[string]int{viewerToken: 8, operatorToken: 8, adminToken: 10} {
		_, nav, _ := strings.Cut(f.Call(token, "GET", "/", "").Body.String(), "<nav id")
		nav, _, _ = strings.Cut(nav, "</nav>")
		found := links.FindAllStringSubmatch(nav, -1)
		if len(found) != want {
			t.Errorf("%s: %d links in %s", token, len(found), nav)
		}
		for _, link := range found {
			page := f.Call(token, "GET", link[1], "")
			if page.Code != 200 || !strings.Contains(page.Body.String(), `href="`+link[1]+`" aria-current="page"`) {
				t.Errorf("%s: %s is %d, or not the present page there", token, link[1], page.Code)
			}
		}
	}
}

// roleOf finds the row of the role matrix that a call is for.
func roleOf(method, path string) (fleet.UserRole, bool) {
	for op, role := range roleMatrix {
		pattern := regexp.MustCompile(`\\\{[a-z]+\\\}`).ReplaceAllString(regexp.QuoteMeta(op), "[^/]+")
		if regexp.MustCompile("^" + pattern + "$").MatchString(method + " " + path) {
			return role, true
		}
	}
	return "", false
}
