package webui

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"moult/consensus/fleet"
	"moult/webui/browsertest"
)

// StartShowcase is a fleet as people have one: no evil, and something on each page.
func StartShowcase(tb testing.TB) *furnished {
	tb.Helper()
	key, _ := mustKey(tb)
	f := &furnished{world: StartWorldWith(tb, key), job: "job-1"}
	now := f.clock.Now()
	f.servers.list = []ServerStatus{
		{ID: "s1", Name: "server-1", Address: "10.0.0.1:7947", Version: "1.4.2", Leader: true, Voter: true, Healthy: true, AppliedIndex: 1742},
		{ID: "s2", Name: "server-2", Address: "10.0.0.2:7947", Version: "1.4.2", Voter: true, Healthy: true, AppliedIndex: 1741},
		{ID: "s3", Name: "server-3", Address: "10.0.0.3:7947", Voter: true},
	}
	for name, version := range map[string]string{"web-1": "1.4.1", "web-2": "1.4.1", "web-3": "1.4.1", "db-1": "1.4.2", "db-2": "1.3.9", "cache-1": "1.4.1"} {
		id := f.MustEnrol(name, version, name != "db-2")
		f.roster.set(id, Observation{Online: name != "db-2", Version: version, Digest: strings.Repeat("9f3a", 16), Phase: "idle", LastSeen: now.Add(-time.Duration(len(name)) * time.Minute)})
	}
	f.mustEnrol("edge-1", fleet.RoleAgent, "factory", "1.4.1", true)
	for _, gate := range []string{"gate-1", "gate-2"} {
		f.mustEnrol(gate, fleet.RoleAgent, "default", "1.4.2", true)
		f.roster.set("id-"+gate, Observation{Online: gate == "gate-1", Version: "1.4.2", Phase: "idle", LastSeen: now, Segments: []string{"default", "factory"}})
	}
	f.roster.set("id-edge-1", Observation{Online: true, Version: "1.4.1", Phase: "idle", LastSeen: now.Add(-3 * time.Second), SeenVia: "id-gate-1", Segments: []string{"factory"}})
	f.mustEnrol("cell-1", fleet.RoleAgent, "cell", "1.4.1", true)
	f.roster.set("id-cell-1", Observation{Unreachable: true, Version: "1.4.1", LastSeen: now.Add(-time.Hour), Segments: []string{"cell"}})
	f.mustEnrol("gate-3", fleet.RoleAgent, "factory", "1.4.1", true)
	f.roster.set("id-gate-3", Observation{Version: "1.4.1", LastSeen: now.Add(-time.Hour), Segments: []string{"factory", "cell"}})
	f.MustEnrol("new-1", "", false)
	f.failed, f.fine = "id-web-2", "id-web-1"
	f.MustPropose("user:ann", fleet.HostLabelsSet{HostID: f.failed, Labels: map[string]string{"rack": "b-12", "tier": "web", "canary": ""}})
	f.MustRelease("1.4.1", 41)
	f.MustRelease("1.4.2", 42)
	f.MustRelease("1.4.3-rc1", 43)
	f.MustPropose("user:admin", fleet.ReleaseWithdrawn{Version: "1.4.3-rc1"})
	f.MustPropose("user:ann", fleet.UserCreated{User: fleet.User{ID: "u2", Name: "vera", Role: fleet.Viewer, PasswordHash: "x"}})
	f.MustPropose("user:admin", fleet.JoinTokenCreated{Token: fleet.JoinToken{ID: "j1", Hash: hashSecret("j1"), Role: fleet.RoleAgent, Segment: "factory", ExpiresAt: now.Add(time.Hour)}})

	f.MustPropose("user:admin", fleet.WebhookCreated{Webhook: fleet.Webhook{ID: "wh-1", Name: "ops-channel", Format: fleet.WebhookSlack, URL: "https://hooks.slack.com/x", Enabled: true}})
	f.MustPropose("user:admin", fleet.WebhookCreated{Webhook: fleet.Webhook{ID: "wh-2", Name: "alertmanager", Format: fleet.WebhookAlertmanager, URL: "http://10.0.0.7:9093", BearerToken: "x", Enabled: true}})
	failing, _ := f.state.View().Webhook("wh-2")
	f.MustPropose("notifier", fleet.WebhookRefreshed{WebhookID: "wh-2", Revision: failing.Delivery.Revision, Error: "dial tcp 10.0.0.7:9093: connect: connection refused"})

	say := func(job string, lines ...string) {
		c := fleet.JobLogAppended{JobID: job, First: 1}
		for i, line := range lines {
			stream := fleet.StreamAgent
			if strings.HasPrefix(line, "panic") {
				stream = fleet.StreamOutput
			}
			c.Lines = append(c.Lines, fleet.LogLine{At: now.Add(time.Duration(i) * time.Second), Stream: stream, Line: line})
		}
		f.MustPropose("host:x", c)
	}
	f.MustPropose("user:admin", fleet.FleetUpdateStarted{ID: "fu-1", TargetVersion: "1.4.2", HostIDs: []string{"id-web-1", "id-web-2", "id-web-3", "id-edge-1"}})
	f.MustPropose("coordinator", fleet.JobDispatched{JobID: "job-0", HostID: "id-web-1", FleetUpdateID: "fu-1", FromVersion: "1.4.1", Boot: 1})
	say("job-0", "order accepted: update from 1.4.1 to 1.4.2", "fetching from edge-1 at 10.0.0.9:7947")
	f.roster.set("id-web-1", Observation{Online: true, Version: "1.4.2", Digest: strings.Repeat("77c0", 16), Phase: "idle", LastSeen: now})
	f.MustPropose("coordinator", fleet.JobFinished{JobID: "job-0", Status: fleet.JobSucceeded, Sources: []fleet.Source{
		{HostID: "id-edge-1", Name: "edge-1", Role: "agent", Bytes: 17_300_000}, {HostID: "s1", Name: "server-1", Role: "server", Bytes: 512_000},
	}})
	f.MustPropose("coordinator", fleet.JobDispatched{JobID: f.job, HostID: "id-web-2", FleetUpdateID: "fu-1", FromVersion: "1.4.1", Boot: 1})
	say(f.job, "order accepted: update from 1.4.1 to 1.4.2", "fetching from web-1 at 10.0.0.9:7947", "verified: 17.8 MB, sha256 77c0…", "trial: the new binary is started", "panic: open /etc/moult/site.toml: permission denied", "rolled back to 1.4.1: the new binary exited with code 2")
	f.MustPropose("coordinator", fleet.JobFinished{JobID: f.job, Status: fleet.JobFailed, Error: "rolled back: exited with code 2: panic: open /etc/moult/site.toml: permission denied"})
	f.MustPropose("user:admin", fleet.ReleaseStaged{Version: "1.4.2"})
	wanted, _ := f.state.View().Release("1.4.2")
	for id, s := range map[string]Staging{
		"id-web-2": {State: "fetching", Done: 2, Total: 3}, "id-web-3": {State: "failed", Error: "7 MB are free in /var/lib/moult, staging 17.8 MB leaves at least 268 MB free; free some space"},
	} {
		s.Digest = wanted.Artifacts[0].SHA256
		f.roster.set(id, Observation{Online: true, Version: "1.4.1", Digest: strings.Repeat("9f3a", 16), Phase: "idle", LastSeen: now, Staging: s})
	}
	return f
}

// TestEveryPageIsAccessible looks at each page in light and dark and at the width
// of a phone, for people who do not see it as well as for those who do.
func TestEveryPageIsAccessible(t *testing.T) {
	f := StartShowcase(t)
	srv := f.MustServe("server-9")
	b := browsertest.Start(t)
	b.Prefer(browsertest.Dark)
	b.Do(chromedp.Navigate(srv.URL+"/login"), chromedp.WaitVisible(chromedp.ID("password")))
	b.CheckAccessibility("login, dark")
	b.Screenshot("login-dark")
	b.Prefer(browsertest.Light)
	b.CheckAccessibility("login, light")
	b.Screenshot("login-light")
	b.Do(chromedp.EmulateViewport(390, 844))
	b.CheckAccessibility("login, phone")
	b.Screenshot("login-phone")
	b.Do(chromedp.EmulateViewport(1280, 900))
	MustSignIn(b, srv, "/")
	look := func(path, name string) {
		t.Helper()
		b.Do(chromedp.Navigate(srv.URL+path), chromedp.WaitVisible(chromedp.ID("live")))
		for _, scheme := range []browsertest.Scheme{browsertest.Light, browsertest.Dark} {
			b.Prefer(scheme)
			b.CheckAccessibility(path + ", " + string(scheme))
			b.Screenshot(name + "-" + string(scheme))
		}
		b.Do(chromedp.EmulateViewport(390, 844))
		b.CheckAccessibility(path + ", phone")
		b.Screenshot(name + "-phone")
		if wide := b.Text("document.documentElement.scrollWidth > innerWidth"); wide != "false" {
			t.Errorf("%s scrolls sideways on a phone", path)
		}
		if bare := b.Text("[...document.querySelectorAll('time')].filter((e) => !/\\d{4}/.test(e.title)).length"); bare != "0" {
			t.Errorf("%s: %s times without the whole time in their tooltip", path, bare)
		}
		b.Do(chromedp.EmulateViewport(1280, 900))
		b.Prefer(browsertest.Light)
	}
	seen := map[string]bool{}
	for _, path := range f.pages() {
		path, _, _ = strings.Cut(path, "?")
		if seen[path] || strings.HasSuffix(path, "/log") {
			continue
		}
		seen[path] = true
		name := strings.Trim(regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(path, "-"), "-")
		if path == "/" {
			name = "dashboard"
		}
		look(path, name)
	}
	look("/nothing-here", "not-found")

	// The fleet update page while one runs, and the parts that open.
	f.MustPropose("user:admin", fleet.FleetUpdateStarted{ID: "fu-2", TargetVersion: "1.4.2", HostIDs: []string{"id-web-2", "id-web-3", "id-edge-1"}})
	f.MustPropose("coordinator", fleet.JobDispatched{JobID: "job-9", HostID: "id-web-2", FleetUpdateID: "fu-2", FromVersion: "1.4.1", Boot: 2})
	f.roster.set("id-web-2", Observation{Online: true, Version: "1.4.1", Phase: "fetching", JobID: "job-9", Done: 8_100_000, Total: 17_800_000, LastSeen: f.clock.Now()})
	look("/settings/fleet-update", "fleet-update-running")
	look("/", "dashboard-running")
	b.Do(chromedp.Navigate(srv.URL+"/settings/fleet-update"), browsertest.Click(chromedp.ID("cancel")), chromedp.WaitVisible(chromedp.ID("confirm")))
	b.CheckAccessibility("confirm")
	b.Screenshot("confirm")
	b.Do(browsertest.Click(chromedp.CSS("#confirm [value=no]")))
	b.Do(chromedp.Navigate(srv.URL+"/settings/users"), browsertest.Click(chromedp.CSS("#user-u2 summary")),
		chromedp.SendKeys(chromedp.CSS("#add-user [name=name]"), "vera"), chromedp.SendKeys(chromedp.CSS("#add-user [name=password]"), "long enough"),
		browsertest.Click(chromedp.CSS("#add-user button")))
	b.AwaitText("exists already")
	b.Do(chromedp.SendKeys(chromedp.CSS("#add-token [name=name]"), "ci"), browsertest.Click(chromedp.CSS("#add-token button")))
	b.AwaitText("It is shown this once")
	b.CheckAccessibility("users, open")
	b.Screenshot("users-open")
	b.Do(chromedp.Navigate(srv.URL+"/settings/add-host"), chromedp.WaitVisible(chromedp.ID("join")), browsertest.Click(chromedp.CSS("#join button")))
	b.AwaitText("MOULT_TOKEN=")
	b.CheckAccessibility("add a host, with commands")
	b.Screenshot("add-host-commands")
	b.Do(chromedp.Navigate(srv.URL + "/settings/fleet-update"))
	b.Do(chromedp.EmulateViewport(390, 844), browsertest.Click(chromedp.CSS(".menu")), chromedp.WaitVisible(chromedp.CSS("#nav a")))
	b.CheckAccessibility("menu")
	b.Screenshot("menu-phone")
}
