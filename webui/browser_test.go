package webui

import (
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"moult/consensus/fleet"
	"moult/webui/browsertest"
)

// MustSignIn opens a page of a server as admin. The page's scripts are there then.
func MustSignIn(b *browsertest.Browser, srv *httptest.Server, path string) {
	b.Do(chromedp.Navigate(srv.URL+path), chromedp.WaitVisible(chromedp.ID("password")),
		chromedp.SendKeys(chromedp.ID("username"), "admin"), chromedp.SendKeys(chromedp.ID("password"), adminPassword),
		chromedp.Submit(chromedp.ID("password")), chromedp.WaitVisible(chromedp.ID("live")), browsertest.Loaded())
}

// confirm says yes in the dialog that asks.
func confirm() browsertest.Step { return browsertest.Click(chromedp.CSS("#confirm [value=yes]")) }

// answered waits for the answers to what was pressed: the page may show before what
// came of it, and empties the form only then.
func answered() browsertest.Step {
	return chromedp.WaitNotPresent(chromedp.CSS("[aria-busy=true]"))
}

var errNoLeaderInTest = errors.New("no leader; a majority of the servers must be up")

// TestWhatIsTypedStaysInThePageWithoutItsScripts presses the button of a form whose
// scripts did not arrive. The browser's own way of sending a form would put the
// passwords into the address.
func TestWhatIsTypedStaysInThePageWithoutItsScripts(t *testing.T) {
	w := StartWorld(t)
	srv := w.MustServeWithout("/static/actions.js")
	b := browsertest.Start(t)
	MustSignIn(b, srv, "/settings/users")
	b.Do(chromedp.SendKeys(chromedp.CSS("[name=current_password]"), adminPassword), chromedp.SendKeys(chromedp.CSS("[name=new_password]"), "a new password"),
		browsertest.Click(chromedp.CSS("[data-call$='account/password'] button")))
	if got := b.Text("new Promise((done) => setTimeout(() => done(location.href), 300))"); got != srv.URL+"/settings/users" {
		t.Errorf("the page is %s", got)
	}
	if got := b.Text("document.querySelector('[name=new_password]').value"); got != "a new password" {
		t.Errorf("%q is left in the form", got)
	}
	scripted := regexp.MustCompile(`<form [^>]*data-(call|upload)=[^>]*>`)
	err := fs.WalkDir(templateFiles, ".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".html") {
			return err
		}
		text, err := fs.ReadFile(templateFiles, path)
		for _, form := range scripted.FindAllString(string(text), -1) {
			if !strings.Contains(form, ` method="dialog"`) {
				t.Errorf("%s: the browser sends this form by itself: %s", path, form)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestAdminUpdatesTheFleetInABrowser goes the way of an admin: sign in, see the
// chip, start, watch the page follow without a reload, cancel.
func TestAdminUpdatesTheFleetInABrowser(t *testing.T) {
	w := StartWorld(t)
	id := w.MustEnrol("a", "1.0.0", true)
	w.MustEnrol("b", "1.0.0", true)
	srv := w.MustServe("server-2")
	b := browsertest.Start(t) // ends before the server, which waits for its event stream

	MustSignIn(b, srv, "/")
	b.AwaitText("2 online")
	w.MustRelease("2.0.0", 2) // nobody reloads the page
	b.AwaitText("out of date · 1.0.0 → 2.0.0")
	b.Do(browsertest.Click(chromedp.CSS("a.button")), chromedp.WaitVisible(chromedp.ID("expect")))
	b.Do(chromedp.SendKeys(chromedp.ID("expect"), "3"))
	w.MustEnrol("late", "1.0.0", false)
	b.AwaitText("late: it is offline")
	if typed := b.Text(`document.getElementById("expect").value`); typed != "3" {
		t.Errorf("what was typed became %q", typed)
	}
	b.Do(browsertest.Click(chromedp.ID("start")))
	b.AwaitText("3 was confirmed, and 2 hosts would be updated now")
	b.Do(chromedp.Evaluate[chromedp.Void](`document.getElementById("expect").value = ""`), chromedp.SendKeys(chromedp.ID("expect"), "2"))
	b.Do(clickTwice("start"))
	b.AwaitText("Fleet update to 2.0.0 running")
	b.AwaitNoText("was confirmed")
	f, active := w.state.View().ActiveFleetUpdate()
	if !active || f.StartedBy != "user:admin" {
		t.Fatalf("%+v", f)
	}
	w.MustPropose("coordinator", fleet.JobDispatched{JobID: "j1", HostID: id, FleetUpdateID: f.ID, FromVersion: "1.0.0", Boot: 1})
	w.roster.set(id, Observation{Online: true, Version: "1.0.0", Phase: "restarting"})
	b.AwaitText("restarting")
	b.Do(browsertest.Click(chromedp.ID("cancel")), confirm())
	b.AwaitText("2.0.0 cancelled 0 of 2") // in the history
	w.MustPropose("coordinator", fleet.JobFinished{JobID: "j1", Status: fleet.JobSucceeded})
	w.roster.set(id, Observation{Online: true, Version: "2.0.0"})
	w.log.fail = errNoLeaderInTest
	b.AwaitText("1 host goes to 2.0.0")
	b.Do(chromedp.SendKeys(chromedp.ID("expect"), "1"), browsertest.Click(chromedp.ID("start")))
	b.AwaitText(errNoLeaderInTest.Error())
	b.Do(chromedp.Navigate(srv.URL + "/"))
	b.AwaitText("Last fleet update to 2.0.0 cancelled")
}

// TestPageKeepsFocusAndWhatWasOpened types while the page follows the fleet.
func TestPageKeepsFocusAndWhatWasOpened(t *testing.T) {
	w := StartWorld(t)
	w.MustCrowd(2 * hostsPerPage)
	srv := w.MustServe("server-2")
	b := browsertest.Start(t)
	MustSignIn(b, srv, "/")
	b.Do(chromedp.Navigate(srv.URL + "/#main")) // as the skip link leaves it
	b.AwaitText("Page 1 of 2")
	b.Do(chromedp.Evaluate[chromedp.Void](`document.querySelector("#live a[rel=next]").focus(); scrollTo(0, 700)`))
	// What is read stays where it is on the screen, whatever appears above it.
	const where = `document.activeElement.textContent + " at " + Math.round(document.activeElement.getBoundingClientRect().top)`
	before := b.Text(where)
	w.MustRelease("2.0.0", 2)
	b.AwaitText("out of date · 1.0.0 → 2.0.0")
	if after := b.Text(where); after != before || before == "" {
		t.Errorf("was at %q, is at %q", before, after)
	}
}

// TestPageGoesOnWhenItsServerIsLost takes away the server that the page came from.
func TestPageGoesOnWhenItsServerIsLost(t *testing.T) {
	w := StartWorld(t)
	id := w.MustEnrol("a", "1.0.0", true)
	second, first := w.MustServe("server-3"), w.MustServe("server-2")
	b := browsertest.Start(t)
	MustSignIn(b, first, "/?status=online")
	b.AwaitText("1 online")
	first.Listener.Close() // first, or the page comes back on a connection that stays
	first.CloseClientConnections()
	b.AwaitText("This server does not answer.")
	b.AwaitText("Hosts 1 of 1") // what is known stays
	b.AwaitNoText("This server does not answer.")
	if at := b.Text("location.href"); at != second.URL+"/?status=online" {
		t.Errorf("went on at %s", at)
	}
	w.roster.set(id, Observation{Online: true, Version: "7.7.7"})
	b.AwaitText("7.7.7")
}

// TestPageTellsOfAServerInTrouble has the server answer 500 for a while.
func TestPageTellsOfAServerInTrouble(t *testing.T) {
	w := StartWorld(t)
	w.MustEnrol("a", "1.0.0", true)
	var trouble atomic.Bool
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if trouble.Load() {
			http.Error(rw, "on fire", http.StatusInternalServerError)
			return
		}
		w.handler.ServeHTTP(rw, r)
	}))
	t.Cleanup(srv.Close)
	b := browsertest.Start(t)
	MustSignIn(b, srv, "/")
	b.AwaitText("1 online")
	trouble.Store(true)
	srv.CloseClientConnections()
	b.AwaitText("This server is in trouble: it answers 500.")
	b.AwaitText("1 online")
	trouble.Store(false)
	b.AwaitNoText("in trouble")
}

// TestPageMissesNothingWhileItLoads has a host change while one of the page's scripts is
// still on its way.
func TestPageMissesNothingWhileItLoads(t *testing.T) {
	w := StartWorld(t)
	id := w.MustEnrol("a", "1.0.0", true)
	srv := w.MustServeBut("/static/actions.js", func(rw http.ResponseWriter, r *http.Request) {
		time.Sleep(500 * time.Millisecond) // in which a stream would open
		w.roster.set(id, Observation{Online: true, Version: "7.7.7"})
		time.Sleep(500 * time.Millisecond) // in which it would tell of the change
		w.handler.ServeHTTP(rw, r)
	})
	b := browsertest.Start(t)
	MustSignIn(b, srv, "/")
	b.AwaitText("7.7.7")
}

// TestPagePollsWithoutTheStream has no stream to listen to.
func TestPagePollsWithoutTheStream(t *testing.T) {
	w := StartWorld(t)
	id := w.MustEnrol("a", "1.0.0", true)
	srv := w.MustServeWithout("/api/events")
	b := browsertest.Start(t)
	MustSignIn(b, srv, "/")
	b.AwaitText("1 online")
	w.roster.set(id, Observation{Online: true, Version: "7.7.7"})
	b.AwaitText("7.7.7")
	w.MustPropose("system", fleet.UserChanged{UserID: "u1", PasswordHash: "x"}) // ends the session
	b.Do(chromedp.WaitVisible(chromedp.ID("password")))
}
