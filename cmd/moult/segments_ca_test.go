//go:build linux

package main

import (
	"path/filepath"
	"slices"
	"testing"
	"time"

	"moult/mesh/identity"
)

// Hosts that reach servers through a relay only follow a change of the CA, one that
// was off all the time too, and the command goes on when the UI's CA changes under it.
func TestSegmentsFollowAChangeOfTheCA(t *testing.T) {
	n := newSegmentedNet(t, "default", "site")
	n.startServers(1)
	relay := n.startAgent("relay-1", []string{"default", "site"}, []*segmentedHost{n.hosts["server-1"]})
	n.awaitOnline(time.Minute, "relay-1")
	n.startAgent("far-1", []string{"site"}, []*segmentedHost{relay})
	off := n.startAgent("far-2", []string{"site"}, []*segmentedHost{relay})
	n.awaitOnline(time.Minute, "far-1", "far-2")
	before := n.credentials("far-2")
	off.kill()
	n.awaitOffline("far-2")

	uiCA := filepath.Join(n.dir, "next-ui-ca.pem")
	n.moult("ca", "rotate", "--yes", "--force", "--ui-ca", uiCA, "--reason", "yearly")
	n.commandEnv = []string{"MOULT_CA=" + uiCA}
	n.moult("ca", "status") // by the UI CA that the command wrote
	n.client.http = n.hosts["server-1"].httpClient(n.uiCA(n.hosts["server-1"]))
	a := n.awaitCA("", "far-2")
	if a.Number != 1 {
		t.Errorf("the CA is number %d", a.Number)
	}
	n.trustsOnly(a.SHA256, "server-1", "relay-1", "far-1")

	argv := append(off.args("agent"), "--join", relay.port("site"))
	off.start(argv...)
	n.trustsOnly(a.SHA256, "far-2")
	n.awaitOnline(2*time.Minute, "relay-1", "far-1", "far-2")
	n.awaitCA("")
	hash, err := identity.CAHash(before.CAPEM)
	if err != nil || slices.Contains(n.credentials("far-2").Trusted.Hashes(), hash) {
		t.Errorf("far-2 trusts the old CA: %v", err)
	}
}
