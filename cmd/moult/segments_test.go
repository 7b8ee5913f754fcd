//go:build linux

package main

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// Servers, two relays, and eight agents that reach only their own segment: all
// join through the relays, are seen through them, and the servers' view of
// themselves and of the relays stays up meanwhile.
func TestSegmentsAgentsBehindTwoRelays(t *testing.T) {
	n := newSegmentedNet(t, "default", "dmz")
	n.startServers(3)
	servers := []*segmentedHost{n.hosts["server-1"], n.hosts["server-2"]}
	relays := []*segmentedHost{
		n.startAgent("relay-1", []string{"default", "dmz"}, servers),
		n.startAgent("relay-2", []string{"default", "dmz"}, servers),
	}
	n.awaitOnline(30*time.Second, "relay-1", "relay-2")
	lapses := n.watchOnline("relay-1", "relay-2")
	var names []string
	for i := range 8 {
		h := n.startAgent(fmt.Sprintf("agent-%d", i+1), []string{"dmz"}, []*segmentedHost{relays[i%2], relays[(i+1)%2]})
		names = append(names, h.name)
	}
	n.awaitOnline(time.Minute, names...)
	for name, h := range n.testCluster.hosts() {
		want, also := "dmz", []string{}
		if strings.HasPrefix(name, "relay") {
			want, also = "default", []string{"dmz"}
		}
		if h.Segment != want || !slices.Equal(h.AlsoSegments, also) {
			t.Errorf("%s is in segment %s and %v, not %s and %v", name, h.Segment, h.AlsoSegments, want, also)
		}
	}
	// An agent reaches nobody but its segment, and servers through the relays.
	agent := n.hosts["agent-1"]
	for _, addr := range []string{servers[0].port("default"), relays[0].port("default")} {
		if err := agent.inNamespace(func() error {
			conn, err := net.DialTimeout("tcp", addr, time.Second)
			if err == nil {
				conn.Close()
			}
			return err
		}); err == nil {
			t.Errorf("%s reaches %s", agent.name, addr)
		}
	}
	n.await(30*time.Second, agent.name+" to have a way to the servers", func() error {
		ways := 0
		d := agent.doctor()
		for _, f := range d.Findings {
			if f.Verdict != findingFailed && strings.HasPrefix(f.Detail, "through relay") {
				ways++
			}
		}
		if ways < 3 {
			return fmt.Errorf("%+v", d.Findings)
		}
		return nil
	})
	if seen := lapses(); len(seen) > 0 {
		t.Errorf("relays looked offline meanwhile: %v", seen)
	}
	// Each server sees the other two and the relays: nobody has left its pool.
	for _, s := range []string{"server-1", "server-2", "server-3"} {
		for _, f := range n.hosts[s].doctor().Findings {
			if f.Check == "segment default" && f.Detail != "4 members alive, 0 gone; UDP answers" {
				t.Errorf("%s: %s", s, f.Detail)
			}
		}
	}
}

// A chain of three segments: an agent joins through two relays, one behind the
// other.
func TestSegmentsChainOfThree(t *testing.T) {
	n := newSegmentedNet(t, "default", "middle", "far")
	n.startServers(1)
	near := n.startAgent("relay-1", []string{"default", "middle"}, []*segmentedHost{n.hosts["server-1"]})
	n.awaitOnline(30*time.Second, "relay-1")
	far := n.startAgent("relay-2", []string{"middle", "far"}, []*segmentedHost{near})
	n.awaitOnline(30*time.Second, "relay-2")
	n.startAgent("agent-1", []string{"far"}, []*segmentedHost{far})
	n.awaitOnline(time.Minute, "agent-1")
	if h := n.testCluster.hosts()["agent-1"]; h.Segment != "far" {
		t.Errorf("agent-1 is in segment %s", h.Segment)
	}
}
