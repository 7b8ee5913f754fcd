package webui

import (
	"errors"
	"net/http/httptest"
	"testing"

	"github.com/chromedp/chromedp"

	"moult/consensus/fleet"
	"moult/webui/browsertest"
)

// TestAdminUpdatesTheFleetInABrowser goes the way of an admin: sign in, see the
// chip, start, watch the page follow without a reload, cancel.
func TestAdminUpdatesTheFleetInABrowser(t *testing.T) {
	w := StartWorld(t)
	id := w.MustEnrol("a", "1.0.0", true)
	w.MustEnrol("b", "1.0.0", true)
	srv := httptest.NewServer(w.handler)
	t.Cleanup(srv.Close)
	b := browsertest.Start(t) // ends before the server, which waits for its event stream

	b.Do(chromedp.Navigate(srv.URL+"/"), chromedp.WaitVisible(chromedp.ID("password")),
		chromedp.SendKeys(chromedp.ID("username"), "admin"), chromedp.SendKeys(chromedp.ID("password"), adminPassword),
		chromedp.Submit(chromedp.ID("password")), chromedp.WaitVisible(chromedp.ID("live")))
	b.AwaitText("2 online")
	w.MustRelease("2.0.0", 2) // nobody reloads the page
	b.AwaitText("out of date · 1.0.0 → 2.0.0")
	b.Do(chromedp.Click(chromedp.ID("start")))
	b.AwaitText("Fleet update to 2.0.0 running")
	f, active := w.state.View().ActiveFleetUpdate()
	if !active || f.StartedBy != "user:admin" {
		t.Fatalf("%+v", f)
	}
	w.MustPropose("coordinator", fleet.JobDispatched{JobID: "j1", HostID: id, FleetUpdateID: f.ID, FromVersion: "1.0.0", Boot: 1})
	w.roster.set(id, Observation{Online: true, Version: "1.0.0", Phase: "restarting"})
	b.AwaitText("restarting")
	b.Do(chromedp.Click(chromedp.ID("cancel")))
	b.AwaitText("Last fleet update to 2.0.0 cancelled")
	w.log.fail = errNoLeaderInTest
	b.Do(chromedp.Click(chromedp.ID("start")))
	b.AwaitText(errNoLeaderInTest.Error())
}

var errNoLeaderInTest = errors.New("no leader; a majority of the servers must be up")
