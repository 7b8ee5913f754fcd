//go:build linux

package main

import (
	"testing"
	"time"
)

// A server that was just started has heard of no agent, though all are online: a
// fleet update that is started there has them all, not those that it heard of first.
func TestE2EFleetUpdateRightAfterAServersStart(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, 3)
	c.publish(versionB, binary(t, versionB))
	c.killForRestart("server-1")()
	c.await(time.Minute, "server-1 to be ready", func() error {
		return httpOK(t.Context(), c.client.addrs[0]+"/readyz")
	})
	began := time.Now()
	id := c.startFleetUpdate(nil)
	t.Logf("it has heard of all hosts after %s", time.Since(began).Round(time.Millisecond))
	if hosts := c.fleetUpdate(id).Hosts; len(hosts) != 3 {
		t.Fatalf("the fleet update has %d hosts, want 3: %+v", len(hosts), hosts)
	}
	c.awaitFleetUpdate(id, "completed", 3*time.Minute)
	c.allOn(versionB)
}
