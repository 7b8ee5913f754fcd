package nodeport

import (
	"crypto/ed25519"
	"crypto/tls"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"moult/mesh/crowd"
	"moult/mesh/identity"
)

// Limits of a node port: what a peer can make it wait for or hold.
const (
	handshakeTimeout    = 10 * time.Second
	maxHandshakes       = 1024 // at once; a further one pushes one out
	maxSourceHandshakes = 64   // at once, of one address
	strangersPerSecond  = 200  // handshakes, of all addresses from which no member has come
	strangersAtOnce     = 256  // of them, after a rest
	knownPerSecond      = 50   // handshakes, of an address from which a member has come; more wait with the strangers
	knownAtOnce         = 128
	knownFor            = time.Hour
	maxKnown            = 8192 // addresses
	acceptRetry         = 100 * time.Millisecond
	backlog             = 128 // connections of a protocol that nobody has accepted yet

	maxHostConns       = 64   // moult-http, or moult-raft, of one host
	maxPeerConns       = 2048 // moult-http, of all hosts
	maxSourceJoinConns = 32   // moult-join, of one address
	maxJoinConns       = 128  // moult-join, of everybody
	maxRelayConns      = 16   // moult-relay, of one relay; each carries one join or renewal
	maxAllRelayConns   = 128  // moult-relay, of all relays
	maxSourceSplices   = 8    // strangers' connections that are passed on, of one address
	maxSplices         = 64   // strangers' connections that are passed on, of everybody

	headerTimeout  = 10 * time.Second // of a request's header
	maxHeaderBytes = 16 << 10
	bodyTimeout    = 30 * time.Second // of a request's body
	maxBodyBytes   = 8 << 20          // of a request's body; handlers set lower ones
	idleTimeout    = 2 * time.Minute  // between requests
	writeTimeout   = time.Minute      // without any progress of an answer
	drainTimeout   = time.Second      // of requests in flight when the port closes

	maxHops       = 8                // relays that one connection may pass, as for messages
	maxWays       = 16               // ways that are tried for one connection
	passageBudget = 12 * time.Second // to find a way to a server; less than a joining host waits
	minWayTime    = time.Second      // for one way of several
	maxMessage    = 4 << 10          // bytes of what goes before a connection that is passed on, or its answer
	maxAddress    = 64               // bytes of an IP:PORT
	spliceIdle    = 30 * time.Second // without a byte, either way
	spliceTime    = time.Minute      // in all
	spliceBytes   = 512 << 10        // each way: a join's answer is 363 KiB at most, and TLS around it
	spliceBuffer  = 8 << 10
	lostInterval  = time.Minute // between warnings that no way was found

	dialTimeout      = 5 * time.Second // connect and handshake, as a client
	clientIdle       = 30 * time.Second
	clientIdlePerHop = 2 // idle connections kept to each host
)

// paceLimits bound the handshakes, where so many hosts share one address.
func paceLimits(hosts int) crowd.PaceLimits {
	return crowd.PaceLimits{
		PerSecond: strangersPerSecond, AtOnce: strangersAtOnce,
		KnownPerSecond: hosts * knownPerSecond, KnownAtOnce: hosts * knownAtOnce, KnownFor: knownFor, MaxKnown: maxKnown,
	}
}

// connLimits counts open connections by protocol and by who is at the other end,
// so that neither a single host, nor those without a certificate, can use up the
// process's file descriptors.
type connLimits struct {
	perAddress int // hosts that share one address

	mu   sync.Mutex
	open map[connKey]int
}

// spliceKey counts strangers' connections that this host passes on.
const spliceKey = "passed on"

// connKey with an empty who counts all connections of a protocol.
type connKey struct{ alpn, who string }

func newConnLimits() *connLimits { return &connLimits{perAddress: 1, open: make(map[connKey]int)} }

// admit counts a connection in until release is called; who is a host's ID, or
// for moult-join an address.
func (l *connLimits) admit(alpn, who string) (release func(), err error) {
	each, all := maxHostConns, maxPeerConns
	switch alpn {
	case identity.ALPNJoin:
		each, all = min(l.perAddress*maxSourceJoinConns, maxJoinConns), maxJoinConns
	case identity.ALPNRelay:
		each, all = maxRelayConns, maxAllRelayConns
	case spliceKey:
		each, all = min(l.perAddress*maxSourceSplices, maxSplices), maxSplices
	}
	own, total := connKey{alpn, who}, connKey{alpn, ""}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[own] >= each {
		return nil, fmt.Errorf("%d connections of %s are open already, by %s", each, alpn, who)
	}
	if l.open[total] >= all {
		return nil, fmt.Errorf("%d connections of %s are open already", all, alpn)
	}
	l.open[own]++
	l.open[total]++
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, k := range []connKey{own, total} {
			if l.open[k]--; l.open[k] == 0 {
				delete(l.open, k)
			}
		}
	}), nil
}

// memberConns are the open connections of hosts with a certificate.
type memberConns struct {
	mu   sync.Mutex
	open map[*memberConn]bool
}

type memberConn struct {
	alpn string
	peer identity.Identity
	conn net.Conn // beneath TLS
}

// add counts a connection in; the release that it returns also calls the other.
func (m *memberConns) add(c *memberConn, release func()) func() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.open == nil {
		m.open = map[*memberConn]bool{}
	}
	m.open[c] = true
	return func() {
		m.mu.Lock()
		delete(m.open, c)
		m.mu.Unlock()
		release()
	}
}

func (m *memberConns) all() []*memberConn {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Keys(m.open))
}

// raftConn is a Raft connection that ends when its server is no longer let in.
// Each message is one or more reads, so what a removed server sends after its
// removal is not read.
type raftConn struct {
	*tls.Conn
	recheck func() error
	release func()
}

// Read reads what a server that is still let in has sent.
func (c *raftConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if refused := c.recheck(); refused != nil {
		_ = c.Close() // what it says is of no more use
		return 0, fmt.Errorf("this server's Raft connection is cut: %w", refused)
	}
	return n, err
}

// Close closes the connection and counts it out.
func (c *raftConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// httpConn is a TLS connection as net/http gets it. It hides its *tls.Conn,
// because net/http drops one whose ALPN protocol is none of its own; what
// travels in it is plain HTTP/1.1.
type httpConn struct {
	*tls.Conn
	peer    identity.Identity // empty on moult-join
	key     ed25519.PublicKey // the peer's, on moult-renew
	began   time.Time         // its handshake
	release func()
}

// Write gives each piece of an answer its own deadline: a large artifact may
// take its time, a reader that has stopped may not.
func (c *httpConn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// Close closes the connection and counts it out.
func (c *httpConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
