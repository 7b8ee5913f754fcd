package webui

import (
	"fmt"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"moult/consensus/fleet"
	"moult/webui/browsertest"
)

const fleetPath = "/settings/fleet-update"

func TestFleetPageTellsWhatWillHappen(t *testing.T) {
	w := StartWorld(t)
	w.Admin("GET", fleetPath, "").Shows("There is no release to update to yet. Publish one", "No fleet update has ended yet")
	w.MustEnrol("b", "1.0.0", true)
	w.MustEnrol("a", "1.1.0", true)
	w.MustEnrol("current", "2.0.0", true)
	w.MustEnrol("gone", "1.0.0", false)
	w.MustEnrol("new", "", false)
	w.mustEnrolOn("windows-1", "windows", "1.0.0")
	w.MustRelease("2.0.0", 2)
	page := w.Admin("GET", fleetPath, "")
	page.Shows("2 hosts go to 2.0.0", "a 1.1.0 → 2.0.0 default linux/amd64 b 1.0.0 → 2.0.0", "gone : it is offline", "new : it was never seen",
		"windows-1 : the release has no binary for windows/amd64", "1 host at 2.0.0 already", "type how many hosts will be updated: 2")
	for _, token := range []string{viewerToken, operatorToken} {
		if body := w.Call(token, "GET", fleetPath, "").Body.String(); strings.Contains(body, "data-call") {
			t.Errorf("offered: %s", body)
		}
	}
	// The API starts what the page shows, and nothing if that changed.
	w.Admin("POST", "/api/fleet/update", `{"expect_hosts":3}`).Refused(409, "hosts_changed")
	w.Admin("POST", "/api/fleet/update", `{"expect_hosts":0}`).Refused(409, "hosts_changed")
	w.Admin("POST", "/api/fleet/update", `{"expect_hosts":"2"}`).Refused(400, "bad_request")
	if _, active := w.state.View().ActiveFleetUpdate(); active {
		t.Fatal("started")
	}
	id := w.Admin("POST", "/api/fleet/update", `{"expect_hosts":2}`).OK()["fleet_update_id"].(string)
	f, _ := w.state.View().FleetUpdate(id)
	if f.Hosts.Len() != 2 || f.Hosts.At(0).Name != "a" || f.Hosts.At(1).Name != "b" {
		t.Errorf("%+v", f.Hosts)
	}
	if msg := w.Admin("POST", "/api/fleet/update", `{"expect_hosts":2}`).Refused(409, "fleet_update_running"); !strings.Contains(msg, "started by token:bootstrap") {
		t.Errorf("the second is not told who: %s", msg)
	}
	w.Admin("POST", "/api/fleet-updates/"+id+"/cancel", "").OK()
	w.Admin("POST", "/api/fleet-updates/"+id+"/cancel", "").Refused(409, "not_running")
}

func TestHaltedFleetUpdateTellsWhatToDoAndIsRetried(t *testing.T) {
	w := StartWorld(t)
	a, b := w.MustEnrol("a", "1.0.0", true), w.MustEnrol("b", "1.0.0", true)
	c, d := w.MustEnrol("c", "1.0.0", true), w.MustEnrol("d", "1.0.0", true)
	w.MustRelease("2.0.0", 2)
	id := w.Admin("POST", "/api/fleet/update", "").OK()["fleet_update_id"].(string)
	w.Admin("POST", "/api/fleet-updates/"+id+"/retry", "").Refused(409, "fleet_update_running")
	w.MustPropose("coordinator", fleet.JobDispatched{JobID: "j1", HostID: a, FleetUpdateID: id, FromVersion: "1.0.0", Boot: 1})
	w.roster.set(a, Observation{Online: true, Version: "2.0.0"})
	w.MustPropose("coordinator", fleet.JobFinished{JobID: "j1", Status: fleet.JobSucceeded})
	w.MustPropose("coordinator", fleet.JobDispatched{JobID: "j2", HostID: b, FleetUpdateID: id, FromVersion: "1.0.0", Boot: 1})
	w.MustPropose("coordinator", fleet.JobFinished{JobID: "j2", Status: fleet.JobFailed, Error: "it crashed"})
	w.roster.set(c, Observation{Online: false, Version: "1.0.0"})
	w.Admin("DELETE", "/api/hosts/"+d, "").OK()

	page := w.Admin("GET", fleetPath, "")
	page.Shows("The host is back and runs 1.0.0. No further host was touched.", "Last fleet update to 2.0.0 halted", "1 of 4 hosts done, 1 failed", "Halted: b: it crashed", "the log of b", "Update the 1 host left", "1 more host cannot be updated now", "d removed")
	if !strings.Contains(page.Body.String(), `href="/jobs/j2"`) {
		t.Error("no link to the log")
	}
	w.roster.set(b, Observation{Online: false, Version: "1.0.0"})
	w.Admin("GET", fleetPath, "").Shows("The host is offline. No further host was touched.")
	w.roster.set(b, Observation{Online: true, Version: "1.0.0"})
	again := w.Admin("POST", "/api/fleet-updates/"+id+"/retry", "").OK()["fleet_update_id"].(string)
	if f, _ := w.state.View().FleetUpdate(again); f.Hosts.Len() != 1 || f.Hosts.At(0).HostID != b || f.TargetVersion != "2.0.0" {
		t.Errorf("%+v", f)
	}
	w.Admin("POST", "/api/fleet-updates/"+id+"/retry", "").Refused(409, "fleet_update_running")
	w.Admin("POST", "/api/fleet-updates/"+again+"/cancel", "").OK()
	w.roster.set(b, Observation{Online: true, Version: "2.0.0"})
	w.Admin("POST", "/api/fleet-updates/"+id+"/retry", "").Refused(409, "nothing_to_update")
	w.Admin("POST", "/api/fleet-updates/nobody/retry", "").Refused(404, "fleet_update_not_found")
	w.Admin("GET", fleetPath, "").Shows("2.0.0 halted 1 of 4 done, 1 failed", "2.0.0 cancelled 0 of 1 done", "Nothing to do")
	w.Admin("GET", fleetPath+"?id="+id, "").Shows("Fleet update to 2.0.0 halted", "Back to now")
	if gone := w.Admin("GET", fleetPath+"?id=nobody", ""); gone.Code != 404 {
		t.Errorf("%d", gone.Code)
	}
}

func TestLargeFleetUpdateShowsWhereItIs(t *testing.T) {
	w := StartWorld(t)
	w.MustCrowd(4*turnsPerPage + 4) // half of them behind
	w.MustRelease("2.0.0", 2)
	w.Admin("GET", fleetPath, "").Shows(fmt.Sprintf("These are the first %d of %d", maxPlanRows, 2*turnsPerPage+2))
	id := w.Admin("POST", "/api/fleet/update", "").OK()["fleet_update_id"].(string)
	f, _ := w.state.View().FleetUpdate(id)
	for i := range turnsPerPage {
		turn := f.Hosts.At(i)
		w.MustPropose("coordinator", fleet.FleetUpdateHostSkipped{ID: id, HostID: turn.HostID, Reason: "already at target"})
	}
	now := w.Admin("GET", fleetPath, "")
	now.Shows("Page 2 of 3", "100 of 202 hosts done")
	if body := now.Body.String(); strings.Contains(body, "already at target") || strings.Count(body, `<tr id="turn-`) != turnsPerPage {
		t.Error("it does not show the page of the host whose turn it is")
	}
	w.Admin("GET", fleetPath+"?page=1", "").Shows("already at target")
}

// TestTwoAdminsAtOnceInABrowser has the other one start first.
func TestTwoAdminsAtOnceInABrowser(t *testing.T) {
	w := StartWorld(t)
	id := w.MustEnrol("a", "1.0.0", true)
	w.MustRelease("2.0.0", 2)
	srv := w.MustServeWithout("/api/events") // this page hears of it late
	b := browsertest.Start(t)
	MustSignIn(b, srv, fleetPath)
	b.Do(chromedp.SendKeys(chromedp.ID("expect"), "1"))
	w.MustPropose("user:bob", fleet.FleetUpdateStarted{ID: "theirs", TargetVersion: "2.0.0", HostIDs: []string{id}})
	b.Do(chromedp.Evaluate[chromedp.Void](`document.getElementById("start")?.click()`))
	b.AwaitText("Fleet update to 2.0.0 running")
	b.AwaitText("Started by bob")
	if n := len(w.state.View().FleetUpdates()); n != 1 {
		t.Errorf("%d fleet updates", n)
	}
}
