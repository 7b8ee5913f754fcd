// Package meshtest is an in-memory network for tests of package mesh and of what
// runs on it. A Network connects hosts by name; Cut, Heal, Filter, Drop, Delay and
// Slow shape what gets through. It works inside testing/synctest: it blocks only on
// channels and timers, never on a socket, and nothing in it is unbuffered, which
// is why memberlist's own MockTransport stands still there.
//
// memberlist's goroutines end some seconds after its Shutdown, by the clock. A
// bubble's clock stops with its root goroutine: sleep there, after closing the
// last node, or synctest reports a deadlock.
//
// A cut is a black hole, as a firewall or a pulled cable makes one: packets
// vanish, dials and streams time out. A host that listens no longer refuses.
package meshtest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	packetQueue = 4096 // packets that wait per transport; more are lost, as with UDP
	streamQueue = 256
	firstPort   = 20000 // for a bind port of 0
	// filterMemory is how long a filter lets answers to a packet pass, as a
	// firewall that keeps track of connections does.
	filterMemory = 30 * time.Second
)

// Network connects transports. All methods are safe for concurrent use.
type Network struct {
	mu       sync.Mutex
	byAddr   map[string]*Transport
	cut      map[link]bool
	filtered map[way]bool
	asked    map[ports]time.Time // when a packet last went that way
	slow     map[string]time.Duration
	drop     float64
	delay    time.Duration
	rand     *rand.Rand
	nextPort int
	conns    map[*conn]bool // the dialing end of each open stream

	sent atomic.Uint64 // bytes
}

// link is two hosts, in order of their names.
type link struct{ a, b string }

func newLink(a, b string) link {
	if a > b {
		a, b = b, a
	}
	return link{a, b}
}

// way is a direction between two hosts, ports one between two addresses.
type (
	way   struct{ from, to string }
	ports struct{ from, to string }
)

// New makes a network. The seed decides which packets Drop loses.
func New(seed uint64) *Network {
	return &Network{
		byAddr: map[string]*Transport{}, cut: map[link]bool{}, conns: map[*conn]bool{},
		filtered: map[way]bool{}, asked: map[ports]time.Time{}, slow: map[string]time.Duration{},
		rand: rand.New(rand.NewPCG(seed, seed)), nextPort: firstPort,
	}
}

// Host returns what makes host's transports, one per segment; it fits
// mesh.Config.Transport. bind must name an IP address; port 0 takes a free one.
func (n *Network) Host(host string) func(segment, bind string) (memberlist.NodeAwareTransport, error) {
	return func(_, bind string) (memberlist.NodeAwareTransport, error) {
		return n.Listen(host, bind)
	}
}

// Listen makes one transport of a host.
func (n *Network) Listen(host, bind string) (*Transport, error) {
	ipText, portText, err := net.SplitHostPort(bind)
	if err != nil {
		return nil, err
	}
	ip := net.ParseIP(ipText)
	port, err := strconv.ParseUint(portText, 10, 16)
	if ip == nil || err != nil {
		return nil, fmt.Errorf("bind address %q: want IP:PORT", bind)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if port == 0 {
		n.nextPort++
		port = uint64(n.nextPort)
	}
	t := &Transport{
		net: n, host: host, ip: ip, port: int(port),
		packets: make(chan *memberlist.Packet, packetQueue), streams: make(chan net.Conn, streamQueue),
		closed: make(chan struct{}),
	}
	if n.byAddr[t.addr()] != nil {
		return nil, fmt.Errorf("bind %s: address already in use", t.addr())
	}
	n.byAddr[t.addr()] = t
	return t, nil
}

// Cut lets nothing pass between two hosts, in both directions, until Heal. Open
// streams between them break.
func (n *Network) Cut(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[newLink(a, b)] = true
	for c := range n.conns {
		if newLink(c.local.host, c.remote.host) == newLink(a, b) {
			c.breakOff()
		}
	}
}

// CutGroups cuts each host of one group from each of the other.
func (n *Network) CutGroups(a, b []string) {
	for _, x := range a {
		for _, y := range b {
			n.Cut(x, y)
		}
	}
}

// Heal mends the way between two hosts.
func (n *Network) Heal(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cut, newLink(a, b))
}

// HealAll mends all cuts and takes all filters away.
func (n *Network) HealAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
	clear(n.filtered)
}

// Filter puts a firewall between two hosts that lets one of them begin nothing:
// what it dials times out and its packets vanish, unless they answer a packet of
// the last half minute. Streams that the other one opens work both ways. It lasts
// until HealAll.
func (n *Network) Filter(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.filtered[way{from, to}] = true
}

// Slow makes all that a host sends and receives take so long, on top of Delay.
func (n *Network) Slow(host string, d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.slow[host] = d
}

// Drop loses this share of all packets from now on, from 0 to 1. Streams are
// reliable and lose nothing.
func (n *Network) Drop(share float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.drop = share
}

// Delay lets each packet, and each write on a stream, take so long from now on.
func (n *Network) Delay(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay = d
}

// Sent returns how many bytes were sent so far, in packets and on streams,
// whether or not they arrived.
func (n *Network) Sent() uint64 { return n.sent.Load() }

// state says what becomes of something sent from one host to another.
func (n *Network) state(from, to string) (cut bool, delay time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cut[newLink(from, to)], n.delay + n.slow[from] + n.slow[to]
}

// dialable says whether a host may open a stream to another, and how long what
// is sent takes.
func (n *Network) dialable(from, to string) (blocked bool, delay time.Duration) {
	cut, delay := n.state(from, to)
	n.mu.Lock()
	defer n.mu.Unlock()
	return cut || n.filtered[way{from, to}], delay
}

// passes says whether a filter lets a packet through, and remembers it for the
// answer. Only packets between hosts with a filter are remembered.
func (n *Network) passes(from, to *Transport) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.filtered[way{from.host, to.host}] {
		asked, ok := n.asked[ports{to.addr(), from.addr()}]
		return ok && time.Since(asked) < filterMemory
	}
	if n.filtered[way{to.host, from.host}] {
		n.asked[ports{from.addr(), to.addr()}] = time.Now()
	}
	return true
}

func (n *Network) lost() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.drop > 0 && n.rand.Float64() < n.drop
}

func (n *Network) at(addr string) *Transport {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.byAddr[addr]
}

var (
	errRefused = errors.New("connection refused")
	errCut     = errors.New("connection timed out")
)
