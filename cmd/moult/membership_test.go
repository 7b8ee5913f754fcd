//go:build unix

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// awaitServers waits until these servers are the members, by name and role, as all
// servers that the client knows show them, and healthy.
func (c *testCluster) awaitServers(want ...string) {
	c.t.Helper()
	c.await(time.Minute, "the servers "+strings.Join(want, ", "), func() error {
		servers, err := c.client.servers(c.t.Context())
		if err != nil {
			return err
		}
		var got []string
		for _, s := range servers {
			role := "non-voter"
			switch {
			case s.Voter:
				role = "voter"
			case s.Standby:
				role = "standby"
			}
			if !s.Healthy {
				role += ", unhealthy"
			}
			got = append(got, s.Name+" "+role)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("they are %s", strings.Join(got, ", "))
		}
		return nil
	})
}

// join starts a new server with a token.
func (c *testCluster) join(name string, through *lateServer) *lateServer {
	c.t.Helper()
	s := c.newServer(name)
	c.launch(s, freeAddress(c.t), c.joining(s, through.peer)...)
	c.client.addrs = append(c.client.addrs, "http://"+s.http)
	return s
}

// joining makes a token, and the flags to join with it.
func (c *testCluster) joining(s *lateServer, peer string) []string {
	c.t.Helper()
	var out struct{ Token string }
	c.await(20*time.Second, "a token", func() error {
		return c.try("POST", "/api/join-tokens", map[string]any{"role": "server", "ttl": "15m"}, &out)
	})
	path := filepath.Join(c.t.TempDir(), s.name+".token")
	if err := os.WriteFile(path, []byte(out.Token), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return []string{"--join", peer, "--token-file", path}
}

// Membership for life: a vote is taken and given back, a server moves, one loses its
// disk, and one is away while all others are replaced.
func TestE2EMembership(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, 0)
	c.moult("servers", "demote", "server-3")
	c.awaitServers("server-1 voter", "server-2 voter", "server-3 standby")
	c.kill("server-2") // of two voters: nothing can be changed, and it is said
	c.await(time.Minute, "no majority", func() error {
		if err := httpOK(t.Context(), c.client.addrs[0]+"/readyz"); err == nil {
			return errors.New("server-1 is ready")
		}
		return nil
	})

	// server-2 comes back elsewhere, so the others have to learn where.
	s2 := c.newServer("server-2")
	c.launchWithoutWaiting(s2, freeAddress(t))
	c.client.addrs[1] = "http://" + s2.http
	c.awaitServers("server-1 voter", "server-2 voter", "server-3 standby")
	c.moult("servers", "promote", "server-3")
	c.awaitServers("server-1 voter", "server-2 voter", "server-3 voter")
	servers, err := c.client.servers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range servers {
		if s.Name == "server-2" && s.Address != s2.peer {
			t.Errorf("server-2 is dialled at %s, it listens at %s", s.Address, s2.peer)
		}
	}

	// server-3 loses its disk: it is another server under the same name.
	pid := c.pid("server-3")
	c.kill("server-3")
	c.awaitEnd(pid)
	if err := os.RemoveAll(filepath.Join(c.dir, "server-3", "data")); err != nil {
		t.Fatal(err)
	}
	s3 := c.newServer("server-3")
	args := c.joining(s3, s2.peer)
	if out := c.refusedCommand(append([]string{"server", "--data", s3.data, "--name", s3.name, "--gossip", freeAddress(t), "--peer", s3.peer, "--http", s3.http}, args...)...); !strings.Contains(out, "moult servers remove server-3") {
		t.Errorf("joining under a name that is taken: %s", out)
	}
	c.moult("servers", "remove", "server-3")
	c.client.addrs = c.client.addrs[:2]
	c.launch(s3, freeAddress(t), args...)
	c.client.addrs = append(c.client.addrs, "http://"+s3.http)
	c.awaitServers("server-1 voter", "server-2 voter", "server-3 voter")

	// server-1 is away while the two others are replaced.
	restart := c.killForRestart("server-1")
	away := c.client.addrs[0]
	c.client.addrs = c.client.addrs[1:]
	s4 := c.join("server-4", s2)
	c.moult("servers", "replace", "server-2", "--with", "server-4")
	s2.stop()
	c.client.addrs = c.client.addrs[1:]
	c.join("server-5", s4)
	c.moult("servers", "replace", "server-3", "--with", "server-5")
	s3.stop()
	c.client.addrs = append(c.client.addrs[1:], away)
	restart()
	c.awaitServers("server-1 voter", "server-4 voter", "server-5 voter")
	c.await(30*time.Second, "server-1 to be ready", func() error { return httpOK(t.Context(), away+"/readyz") })
}
