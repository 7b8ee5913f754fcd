package mesh

import (
	"bytes"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

// Over the years more hosts come and go than are there at a time.
func TestReplayGuardForgetsWhoIsSilentLongest(t *testing.T) {
	g := newReplayGuard(3)
	for i, sender := range []string{"a", "b", "c", "a"} {
		if !g.fresh(sender, 1, uint64(10+i)) {
			t.Fatalf("message %d of %s is refused", i, sender)
		}
	}
	g.fresh("d", 1, 1) // b is silent longest
	if len(g.senders) != 3 || g.senders["b"] != nil {
		t.Fatalf("remembers %d senders, among them b: %t", len(g.senders), g.senders["b"] != nil)
	}
	if g.fresh("a", 1, 13) || g.fresh("c", 1, 12) {
		t.Error("a replay of a sender that still sends passed")
	}
}

func TestSightingsOfOneHostAreBounded(t *testing.T) {
	r := newRoster("self", []string{"default"}, DefaultTiming, recordVerifier{})
	_, err := r.record(SignedRecord{Record: agentRecord("a1", 1, 1)}, fromPool)
	must(t, err)
	r.see("a1", sightingKey{segment: "far", observer: "genuine"}, sighting{alive: true, boot: 1, version: 1})
	for i := range 10 * maxSightings {
		r.see("a1", sightingKey{segment: "far", observer: fmt.Sprint("made-up-", i)}, sighting{alive: true, boot: 1, version: 1, expires: time.Now().Add(time.Hour)})
	}
	if n := len(r.hosts["a1"].sightings); n > maxSightings {
		t.Errorf("keeps %d sightings of one host", n)
	}
	if !r.see("a1", sightingKey{segment: "far", observer: "genuine"}, sighting{alive: false, boot: 1, version: 2}) {
		t.Error("an observer that is known is not heard any more")
	}
	if !r.see("a1", sightingKey{segment: "near"}, sighting{alive: true}) {
		t.Error("this node's own eyes are not believed any more")
	}
}

// Without a limit a holder of the gossip key fills the memory with members.
func TestFullPoolKeepsNewMembersOut(t *testing.T) {
	c := newCluster(t)
	p := &pool{segment: "default", self: "self", peers: newPeers(), removed: nobody, broadcast: newBroadcastQueue(func() int { return 1 }), notify: func() {}, refused: func(string, net.IP) {}}
	member := func(host string) *memberlist.Node {
		return &memberlist.Node{Name: host, Meta: signed(t, agentRecord(host, 1, 1), c.key("any")).Raw}
	}
	for i := range maxPeers {
		n := member(fmt.Sprint("a", i))
		must(t, p.NotifyAlive(n))
		p.NotifyJoin(n)
	}
	if err := p.NotifyAlive(member("one-more")); err == nil {
		t.Error("one more than the limit is let in")
	}
	must(t, p.NotifyAlive(member("a7"))) // who is in goes on
	p.NotifyUpdate(member("a7"))
	if len(p.peers.byID) != maxPeers {
		t.Errorf("%d peers", len(p.peers.byID))
	}
	p.NotifyLeave(member("a5"))
	must(t, p.NotifyAlive(member("one-more")))
	p.NotifyJoin(member("one-more"))
	if _, kept := p.peers.byID["a5"]; kept || len(p.peers.byID) != maxPeers {
		t.Errorf("%d peers, the one that is gone among them: %t", len(p.peers.byID), kept)
	}
	if n := len(p.changedPeers()); n != maxPeers {
		t.Errorf("the roster is to take %d members", n)
	}
}

// The updater announces its phase while others announce what the host holds:
// the last word must be the newest record.
func TestConcurrentAnnouncementsEndWithTheNewest(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.node("a1", "default")
		for range 500 {
			var at sync.WaitGroup
			for i := range 16 {
				at.Go(func() { a.Announce(PhaseFetching, fmt.Sprint("job-", i)) })
			}
			at.Wait()
			own := a.Record()
			if m, _ := a.Roster().Member("a1"); m.Seq != own.Seq {
				t.Fatalf("the roster has record %d of %d", m.Seq, own.Seq)
			}
			queued := a.pools[0].broadcast.take(0, 1<<20)
			if !slices.ContainsFunc(queued, func(b []byte) bool { return bytes.Equal(b[1:], own.Raw) }) {
				t.Fatalf("record %d is not on its way", own.Seq)
			}
		}
	})
}

// A relay gives one message a bounded time, whatever its sender asks for.
func TestRelayBoundsTheTimeOfAMessage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s := c.node("s1", "left")
		r := c.node("r1", "left", "right")
		for _, silent := range []string{"r2", "r3"} {
			n := c.node(silent, "left", "right")
			awaitLiveness(t, 10*time.Second, silent, Online, s, r)
			for range cap(n.relaying) { // too busy to take another message, or to say so
				n.relaying <- struct{}{}
			}
		}
		awaitLiveness(t, 10*time.Second, "r1", Online, s)
		h := relayHeader{id: 1, budget: 65 * time.Second, visited: []string{"s1"}}
		must(t, s.pools[0].send("r1", h.encode(s.envelope("a9", "x", nil).raw)))
		await(t, 5*time.Second, "the relay works on it", func() bool { return len(r.relaying) == 1 })
		await(t, hopBudget+time.Second, "the relay gives up", func() bool { return len(r.relaying) == 0 })
	})
}
