//go:build linux

package main

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"moult/mesh/identity"
)

// What the cluster decides about trust reaches hosts two segments away from any
// server, through relays alone: another set of release keys, a removed host on the
// deny-list, and new gossip keys of the segment that it was in. A host of that segment
// that was off meanwhile gets all three when it is back, and a release that the new key
// signs is installed there, one that the old key signs is not.
func TestSegmentsTrustReachesThroughRelays(t *testing.T) {
	n := newSegmentedNet(t, "default", "dmz", "far")
	n.startServers(1)
	near := n.startAgent("near", []string{"default", "dmz"}, []*segmentedHost{n.hosts["server-1"]})
	n.awaitOnline(time.Minute, "near")
	away := n.startAgent("away", []string{"dmz", "far"}, []*segmentedHost{near})
	n.awaitOnline(time.Minute, "away")
	for _, name := range []string{"plain", "off", "gone"} {
		n.startAgent(name, []string{"far"}, []*segmentedHost{away})
	}
	n.awaitOnline(time.Minute, "plain", "off", "gone")
	removed := n.credentials("gone")
	before := n.credentials("plain").GossipKeys[0]
	n.hosts["off"].stop()

	// Another release key; the old one goes.
	second, statement := filepath.Join(n.dir, "second.key"), filepath.Join(n.dir, "keys.json")
	first := filepath.Join(n.dir, "release.key")
	n.moult("key", "generate", "--no-password", "--out", second)
	n.moult("key", "rotate", "--key", first, "--add", second+".pub", "--out", statement)
	n.moult("key", "publish", statement)
	n.moult("host", "remove", "gone")

	follows := func(name string) error {
		creds := n.credentials(name)
		trust, err := os.ReadFile(filepath.Join(n.dir, name, "data", "trust.json"))
		public, errPublic := os.ReadFile(second + ".pub")
		switch {
		case errors.Join(err, errPublic) != nil:
			return errors.Join(err, errPublic)
		case !bytes.Contains(trust, []byte(lastLine(string(public)))):
			return errors.New("it has not the new release key")
		case !creds.Denials.Host(removed.HostID):
			return errors.New("it does not know of the removed host")
		}
		far, ok := creds.In("far")
		if ok && (len(far.GossipKeys) != 1 || bytes.Equal(far.GossipKeys[0], before)) {
			return fmt.Errorf("it has %d gossip keys of the segment, of revision %d", len(far.GossipKeys), far.GossipRevision)
		}
		return nil
	}
	began := time.Now()
	for _, name := range []string{"near", "away", "plain"} {
		n.await(2*time.Minute, name+" to follow all", func() error { return follows(name) })
	}
	t.Logf("all that are there follow after %v", time.Since(began).Round(time.Second))
	n.awaitRotated("far", 2*time.Minute)
	off := n.hosts["off"]
	off.start(off.args("agent")...)
	back := time.Now()
	n.await(3*time.Minute, "off to follow all", func() error { return follows("off") })
	t.Logf("the one that was off follows after %v", time.Since(back).Round(time.Second))
	n.awaitOnline(time.Minute, "near", "away", "plain", "off")

	// Nobody over there talks to the removed host any more, whichever way it asks.
	for _, way := range []struct{ alpn, addr string }{
		{identity.ALPNHTTP, n.hosts["plain"].port("far")}, {identity.ALPNHTTP, away.port("far")}, {identity.ALPNRenew, away.port("far")}, // the last: to a server
	} {
		for name, creds := range map[string]identity.Credentials{"gone": removed, "off": n.credentials("off")} {
			n.await(30*time.Second, name+" to be answered as it should", func() error {
				answer, err := n.hosts[name].answer(creds, way.alpn, way.addr)
				if (answer != "") != (name == "off") {
					return fmt.Errorf("%s over %s is answered %q, %w", way.addr, way.alpn, answer, err)
				}
				return nil
			})
		}
	}

	// What the first key alone signs is refused by the servers, and what the second
	// one signs gets over there.
	n.publishSigned(versionB, binary(t, versionB), second)
	u := n.startFleetUpdate(nil)
	n.awaitFleetUpdate(u, "completed", 3*time.Minute)
	for _, name := range []string{"near", "away", "plain", "off"} {
		if h := n.testCluster.hosts()[name]; h.AgentVersion != versionB {
			t.Errorf("%s runs %s", name, h.AgentVersion)
		}
	}
	if !slices.Contains(strings.Fields(n.moult("gossip", "status")), "far") {
		t.Error("the segment has no keys that were changed")
	}
}

// answer asks for a page from this host, as whom credentials say, and returns what
// comes: nothing where they are refused.
func (h *segmentedHost) answer(creds identity.Credentials, alpn, addr string) (text string, err error) {
	err = h.inNamespace(func() error { // no HTTP client: it would dial elsewhere
		conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", addr, creds.ClientTLS(alpn, nil))
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		if _, err := io.WriteString(conn, "GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
			return err
		}
		b, err := io.ReadAll(conn)
		text = string(b)
		return err
	})
	return text, err
}
