//go:build unix

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/mesh/identity"
)

// post sends a form, and returns the answer with its body read.
func (c *testCluster) post(addr, path string, session *http.Cookie, form url.Values) (*http.Response, string) {
	c.t.Helper()
	req, err := http.NewRequest(http.MethodPost, addr+path, strings.NewReader(form.Encode()))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return c.send(req, session)
}

// send sends a request as a browser does, but follows nowhere.
func (c *testCluster) send(req *http.Request, session *http.Cookie) (*http.Response, string) {
	c.t.Helper()
	req.Header.Set("Sec-Fetch-Site", "same-origin")
	if session != nil {
		req.AddCookie(session)
	}
	hc := http.Client{Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := hc.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp, string(body)
}

func (c *testCluster) signIn(addr, name, password string) (*http.Response, *http.Cookie) {
	c.t.Helper()
	resp, _ := c.post(addr, "/login", nil, url.Values{"username": {name}, "password": {password}})
	for _, cookie := range resp.Cookies() {
		if cookie.Value != "" {
			return resp, cookie
		}
	}
	return resp, nil
}

// status is how an API path answers a session.
func (c *testCluster) status(addr, method, path string, session *http.Cookie) int {
	c.t.Helper()
	req, err := http.NewRequest(method, addr+path, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	resp, _ := c.send(req, session)
	return resp.StatusCode
}

// People go from server to server, and their leader is killed: a session goes on,
// guesses go on counting, and signing out everywhere is everywhere.
func TestE2EPeopleGoFromServerToServer(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, 0)
	addrs := c.client.addrs
	password := strings.TrimSpace(c.read("admin.password"))
	resp, session := c.signIn(addrs[0], "admin", password)
	if resp.StatusCode != http.StatusSeeOther || resp.Header.Get("Location") != "/" {
		t.Fatalf("the printed login leads to %d %s", resp.StatusCode, resp.Header.Get("Location"))
	}
	everywhere := func(when string, session *http.Cookie, want int) {
		t.Helper()
		for _, addr := range addrs {
			c.await(20*time.Second, fmt.Sprintf("%s: %d at %s", when, want, addr), func() error {
				if err := httpOK(t.Context(), addr+"/readyz"); err != nil {
					return err
				}
				if got := c.status(addr, http.MethodGet, "/api/hosts", session); got != want {
					return fmt.Errorf("it answers %d", got)
				}
				return nil
			})
		}
	}
	everywhere("signed in", session, http.StatusOK)

	// Ten guesses for a name that is not known from here, spread over the servers.
	if err := c.try(http.MethodPost, "/api/users", map[string]any{"name": "vera", "role": "viewer", "password": "given to vera", "must_change_password": true}, nil); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		c.await(20*time.Second, fmt.Sprintf("guess %d to be refused", i), func() error { // amid an election it is not judged
			if resp, _ := c.signIn(addrs[i%3], "vera", "a guess"); resp.StatusCode != http.StatusUnauthorized {
				return errors.New(resp.Status)
			}
			return nil
		})
	}
	throttled := func(when string) {
		t.Helper()
		for _, addr := range addrs {
			if resp, _ := c.signIn(addr, "vera", "given to vera"); resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") == "" {
				t.Errorf("%s: %s answers %d", when, addr, resp.StatusCode)
			}
		}
	}
	throttled("at once")

	leader := c.leader()
	restart := c.killForRestart(leader)
	lost := addrs[leader[len(leader)-1]-'1'] // server-1 has the first address
	var left []string
	for _, addr := range addrs {
		if addr != lost {
			left = append(left, addr)
		}
	}
	all := addrs
	addrs = left
	c.leader()
	everywhere("after the leader was killed", session, http.StatusOK)
	var entries struct {
		Entries []struct{ Action, From, Detail string }
	}
	c.get("/api/audit?action=logins_tried", &entries)
	if len(entries.Entries) != 1 || entries.Entries[0].From != "127.0.0.1" || !strings.Contains(entries.Entries[0].Detail, "10 passwords tried for vera") {
		t.Errorf("audit: %+v", entries)
	}
	var vera *http.Cookie
	c.await(time.Minute, "vera, who waited, to come in", func() error {
		resp, cookie := c.signIn(left[0], "vera", "given to vera")
		if resp.StatusCode != http.StatusSeeOther || !strings.HasPrefix(resp.Header.Get("Location"), "/choose-password") {
			return fmt.Errorf("%d %s", resp.StatusCode, resp.Header.Get("Location"))
		}
		vera = cookie
		return nil
	})
	everywhere("before vera has chosen a password", vera, http.StatusForbidden)
	restart()
	addrs = all
	everywhere("when the old leader is back", session, http.StatusOK)
	c.await(20*time.Second, "signing out everywhere", func() error {
		if got := c.status(addrs[1], http.MethodPost, "/api/account/end-sessions", session); got != http.StatusOK {
			return fmt.Errorf("it answers %d", got)
		}
		return nil
	})
	everywhere("signed out", session, http.StatusUnauthorized)
}

// The first admin's password is asked for anew, unless the cluster is to try out.
func TestBootstrapAsksForAnotherPassword(t *testing.T) {
	for _, keep := range []bool{false, true} {
		dir := t.TempDir()
		store, err := identity.OpenStore(filepath.Join(dir, "identity"))
		if err != nil {
			t.Fatal(err)
		}
		hostID, _, err := store.HostKey()
		if err != nil {
			t.Fatal(err)
		}
		o := serverOptions{NodeOptions: nodekit.NodeOptions{Data: dir, Name: "s1", GossipAdv: "127.0.0.1:1", PeerAdv: "127.0.0.1:2"}, http: "127.0.0.1:3", keepPassword: keep, certLifetime: defaultCertificateLifetime}
		var out bytes.Buffer
		if err := bootstrapCluster(store, o, hostID, &out); err != nil {
			t.Fatal(err)
		}
		first, err := pendingBootstrap(dir)
		if err != nil || first.Admin.MustChangePassword == keep || strings.Contains(out.String(), "asks for another password") == keep {
			t.Errorf("keep %v: %v %v %s", keep, err, first.Admin.MustChangePassword, out.String())
		}
	}
	cmd := newServerCommand()
	cmd.SetArgs([]string{"--data", t.TempDir(), "--keep-first-password"})
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), "without --bootstrap") {
		t.Errorf("%v", err)
	}
}
