//go:build unix

package main

import (
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"moult/webui/browsertest"
)

// TestBrowserSmoke signs in with a real browser, sees the fleet, and watches an
// update arrive without reloading the page.
func TestBrowserSmoke(t *testing.T) {
	b := browsertest.Start(t)
	c := startCluster(t, 1, 2)
	password := strings.TrimSpace(c.read("admin.password"))

	b.Do(chromedp.Navigate(c.client.addrs[0]+"/"), chromedp.WaitVisible(chromedp.ID("password")))
	b.Screenshot("login")
	b.Do(chromedp.SendKeys(chromedp.ID("username"), "admin"), chromedp.SendKeys(chromedp.ID("password"), password),
		chromedp.Submit(chromedp.ID("password")))
	b.AwaitText("agent-1")
	b.Screenshot("dashboard")

	c.publish(versionB, binary(t, versionB))
	b.AwaitText("out of date") // nobody reloads the page
	b.Screenshot("behind")
	id := c.startFleetUpdate(nil)
	b.AwaitText("Fleet update to " + versionB + " running")
	b.Screenshot("running")
	c.awaitFleetUpdate(id, "completed", time.Minute)
	b.AwaitNoText("out of date")
	b.Screenshot("updated")
}
