package artifact

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"moult/mesh/identity"
	"moult/updater/release"
)

// distributionVar is the file that the benchmark's results go to.
const distributionVar = "MOULT_DISTRIBUTION"

// distributionResult is a row of the benchmark: times are until the last host has
// the artifact, ratios in multiples of one transfer over the same link by the same
// program.
type distributionResult struct {
	Hosts, Mbit int
	MiB         int
	Program     string
	Runs        []float64 // seconds
	Seconds     float64   // the median's
	OneTransfer float64   // seconds
	Ratio       float64
	// NginxRatio is in multiples of one transfer by nginx: it has no TLS, no chunks and
	// no checks to do.
	NginxRatio  float64
	SeedCopies  float64 `json:",omitempty"` // the most of any run
	BusyCores   float64 `json:",omitempty"` // of this process, in the median run: near the machine's number, its CPU was the limit
	TimesSlower float64 `json:",omitempty"` // than moult in the same run
	Goal        string  `json:",omitempty"`
}

// TestDistribution measures how long it takes until all hosts of a fleet have an
// artifact that one has, over shaped links, beside nginx and BitTorrent. It needs
// root, and is run by `make bench-distribution`.
func TestDistribution(t *testing.T) {
	out := os.Getenv(distributionVar)
	if out == "" {
		t.Skip("run by make bench-distribution")
	}
	runs := 3
	if n, err := strconv.Atoi(os.Getenv("MOULT_DISTRIBUTION_RUNS")); err == nil && n > 0 {
		runs = n
	}
	// For a shorter look: which programs beside moult, and with how many hosts.
	only, sizes := os.Getenv("MOULT_DISTRIBUTION_ONLY"), os.Getenv("MOULT_DISTRIBUTION_HOSTS")
	var results []distributionResult
	for _, c := range []struct {
		hosts, mbit, mib   int
		goal, goalKilled   float64
		goalNginx, goalBit float64
	}{
		{hosts: 16, mbit: 100, mib: 16, goal: 1.15, goalKilled: 1.6, goalNginx: 12, goalBit: 1},
		{hosts: 64, mbit: 20, mib: 4, goal: 1.2, goalKilled: 1.6, goalNginx: 45, goalBit: 1},
	} {
		if sizes != "" && !slices.Contains(strings.Split(sizes, ","), strconv.Itoa(c.hosts)) {
			continue
		}
		t.Run(fmt.Sprintf("%d hosts", c.hosts), func(t *testing.T) {
			d := newDistribution(t, c.hosts, c.mbit, int64(c.mib)<<20)
			nginxOne := d.nginx(1)
			row := func(program, goal string, times []float64, one float64) distributionResult {
				slices.Sort(times)
				median := times[len(times)/2]
				r := distributionResult{
					Hosts: c.hosts, Mbit: c.mbit, MiB: c.mib, Program: program, Runs: times,
					Seconds: median, OneTransfer: one, Ratio: median / one, NginxRatio: median / nginxOne, Goal: goal,
				}
				t.Logf("%-24s %8.2f s, one transfer %.2f s: %.2f ×, nginx's %.2f s: %.2f × %.2f", program, r.Seconds, one, r.Ratio, nginxOne, r.NginxRatio, times)
				return r
			}
			var one, all, killed, busy []float64
			var copies float64
			for range runs {
				seconds, _ := d.moult(1, 0, 0)
				one = append(one, seconds)
				before := cpuSeconds(t)
				seconds, seed := d.moult(c.hosts, 0, 0)
				busy = append(busy, (cpuSeconds(t)-before)/seconds)
				all, copies = append(all, seconds), max(copies, seed)
				seconds, _ = d.moult(c.hosts, (c.hosts+5)/10, time.Duration(one[0]/2*float64(time.Second)))
				killed = append(killed, seconds)
			}
			slices.Sort(busy)
			slices.Sort(one)
			transfer := one[len(one)/2]
			ours := row("moult", fmt.Sprintf("≤ %.2f ×, seed ≤ 1.2 copies", c.goal), all, transfer)
			ours.SeedCopies, ours.BusyCores = copies, busy[len(busy)/2]
			results = append(results, ours, row("moult, 10 % killed", fmt.Sprintf("≤ %.2f ×", c.goalKilled), killed, transfer))
			if c.hosts >= rowSegments*rowHosts && c.hosts < 2*rowSegments*rowHosts {
				times, seed := []float64{}, 0.0
				for range runs {
					seconds, copies := d.row()
					times, seed = append(times, seconds), max(seed, copies)
				}
				r := row(fmt.Sprintf("moult, %d × %d hosts behind relays", rowSegments, rowHosts), "", times, transfer)
				r.Hosts, r.SeedCopies = rowSegments*rowHosts, seed
				results = append(results, r)
			}
			for _, other := range []struct {
				program string
				goal    float64
				one     func() float64
				run     func(hosts int) float64
			}{
				{"nginx", c.goalNginx, func() float64 { return nginxOne }, d.nginx},
				{"aria2 (BitTorrent)", c.goalBit, func() float64 { return d.bittorrent(1) }, d.bittorrent},
			} {
				if only != "" && !strings.Contains(only, strings.Fields(other.program)[0]) {
					continue
				}
				r := row(other.program, fmt.Sprintf("moult ≥ %.0f × faster", other.goal), []float64{other.run(c.hosts)}, other.one())
				r.TimesSlower = r.Seconds / ours.Seconds
				results = append(results, r)
			}
			if learnt := d.learnt(); len(learnt) > 0 {
				t.Errorf("hosts had to ask where others are, which loses packets once many do: %v", learnt)
			}
		})
	}
	printDistribution(t, results)
	text, err := json.MarshalIndent(results, "", "  ")
	must(t, err)
	must(t, os.MkdirAll(filepath.Dir(out), 0o755))
	must(t, os.WriteFile(out, append(text, '\n'), 0o644))
}

// cpuSeconds is how long this process has kept cores busy.
func cpuSeconds(t *testing.T) float64 {
	t.Helper()
	var used unix.Rusage
	must(t, unix.Getrusage(unix.RUSAGE_SELF, &used))
	return time.Duration(used.Utime.Nano() + used.Stime.Nano()).Seconds()
}

func printDistribution(t *testing.T, results []distributionResult) {
	var b strings.Builder
	fmt.Fprintf(&b, "\n| hosts | link | artifact | by | last has it | one transfer | ratio | to nginx's one | seed sends | busy cores | moult is faster by | goal |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, r := range results {
		copies, slower, busy := "", "", ""
		if r.BusyCores > 0 {
			busy = fmt.Sprintf("%.1f", r.BusyCores)
		}
		if r.SeedCopies > 0 {
			copies = fmt.Sprintf("%.2f copies", r.SeedCopies)
		}
		if r.TimesSlower > 0 {
			slower = fmt.Sprintf("%.1f ×", r.TimesSlower)
		}
		fmt.Fprintf(&b, "| %d | %d Mbit/s | %d MiB | %s | %.2f s | %.2f s | %.2f × | %.2f × | %s | %s | %s | %s |\n",
			r.Hosts, r.Mbit, r.MiB, r.Program, r.Seconds, r.OneTransfer, r.Ratio, r.NginxRatio, copies, busy, slower, r.Goal)
	}
	t.Log(b.String())
}

// distribution is one artifact and hosts with shaped links.
type distribution struct {
	*shaped
	file   string
	digest string
	size   int64
	chunks release.Chunks
	creds  []identity.Credentials // by host
	nodes  []*node                // of the last run
	random *rand.Rand
}

func newDistribution(t *testing.T, hosts, mbit int, size int64) *distribution {
	d := &distribution{shaped: newShaped(t, hosts, mbit), size: size, random: rand.New(rand.NewPCG(1, 2))}
	content := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(hosts)}).Read(content)
	d.digest = digestOf(content)
	// nginx and aria2 serve the file as it lies there.
	must(t, os.Mkdir(filepath.Join(d.dir, "seed"), 0o755))
	d.file = filepath.Join(d.dir, "seed", "artifact")
	must(t, os.WriteFile(d.file, content, 0o644))
	must(t, os.Chmod(d.dir, 0o755))
	chunk := release.ChunkSizeFor(size)
	if n, err := strconv.ParseInt(os.Getenv("MOULT_DISTRIBUTION_CHUNK"), 10, 64); err == nil {
		chunk = n
	}
	l := release.NewChunkLister(chunk)
	_, _ = l.Write(content)
	d.chunks = l.Chunks()
	now := time.Now()
	ca, err := identity.NewCA("cluster-1", now)
	must(t, err)
	for i := range hosts + 1 {
		key, err := identity.NewKey()
		must(t, err)
		who := identity.Identity{Cluster: "cluster-1", HostID: d.id(i), Name: d.id(i), Role: identity.RoleAgent}
		cert, err := ca.Issue(who, key.Public().(ed25519.PublicKey), now, 6*time.Hour)
		must(t, err)
		d.creds = append(d.creds, identity.Credentials{Identity: who, Key: key, CertPEM: cert, CAPEM: ca.CertPEM()})
	}
	return d
}

func (d *distribution) id(i int) string { return fmt.Sprintf("host-%d", i) }

// moult has the first hosts fetch at the same moment and returns the seconds until
// the last has it, of those that are not killed, and how many copies the seed sent.
func (d *distribution) moult(hosts, kill int, after time.Duration) (seconds, copies float64) {
	t := d.t
	t.Helper()
	var ids []string
	for i := range hosts {
		ids = append(ids, d.id(i+1))
	}
	trees := Trees(d.digest, ids)
	nodes := d.startNodes(hosts)
	seed := []Peer{{HostID: d.id(0), Addr: d.addr(0), Class: 1}}
	killed := map[int]bool{}
	for _, i := range d.random.Perm(hosts)[:kill] {
		killed[i+1] = true
	}
	time.AfterFunc(after, func() {
		for i := range killed {
			go nodes[i].kill()
		}
	})
	seconds = d.fetchAll(nodes, killed, func(i int) FetchRequest {
		parents := d.peers(trees[d.id(i)])
		return FetchRequest{Candidates: func() []Peer { return seed }, Parents: func() [][]Peer { return parents }}
	})
	return seconds, float64(nodes[0].served.Served()) / float64(d.size)
}

// startNodes starts so many hosts and the seed, which holds the artifact. They end with
// the next ones or the test.
func (d *distribution) startNodes(hosts int) []*node {
	t := d.t
	t.Helper()
	d.stopNodes()
	for i := range hosts + 1 {
		d.nodes = append(d.nodes, d.startNode(i, d.creds[i]))
		t.Cleanup(d.nodes[i].close)
	}
	f, err := os.Open(d.file)
	must(t, err)
	defer f.Close()
	_, err = d.nodes[0].store.Import(f, d.size, anything)
	must(t, err)
	runtime.GC() // nobody pays for what came before
	return d.nodes
}

func (d *distribution) stopNodes() {
	for _, n := range d.nodes {
		n.close()
	}
	d.nodes = nil
}

// fetchAll has all hosts fetch at the same moment and returns the seconds until the
// last of those has it that are not killed.
func (d *distribution) fetchAll(nodes []*node, killed map[int]bool, request func(i int) FetchRequest) (seconds float64) {
	t := d.t
	t.Helper()
	begun := time.Now()
	ended, lines := make([]time.Time, len(nodes)), make([]timeline, len(nodes))
	var all sync.WaitGroup
	for i := 1; i < len(nodes); i++ {
		lines[i].begun = begun
		all.Go(func() {
			req := request(i)
			req.Digest, req.Size, req.Chunks, req.Progress = d.digest, d.size, d.chunks, lines[i].progress
			at, sources, err := nodes[i].fetch(req)
			if err != nil && !killed[i] {
				t.Errorf("%s: %v (%v)", d.id(i), err, sources)
			}
			ended[i] = at
		})
	}
	all.Wait()
	for i := 1; i < len(nodes); i++ {
		if !killed[i] {
			seconds = max(seconds, ended[i].Sub(begun).Seconds())
		}
		if os.Getenv("MOULT_DISTRIBUTION_TRACE") != "" {
			t.Logf("%-8s %s%s", d.id(i), &lines[i], map[bool]string{true: " killed"}[killed[i]])
		}
	}
	return seconds
}

func (d *distribution) peers(trees [][]string) (parents [][]Peer) {
	for _, ancestors := range trees {
		var peers []Peer
		for _, id := range ancestors {
			at, _ := strconv.Atoi(strings.TrimPrefix(id, "host-"))
			peers = append(peers, Peer{HostID: id, Addr: d.addr(at)})
		}
		parents = append(parents, peers)
	}
	return parents
}
