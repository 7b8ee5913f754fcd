//go:build unix

package main

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"moult/mesh/identity"
	"moult/mesh/nodeport"
)

// stolenCA is the CA of a cluster as somebody has it who has read a server's disk.
func (c *testCluster) stolenCA(server string) *identity.CA {
	c.t.Helper()
	files, err := filepath.Glob(filepath.Join(c.dir, server, "data", "raft", "*"))
	if err != nil {
		c.t.Fatal(err)
	}
	pem := func(text []byte, field string) []byte {
		found := regexp.MustCompile(`"` + field + `":"([A-Za-z0-9+/=]+)"`).FindSubmatch(text)
		if found == nil {
			return nil
		}
		b, err := base64.StdEncoding.DecodeString(string(found[1]))
		if err != nil {
			c.t.Fatal(err)
		}
		return b
	}
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // a directory
		}
		if cert, key := pem(text, "ca_cert"), pem(text, "ca_key"); cert != nil && key != nil {
			ca, err := identity.LoadCA(cert, key)
			if err != nil {
				c.t.Fatal(err)
			}
			return ca
		}
	}
	c.t.Fatal("the CA's key is not where it used to be")
	return nil
}

// forged are credentials of somebody who has a CA's key: with a key of their own, and
// trusting whom the cluster trusts.
func (c *testCluster) forged(ca *identity.CA, role identity.Role, hostID string) identity.Credentials {
	c.t.Helper()
	creds := c.credentials("server-1")
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		c.t.Fatal(err)
	}
	creds.Identity = identity.Identity{Cluster: creds.Cluster, HostID: hostID, Name: "forged", Role: role}
	creds.Key, creds.CAPEM = key, ca.CertPEM()
	if creds.CertPEM, err = ca.Issue(creds.Identity, publicKey(key), time.Now(), time.Hour); err != nil {
		c.t.Fatal(err)
	}
	return creds
}

// letsIn tells whether a host's node port speaks a protocol with these credentials.
func (c *testCluster) letsIn(name, alpn string, creds identity.Credentials) error {
	ctx := c.t.Context()
	addr := c.peerAddr(name)
	switch alpn {
	case identity.ALPNRaft:
		conn, err := nodeport.DialRaft(ctx, creds, addr, nil)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		_, err = conn.Read(make([]byte, 1)) // one who is let in hears nothing; a refusal may take its time
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		return err
	case identity.ALPNRenew:
		_, err := identity.Renew(ctx, addr, creds, identity.RenewRequest{})
		return err
	}
	client := nodeport.Client(func() identity.Credentials { return creds }, nil)
	defer client.CloseIdleConnections()
	return askMember(ctx, client, addr)
}

// awaitCA waits until the change of the CA is at a stage, and these hosts alone have
// not followed.
func (c *testCluster) awaitCA(stage string, pending ...string) (a apiCA) {
	c.t.Helper()
	c.await(2*time.Minute, fmt.Sprintf("the CA to be %q, and all but %v to follow", stage, pending), func() error {
		var err error
		if a, err = c.client.ca(c.t.Context()); err != nil {
			return err
		}
		var names []string
		for _, h := range a.Pending {
			names = append(names, h.Name)
		}
		if a.Stage != stage || !slices.Equal(names, pending) {
			return fmt.Errorf("it is %q, and not followed have %+v", a.Stage, a.Pending)
		}
		return nil
	})
	return a
}

// advanceCA takes a step without some hosts, as soon as a leader takes it.
func (c *testCluster) advanceCA(from string, pending int) {
	c.t.Helper()
	c.await(time.Minute, "the step from "+from, func() error {
		return c.try(http.MethodPost, "/api/ca/advance", map[string]any{"from": from, "force": true, "expect_pending": pending}, nil)
	})
}

// joinToken makes a join token for an agent.
func (c *testCluster) joinToken() identity.Token {
	c.t.Helper()
	var out struct{ Token string }
	c.await(20*time.Second, "a join token", func() error {
		return c.try(http.MethodPost, "/api/join-tokens", map[string]any{"role": "agent"}, &out)
	})
	token, err := identity.ParseToken(out.Token)
	if err != nil {
		c.t.Fatal(err)
	}
	return token
}

// joinAt joins a host of which nothing runs.
func (c *testCluster) joinAt(through, name string, token identity.Token) (identity.Credentials, error) {
	c.t.Helper()
	store, err := identity.OpenStore(filepath.Join(c.t.TempDir(), name))
	if err != nil {
		c.t.Fatal(err)
	}
	return identity.Join(c.t.Context(), c.peerAddr(through), token, store, identity.JoinRequest{
		Name: name, OS: "linux", Arch: "amd64", Version: versionA, GossipAddr: "127.0.0.1:1", PeerAddr: "127.0.0.1:2",
	})
}

// trustsOnly waits until a host trusts one CA alone, by its files, and has a
// certificate of it.
func (c *testCluster) trustsOnly(sha256 string, names ...string) {
	c.t.Helper()
	for _, name := range names {
		c.await(2*time.Minute, name+" to trust the new CA alone", func() error {
			creds := c.credentials(name)
			by, err := identity.CAHash(creds.CAPEM)
			if err == nil && (!slices.Equal(creds.Trusted.Hashes(), []string{sha256}) || by != sha256) {
				err = fmt.Errorf("it trusts %v, its certificate is by %s", creds.Trusted.Hashes(), by)
			}
			return err
		})
	}
}

// The CA is changed from beginning to end, though the leader dies in each phase, a
// server is off from the first phase on and an agent all the time: both come back by
// themselves. Whoever has the old CA's key is let in nowhere any more.
func TestE2ETheCAIsChanged(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, 3)
	old := c.stolenCA("server-1")
	oldHash, err := identity.CAHash(old.CertPEM())
	if err != nil {
		t.Fatal(err)
	}
	before := c.credentials("agent-1")
	unused, used := c.joinToken(), c.joinToken()
	restartAgent := c.killForRestart("agent-3")
	c.awaitOffline("agent-3")

	// With the CA's key alone nobody becomes a server, but it passes for an agent.
	thief := c.forged(old, identity.RoleAgent, uuid.NewString())
	impostor := c.forged(old, identity.RoleServer, c.credentials("server-2").HostID)
	if err := c.letsIn("agent-1", identity.ALPNHTTP, thief); err != nil {
		t.Errorf("before the change an agent refuses a certificate of its CA: %v", err)
	}
	if err := c.letsIn("server-1", identity.ALPNRaft, impostor); err == nil {
		t.Error("a server speaks Raft with one who has another server's id and another key")
	}
	if err := c.letsIn("server-3", identity.ALPNRaft, c.credentials("server-2")); err != nil {
		t.Errorf("a server refuses another one: %v", err)
	}

	began := time.Now()
	since := func(what string) { t.Logf("%s after %v", what, time.Since(began).Round(time.Second)) }
	c.moult("ca", "rotate", "--step", "--yes", "--reason", "stolen")
	a := c.awaitCA(caPrepared, "agent-3")
	var refused *apiError
	if err := c.try(http.MethodPost, "/api/ca/advance", map[string]any{"from": caPrepared}, nil); !errors.As(err, &refused) || refused.Code != "hosts_pending" || !strings.Contains(refused.Message, "agent-3") {
		t.Errorf("a step without a host is answered with %v", err)
	}
	newHash := a.Next.SHA256
	since("prepared")

	// The leader dies in the first phase, and stays away.
	first := c.leader()
	reviveFirst := c.killForRestart(first)
	c.advanceCA(caPrepared, 1)
	c.awaitCA(caSwitched, slices.Sorted(slices.Values([]string{"agent-3", first}))...)
	since("switched")

	// The next one dies in the second phase, and comes back.
	second := c.leader()
	c.killForRestart(second)()
	c.await(time.Minute, "new gossip keys", func() error {
		return c.try(http.MethodPost, "/api/gossip/rotate", map[string]any{"force": true}, nil)
	})
	if _, err := c.joinAt(second, "late-1", used); err != nil {
		t.Errorf("a token of before the switch is refused though its CA is trusted: %v", err)
	}
	restartedAs := c.leader()
	c.await(2*time.Minute, "the gossip keys to be changed", func() error {
		a, err := c.client.ca(t.Context())
		if err == nil && len(a.GossipPending) > 0 {
			err = fmt.Errorf("those of %v are not", a.GossipPending)
		}
		return err
	})
	c.awaitCA(caSwitched, slices.Sorted(slices.Values([]string{"agent-3", "late-1", first}))...)
	c.advanceCA(caSwitched, 3)
	c.awaitCA("", slices.Sorted(slices.Values([]string{"agent-3", "late-1", first}))...)
	c.trustsOnly(newHash, second, restartedAs, "agent-1", "agent-2")
	since("retired")

	reviveFirst()
	restartAgent()
	c.trustsOnly(newHash, first, "agent-3")
	since("those that were off are back")
	c.await(2*time.Minute, "all to be online", func() error {
		servers, err := c.client.servers(t.Context())
		if err != nil {
			return err
		}
		for _, s := range servers {
			if !s.Healthy {
				return fmt.Errorf("%s is not healthy", s.Name)
			}
		}
		for _, name := range []string{"agent-1", "agent-2", "agent-3"} {
			if h := c.hosts()[name]; !h.Online {
				return fmt.Errorf("%s is %s", name, h.Status)
			}
		}
		return nil
	})

	// Nobody takes what the old CA signs, whether a thief or the host itself.
	for _, name := range []string{"server-1", "server-2", "server-3", "agent-1", "agent-2", "agent-3"} {
		for _, alpn := range []string{identity.ALPNRaft, identity.ALPNHTTP, identity.ALPNRenew} {
			for who, creds := range map[string]identity.Credentials{
				"a thief": c.forged(old, identity.RoleAgent, uuid.NewString()), "a server's impostor": c.forged(old, identity.RoleServer, c.credentials("server-2").HostID),
				"an agent's impostor": c.forged(old, identity.RoleAgent, before.HostID),
			} {
				if err := c.letsIn(name, alpn, creds); err == nil {
					t.Errorf("%s is let in by %s on %s", who, name, alpn)
				}
			}
			stale := c.credentials("agent-1")
			stale.CertPEM, stale.CAPEM = before.CertPEM, before.CAPEM
			// The host itself gets a new certificate, from a server, and nothing else.
			if err := c.letsIn(name, alpn, stale); (err == nil) != (alpn == identity.ALPNRenew && strings.HasPrefix(name, "server")) {
				t.Errorf("%s answers the old certificate's host on %s with %v", name, alpn, err)
			}
		}
	}
	if err := c.letsIn("server-1", identity.ALPNHTTP, c.credentials("agent-1")); err != nil {
		t.Errorf("the new certificate is refused: %v", err)
	}
	_, err = c.joinAt("server-1", "late-2", unused)
	var coded *identity.CodedError
	if !errors.As(err, &coded) || !strings.Contains(coded.Message, "before the cluster's CA was changed") {
		t.Errorf("a token of the retired CA is answered with %v", err)
	}
	fresh, err := c.joinAt("server-1", "late-3", c.joinToken())
	if err != nil || !slices.Equal(fresh.Trusted.Hashes(), []string{newHash}) || fresh.Trusted.Knows(oldHash) {
		t.Errorf("a new host joins with %v, and trusts %v", err, fresh.Trusted.Hashes())
	}

	var status apiCA
	if err := json.Unmarshal([]byte(c.moult("ca", "status", "--json")), &status); err != nil || status.Number != 1 || status.SHA256 != newHash {
		t.Errorf("moult ca status: %v, %+v", err, status)
	}
	// An update goes through as ever.
	c.publish(versionB, binary(t, versionB))
	out := c.moult("host", "update", "agent-3", "--json")
	c.await(2*time.Minute, "agent-3 to be updated", func() error {
		if h := c.hosts()["agent-3"]; h.AgentVersion != versionB {
			return fmt.Errorf("it runs %s, %s; the command says %s", h.AgentVersion, h.Phase, out)
		}
		return nil
	})
}
