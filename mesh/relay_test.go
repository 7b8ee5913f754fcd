package mesh

import (
	"errors"
	"slices"
	"testing"
	"time"
)

func TestSendAcrossABridgingRelay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s := c.node("s1", "left")
		r := c.node("r1", "left", "right")
		a := c.node("a1", "right")
		// The relay's host is the only one that both sides reach.
		c.net.Cut("s1", "a1")
		awaitLiveness(t, 10*time.Second, "a1", Online, s)
		awaitLiveness(t, 10*time.Second, "s1", Online, a)
		m, _ := s.Roster().Member("a1")
		if m.SeenVia != "r1" || !m.Verified || m.Addr != "10.0.0.1:7947" {
			t.Errorf("server's view of the far agent: %+v", m)
		}
		orders, reports := collect(a, "order"), collect(s, "report")
		must(t, s.Send(short(t), "a1", "order", []byte("go")))
		must(t, a.Send(short(t), "s1", "report", []byte("going")))
		await(t, time.Second, "order", func() bool { return orders.has("go") })
		await(t, time.Second, "report", func() bool { return reports.has("going") })
		if orders.from[0].HostID != "s1" || reports.from[0].HostID != "a1" {
			t.Errorf("from %+v, %+v", orders.from, reports.from)
		}
		if got := r.Counters().ForwardedMessages; got != 2 {
			t.Errorf("the relay forwarded %d", got)
		}

		a.Announce(PhaseVerifying, "job-1")
		await(t, 3*time.Second, "the far record's change", func() bool {
			m, _ := s.Roster().Member("a1")
			return m.Phase == PhaseVerifying
		})
		must(t, a.Leave(3*time.Second))
		must(t, a.Close())
		awaitLiveness(t, 5*time.Second, "a1", Left, s)
		if err := s.Send(short(t), "a1", "order", nil); !errors.Is(err, ErrUnreachable) {
			t.Errorf("send to the host that left: %v", err)
		}
	})
}

func TestFarHostFailsInTheRelaysEyes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s := c.node("s1", "left")
		c.node("r1", "left", "right")
		a := c.node("a1", "right")
		awaitLiveness(t, 10*time.Second, "a1", Online, s)
		must(t, a.Close())
		awaitLiveness(t, time.Minute, "a1", Offline, s)
	})
}

func TestSightingsExpireWithTheirRelay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s := c.node("s1", "left")
		r := c.node("r1", "left", "right")
		c.node("a1", "right")
		awaitLiveness(t, 10*time.Second, "a1", Online, s)
		must(t, r.Close())
		awaitLiveness(t, time.Minute, "a1", Unreachable, s)
	})
}

func TestChainOfThreeSegments(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s := c.node("s1", "left")
		c.node("r1", "left", "middle")
		c.node("r2", "middle", "right")
		a := c.node("a1", "right")
		awaitLiveness(t, 30*time.Second, "a1", Online, s)
		awaitLiveness(t, 30*time.Second, "s1", Online, a)
		orders, reports := collect(a, "order"), collect(s, "report")
		must(t, s.Send(short(t), "a1", "order", []byte("go")))
		must(t, a.Send(short(t), "s1", "report", []byte("going")))
		await(t, time.Second, "order", func() bool { return orders.has("go") })
		await(t, time.Second, "report", func() bool { return reports.has("going") })
	})
}

// A ring of segments must neither keep messages nor sightings going round.
func TestRingOfSegments(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s := c.node("s1", "north")
		c.node("r1", "north", "east")
		c.node("r2", "east", "south")
		c.node("r3", "south", "west")
		c.node("r4", "west", "north")
		a := c.node("a1", "south")
		awaitLiveness(t, 30*time.Second, "a1", Online, s)
		awaitLiveness(t, 30*time.Second, "s1", Online, a)
		in := collect(a, "order")
		must(t, s.Send(short(t), "a1", "order", []byte("once")))
		await(t, time.Second, "order", func() bool { return in.has("once") })
		time.Sleep(time.Minute)
		if n := in.count("once"); n != 1 {
			t.Errorf("delivered %d times", n)
		}
	})
}

func TestAnotherRelayIsTriedWhenOneFails(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s := c.node("s1", "left")
		c.node("r1", "left", "right")
		r2 := c.node("r2", "left", "right")
		a := c.node("a1", "right")
		awaitLiveness(t, 10*time.Second, "a1", Online, s)
		awaitLiveness(t, 10*time.Second, "r1", Online, s)
		awaitLiveness(t, 10*time.Second, "a1", Online, r2)
		in := collect(a, "order")
		// r1 still hears the server, but has just lost the far segment.
		c.net.Cut("r1", "a1")
		c.net.Cut("r1", "r2") // nor can it ask the other relay
		for i := range 8 {    // the order of equal relays is random
			msg := []byte{byte('a' + i)}
			must(t, s.Send(short(t), "a1", "order", msg))
			await(t, 10*time.Second, "delivery", func() bool { return in.has(string(msg)) })
		}
		for i := range 8 {
			if n := in.count(string([]byte{byte('a' + i)})); n != 1 {
				t.Errorf("message %d delivered %d times", i, n)
			}
		}
		// And when r1 is cut off from the sender too.
		c.net.Cut("r1", "s1")
		must(t, s.Send(short(t), "a1", "order", []byte("z")))
		await(t, 10*time.Second, "delivery", func() bool { return in.has("z") })
	})
}

func TestOrdinaryMembersLearnOnlyTheWay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		c.node("s1", "left")
		c.node("r1", "left", "right")
		near := c.node("a1", "left")
		far := c.node("a2", "right")
		awaitLiveness(t, 10*time.Second, "s1", Online, far)
		time.Sleep(30 * time.Second)
		if _, known := near.Roster().Member("a2"); known {
			t.Error("an agent was told of an agent of another segment")
		}
	})
}

func TestSegmentDistances(t *testing.T) {
	relays := map[string][]string{"r1": {"a", "b"}, "r2": {"b", "c"}, "r3": {"c", "d"}, "r4": {"x", "y"}}
	got := segmentDistances([]string{"a"}, relays)
	want := map[string]int{"a": 0, "b": 1, "c": 2, "d": 3}
	for s, d := range want {
		if got[s] != d {
			t.Errorf("segment %s at %d, want %d", s, got[s], d)
		}
	}
	if len(got) != len(want) {
		t.Errorf("distances %v", got)
	}
}

func TestHopLimit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s := c.node("s1", "left")
		r := c.node("r1", "left", "right")
		awaitLiveness(t, 10*time.Second, "r1", Online, s)
		visited := slices.Repeat([]string{"elsewhere"}, MaxHops)
		err := s.route(short(t), s.envelope("a9", "x", nil), visited)
		if !errors.Is(err, ErrUnreachable) || r.Counters().ForwardedMessages != 0 {
			t.Errorf("after %d hops: %v", MaxHops, err)
		}
		if _, _, err := decodeRelay(relayHeader{visited: append(visited, "s1")}.encode(nil)[1:]); err == nil {
			t.Error("a header with too many hops decodes")
		}
	})
}
