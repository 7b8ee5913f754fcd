package mesh

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"
)

// TestRosterConvergence measures, on the clock of the bubble, how long the servers
// take to see a version change of one host and of all hosts at once: in segments
// with two relays each, and in one pool of the same hosts. MOULT_HOSTS=300 plays
// that many, a hundred in a segment; the figures are in the README.
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

	var one []time.Duration
	for i := range 9 {
		host := agents[(i*2+1)*len(agents)/18]
		changed := time.Now()
		c.nodes[host].change(func(r *Record) { r.Version = "1.5.0" })
		await(t, 30*time.Second, "the servers see one host's new version", func() bool { return seen(host, "1.5.0") })
		one = append(one, time.Since(changed))
	}
	slices.Sort(one)

	before = c.net.Sent()
	for _, host := range agents {
		c.nodes[host].change(func(r *Record) { r.Version = "2.0.0" })
	}
	all, middle := awaitAll("2.0.0", time.Minute)
	t.Logf("%d hosts: one host's change after %v (median of %d, slowest %v); all at once after %v, half of them after %v; at rest %.0f kB/s in all, %.1f kB/s a host; %.1f MB for the change of all",
		len(agents), one[len(one)/2], len(one), one[len(one)-1], all, middle, atRest/1e3, atRest/1e3/float64(len(agents)+3), float64(c.net.Sent()-before)/1e6)
	for _, host := range agents {
		must(t, c.nodes[host].Close())
	}
}
