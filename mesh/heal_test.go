package mesh

import (
	"fmt"
	"testing"
	"time"
)

// A whole site loses power: all hosts of two segments, servers and relays among
// them, are gone at once and start again in any order while packets get lost.
// Their records all change at the same time and have the same length, which is
// what memberlist's own broadcasts get wrong.
func TestMassRestartOfTwoSegmentsUnderLoss(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		segments := map[string][]string{"s1": {"left"}, "r1": {"left", "right"}, "r2": {"left", "right"}}
		hosts := []string{"s1", "r1", "r2"}
		for i := range 5 {
			for side, segment := range map[string]string{"l": "left", "r": "right"} {
				host := fmt.Sprint("a", side, i)
				segments[host] = []string{segment}
				hosts = append(hosts, host)
			}
		}
		configs := map[string]Config{}
		for _, h := range hosts {
			configs[h] = c.config(h, segments[h]...)
			c.start(configs[h])
		}
		awaitAll := func(boot uint64, within time.Duration) {
			t.Helper()
			s := c.nodes["s1"]
			for _, h := range hosts {
				await(t, within, fmt.Sprintf("the server sees %s in its start %d", h, boot), func() bool {
					m, ok := s.Roster().Member(h)
					return ok && m.Liveness == Online && m.Boot == boot
				})
				if h == "s1" {
					continue
				}
				await(t, within, fmt.Sprintf("%s sees the server in its start %d", h, boot), func() bool {
					m, ok := c.nodes[h].Roster().Member("s1")
					return ok && m.Liveness == Online && m.Boot == boot
				})
			}
		}
		awaitAll(1, time.Minute)

		for _, h := range hosts {
			must(t, c.nodes[h].Close())
		}
		c.net.Drop(0.1)
		for i := len(hosts) - 1; i >= 0; i-- { // those that are joined by come last
			cfg := configs[hosts[i]]
			cfg.Boot++
			c.start(cfg)
			time.Sleep(100 * time.Millisecond)
		}
		awaitAll(2, time.Minute)
		if got := c.nodes["s1"].Counters(); got.UnverifiedRecords != 0 || got.MalformedRecords != 0 {
			t.Errorf("refused: %+v", got)
		}
	})
}

// memberlist keeps the name of a dead member at its old address. After the
// reclaim time its host may come back at another one, and not before: until
// then a second host of that name is more likely a mistake. The time is short
// here: memberlist forgets the dead after half a minute anyway.
func TestDeadHostsNameIsReclaimed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		const reclaim = 8 * time.Second
		start := func(host string) *Node {
			cfg := c.config(host, "default")
			cfg.Timing.Reclaim, cfg.Timing.Rejoin = reclaim, 2*time.Second
			return c.start(cfg)
		}
		s, a, b := start("s1"), start("a1"), start("a2")
		awaitLiveness(t, 10*time.Second, "a2", Online, s, a)
		old, _ := s.Roster().Member("a2")
		must(t, b.Close())
		awaitLiveness(t, time.Minute, "a2", Offline, s, a)
		dead := time.Now()

		delete(c.nodes, "a2")
		cfg := c.config("a2", "default")
		cfg.Pools[0].Bind = "10.0.0.7:77"
		cfg.Timing.Rejoin = 2 * time.Second
		c.start(cfg)
		for _, n := range []*Node{s, a} {
			await(t, 2*time.Minute, n.cfg.Identity.HostID+" sees the host at its new address", func() bool {
				m, _ := n.Roster().Member("a2")
				return m.Liveness == Online && m.Boot == 2 && m.Addr == "10.0.0.7:7947"
			})
		}
		if took := time.Since(dead); took < reclaim-2*time.Second || took > 25*time.Second {
			t.Errorf("it took %v; the reclaim time is %v", took, reclaim)
		}
		if old.Addr == "10.0.0.7:7947" {
			t.Fatal("the address did not change")
		}
	})
}

// Two segments lose their only way to each other and get it back.
func TestSegmentsPartAndMeetAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s := c.node("s1", "left")
		c.node("r1", "left", "right")
		a := c.node("a1", "right")
		b := c.node("a2", "right")
		awaitLiveness(t, 10*time.Second, "a1", Online, s)
		awaitLiveness(t, 10*time.Second, "s1", Online, a, b)
		c.net.CutGroups([]string{"r1"}, []string{"a1", "a2"})
		awaitLiveness(t, 2*time.Minute, "a1", Offline, s)
		awaitLiveness(t, 2*time.Minute, "s1", Unreachable, a)
		awaitLiveness(t, 0, "a2", Online, a) // their own segment is whole
		a.Announce(PhaseFetching, "job-1")   // what nobody can tell the server now
		time.Sleep(10 * time.Minute)
		c.net.HealAll()
		awaitLiveness(t, time.Minute, "a1", Online, s)
		awaitLiveness(t, time.Minute, "s1", Online, a, b)
		await(t, time.Minute, "the record of the meantime", func() bool {
			m, _ := s.Roster().Member("a1")
			return m.JobID == "job-1"
		})
		in := collect(a, "order")
		must(t, s.Send(short(t), "a1", "order", []byte("go")))
		await(t, 5*time.Second, "order", func() bool { return in.has("go") })
	})
}

// A seed that answers late is found soon, although the pool is not alone.
func TestSeedThatStartsLateIsFound(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		cfg := c.config("s1", "default") // has no seed of its own: others must find it
		a := c.config("a1", "default")
		a.Pools[0].Join = []string{cfg.Pools[0].Bind}
		n := c.start(a)
		b := c.node("a2", "default")
		awaitLiveness(t, 10*time.Second, "a2", Online, n)
		time.Sleep(time.Minute)
		s := c.start(cfg)
		awaitLiveness(t, 15*time.Second, "s1", Online, n, b)
		awaitLiveness(t, 15*time.Second, "a2", Online, s)
	})
}
