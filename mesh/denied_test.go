package mesh

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"
)

func nobody(string) bool { return false }

// removals is who was removed, as a host knows it.
type removals struct {
	mu    sync.Mutex
	hosts map[string]bool
}

func (r *removals) denied(host string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.hosts[host]
}

func (r *removals) add(host string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hosts[host] = true
}

// A removed host that goes on with its key and its gossip key is nobody to those
// who know of it: not in the roster, not a peer, and not heard.
func TestRemovedHostIsNoMember(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s := c.node("s1", "default")
		gone := &removals{hosts: map[string]bool{}}
		cfg := c.config("a1", "default")
		cfg.Denied = gone.denied
		a := c.start(cfg)
		removed := c.node("a2", "default")
		in := collect(a, "x")
		for _, h := range []string{"s1", "a1", "a2"} {
			awaitLiveness(t, 10*time.Second, h, Online, s, a, removed)
		}
		must(t, removed.Send(short(t), "a1", "x", []byte("before")))
		await(t, time.Second, "delivery", func() bool { return in.has("before") })

		gone.add("a2")
		await(t, 10*time.Second, "a2 to be gone", func() bool {
			_, known := a.Roster().Member("a2")
			return !known && a.LivePeers() == 1
		})
		refused, others := a.Counters().RemovedHosts, a.Counters().UnverifiedMessages
		_ = removed.Send(short(t), "a1", "x", []byte("after"))
		await(t, 10*time.Second, "its message to be refused", func() bool { return a.Counters().RemovedHosts > refused })
		if err := a.Send(short(t), "a2", "x", nil); !errors.Is(err, ErrUnreachable) {
			t.Errorf("a message to it: %v", err)
		}
		// It comes back with a new record, and by a restart at another address.
		removed.SetHolds([]string{testDigest(9)})
		must(t, removed.Close())
		time.Sleep(time.Minute)
		again := c.node("a2", "default")
		for range 30 {
			again.Announce(PhaseFetching, "j")
			time.Sleep(time.Second)
			if _, known := a.Roster().Member("a2"); known || a.LivePeers() != 1 {
				t.Fatal("a removed host is a member again")
			}
		}
		if c := a.Counters(); c.UnverifiedMessages != others || c.UnverifiedRecords != 0 || c.MalformedRecords != 0 || c.LastForged != "" {
			t.Errorf("a removed host is taken for a forger: %+v", c)
		}
		if in.has("after") {
			t.Error("a removed host's message was delivered")
		}
		awaitLiveness(t, time.Second, "s1", Online, a)
	})
}

// A segment's keys are changed while messages are under way: new key everywhere,
// then used, then the old one removed. No message is lost and nobody is thought to
// be gone; who has the old key only is out.
func TestGossipKeysAreChangedUnderWay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		hosts := []string{"s1", "s2", "a1", "a2"}
		var nodes []*Node
		for _, h := range hosts {
			nodes = append(nodes, c.node(h, "default"))
		}
		for _, h := range hosts {
			awaitLiveness(t, 10*time.Second, h, Online, nodes...)
		}
		in := collect(nodes[3], "x")
		before, after := gossipKey('d'), gossipKey(0x99)
		sent := 0
		step := func(keys ...[]byte) {
			t.Helper()
			for _, n := range nodes { // one after the other, as it comes about
				must(t, n.SetKeys("default", keys))
				for range 10 {
					for _, from := range nodes[:3] {
						sent++
						text := fmt.Sprint(sent)
						must(t, from.Send(short(t), "a2", "x", []byte(text)))
						await(t, 10*time.Second, "delivery", func() bool { return in.has(text) })
					}
					time.Sleep(500 * time.Millisecond)
				}
				for _, h := range hosts {
					awaitLiveness(t, 0, h, Online, nodes...)
				}
			}
		}
		step(before, after)
		step(after, before)
		step(after)
		for _, n := range nodes {
			if keys := n.pools[0].keyring.GetKeys(); len(keys) != 1 || string(keys[0]) != string(after) {
				t.Errorf("%s has %d keys", n.cfg.Identity.HostID, len(keys))
			}
		}
		c.key("a9")
		out := c.node("a9", "default") // its configuration has the old key
		time.Sleep(time.Minute)
		if out.LivePeers() != 0 {
			t.Error("the old key still lets a host in")
		}
		must(t, out.SetKeys("default", [][]byte{after}))
		awaitLiveness(t, time.Minute, "a9", Online, nodes...)
		if err := out.SetKeys("default", nil); err == nil {
			t.Error("a segment without keys")
		}
		if err := out.SetKeys("default", [][]byte{after, []byte("short")}); err == nil {
			t.Error("a short key is taken")
		}
		if err := out.SetKeys("other", [][]byte{after}); err == nil {
			t.Error("keys of a segment that the host is not in")
		}
	})
}

// Keys are changed while packets are read; the race detector looks.
func TestSetKeysBesideReading(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.node("s1", "default"), c.node("a1", "default")
		awaitLiveness(t, 10*time.Second, "a1", Online, a)
		own := gossipKey('d')
		for i := range 200 {
			x, y := gossipKey(byte(i)), gossipKey(byte(i+1))
			must(t, a.SetKeys("default", [][]byte{own, x, y}))
			b.Announce(PhaseFetching, fmt.Sprint(i))
			must(t, a.SetKeys("default", [][]byte{own, y}))
			time.Sleep(10 * time.Millisecond)
		}
		awaitLiveness(t, 10*time.Second, "a1", Online, a)
	})
}
