package mesh

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"
)

// simulatedRow is what a line of the file that MOULT_CONVERGENCE_SIMULATED names
// has, for the table of mesh/convergence. Times are in seconds.
type simulatedRow struct {
	Members    int     `json:"members"`
	OneServers float64 `json:"one_change_servers_s"`
	OneSlowest float64 `json:"one_change_servers_slowest_s"`
	OneAll     float64 `json:"one_change_all_members_s"`
	All        float64 `json:"all_at_once_servers_s"`
	AllSeen    int     `json:"all_at_once_seen_by_every_server"`
	AllAll     float64 `json:"all_at_once_all_members_s"`
}

// TestRosterConvergence measures, on the clock of the bubble, how long the servers
// take to see a version change of one host and of all hosts at once: in segments
// with two relays each, and in one pool of the same hosts, whose members are looked
// at as well. MOULT_HOSTS=300 plays that many, a hundred in a segment; the figures
// are in docs/convergence.md.
func TestRosterConvergence(t *testing.T) {
	atLength(t)
	segments, hosts := 3, 8
	if n, err := strconv.Atoi(os.Getenv("MOULT_HOSTS")); err == nil {
		segments, hosts = max(1, n/100), min(n, 100)
	}
	for name, flat := range map[string]bool{"segments": false, "one pool": true} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			bubble(t, func(t *testing.T) { measureConvergence(t, segments, hosts, flat) })
			t.Logf("played in %v", time.Since(began).Round(time.Second))
		})
	}
}

// measureConvergence starts three servers and, in each segment, two relays to the
// servers' segment and so many hosts that there are hosts in it.
func measureConvergence(t *testing.T, segments, hosts int, flat bool) {
	c := newCluster(t)
	c.net.Delay(time.Millisecond)
	seeds := map[string][]string{}
	var agents []string
	start := func(host string, in ...string) {
		if flat {
			in = []string{"servers"}
		}
		cfg := c.configAlone(host, in...)
		for i, s := range in {
			cfg.Pools[i].Join = slices.Clone(seeds[s])
		}
		n := c.start(cfg)
		for i, s := range in {
			if len(seeds[s]) < 3 {
				seeds[s] = append(seeds[s], n.GossipAddrs()[i])
			}
		}
		if host[0] != 's' {
			agents = append(agents, host)
		}
		time.Sleep(10 * time.Millisecond)
	}
	servers := []string{"s1", "s2", "s3"}
	for _, s := range servers {
		start(s, "servers")
	}
	for i := range segments {
		segment := fmt.Sprint("seg", i)
		for j := range hosts {
			if host := fmt.Sprintf("a-%d-%d", i, j); j < 2 {
				start(host, "servers", segment)
			} else {
				start(host, segment)
			}
		}
	}
	seen := func(host, version string) bool {
		for _, s := range servers {
			if m, ok := c.nodes[s].Roster().Member(host); !ok || m.Liveness != Online || m.Version != version {
				return false
			}
		}
		return true
	}
	// membersSee waits until each host of one pool knows these hosts' version.
	membersSee := func(changed []string, version string) {
		for _, viewer := range agents {
			for _, host := range changed {
				await(t, time.Minute, viewer+" knows "+host, func() bool {
					m, ok := c.nodes[viewer].Roster().signed(host)
					return ok && m.Version == version
				})
			}
		}
	}
	awaitAll := func(version string, within time.Duration) (took time.Duration, middle time.Duration) {
		began, left := time.Now(), slices.Clone(agents)
		for deadline := began.Add(within); len(left) > 0; time.Sleep(10 * time.Millisecond) {
			left = slices.DeleteFunc(left, func(host string) bool { return seen(host, version) })
			if middle == 0 && len(left) <= len(agents)/2 {
				middle = time.Since(began)
			}
			if time.Now().After(deadline) {
				t.Fatalf("not within %v: all servers see %s on %d hosts, %s among them", within, version, len(left), left[0])
			}
		}
		return time.Since(began), middle
	}
	awaitAll("1.0.0", 2*time.Minute)
	time.Sleep(20 * time.Second)

	before, began := c.net.Sent(), time.Now()
	time.Sleep(10 * time.Second)
	atRest := float64(c.net.Sent()-before) / time.Since(began).Seconds()

	var one, oneAll []time.Duration
	for i := range 9 {
		host := agents[(i*2+1)*len(agents)/18]
		changed := time.Now()
		c.nodes[host].change(func(r *Record) { r.Version = "1.5.0" })
		await(t, 30*time.Second, "the servers see one host's new version", func() bool { return seen(host, "1.5.0") })
		one = append(one, time.Since(changed))
		if flat {
			membersSee([]string{host}, "1.5.0")
			oneAll = append(oneAll, time.Since(changed))
		}
		time.Sleep(2 * time.Second)
	}
	slices.Sort(one)
	slices.Sort(oneAll)

	before, began = c.net.Sent(), time.Now()
	for _, host := range agents {
		c.nodes[host].change(func(r *Record) { r.Version = "2.0.0" })
	}
	all, middle := awaitAll("2.0.0", time.Minute)
	sent := c.net.Sent() - before
	if flat {
		membersSee(agents, "2.0.0")
		allMembers := time.Since(began)
		t.Logf("%d hosts: all members see one host's change after %v (median), all hosts' after %v", len(agents), oneAll[len(oneAll)/2], allMembers)
		writeRow(t, simulatedRow{
			Members: len(agents) + len(servers), OneServers: one[len(one)/2].Seconds(), OneSlowest: one[len(one)-1].Seconds(), OneAll: oneAll[len(oneAll)/2].Seconds(),
			All: all.Seconds(), AllSeen: len(agents), AllAll: allMembers.Seconds(),
		})
	}
	t.Logf("%d hosts: one host's change after %v (median of %d, slowest %v); all at once after %v, half of them after %v; at rest %.0f kB/s in all, %.1f kB/s a host; %.1f MB for the change of all",
		len(agents), one[len(one)/2], len(one), one[len(one)-1], all, middle, atRest/1e3, atRest/1e3/float64(len(agents)+3), float64(sent)/1e6)
	for _, host := range agents {
		must(t, c.nodes[host].Close())
	}
}

func writeRow(t *testing.T, row simulatedRow) {
	path := os.Getenv("MOULT_CONVERGENCE_SIMULATED")
	if path == "" {
		return
	}
	b, err := json.Marshal(row)
	must(t, err)
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	must(t, err)
	_, err = f.Write(append(b, '\n'))
	must(t, errors.Join(err, f.Close()))
}

// When all change at once, all members know all soon, though packets get lost: by
// gossip alone, for there is no full exchange, and memberlist's metadata comes later.
func TestAllAtOnceConvergesByGossipAlone(t *testing.T) {
	const hosts = 30
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		c.net.Delay(time.Millisecond)
		var all []*Node
		for i := range hosts {
			cfg := c.config(fmt.Sprint("a", i), "default")
			cfg.Timing.PushPull = time.Hour
			all = append(all, c.start(cfg))
		}
		for _, n := range all {
			await(t, time.Minute, "all know all", func() bool { return n.LivePeers() == hosts-1 })
		}
		time.Sleep(10 * time.Second)
		c.net.Drop(0.05)
		for _, n := range all {
			n.Announce(PhaseFetching, "job-1")
		}
		for _, n := range all {
			for i := range hosts {
				await(t, 2*time.Second, "the change of each", func() bool { return jobOf(n, fmt.Sprint("a", i)) == "job-1" })
			}
		}
	})
}
