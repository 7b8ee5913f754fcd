package mesh

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"moult/mesh/meshtest"
)

// How long it may take until all is well after the network is.
const recovery = 30 * time.Second

// seeds are few in short tests; MOULT_LONG=1 plays a hundred of each topology.
func seeds() int {
	if os.Getenv("MOULT_LONG") != "" {
		return 100
	}
	return 3
}

// topology is a network of segments and what happens to it. Hosts named s… are
// servers, those in two segments relays, the others agents.
type topology struct {
	hosts [][]string // name, segments…
	// shape is done to the network before the hosts start, and tells whether they
	// start in reverse order: who starts later dials those before.
	shape func(n *meshtest.Network, rng *rand.Rand) (backwards bool)
	// play is what happens, after all is well; random cuts when nil. It ends with
	// a network on which all hosts can be well again.
	play func(p *playground)
}

var topologies = map[string]topology{
	"star with two relays":         {hosts: star},
	"chain of three":               {hosts: chain},
	"ring":                         {hosts: ring},
	"overlapping relays, one slow": {hosts: star, shape: oneSlow},
	"one-way filters":              {hosts: star, shape: filters},
	"one-way filters in a chain":   {hosts: chain, shape: filters},
	"all relays cut for a minute":  {hosts: star, play: cutRelays},
	"relay killed":                 {hosts: star, play: killRelay},
	"relay of a ring killed":       {hosts: ring, play: killRelay},
}

var (
	star = [][]string{
		{"s1", "left"},
		{"s2", "left"},
		{"r1", "left", "right"},
		{"r2", "left", "right"},
		{"a1", "right"},
		{"a2", "right"},
		{"a3", "right"},
	}
	chain = [][]string{
		{"s1", "left"},
		{"s2", "left"},
		{"r1", "left", "middle"},
		{"r2", "middle", "right"},
		{"a1", "middle"},
		{"a2", "right"},
		{"a3", "right"},
	}
	ring = [][]string{
		{"s1", "north"},
		{"s2", "north"},
		{"r1", "north", "east"},
		{"r2", "east", "south"},
		{"r3", "south", "west"},
		{"r4", "west", "north"},
		{"a1", "south"},
		{"a2", "east"},
		{"a3", "west"},
	}
)

func oneSlow(n *meshtest.Network, rng *rand.Rand) bool {
	n.Slow("r2", time.Duration(50+rng.IntN(200))*time.Millisecond)
	return false
}

// filters let agents begin nothing toward relays, nor relays toward servers, or
// the other way round: a firewall is open in one direction.
func filters(n *meshtest.Network, rng *rand.Rand) bool {
	outward := rng.IntN(2) == 0
	for _, near := range []string{"s1", "s2", "r1", "r2"} {
		for _, far := range []string{"r1", "r2", "a1", "a2", "a3"} {
			switch {
			case near == far || near[0] == far[0]:
			case outward:
				n.Filter(far, near)
			default:
				n.Filter(near, far)
			}
		}
	}
	return outward
}

func TestTopologies(t *testing.T) {
	atLength(t)
	for name, top := range topologies {
		t.Run(name, func(t *testing.T) {
			for seed := range seeds() {
				t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
					bubble(t, func(t *testing.T) { playTopology(t, top, uint64(seed)) })
				})
			}
		})
	}
}

func playTopology(t *testing.T, top topology, seed uint64) {
	c := newCluster(t)
	c.net = meshtest.New(seed)
	p := &playground{t: t, c: c, rng: rand.New(rand.NewPCG(seed, 7)), segments: map[string][]string{}, inboxes: map[string]*inbox{}, cut: map[[2]string]bool{}, healed: map[string]time.Time{}}
	for _, h := range top.hosts {
		p.names = append(p.names, h[0])
		p.segments[h[0]] = h[1:]
	}
	if top.shape != nil && top.shape(c.net, p.rng) {
		slices.Reverse(p.names)
	}
	for _, host := range p.names {
		p.start(host)
	}
	p.awaitWell(time.Minute)
	ended := p.watch(seed)
	if top.play != nil {
		top.play(p)
	} else {
		p.randomCuts()
	}
	p.awaitWell(recovery)
	p.exchangeMessages()
	ended()
	for host, in := range p.inboxes {
		for _, msg := range in.got {
			if n := in.count(msg); n != 1 {
				t.Errorf("%s handled %q %d times", host, msg, n)
			}
		}
	}
}

// playground is a cluster on a network of segments to which things happen.
type playground struct {
	t        *testing.T
	c        *cluster
	rng      *rand.Rand
	names    []string
	segments map[string][]string
	inboxes  map[string]*inbox
	sent     int

	mu     sync.Mutex
	cut    map[[2]string]bool
	healed map[string]time.Time // when a host's cuts were
	gone   string               // killed
}

func (p *playground) start(host string) {
	n := p.c.node(host, p.segments[host]...)
	p.inboxes[host] = collect(n, "topology")
}

func (p *playground) relay(host string) bool { return len(p.segments[host]) > 1 }

func (p *playground) shareSegment(a, b string) bool {
	return slices.ContainsFunc(p.segments[a], func(s string) bool { return slices.Contains(p.segments[b], s) })
}

func (p *playground) isGone(host string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.gone == host
}

func (p *playground) isCut(a, b string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cut[[2]string{min(a, b), max(a, b)}]
}

func (p *playground) cutLink(a, b string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut[[2]string{min(a, b), max(a, b)}] = true
	p.c.net.Cut(a, b)
}

func (p *playground) heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.cut {
		p.c.net.Heal(l[0], l[1])
		p.healed[l[0]], p.healed[l[1]] = time.Now(), time.Now()
	}
	clear(p.cut)
}

// settled tells whether all links of a host have been whole for long enough.
func (p *playground) settled(host string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Since(p.healed[host]) > recovery
}

// reaches tells whether there is a way from one host to another through relays.
func (p *playground) reaches(from, to string) bool {
	seen := []string{from}
	for i := 0; i < len(seen); i++ {
		at := seen[i]
		if at == to {
			return true
		}
		if at != from && !p.relay(at) {
			continue
		}
		for _, next := range p.names {
			if next != p.gone && !slices.Contains(seen, next) && p.shareSegment(at, next) && !p.isCut(at, next) {
				seen = append(seen, next)
			}
		}
	}
	return false
}

// awaitWell waits until each server sees every host online, with its own record.
func (p *playground) awaitWell(within time.Duration) {
	p.t.Helper()
	for _, s := range []string{"s1", "s2"} {
		for _, host := range p.names {
			if host == p.gone {
				continue
			}
			await(p.t, within, fmt.Sprintf("%s sees %s online", s, host), func() bool {
				m, ok := p.c.nodes[s].Roster().Member(host)
				return ok && m.Liveness == Online && m.Boot == p.c.nodes[host].Record().Boot
			})
		}
	}
	for _, host := range p.names {
		if host == p.gone {
			continue
		}
		await(p.t, within, host+" sees the servers online", func() bool {
			return len(p.c.nodes[host].Roster().Servers()) == 2
		})
	}
}

// watch starts what goes on beside the play: forged records, and a look at what
// must never be.
func (p *playground) watch(seed uint64) (end func()) {
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		rng := rand.New(rand.NewPCG(seed, 8))
		for pause(stop, 500*time.Millisecond) {
			p.forge(rng)
			p.look()
		}
	}()
	end = sync.OnceFunc(func() {
		close(stop)
		<-ended
	})
	p.t.Cleanup(end)
	return end
}

// forge has a relay say that an agent runs what it does not.
func (p *playground) forge(rng *rand.Rand) {
	liar, victim := p.c.nodes["r1"], p.c.nodes["a1"]
	if rng.IntN(10) > 0 || p.isGone("r1") {
		return
	}
	rec := victim.Record().Record
	rec.Boot, rec.Version = rec.Boot+1, "6.6.6"
	forged, err := rec.Sign(testCluster, liar.cfg.Key)
	if err != nil {
		p.t.Error(err)
		return
	}
	for _, pool := range liar.pools {
		liar.tell(report{
			observer: "r1", boot: liar.cfg.Boot, version: liar.reportSeq.Add(1), segment: rec.Segments[0],
			alive: true, ip: []byte{10, 0, 0, 1}, record: forged,
		}, pool)
	}
}

// look checks the servers' view: those that they reach without a relay are never
// anything but online, and nobody's record is another's word.
func (p *playground) look() {
	for _, s := range []string{"s1", "s2"} {
		for _, m := range p.c.nodes[s].Roster().Members() {
			if m.Version == "6.6.6" {
				p.t.Errorf("%s believes a forged record of %s", s, m.HostID)
			}
			near := p.shareSegment(s, m.HostID) && !p.isGone(m.HostID) && p.settled(m.HostID)
			for _, other := range p.names { // a cut beside it may hold up what its pool says of it
				near = near && !p.isCut(m.HostID, other)
			}
			if near && m.Liveness != Online {
				p.t.Errorf("%s sees %s, whose links are whole, %s since %v", s, m.HostID, m.Liveness, time.Since(m.Since))
			}
		}
	}
}

// randomCuts cuts links here and there, a few times, and heals them.
func (p *playground) randomCuts() {
	var links [][2]string
	for i, a := range p.names {
		for _, b := range p.names[i+1:] {
			if p.shareSegment(a, b) && (a[0] != 's' || b[0] != 's') {
				links = append(links, [2]string{a, b})
			}
		}
	}
	for range 2 {
		for range 1 + p.rng.IntN(4) {
			l := links[p.rng.IntN(len(links))]
			p.cutLink(l[0], l[1])
		}
		p.exchangeMessages()
		time.Sleep(time.Duration(p.rng.IntN(60)) * time.Second)
		p.exchangeMessages()
		p.heal()
		p.awaitWell(recovery)
	}
}

func cutRelays(p *playground) {
	for _, relay := range p.names {
		for _, other := range p.names {
			if p.relay(relay) && !p.relay(other) && p.shareSegment(relay, other) && (other[0] == 's' || p.rng.IntN(2) == 0) {
				p.cutLink(relay, other)
			}
		}
	}
	time.Sleep(time.Minute)
	for _, s := range []string{"s1", "s2"} {
		awaitLiveness(p.t, 0, "a1", Unreachable, p.c.nodes[s])
	}
	p.heal()
}

func killRelay(p *playground) {
	relays := slices.DeleteFunc(slices.Clone(p.names), func(h string) bool { return !p.relay(h) })
	gone := relays[p.rng.IntN(len(relays))]
	p.mu.Lock()
	p.gone = gone
	p.mu.Unlock()
	must(p.t, p.c.nodes[gone].Close())
	p.exchangeMessages() // at once: nobody knows yet
	awaitLiveness(p.t, recovery, gone, Offline, p.c.nodes["s1"])
	p.awaitWell(0) // nobody else was missed meanwhile
}

// exchangeMessages sends from a server to each host and back, wherever there is a
// way, as their callers do: again and again until it gets through.
func (p *playground) exchangeMessages() {
	var all sync.WaitGroup
	for _, host := range p.names {
		if host == p.gone || strings.HasPrefix(host, "s") || !p.reaches("s1", host) {
			continue
		}
		for _, way := range [][2]string{{"s1", host}, {host, "s1"}} {
			p.sent++
			msg := fmt.Sprint(p.sent)
			all.Go(func() { p.mustGetThrough(way[0], way[1], msg) })
		}
	}
	all.Wait()
}

func (p *playground) mustGetThrough(from, to, msg string) {
	start := time.Now()
	var last error
	for try := 0; time.Since(start) < recovery; try++ {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		this := fmt.Sprint(msg, ".", try)
		last = p.c.nodes[from].Send(ctx, to, "topology", []byte(this))
		cancel()
		for range 20 {
			if p.inboxes[to].has(this) {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		time.Sleep(time.Second)
	}
	p.t.Errorf("nothing gets from %s to %s within %v though there is a way; cut: %v; %v", from, to, recovery, p.cut, last)
}
