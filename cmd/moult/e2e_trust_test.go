//go:build unix

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/consensus/fleet"
	"moult/mesh/identity"
	"moult/mesh/nodeport"
)

// credentials are those of a host of the cluster, from its data directory.
func (c *testCluster) credentials(name string) identity.Credentials {
	c.t.Helper()
	store, err := identity.OpenStore(filepath.Join(c.dir, name, "data", "identity"))
	if err != nil {
		c.t.Fatal(err)
	}
	creds, err := store.Load()
	if err != nil {
		c.t.Fatal(err)
	}
	return creds
}

// peerAddr is a host's node port.
func (c *testCluster) peerAddr(name string) string {
	c.t.Helper()
	r, err := nodekit.ReadRunning(filepath.Join(c.dir, name, "data"))
	if err != nil {
		c.t.Fatal(err)
	}
	return r.Peer
}

func (c *testCluster) awaitRotated(segment string, patience time.Duration) {
	c.t.Helper()
	c.await(patience, "new gossip keys of "+segment, func() error {
		g, err := c.client.gossip(c.t.Context())
		if err != nil {
			return err
		}
		for _, r := range g.Segments {
			if r.Segment == segment && r.Stage == "" && r.Done > 0 {
				return nil
			}
		}
		return fmt.Errorf("they are %+v", g)
	})
}

// A host is removed: within seconds nobody talks to it any more, servers and
// agents alike, what is under way ends, and its segment gets new gossip keys,
// though the leader dies meanwhile. An agent that was off all the time comes back by
// itself. Two machines that answer as agent-1 before and after the leader dies are
// found all the same.
func TestE2ERemovedHostIsShutOut(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, 3)
	stolen := c.credentials("agent-2")
	restart := c.killForRestart("agent-3")
	c.awaitOffline("agent-3")

	// Its thief has a connection to each kind of host.
	peers := []string{"server-1", "server-2", "agent-1"}
	held := nodeport.Client(func() identity.Credentials { return stolen }, nil)
	defer held.CloseIdleConnections()
	ask := func(client *http.Client, name string) error { return askMember(t.Context(), client, c.peerAddr(name)) }
	for _, p := range peers {
		if err := ask(held, p); err != nil {
			t.Fatalf("before the removal %s refuses: %v", p, err)
		}
	}

	out := c.moult("host", "remove", "agent-2", "--json")
	var removal apiRemoval
	if err := json.Unmarshal([]byte(out), &removal); err != nil || !removal.Denied || strings.Join(removal.Rotating, ",") != "default" {
		t.Errorf("the removal says %s", out)
	}
	began := time.Now()
	for _, p := range peers {
		c.await(30*time.Second, p+" to refuse the removed host", func() error {
			if ask(held, p) == nil {
				return errors.New("it still answers")
			}
			return nil
		})
		fresh := nodeport.Client(func() identity.Credentials { return stolen }, nil)
		if err := ask(fresh, p); err == nil {
			t.Errorf("%s takes a new connection", p)
		}
		fresh.CloseIdleConnections()
	}
	t.Logf("all refuse it after %v", time.Since(began).Round(100*time.Millisecond))

	leader := c.leader()
	followers := slices.DeleteFunc([]string{"server-1", "server-2", "server-3"}, func(s string) bool { return s == leader })
	checkIn := func(server, instance string) {
		t.Helper()
		_, err := identity.CheckIn(t.Context(), c.peerAddr(server), c.credentials("agent-1"), identity.CheckInRequest{Instance: instance})
		must(t, err)
	}
	checkIn(followers[0], "one") // whichever leads next, it knows of one of them by others
	nodekit.Sleep(t.Context(), checkInCall+time.Second)
	checkIn(followers[1], "another")
	nodekit.Sleep(t.Context(), time.Second) // until the servers have told each other
	revive := c.killForRestart(leader)
	c.awaitRotated("default", 2*time.Minute)
	t.Logf("the keys are changed after %v", time.Since(began).Round(time.Second))
	checkIn(followers[0], "one")
	c.await(30*time.Second, "agent-1 to be in quarantine", func() error {
		var out struct {
			Alerts []struct{ Kind string } `json:"alerts"`
		}
		c.get("/api/alerts", &out)
		for _, a := range out.Alerts {
			if a.Kind == fleet.AlertClonedHost {
				return nil
			}
		}
		return fmt.Errorf("alerts are %+v", out.Alerts)
	})
	revive()
	restart()
	keys := map[string]bool{}
	for _, name := range []string{"agent-1", leader, "agent-3"} {
		c.await(2*time.Minute, name+" to have the new key alone", func() error {
			creds := c.credentials(name)
			if len(creds.GossipKeys) != 1 || string(creds.GossipKeys[0]) == string(stolen.GossipKeys[0]) {
				return fmt.Errorf("it has %d, of revision %d", len(creds.GossipKeys), creds.GossipRevision)
			}
			keys[string(creds.GossipKeys[0])] = true
			return nil
		})
	}
	t.Logf("the leader and the agent that were off have the key after %v", time.Since(began).Round(time.Second))
	if len(keys) != 1 {
		t.Errorf("the hosts have %d different keys", len(keys))
	}
	c.await(time.Minute, "agent-3 to be online", func() error {
		if h := c.hosts()["agent-3"]; !h.Online {
			return fmt.Errorf("it is %s", h.Status)
		}
		return nil
	})
	t.Logf("it is online after %v", time.Since(began).Round(time.Second))
	c.await(2*time.Minute, "all to follow the deny-list", func() error {
		var list struct {
			HostsBehind []string `json:"hosts_behind"`
		}
		c.get("/api/denied", &list)
		if len(list.HostsBehind) > 0 {
			return fmt.Errorf("%v do not", list.HostsBehind)
		}
		return nil
	})
	t.Logf("all say that they follow the list after %v", time.Since(began).Round(time.Second))
	if creds := c.credentials("agent-3"); !creds.Denials.Host(stolen.HostID) {
		t.Error("agent-3 has not kept the deny-list")
	}
	c.newcomerRefuses(stolen)
}

// newcomerRefuses has a new host join the cluster, which then refuses a host that
// was removed before, though nobody but the server that let it in has told it anything.
func (c *testCluster) newcomerRefuses(removed identity.Credentials) {
	c.t.Helper()
	var made struct {
		Token string `json:"token"`
	}
	must(c.t, json.Unmarshal([]byte(c.moult("token", "create", "--json")), &made))
	token, err := identity.ParseToken(made.Token)
	must(c.t, err)
	store, err := identity.OpenStore(filepath.Join(c.t.TempDir(), "identity"))
	must(c.t, err)
	creds, err := identity.Join(c.t.Context(), c.peerAddr("server-1"), token, store, identity.JoinRequest{
		Name: "newcomer", OS: "linux", Arch: "amd64", GossipAddr: "127.0.0.1:1", PeerAddr: "127.0.0.1:1",
	})
	must(c.t, err)
	port, err := nodeport.Listen("127.0.0.1:0", func() (identity.Credentials, bool) { return creds, true }, nil, slog.New(slog.DiscardHandler))
	must(c.t, err)
	defer func() { must(c.t, port.Close(context.Background())) }()
	port.ServeHTTP(nodeport.Handlers{Peer: http.NotFoundHandler()})
	for name, tc := range map[string]struct {
		creds   identity.Credentials
		refused bool
	}{"the removed host": {removed, true}, "another one": {c.credentials("agent-1"), false}} {
		client := nodeport.Client(func() identity.Credentials { return tc.creds }, nil)
		req, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, "https://"+port.Addr().String()+"/", http.NoBody)
		must(c.t, err)
		resp, err := client.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		if (err != nil) != tc.refused {
			c.t.Errorf("a newcomer refuses %s: %v", name, err)
		}
		client.CloseIdleConnections()
	}
	if _, err := nodeport.Probe(c.t.Context(), creds, c.peerAddr("agent-1")); err != nil { // it is a member by now
		c.t.Errorf("an agent refuses the newcomer: %v", err)
	}
}

// askMember asks a node port what it answers members alone.
func askMember(ctx context.Context, client *http.Client, addr string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+addr+nodekit.PathNeighbours+"?segment=default", http.NoBody)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}
