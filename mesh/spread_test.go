package mesh

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// withoutGossip makes the configuration of a node of which nothing comes by gossip or push/pull
// for an hour.
func (c *cluster) withoutGossip(host string, segments ...string) Config {
	c.t.Helper()
	cfg := c.config(host, segments...)
	cfg.Timing = Timing{Gossip: time.Hour, PushPull: time.Hour}
	return cfg
}

func jobOf(n *Node, host string) string {
	m, _ := n.Roster().Member(host)
	return m.JobID
}

// A changed record goes straight to all servers, whatever gossip does.
func TestServersDoNotWaitForGossip(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		var servers []*Node
		for i := range 3 {
			servers = append(servers, c.start(c.withoutGossip(fmt.Sprint("s", i), "default")))
		}
		a := c.start(c.withoutGossip("a1", "default"))
		await(t, 10*time.Second, "a1 knows the servers", func() bool { return len(a.Roster().Servers()) == 3 })
		for i := range 20 { // more of them than are hurried to others
			job := fmt.Sprint("job-", i)
			a.Announce(PhaseFetching, job)
			await(t, 100*time.Millisecond, "all servers know "+job, func() bool {
				return jobOf(servers[0], "a1") == job && jobOf(servers[1], "a1") == job && jobOf(servers[2], "a1") == job
			})
		}
	})
}

// So does the record of a host that comes back, of which the servers last knew
// another start.
func TestRestartedHostShowsItselfToServersWithoutGossip(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s1 := c.start(c.withoutGossip("s1", "default"))
		s2 := c.start(c.withoutGossip("s2", "default"))
		cfg := c.withoutGossip("a1", "default")
		a := c.start(cfg)
		await(t, 10*time.Second, "a1 knows the servers", func() bool { return len(a.Roster().Servers()) == 2 })
		must(t, a.Close())
		c.ports-- // at the address where it was
		again := c.withoutGossip("a1", "default")
		again.Version = "2.0.0"
		again.Pools[0].Join = s1.GossipAddrs()
		a = c.start(again)
		await(t, 10*time.Second, "a1 knows the servers", func() bool { return len(a.Roster().Servers()) == 2 })
		time.Sleep(50 * time.Millisecond) // probes, which carry gossip, take longer to come
		for _, s := range []*Node{s1, s2} {
			if m, _ := s.Roster().Member("a1"); m.Boot != 2 || m.Version != "2.0.0" {
				t.Errorf("%s sees %+v", s.cfg.Identity.HostID, m)
			}
		}
	})
}

// With the pool at rest all members know of a change long before gossip has had the
// rounds that it takes.
func TestNewsIsHurriedOn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		var all []*Node
		for i := range 12 {
			all = append(all, c.start(c.withoutGossip(fmt.Sprint("a", i), "default")))
		}
		for _, n := range all {
			await(t, 30*time.Second, "all know all", func() bool { return n.LivePeers() == 11 })
		}
		all[0].Announce(PhaseFetching, "job-1")
		time.Sleep(100 * time.Millisecond)
		know := 0
		for _, n := range all {
			if jobOf(n, "a0") == "job-1" {
				know++
			}
		}
		if know < 8 { // e^-3 of them are missed on average
			t.Errorf("%d of 12 members know", know)
		}
	})
}

// A full exchange carries the records that memberlist's state lacks.
func TestExchangesHandOverRecords(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.start(c.withoutGossip("a1", "default"))
		b := c.start(c.withoutGossip("a2", "default"))
		await(t, 10*time.Second, "they know each other", func() bool { return a.LivePeers() == 1 && b.LivePeers() == 1 })
		for i := range 2 * hurryBurst {
			a.Announce(PhaseFetching, fmt.Sprint("job-", i))
		}
		last := fmt.Sprint("job-", 2*hurryBurst-1)
		time.Sleep(100 * time.Millisecond)
		if jobOf(b, "a1") == last {
			t.Fatal("the last change came without an exchange")
		}
		b.pools[0].MergeRemoteState(a.pools[0].LocalState(false), false)
		await(t, 100*time.Millisecond, "the last change", func() bool { return jobOf(b, "a1") == last })

		// b hands it on, though it is not b's own; and what it cannot read does no harm.
		must(t, a.Close())
		cfg := c.withoutGossip("a3", "default")
		cfg.Pools[0].Join = b.GossipAddrs()
		d := c.start(cfg)
		time.Sleep(100 * time.Millisecond)
		if got := jobOf(d, "a1"); got != last {
			t.Errorf("a3 was told of %q", got)
		}
		d.pools[0].MergeRemoteState([]byte(strings.Repeat("\x00", 11)), false)
		d.receive(d.pools[0], []byte{kindRecords, 0, 0, 0, 200, 1})
		await(t, time.Second, "what does not decode is counted", func() bool { return d.Counters().MalformedMessages == 2 })
	})
}

// Who joins is told of everything, which is known where it was told: when a site starts
// anew, its hosts do not all gossip all of it. What another exchange brings was lost.
func TestWhatJoiningBringsIsNotGossipedOn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.node("a1", "default")
		a.Announce(PhaseFetching, "job-1")
		handed := a.pools[0].LocalState(true) // the metadata is not that far yet
		for host, join := range map[string]bool{"a2": true, "a3": false} {
			n := c.start(c.configAlone(host, "default")) // nobody is there whom it could gossip to
			n.pools[0].MergeRemoteState(handed, join)
			await(t, time.Second, "a1's record", func() bool { return jobOf(n, "a1") == "job-1" })
			q := n.pools[0].broadcast
			q.mu.Lock()
			if _, waits := q.byKey["record/a1"]; waits == join {
				t.Errorf("it waits to be gossiped: %t, where joining is %t", waits, join)
			}
			q.mu.Unlock()
		}
	})
}

// memberlist's metadata follows later. Who joins before it does, sees the newest
// record all the same, and keeps it.
func TestLateMetadataReplacesNoNewerRecord(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.node("a1", "default")
		c.node("a2", "default")
		time.Sleep(10 * time.Second)
		before := a.Record().Raw
		a.Announce(PhaseFetching, "job-1")
		b := c.node("a3", "default")
		await(t, announcePause/2, "a3 knows a1's change", func() bool { return jobOf(b, "a1") == "job-1" })
		late, _ := b.pools[0].livePeer("a1")
		late.Meta = before
		b.pools[0].NotifyUpdate(late)
		for range 1000 {
			time.Sleep(10 * time.Millisecond)
			if got := jobOf(b, "a1"); got != "job-1" {
				t.Fatalf("a1's record went back to job %q", got)
			}
		}
		if rec, _ := DecodeRecord(b.pools[0].peers.byID["a1"].node.Meta); rec.JobID != "job-1" {
			t.Error("the metadata did not follow")
		}
	})
}

// Where nobody can verify records, a forged one gives way to what memberlist has of
// the host, though not at once.
func TestForgedHintGivesWay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		a, b := c.node("a1", "default"), c.node("a2", "default")
		time.Sleep(10 * time.Second)
		forged := agentRecord("a1", 99, 1)
		forged.Version = "evil"
		must(t, b.Offer(signed(t, forged, c.key("a9")).Raw))
		a.Announce(PhaseFetching, "job-1")
		time.Sleep(hintGrace / 2)
		if m, _ := b.Roster().Member("a1"); m.Version != "evil" {
			t.Fatalf("the hint with the highest boot number is not the newest: %+v", m)
		}
		await(t, hintGrace, "the genuine record", func() bool { return jobOf(b, "a1") == "job-1" })
	})
}

// Renewed records are handed to relays alone: an exchange would have all members
// gossip them.
func TestExchangesDoNotCarryRenewals(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		r := c.node("a1", "default", "far")
		a := c.node("a2", "default")
		time.Sleep(10 * DefaultTiming.Renew)
		if rec, _ := r.Roster().signed("a2"); rec.Seq < 5 {
			t.Fatalf("the relay has a2's record number %d: it does not renew it", rec.Seq)
		}
		for _, n := range []*Node{r, a} {
			if b := n.pools[0].unannounced(); len(b) > 0 {
				t.Errorf("%s hands over %d bytes of records", n.cfg.Identity.HostID, len(b))
			}
		}
	})
}
