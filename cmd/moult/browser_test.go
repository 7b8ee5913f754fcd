//go:build unix

package main

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"moult/cmd/internal/nodekit"
	"moult/webui/browsertest"
)

// TestBrowserSmoke signs in with a real browser, sees the fleet, and watches an
// update arrive without reloading the page.
func TestBrowserSmoke(t *testing.T) {
	b := browsertest.Start(t)
	c := startCluster(t, 1, 2, "--agent-arg=--soak=3s") // so that the fleet update is seen to run
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

// A browser that believes the cluster's UI CA, and one that does not, at a real server
// over TLS: the former signs in, gets cookies that no other page and no script can
// use, and sees a host join without reloading the page; the latter gets no page.
func TestBrowserOverTLS(t *testing.T) {
	t.Parallel()
	stranger := browsertest.Start(t)
	dir := t.TempDir()
	data, ui, peer := filepath.Join(dir, "s1"), freeAddress(t), freeAddress(t)
	host, _, err := net.SplitHostPort(ui)
	must(t, err)
	startMoult(t, "server", "--data", data, "--name", "server-1", "--bootstrap", "--tls", "on", "--http", ui, "--peer", peer, "--gossip", freeAddress(t))
	c := &testCluster{t: t}
	var text []byte
	c.await(time.Minute, "the server to be up", func() (err error) {
		if _, err = nodekit.ReadRunning(data); err == nil {
			text, err = os.ReadFile(filepath.Join(data, uiCAFile))
		}
		return err
	})
	block, _ := pem.Decode(text)
	ca, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	url := "https://" + ui + "/"
	if err := stranger.Reach(url); err == nil || !strings.Contains(err.Error(), "ERR_CERT_AUTHORITY_INVALID") {
		t.Errorf("a browser that does not know the CA: %v", err)
	}
	b := browsertest.Start(t, browsertest.Trusting(ca))
	password, err := os.ReadFile(filepath.Join(data, adminPasswordFile))
	must(t, err)
	b.Do(chromedp.Navigate(url), chromedp.WaitVisible(chromedp.ID("password")))
	b.Do(chromedp.SendKeys(chromedp.ID("username"), "admin"), chromedp.SendKeys(chromedp.ID("password"), strings.TrimSpace(string(password))),
		chromedp.Submit(chromedp.ID("password")), chromedp.WaitVisible(chromedp.ID("repeated")))
	b.Do(chromedp.SendKeys(chromedp.ID("current"), strings.TrimSpace(string(password))), chromedp.SendKeys(chromedp.ID("new"), "one of my own"),
		chromedp.SendKeys(chromedp.ID("repeated"), "one of my own"), chromedp.Submit(chromedp.ID("repeated")), chromedp.WaitVisible(chromedp.ID("live")))
	cookies := b.Cookies()
	for _, cookie := range cookies {
		if !strings.HasPrefix(cookie.Name, "__Host-") || !cookie.Secure || !cookie.HTTPOnly || cookie.Path != "/" || cookie.SameSite == "" || cookie.SameSite == "None" || cookie.Domain != host {
			t.Errorf("the browser keeps %+v", cookie)
		}
	}
	if len(cookies) == 0 || b.Text("document.cookie") != "" {
		t.Errorf("cookies %v, of which a script sees %q", cookies, b.Text("document.cookie"))
	}

	// A host joins; the page is told.
	b.AwaitNoText("agent-1")
	var made struct {
		Token string `json:"token"`
	}
	token, err := os.ReadFile(filepath.Join(data, adminTokenFile))
	must(t, err)
	cmd := exec.Command(binary(t, versionA), "token", "create", "--json", "--ca", filepath.Join(data, uiCAFile))
	cmd.Env = append(os.Environ(), "MOULT_ADDR=https://"+ui, "MOULT_TOKEN="+strings.TrimSpace(string(token)))
	out, err := cmd.Output()
	must(t, err)
	must(t, json.Unmarshal(out, &made))
	b.Do(chromedp.Evaluate[chromedp.Void]("window.kept = 'the page was not loaded again'"))
	startMoult(t, "agent", "--data", filepath.Join(dir, "a1"), "--name", "agent-1", "--join", peer, "--token", made.Token, "--peer", freeAddress(t), "--gossip", freeAddress(t))
	b.AwaitText("agent-1")
	if kept := b.Text("window.kept"); kept != "the page was not loaded again" {
		t.Errorf("the page was loaded again: %q", kept)
	}
}
