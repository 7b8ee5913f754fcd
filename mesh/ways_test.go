package mesh

import (
	"context"
	"crypto/ed25519"
	"encoding/pem"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func hostsOf(ways []Contact) (ids []string) {
	for _, w := range ways {
		ids = append(ids, w.HostID)
	}
	return ids
}

// The way to a server: itself where a pool is shared, else the relay that is
// nearer to one, and never back to who was asked before.
func TestWaysToServers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s := c.node("s1", "left")
		near := c.node("r1", "left", "middle")
		far := c.node("r2", "middle", "right")
		further := c.node("r3", "right", "beyond")
		a := c.node("a1", "right")
		for _, h := range []string{"s1", "r1", "r2", "a1"} {
			awaitLiveness(t, 30*time.Second, h, Online, s, near, far, a)
		}
		awaitLiveness(t, 30*time.Second, "r3", Online, a)
		awaitLiveness(t, 30*time.Second, "s1", Online, further)
		for _, tc := range []struct {
			of      *Node
			visited []string
			want    []string
		}{
			{near, nil, []string{"s1", "r2"}},
			{far, nil, []string{"r1", "r3"}},
			{far, []string{"r1"}, []string{"r3"}},
			{a, nil, []string{"r2", "r3"}},
			{a, []string{"r2", "r3"}, nil},
		} {
			if got := hostsOf(tc.of.WaysToServers(tc.visited)); !slices.Equal(got, tc.want) {
				t.Errorf("from %s, %v visited: %v, want %v", tc.of.cfg.Identity.HostID, tc.visited, got, tc.want)
			}
		}
		if w := near.WaysToServers(nil)[0]; w.Addr != "10.0.0.1:7947" {
			t.Errorf("the server's node port is said to be at %s", w.Addr)
		}
		if got := hostsOf(near.whoKnows("middle")); len(got) != 2 || got[0] != "r2" {
			t.Errorf("who knows the middle: %v", got)
		}
	})
}

// Two relays that start a segment at the same time are each alone in it; they
// find each other by the segment that they share, and a third, which knows
// nobody in it, too.
func TestPoolsFindTheirMembersByAsking(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		var asked atomic.Int64
		var nodes sync.Map // by host id: a node asks while others are still started
		// As cmd/moult does it by HTTP: ask the neighbours for what they see.
		start := func(host string, segments ...string) *Node {
			cfg := c.config(host, segments...)
			for i := range cfg.Pools[1:] {
				cfg.Pools[1+i].Join = nil // nobody knows a seed there
			}
			cfg.FindSeeds = func(_ context.Context, segment string, neighbours []Contact) (addrs []string) {
				asked.Add(1)
				for _, w := range neighbours {
					if n, ok := nodes.Load(w.HostID); ok {
						addrs = append(addrs, n.(*Node).Members(segment)...)
					}
				}
				return addrs
			}
			n := c.start(cfg)
			nodes.Store(host, n)
			return n
		}
		s := start("s1", "left")
		r1, r2 := start("r1", "left", "right"), start("r2", "left", "right")
		inRight := func(n *Node, members int) bool { return len(n.Members("right")) == members }
		await(t, time.Minute, "the two relays to meet", func() bool { return inRight(r1, 2) && inRight(r2, 2) })
		if s.Members("right") != nil {
			t.Error("who is not in a segment names members of it")
		}
		r3 := start("r3", "left", "right")
		await(t, 2*time.Minute, "the third", func() bool { return inRight(r1, 3) && inRight(r3, 3) })
		before := asked.Load()
		time.Sleep(10 * time.Minute)
		// Seven pools, a round every nine seconds, one in six of which asks, by lot.
		if n := asked.Load() - before; n > 7*60/2 {
			t.Errorf("%d times others were asked in ten minutes of peace", n)
		}
	})
}

// Two islands of one segment, neither of which is alone, become one.
func TestIslandsOfASegmentMeet(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		start := func(host string, join []string, find func() []string) *Node {
			cfg := c.config(host, "left")
			cfg.Pools[0].Join = join
			cfg.FindSeeds = func(context.Context, string, []Contact) []string { return find() }
			return c.start(cfg)
		}
		nobody := func() []string { return nil }
		a := start("a1", nil, nobody)
		start("a2", a.GossipAddrs(), nobody)
		b := start("a3", nil, nobody)
		var tell atomic.Bool
		c4 := start("a4", b.GossipAddrs(), func() []string {
			if !tell.Load() {
				return nil
			}
			return a.Members("left")
		})
		await(t, time.Minute, "two islands", func() bool { return a.LivePeers() == 1 && b.LivePeers() == 1 && c4.LivePeers() == 1 })
		tell.Store(true)
		await(t, 10*time.Minute, "the islands to meet", func() bool { return a.LivePeers() == 3 && b.LivePeers() == 3 })
	})
}

// Servers that all start anew know each other at once, and no agent that has not noticed
// looks for them: they ask on until they know one, in seconds, and then no more.
func TestServersAskOnUntilTheyKnowAnAgent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		agent := c.node("a1", "left")
		known := time.Now().Add(3 * time.Second) // by when they have a leader, and read who there is
		var asked atomic.Int64
		start := func(host string, join []string) *Node {
			cfg := c.configAlone(host, "left")
			cfg.Pools[0].Join = join
			cfg.FindSeeds = func(context.Context, string, []Contact) []string {
				asked.Add(1)
				if time.Now().Before(known) {
					return nil
				}
				return agent.Members("left")
			}
			return c.start(cfg)
		}
		s1 := start("s1", nil)
		s2 := start("s2", s1.GossipAddrs())
		await(t, 2*time.Second, "the servers to meet", func() bool { return s1.LivePeers() == 1 && s2.LivePeers() == 1 })
		awaitLiveness(t, time.Until(known)+2*time.Second, "a1", Online, s1, s2)
		time.Sleep(20 * time.Second)
		before := asked.Load()
		time.Sleep(10 * time.Minute)
		if n := asked.Load() - before; n > 60 { // of some 140 rounds one in six asks
			t.Errorf("%d times others were asked in ten minutes of peace", n)
		}
	})
}

// A renewed certificate goes out with the next message.
func TestMessagesCarryTheRenewedCertificate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s := c.node("s1", "left")
		cfg := c.config("a1", "left")
		text, err := c.ca.Issue(cfg.Identity, cfg.Key.Public().(ed25519.PublicKey), time.Now(), time.Minute)
		must(t, err)
		block, _ := pem.Decode(text)
		cfg.CertDER = block.Bytes
		a := c.start(cfg)
		awaitLiveness(t, 10*time.Second, "s1", Online, a)
		in := collect(s, "report")
		time.Sleep(2 * time.Minute)
		must(t, a.Send(short(t), "s1", "report", []byte("late")))
		time.Sleep(5 * time.Second)
		if in.has("late") {
			t.Fatal("an expired certificate was believed")
		}
		must(t, a.SetCertificate(c.certificate(a.cfg.Identity, a.cfg.Key)))
		must(t, a.Send(short(t), "s1", "report", []byte("fresh")))
		await(t, 5*time.Second, "the message", func() bool { return in.has("fresh") })
		if a.SetCertificate(nil) == nil {
			t.Error("no certificate was taken for one")
		}
	})
}
