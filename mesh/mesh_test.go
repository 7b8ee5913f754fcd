package mesh

import (
	"errors"
	"strings"
	"testing"
	"time"

	"moult/mesh/identity"
)

func TestFiveNodesConverge(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		hosts := []string{"s1", "a1", "a2", "a3", "a4"}
		var nodes []*Node
		for _, h := range hosts {
			nodes = append(nodes, c.node(h, "default"))
		}
		for _, h := range hosts {
			awaitLiveness(t, 10*time.Second, h, Online, nodes...)
		}
		nodes[1].Announce(PhaseFetching, "job-1")
		nodes[1].SetHolds([]string{testDigest(7)})
		for _, n := range nodes {
			await(t, 5*time.Second, "the new record everywhere", func() bool {
				m, _ := n.Roster().Member("a1")
				return m.Phase == PhaseFetching && m.JobID == "job-1" && m.HasArtifact(testDigest(7)) && m.HasArtifact(strings.Repeat("ab", 32))
			})
		}
		m, _ := nodes[0].Roster().Member("a1")
		if !m.Verified || m.Addr != "10.0.0.1:7947" || m.SeenVia != "" || !m.LastSeen.Equal(time.Now()) {
			t.Errorf("server's view: %+v", m)
		}
		if m, _ := nodes[2].Roster().Member("a1"); m.Verified {
			t.Error("an agent cannot verify a record")
		}
		if got := nodes[1].LivePeers(); got != 4 {
			t.Errorf("%d live peers", got)
		}
		if servers := nodes[1].Roster().Servers(); len(servers) != 1 || servers[0].HostID != "s1" {
			t.Errorf("servers %v", servers)
		}
		if got := nodes[0].Counters(); got.UnverifiedRecords != 0 || got.MalformedRecords != 0 {
			t.Errorf("refused: %+v", got)
		}
	})
}

func TestCutHostFailsAndHealsByItself(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s, a, b := c.node("s1", "default"), c.node("a1", "default"), c.node("a2", "default")
		for _, h := range []string{"s1", "a1", "a2"} {
			awaitLiveness(t, 10*time.Second, h, Online, s, a, b)
		}
		changed := s.Roster().Changed()
		c.net.CutGroups([]string{"a2"}, []string{"s1", "a1"})
		awaitLiveness(t, time.Minute, "a2", Offline, s, a)
		awaitLiveness(t, time.Minute, "s1", Offline, b)
		select {
		case <-changed:
		default:
			t.Error("the roster's change was not told")
		}
		time.Sleep(time.Second)
		if m, _ := s.Roster().Member("a2"); !m.LastSeen.Before(time.Now()) || time.Since(m.Since) > time.Minute {
			t.Errorf("last seen %v, since %v", m.LastSeen, m.Since)
		}
		if err := s.Send(short(t), "a2", "x", nil); !errors.Is(err, ErrUnreachable) {
			t.Errorf("send to a cut host: %v", err)
		}
		time.Sleep(5 * time.Minute) // long after memberlist forgot the dead
		c.net.HealAll()
		awaitLiveness(t, time.Minute, "a2", Online, s, a)
		awaitLiveness(t, time.Minute, "s1", Online, b)
	})
}

// Two halves of which neither is alone and neither has a seed in the other.
func TestHalvesFindEachOtherWithoutSeeds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		hosts := []string{"s1", "a1", "a2", "a3"}
		var nodes []*Node
		for _, h := range hosts {
			nodes = append(nodes, c.node(h, "default"))
		}
		for _, h := range hosts {
			awaitLiveness(t, 10*time.Second, h, Online, nodes...)
		}
		for _, n := range nodes {
			n.pools[0].mu.Lock()
			n.pools[0].seeds = nil
			n.pools[0].mu.Unlock()
		}
		c.net.CutGroups(hosts[:2], hosts[2:])
		awaitLiveness(t, time.Minute, "a3", Offline, nodes[:2]...)
		awaitLiveness(t, time.Minute, "s1", Offline, nodes[2:]...)
		time.Sleep(5 * time.Minute)
		c.net.HealAll()
		for _, h := range hosts {
			awaitLiveness(t, time.Minute, h, Online, nodes...)
		}
	})
}

func TestLeaveIsNotFailure(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s, a, b := c.node("s1", "default"), c.node("a1", "default"), c.node("a2", "default")
		awaitLiveness(t, 10*time.Second, "a2", Online, s, a)
		awaitLiveness(t, 10*time.Second, "s1", Online, b)
		b.Announce(PhaseRestarting, "job-1")
		start := time.Now()
		must(t, b.Leave(3*time.Second))
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("leaving took %v", took)
		}
		must(t, b.Close())
		awaitLiveness(t, 3*time.Second, "a2", Left, s, a)
		m, _ := s.Roster().Member("a2")
		if m.Phase != PhaseRestarting || !m.Leaving {
			t.Errorf("last record: %+v", m.Record)
		}
		time.Sleep(time.Minute)
		awaitLiveness(t, 0, "a2", Left, s, a)

		// It comes back at another address, with the next boot number.
		b = c.node("a2", "default")
		awaitLiveness(t, 10*time.Second, "a2", Online, s, a)
		if m, _ := s.Roster().Member("a2"); m.Boot != 2 || m.Leaving {
			t.Errorf("after the restart: %+v", m.Record)
		}
		if err := b.Send(short(t), "s1", "x", nil); err != nil {
			t.Error(err)
		}
	})
}

func TestCrashedHostReturnsAtAnotherAddress(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s, b := c.node("s1", "default"), c.node("a2", "default")
		awaitLiveness(t, 10*time.Second, "a2", Online, s)
		awaitLiveness(t, 10*time.Second, "s1", Online, b)
		must(t, b.Close())
		delete(c.nodes, "a2")
		c.node("a2", "default") // a new port: memberlist holds the name for 30 s
		await(t, 2*time.Minute, "the restarted host is seen", func() bool {
			m, _ := s.Roster().Member("a2")
			return m.Boot == 2 && m.Liveness == Online
		})
	})
}

func TestMassRestartHeals(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		hosts := []string{"s1", "a1", "a2", "a3"}
		var configs []Config
		for _, h := range hosts {
			cfg := c.config(h, "default")
			configs = append(configs, cfg)
			c.start(cfg)
		}
		for _, h := range hosts {
			awaitLiveness(t, 10*time.Second, h, Online, c.nodes["s1"], c.nodes["a3"])
		}
		for _, h := range hosts {
			must(t, c.nodes[h].Close())
		}
		// Seeds first, as configured: the first one has nobody to join.
		for i := len(configs) - 1; i >= 0; i-- {
			configs[i].Boot++
			c.start(configs[i])
		}
		for _, h := range hosts {
			awaitLiveness(t, 30*time.Second, h, Online, c.nodes["s1"], c.nodes["a3"])
		}
	})
}

func TestSendReachesHandlersInOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s, a := c.node("s1", "default"), c.node("a1", "default")
		in := collect(a, "order")
		awaitLiveness(t, 10*time.Second, "a1", Online, s)
		large := strings.Repeat("x", MaxPayload)
		for _, p := range []string{"one", "two", large} {
			must(t, s.Send(short(t), "a1", "order", []byte(p)))
			await(t, time.Second, "delivery", func() bool { return in.has(p) })
		}
		if in.from[0] != (identity.Identity{Cluster: testCluster, HostID: "s1", Name: "s1", Role: identity.RoleServer}) {
			t.Errorf("from %+v", in.from[0])
		}
		if err := s.Send(short(t), "a1", "order", []byte(large+"x")); !errors.Is(err, ErrTooLarge) {
			t.Errorf("oversized payload: %v", err)
		}
		if err := s.Send(short(t), "nobody", "order", nil); !errors.Is(err, ErrUnreachable) {
			t.Errorf("unknown host: %v", err)
		}
		must(t, a.Send(short(t), "a1", "order", []byte("to myself")))
		await(t, time.Second, "own delivery", func() bool { return in.has("to myself") })
		must(t, s.Send(short(t), "a1", "unheard", nil))
		await(t, time.Second, "the drop is counted", func() bool { return a.Counters().DroppedMessages == 1 })
		must(t, s.Close())
		if err := s.Send(short(t), "a1", "order", nil); !errors.Is(err, ErrClosed) {
			t.Errorf("after close: %v", err)
		}
	})
}

func TestSlowHandlerHoldsUpNobodyElse(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s, a := c.node("s1", "default"), c.node("a1", "default")
		release := make(chan struct{})
		s.Handle("slow", func(identity.Identity, []byte) { <-release })
		in := collect(s, "quick")
		awaitLiveness(t, 10*time.Second, "s1", Online, a)
		for range handlerQueue + 10 {
			must(t, a.Send(short(t), "s1", "slow", []byte("x")))
		}
		must(t, a.Send(short(t), "s1", "quick", []byte("hello")))
		await(t, time.Second, "the other topic", func() bool { return in.has("hello") })
		await(t, time.Second, "the surplus is dropped and counted", func() bool { return s.Counters().DroppedMessages == 9 })
		close(release)
	})
}
