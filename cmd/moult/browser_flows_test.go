//go:build unix

package main

import (
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"moult/webui/browsertest"
)

// browserUser goes through the pages of a cluster.
type browserUser struct {
	*browsertest.Browser
	c *testCluster
}

func (u browserUser) open(server int, path string) {
	u.Do(chromedp.Navigate(u.c.client.addrs[server]+path), chromedp.WaitReady(chromedp.CSS("main")))
}

func (u browserUser) signIn(name, password string) {
	u.fillIn(name, password)
	u.Do(chromedp.WaitVisible(chromedp.ID("live")))
}

// fillIn sends the login form, wherever that leads.
func (u browserUser) fillIn(name, password string) {
	u.Do(chromedp.WaitVisible(chromedp.ID("password")), chromedp.SetValue(chromedp.ID("username"), name),
		chromedp.SendKeys(chromedp.ID("password"), password), chromedp.Submit(chromedp.ID("password")))
}

func (u browserUser) click(selector string) { u.Do(browsertest.Click(chromedp.CSS(selector))) }

func (u browserUser) confirm() { u.click("#confirm [value=yes]") }

// server tells which of the cluster's addresses the page is from.
func (u browserUser) server() string { return u.Text("location.origin") }

// TestBrowserRunsTheFleet lives an admin's day on a real cluster, in the browser
// alone: publish, update one host, lose the server that the page is from, start,
// cancel and start again, meet a bad release, and let a viewer look on.
func TestBrowserRunsTheFleet(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, 3, "--agent-arg=--soak=4s") // so that a turn is seen, and the next one has not begun when it is cancelled
	u := browserUser{browsertest.Start(t), c}
	admin := strings.TrimSpace(c.read("admin.password"))
	leader := c.leader()
	at := int(leader[len(leader)-1] - '1') // server-1 has the first address
	u.open(at, "/releases")
	u.signIn("admin", admin)

	// Publish, and see it at once.
	dir := filepath.Join(t.TempDir(), "release")
	c.moult("release", "create", "--version", versionB, "--key", filepath.Join(c.dir, "release.key"), "--out", dir, runtime.GOOS+"/"+runtime.GOARCH+"="+binary(t, versionB))
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 3 {
		t.Fatal(files, err)
	}
	u.Do(chromedp.SetUploadFiles(chromedp.ID("files"), files))
	u.click("#publish button")
	u.AwaitText(versionB + " number")
	u.AwaitText("by a pinned key")
	u.open(at, "/")
	u.AwaitText("3 hosts behind")
	u.AwaitText("out of date · " + versionA + " → " + versionB)

	// Update one host and read its log as it is written.
	u.Do(chromedp.Evaluate[chromedp.Void](`[...document.querySelectorAll("#live th a")].find((a) => a.textContent === "agent-1").click()`))
	u.Do(chromedp.WaitVisible(chromedp.ID("update")))
	u.click("#update")
	u.AwaitText("Update of agent-1 to " + versionB)
	for _, line := range []string{"dispatched", "verified", "succeeded"} {
		u.AwaitText(line)
	}
	u.AwaitText("Fetched from")

	// The server that the page is from is the leader, and is lost.
	u.open(at, "/settings/fleet-update")
	u.AwaitText("2 hosts go to " + versionB)
	lost := u.server()
	c.kill(leader)
	u.AwaitText("This server does not answer.")
	u.AwaitNoText("This server does not answer.")
	if u.server() == lost {
		t.Logf("%s came back before the page left it", leader)
	}
	u.AwaitText("2 hosts go to " + versionB)
	u.Do(chromedp.WaitVisible(chromedp.ID("expect")), chromedp.SendKeys(chromedp.ID("expect"), "2"))
	c.leader() // there is one again
	u.click("#start")
	u.AwaitText("Fleet update to " + versionB + " running")
	u.AwaitText("now agent-2")
	u.click("#cancel")
	u.confirm()
	u.AwaitText("cancelled")
	u.AwaitText("1 host goes to " + versionB) // the one that was under way went on to its end
	u.Do(chromedp.SendKeys(chromedp.ID("expect"), "1"))
	u.click("#start")
	u.AwaitText("completed 1 of 1")
	u.AwaitText("Nothing to do: 3 hosts at " + versionB)
	c.allOn(versionB)

	// A bad release halts: the page tells which host and why.
	c.badRelease("6.6.6", "exit")
	u.AwaitText("3 hosts go to 6.6.6")
	u.Do(chromedp.SendKeys(chromedp.ID("expect"), "3"))
	u.click("#start")
	u.AwaitText("Halted: agent-1")
	u.AwaitText("the log of agent-1")
	u.AwaitText("Update the 3 hosts left")
	u.Screenshot("halted")

	// A viewer sees all of it and is offered none of it.
	u.Do(chromedp.Evaluate[chromedp.Void](`location.assign("/settings/users")`), chromedp.WaitVisible(chromedp.ID("add-user")))
	u.Do(chromedp.SendKeys(chromedp.CSS("#add-user [name=name]"), "vera"), chromedp.SendKeys(chromedp.CSS("#add-user [name=password]"), "only looking"))
	u.click("#add-user button")
	u.AwaitText("vera viewer")
	u.click("header form button")
	u.fillIn("vera", "only looking")
	u.Do(chromedp.WaitVisible(chromedp.ID("repeated")), chromedp.SendKeys(chromedp.ID("current"), "only looking"),
		chromedp.SendKeys(chromedp.ID("new"), "vera chose this"), chromedp.SendKeys(chromedp.ID("repeated"), "vera chose this"),
		chromedp.Submit(chromedp.ID("repeated")), chromedp.WaitVisible(chromedp.ID("live")))
	u.Do(chromedp.Evaluate[chromedp.Void](`location.assign("/settings/fleet-update")`))
	u.AwaitText("Halted: agent-1")
	u.AwaitNoText("Update the 3 hosts left")
	if status := u.Text(`fetch("/api/fleet/update", {method: "POST"}).then((r) => r.status)`); status != "403" {
		t.Errorf("a viewer who starts a fleet update is answered %s", status)
	}
}
