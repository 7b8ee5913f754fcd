// Package convergence measures how long it takes until the servers of a pool, and
// all its members, know of a change: of one member's record, and of all records at
// once. moult's mesh, memberlist and serf do it on real sockets on loopback, one
// after the other in one process, with records of the same bytes and through
// transports that count alike. `make bench-convergence` runs it; docs/convergence.md
// says what came of it.
package convergence

import (
	"fmt"
	"io"
	"log"
	"math"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	reportVar = "MOULT_CONVERGENCE"           // the report, to which rows are added; unset: nothing is measured
	sizesVar  = "MOULT_CONVERGENCE_SIZES"     // such as 100,200
	onlyVar   = "MOULT_CONVERGENCE_ONLY"      // names of systems, separated by commas
	simVar    = "MOULT_CONVERGENCE_SIMULATED" // rows of TestRosterConvergence of package mesh, JSON lines

	servers    = 3                // the first members of a pool
	oneRounds  = 9                // changes of one member each, of which the median counts
	oneCap     = 15 * time.Second // for one of them
	allCap     = 30 * time.Second
	restartCap = time.Minute
	settleCap  = 5 * time.Minute // until all members know all members, before anything is measured
	joinAtOnce = 8               // members that join at a time
	// joinPause follows, for each member that is there. All tell all of each that joins;
	// more of it at a time and probes time out, and those who suspect each other keep a
	// pool of 500 busy for minutes.
	joinPause     = 4 * time.Millisecond
	settleLook    = time.Second     // between looks at who knows all
	quietLook     = 2 * time.Second // over which packets are counted
	quiet         = 6               // packets of a member in a second, at most, in a pool at rest
	restFor       = 5 * time.Second
	progressEvery = 10 * time.Second        // a line says how far a pool has come
	oneRest       = 1500 * time.Millisecond // after each: by then it has been told often enough
	allRest       = 3 * time.Second

	gcPercent   = 400
	memoryLimit = 5 << 30 // bytes, beyond which it is collected more often

	pollServer = time.Millisecond
	pollAll    = 5 * time.Millisecond
)

// What moult is to reach, against memberlist's defaults in the same run.
const (
	maxOneRatio = 0.35 // time until the servers know one change, at each size
	minAllRatio = 10   // times faster when all change, at 200 members
	goalAllSize = 200
)

// system is one of those that are compared.
type system struct {
	name   string
	rounds int // of changes of all members
	start  func(t *testing.T, f *fleet, i int) member
}

// member is one member of a pool. change and knows are called from several
// goroutines; a generation of 0 is what a member started with.
type member interface {
	address() string
	join(addr string) error
	members() int // that it holds for alive, itself included
	change(generation int)
	knows(other, generation int) bool
	restarted(other int, boot uint64) bool // it knows that the other was started so often, and is here
	close()
}

// result is one row of the table. Times are in seconds; those that were not reached
// are the cap.
type result struct {
	System     string  `json:"system"`
	Members    int     `json:"members"`
	Simulated  bool    `json:"simulated,omitempty"`
	Bytes      int     `json:"record_bytes,omitempty"`
	OneServers float64 `json:"one_change_servers_s"`
	OneSlowest float64 `json:"one_change_servers_slowest_s"`
	OneAll     float64 `json:"one_change_all_members_s"`
	All        float64 `json:"all_at_once_servers_s"`
	AllCapped  bool    `json:"all_at_once_capped,omitempty"`
	AllSeen    int     `json:"all_at_once_seen_by_every_server"`
	AllAll     float64 `json:"all_at_once_all_members_s"`
	AllAllCap  bool    `json:"all_at_once_all_members_capped,omitempty"`
	Restart    float64 `json:"mass_restart_servers_s,omitempty"`
	RestartCap bool    `json:"mass_restart_capped,omitempty"`
	Rest       cost    `json:"at_rest"`
	OneCost    float64 `json:"one_change_packets_per_member"`
	AllCost    cost    `json:"all_at_once"`
	RcvDrops   uint64  `json:"packets_dropped_by_full_sockets"`
}

// cost is what a phase takes: of the machine's cores how many, and of each member
// how many packets and bytes, streams included, in a second.
type cost struct {
	Cores   float64 `json:"cores"`
	Packets float64 `json:"packets_per_member_per_s"`
	Bytes   float64 `json:"bytes_per_member_per_s"`
}

func TestConvergence(t *testing.T) {
	report := os.Getenv(reportVar)
	if report == "" {
		t.Skip("many minutes; make bench-convergence runs it")
	}
	log.SetOutput(io.Discard) // serf's
	// Each host has a heap of its own elsewhere. One that all share would be collected
	// for most of the time.
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryLimit)
	sizes := []int{100, 200, 500}
	if s := os.Getenv(sizesVar); s != "" {
		sizes = nil
		for _, f := range strings.Split(s, ",") {
			n, err := strconv.Atoi(f)
			must(t, err)
			sizes = append(sizes, n)
		}
	}
	only := os.Getenv(onlyVar)
	r, err := openReport(report)
	must(t, err)
	for _, n := range sizes {
		for _, s := range []system{
			{name: "moult", rounds: 3, start: startMoult},
			{name: "memberlist", rounds: 1, start: startMemberlist},
			{name: "serf", rounds: 1, start: startSerf},
		} {
			if only != "" && !slices.Contains(strings.Split(only, ","), s.name) {
				continue
			}
			t.Run(fmt.Sprintf("%s/%d", s.name, n), func(t *testing.T) { must(t, r.add(measure(t, s, n))) })
			debug.FreeOSMemory() // or the next pool comes on top of this one
		}
	}
	simulated, err := readSimulated(os.Getenv(simVar))
	must(t, err)
	must(t, r.add(simulated...))
	fmt.Print(table(r.Results))
	for _, miss := range misses(r.Results) {
		t.Error(miss)
	}
}

// measure starts a pool, lets it come to rest, and changes one member after the
// other, then all of them.
func measure(t *testing.T, s system, size int) result {
	f := newFleet(t)
	pool := startPool(t, s, f, size)
	r := result{System: s.name, Members: size, Bytes: len(f.record(servers, 1))}
	drops := socketDrops(t)
	rest := f.traffic.begin()
	time.Sleep(restFor)
	r.Rest = rest.end(size)

	generations := make([]int, size)
	var one, oneAll []float64
	var packets uint64
	for range oneRounds {
		i := servers + rand.IntN(size-servers)
		generations[i]++
		w := watch{pool: pool, hosts: []int{i}, generations: generations}
		sent := f.traffic.packets.Load()
		began := time.Now()
		pool[i].change(generations[i])
		byServers, byAll := w.run(began, oneCap)
		one, oneAll = append(one, byServers.Seconds()), append(oneAll, byAll.Seconds())
		time.Sleep(oneRest)
		packets += f.traffic.packets.Load() - sent
	}
	slices.Sort(one)
	slices.Sort(oneAll)
	r.OneServers, r.OneSlowest, r.OneAll = median(one), one[len(one)-1], median(oneAll)
	t.Logf("one change: servers after %.3f s, slowest %.3f s, all members after %.3f s, slowest %.3f s", r.OneServers, r.OneSlowest, r.OneAll, oneAll[len(oneAll)-1])
	r.OneCost = float64(packets)/oneRounds/float64(size) - r.Rest.Packets*oneRest.Seconds()

	every := make([]int, size)
	var all, allAll []float64
	for range s.rounds {
		for i := range size {
			every[i] = i
			generations[i]++
		}
		w := watch{pool: pool, hosts: every, generations: generations}
		spent := f.traffic.begin()
		began := time.Now()
		var changed sync.WaitGroup
		for i, m := range pool {
			changed.Go(func() { m.change(generations[i]) })
		}
		byServers, byAll := w.run(began, allCap)
		r.AllCost = spent.end(size)
		changed.Wait()
		all, allAll = append(all, byServers.Seconds()), append(allAll, byAll.Seconds())
		r.AllSeen = w.seenByServers()
		t.Logf("all at once: servers after %v, all members after %v, at most %v", byServers, byAll, allCap)
		if byAll >= allCap {
			break
		}
		time.Sleep(allRest)
	}
	slices.Sort(all)
	slices.Sort(allAll)
	r.All, r.AllAll = median(all), median(allAll)
	r.AllCapped, r.AllAllCap = r.All >= allCap.Seconds(), r.AllAll >= allCap.Seconds()
	restart, done := massRestart(t, s, f, pool)
	r.Restart, r.RestartCap = restart.Seconds(), !done
	t.Logf("mass restart: servers after %v, complete: %t", restart, done)
	r.RcvDrops = socketDrops(t) - drops
	t.Logf("%+v", r)
	return r
}

// massRestart ends all members but the servers, without a goodbye, as a site does that
// loses its power, and starts them again, to join by the servers, without pauses. It
// returns how long after the first start all servers knew all of them.
func massRestart(t *testing.T, s system, f *fleet, pool []member) (took time.Duration, done bool) {
	var ended sync.WaitGroup
	for _, m := range pool[servers:] {
		ended.Go(m.close)
	}
	ended.Wait()
	boot := f.boot.Add(1)
	began := time.Now()
	for i := servers; i < len(pool); i++ {
		pool[i] = s.start(t, f, i)
	}
	if !joinAll(t, pool, 0, restartCap) {
		return restartCap, false
	}
	t.Logf("restarted and joined after %v", time.Since(began))
	for next := servers; next < len(pool); {
		if time.Since(began) > restartCap {
			return restartCap, false
		}
		if slices.ContainsFunc(pool[:servers], func(m member) bool { return !m.restarted(next, boot) }) {
			time.Sleep(pollServer)
			continue
		}
		next++
	}
	return time.Since(began), true
}

// startPool starts all members, joins them by the servers, a few at a time, and waits
// until all know all and are quiet.
func startPool(t *testing.T, s system, f *fleet, size int) []member {
	began := time.Now()
	pool := make([]member, size)
	for i := range size {
		pool[i] = s.start(t, f, i)
	}
	t.Cleanup(func() {
		var closed sync.WaitGroup
		for _, m := range pool {
			closed.Go(m.close)
		}
		closed.Wait()
	})
	started := time.Since(began)
	for i := 1; i < servers; i++ {
		must(t, pool[i].join(pool[0].address()))
	}
	if !joinAll(t, pool, joinPause, settleCap) {
		t.Fatalf("after %v the members have not joined", settleCap)
	}
	joined := time.Since(began)
	settle(t, f, pool, began)
	t.Logf("%d members: started after %v, joined after %v, know each other and are quiet after %v",
		size, started.Round(time.Second), joined.Round(time.Second), time.Since(began).Round(time.Second))
	return pool
}

// joinAll has all but the servers join by these, a few at a time, with a pause for each
// member that is there, and tells whether they did within a limit.
func joinAll(t *testing.T, pool []member, pause, limit time.Duration) bool {
	t.Helper()
	there, told, end := servers, time.Now(), time.Now().Add(limit)
	for batch := range slices.Chunk(pool[servers:], joinAtOnce) {
		var joined sync.WaitGroup
		for i, m := range batch {
			joined.Go(func() { joinPatiently(m, pool[i%servers].address(), end) })
		}
		joined.Wait()
		if time.Now().After(end) {
			return false
		}
		there += len(batch)
		if time.Since(told) > progressEvery {
			told = time.Now()
			t.Logf("%d of %d members have joined", there, len(pool))
		}
		time.Sleep(time.Duration(there) * pause)
	}
	return true
}

// settle waits until all know all, and are quiet.
func settle(t *testing.T, f *fleet, pool []member, began time.Time) {
	told := time.Now()
	for missing := math.MaxInt; ; time.Sleep(settleLook) {
		before, left := missing, []member(nil)
		missing = 0
		for _, m := range pool {
			if lacks := len(pool) - m.members(); lacks > 0 {
				missing += lacks
				left = append(left, m)
			}
		}
		if len(left) == 0 {
			break
		}
		if time.Since(told) > progressEvery {
			told = time.Now()
			t.Logf("%d members do not know all yet, but lack %d between them", len(left), missing)
		}
		if time.Since(began) > settleCap {
			t.Fatalf("after %v %d of %d members do not know all members", settleCap, len(left), len(pool))
		}
		if missing < before {
			continue // gossip still brings them
		}
		// What it lost would be found by push/pull, in minutes.
		for _, m := range left[:min(len(left), 4*joinAtOnce)] {
			_ = m.join(pool[rand.IntN(servers)].address()) // tried again as long as it is incomplete
		}
	}
	for last := f.traffic.packets.Load(); ; {
		time.Sleep(quietLook)
		now := f.traffic.packets.Load()
		each := float64(now-last) / quietLook.Seconds() / float64(len(pool))
		if each < quiet {
			return
		}
		if time.Since(told) > progressEvery {
			told = time.Now()
			t.Logf("all know all, and send %.1f packets a second each; %d are called quiet", each, quiet)
		}
		if time.Since(began) > settleCap {
			t.Fatalf("after %v the members are not quiet", settleCap)
		}
		last = now
	}
}

// joinPatiently joins a pool whose members are busy with each other, until end.
func joinPatiently(m member, addr string, end time.Time) {
	for m.join(addr) != nil && time.Now().Before(end) {
		time.Sleep(100 * time.Millisecond)
	}
}

// watch looks at who knows the present generations of some hosts.
type watch struct {
	pool        []member
	hosts       []int
	generations []int
	known       []int // by viewer: so many of hosts it knows, in their order
}

// run returns how long after began the servers, and all members, knew all; the limit
// where they did not by then.
func (w *watch) run(began time.Time, limit time.Duration) (byServers, byAll time.Duration) {
	w.known = make([]int, len(w.pool))
	for next := began; ; time.Sleep(pollServer) {
		if byServers == 0 && w.know(w.pool[:servers]) {
			byServers = time.Since(began)
		}
		if time.Now().After(next) {
			if byServers != 0 && w.know(w.pool) {
				return byServers, time.Since(began)
			}
			next = time.Now().Add(pollAll)
		}
		if time.Since(began) > limit {
			if byServers == 0 {
				byServers = limit
			}
			return byServers, limit
		}
	}
}

// know tells whether these first members of the pool know all. Who knew a host once
// is not asked again.
func (w *watch) know(viewers []member) bool {
	all := true
	for v, m := range viewers {
		for w.known[v] < len(w.hosts) {
			h := w.hosts[w.known[v]]
			if !m.knows(h, w.generations[h]) {
				all = false
				break
			}
			w.known[v]++
		}
	}
	return all
}

// seenByServers returns of how many hosts every server knows the change.
func (w *watch) seenByServers() (n int) {
	for _, h := range w.hosts {
		if !slices.ContainsFunc(w.pool[:servers], func(m member) bool { return !m.knows(h, w.generations[h]) }) {
			n++
		}
	}
	return n
}

func median(sorted []float64) float64 { return sorted[len(sorted)/2] }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
