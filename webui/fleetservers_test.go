package webui

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"moult/consensus/fleet"
	"moult/webui/browsertest"
)

// StartGroup is a world of four servers, of which server-1 leads, server-3 runs the
// target and server-4 is off, and of the agent a.
func StartGroup(t *testing.T) *world {
	t.Helper()
	w := StartWorld(t)
	for name, version := range map[string]string{"server-2": "1.0.0", "server-3": "2.0.0", "server-4": "1.0.0"} {
		w.mustEnrol(name, fleet.RoleServer, "default", version, name != "server-4")
		w.servers.list = append(w.servers.list, ServerStatus{ID: "id-" + name, Name: name, Voter: true, Healthy: true, CaughtUp: true})
	}
	w.MustEnrol("a", "1.0.0", true)
	w.MustRelease("2.0.0", 2)
	return w
}

func (w *world) server(name string) *ServerStatus {
	w.tb.Helper()
	i := slices.IndexFunc(w.servers.list, func(s ServerStatus) bool { return s.Name == name })
	return &w.servers.list[i]
}

// names returns one field of each object of a list, as one text.
func names(list any, field string) string {
	var out []string
	for _, o := range list.([]any) {
		out = append(out, fmt.Sprint(o.(map[string]any)[field]))
	}
	return strings.Join(out, " ")
}

// Servers take part only where that is said, after the agents, the leader last.
func TestServersTakePartWhereItIsSaid(t *testing.T) {
	w := StartGroup(t)
	for _, path := range []string{"/api/fleet/plan", "/api/fleet/plan?servers=false"} {
		if plan := w.Call(viewerToken, "GET", path, "").OK(); names(plan["hosts"], "name") != "a" || len(plan["left_out"].([]any)) != 0 {
			t.Errorf("%s: %v", path, plan)
		}
	}
	plan := w.Call(viewerToken, "GET", "/api/fleet/plan?servers=true", "").OK()
	if got := names(plan["hosts"], "name") + ", " + names(plan["hosts"], "role"); got != "a server-2 server-1, agent server server" {
		t.Errorf("the plan is %s", got)
	}
	if names(plan["left_out"], "name") != "server-4" || plan["up_to_date"] != 1.0 || len(plan["warnings"].([]any)) != 0 {
		t.Errorf("%v", plan)
	}
	if msg := w.Admin("GET", "/api/fleet/plan?servers=maybe", "").Refused(400, "bad_request"); !strings.Contains(msg, "servers") {
		t.Error(msg)
	}
	if msg := w.Admin("POST", "/api/fleet/update", `{"host_ids":["id-server-2"]}`).Refused(404, "host_not_found"); !strings.Contains(msg, "--servers") {
		t.Errorf("it does not say how: %s", msg)
	}
	w.Admin("POST", "/api/fleet/update", `{"servers":"yes"}`).Refused(400, "bad_request")
	w.Admin("POST", "/api/fleet/update", `{"servers":true,"expect_hosts":1}`).Refused(409, "hosts_changed")

	id := w.Admin("POST", "/api/fleet/update", `{"servers":true,"expect_hosts":3}`).OK()["fleet_update_id"].(string)
	if f, _ := w.state.View().FleetUpdate(id); !f.Servers {
		t.Errorf("%+v", f)
	}
	if u := w.Admin("GET", "/api/fleet-updates/"+id, "").OK(); names(u["hosts"], "name")+", "+names(u["hosts"], "role") != "a server-2 server-1, agent server server" {
		t.Errorf("%v", u)
	}
	w.Admin("POST", "/api/fleet-updates/"+id+"/cancel", "").OK()
	w.Admin("GET", "/audit?action=fleet_update_with_servers_started", "").Shows("3 hosts, servers among them")

	// Named ones: the agents first all the same.
	id = w.Admin("POST", "/api/fleet/update", `{"servers":true,"host_ids":["s1","id-a"]}`).OK()["fleet_update_id"].(string)
	if f, _ := w.state.View().FleetUpdate(id); f.Hosts.At(0).Name != "a" || f.Hosts.At(1).Name != "server-1" {
		t.Errorf("%+v", f)
	}
	w.Admin("POST", "/api/fleet-updates/"+id+"/cancel", "").OK()

	// Where no server is behind, servers of earlier versions need not know of it.
	for _, s := range []string{"s1", "id-server-2"} {
		w.roster.set(s, Observation{Online: true, Version: "2.0.0"})
	}
	id = w.Admin("POST", "/api/fleet/update", `{"servers":true}`).OK()["fleet_update_id"].(string)
	if f, _ := w.state.View().FleetUpdate(id); f.Servers || f.Hosts.Len() != 1 {
		t.Errorf("%+v", f)
	}
}

// One or two servers are no majority while one restarts, and who starts it is told.
func TestFewServersAreWarnedOf(t *testing.T) {
	w := StartWorld(t)
	w.MustRelease("2.0.0", 2)
	warning := func() string {
		return fmt.Sprint(w.Admin("GET", "/api/fleet/plan?servers=true", "").OK()["warnings"])
	}
	if got := warning(); !strings.Contains(got, "there is one server") {
		t.Errorf("one: %s", got)
	}
	w.mustEnrol("server-2", fleet.RoleServer, "default", "1.0.0", true)
	w.servers.list = append(w.servers.list, ServerStatus{ID: "id-server-2", Name: "server-2", Voter: true, Healthy: true, CaughtUp: true})
	if got := warning(); !strings.Contains(got, "of two servers each is needed") {
		t.Errorf("two: %s", got)
	}
	w.Admin("GET", fleetPath+"?servers=true", "").Shows("of two servers each is needed", "2 hosts go to 2.0.0", "server-2 server 1.0.0 → 2.0.0")
}

// A server's turn that does not begin says why, as long as that is so, also when it
// is the leader's, which comes last.
func TestWaitingServerSaysWhy(t *testing.T) {
	w := StartGroup(t)
	w.server("server-4").Healthy, w.server("server-4").CaughtUp = false, false
	id := w.Admin("POST", "/api/fleet/update", `{"servers":true}`).OK()["fleet_update_id"].(string)
	waiting := func() string { return w.Admin("GET", "/api/fleet-updates/"+id, "").OK()["waiting_for"].(string) }
	turn := func(host, job string) {
		w.MustPropose("coordinator", fleet.JobDispatched{JobID: job, HostID: host, FleetUpdateID: id, FromVersion: "1.0.0", Boot: 1})
		if got := waiting(); got != "" {
			t.Errorf("while %s is updated it waits for %q", host, got)
		}
		w.MustPropose("coordinator", fleet.JobFinished{JobID: job, Status: fleet.JobSucceeded})
	}
	if got := waiting(); got != "" {
		t.Errorf("an agent's turn waits for %q", got)
	}
	turn("id-a", "j1")
	const want = "server-2 does not restart yet: besides it 2 of 4 voters are healthy, and 3 are needed; bring back server-4"
	if got := waiting(); got != want {
		t.Errorf("it waits for %q", got)
	}
	w.Admin("GET", fleetPath, "").Shows("Waiting: " + want)
	w.server("server-4").Healthy, w.server("server-4").CaughtUp = true, true
	if got := waiting(); got != "" {
		t.Errorf("it waits for %q", got)
	}
	w.roster.set("id-server-2", Observation{Online: true, Version: "1.0.0", Phase: "trial"})
	w.MustPropose("coordinator", fleet.JobDispatched{JobID: "j2", HostID: "id-server-2", FleetUpdateID: id, FromVersion: "1.0.0", Boot: 1})
	if got := names(w.Admin("GET", "/api/fleet-updates/"+id, "").OK()["hosts"], "phase"); got != " trial " {
		t.Errorf("phases %q", got)
	}
	w.MustPropose("coordinator", fleet.JobFinished{JobID: "j2", Status: fleet.JobSucceeded})
	w.server("server-2").CaughtUp = false // it has just restarted
	if got := waiting(); !strings.HasPrefix(got, "server-1 does not restart yet") {
		t.Errorf("it waits for %q", got)
	}
	w.Admin("POST", "/api/fleet-updates/"+id+"/pause", "").OK()
	if got := waiting(); got != "" {
		t.Errorf("paused, it waits for %q", got)
	}
}

// What a halted one has left is retried with its servers.
func TestRetryHasTheServersToo(t *testing.T) {
	w := StartGroup(t)
	id := w.Admin("POST", "/api/fleet/update", `{"servers":true,"host_ids":["id-server-2","s1"]}`).OK()["fleet_update_id"].(string)
	w.MustPropose("coordinator", fleet.JobDispatched{JobID: "j", HostID: "id-server-2", FleetUpdateID: id, FromVersion: "1.0.0", Boot: 1})
	w.MustPropose("coordinator", fleet.JobFinished{JobID: "j", Status: fleet.JobFailed, Error: "it crashed"})
	w.Admin("GET", fleetPath, "").Shows("Halted: server-2: it crashed", "Update the 2 hosts left")
	again := w.Admin("POST", "/api/fleet-updates/"+id+"/retry", "").OK()["fleet_update_id"].(string)
	if f, _ := w.state.View().FleetUpdate(again); !f.Servers || f.Hosts.Len() != 2 {
		t.Errorf("%+v", f)
	}
}

// TestServersAreIncludedInABrowser ticks the box, types the number and starts.
func TestServersAreIncludedInABrowser(t *testing.T) {
	w := StartGroup(t)
	srv := w.MustServe("server-1x")
	w.roster.set("id-server-1x", Observation{Online: true, Version: "2.0.0"})
	b := browsertest.Start(t)
	MustSignIn(b, srv, fleetPath)
	b.AwaitText("1 host goes to 2.0.0")
	b.Do(browsertest.Click(chromedp.ID("with-servers")))
	b.AwaitText("3 hosts go to 2.0.0")
	b.CheckAccessibility("fleet update with servers")
	b.Screenshot("fleet-update-with-servers")
	b.Do(chromedp.SendKeys(chromedp.ID("expect"), "3"), browsertest.Click(chromedp.ID("start")))
	b.AwaitText("Fleet update to 2.0.0 running")
	if f, active := w.state.View().ActiveFleetUpdate(); !active || !f.Servers || f.Hosts.Len() != 3 {
		t.Errorf("%+v", f)
	}
}
