package nodeport

import (
	"crypto/tls"
	"fmt"
	"sync"
	"time"

	"moult/mesh/identity"
)

// Limits of a node port: what a peer can make it wait for or hold.
const (
	handshakeTimeout = 10 * time.Second
	maxHandshakes    = 256 // at once; further connections wait in the kernel
	acceptRetry      = 100 * time.Millisecond
	backlog          = 128 // connections of a protocol that nobody has accepted yet

	maxPeerConns = 64 // moult-http, of one host
	maxJoinConns = 64 // moult-join, of everybody

	headerTimeout  = 10 * time.Second // of a request's header
	maxHeaderBytes = 16 << 10
	bodyTimeout    = 30 * time.Second // of a request's body
	maxBodyBytes   = 8 << 20          // of a request's body; handlers set lower ones
	idleTimeout    = 2 * time.Minute  // between requests
	writeTimeout   = time.Minute      // without any progress of an answer
	drainTimeout   = time.Second      // of requests in flight when the port closes

	dialTimeout      = 5 * time.Second // connect and handshake, as a client
	clientIdle       = 30 * time.Second
	clientIdlePerHop = 2 // idle connections kept to each host
)

// connLimits counts open HTTP connections by who is at the other end, so that
// no single host, nor those without a certificate, can use up the process's file
// descriptors.
type connLimits struct {
	mu   sync.Mutex
	open map[string]int // by host ID; "" is everybody on moult-join
}

func newConnLimits() *connLimits { return &connLimits{open: make(map[string]int)} }

// admit counts a connection in until it is closed; id is empty for moult-join.
func (l *connLimits) admit(tc *tls.Conn, id identity.Identity) (*httpConn, error) {
	limit := maxPeerConns
	if id.HostID == "" {
		limit = maxJoinConns
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[id.HostID] >= limit {
		return nil, fmt.Errorf("%d connections are open already", limit)
	}
	l.open[id.HostID]++
	return &httpConn{Conn: tc, peer: id, release: sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.open[id.HostID]--; l.open[id.HostID] == 0 {
			delete(l.open, id.HostID)
		}
	})}, nil
}

// httpConn is a TLS connection as net/http gets it. It hides its *tls.Conn,
// because net/http drops one whose ALPN protocol is none of its own; what
// travels in it is plain HTTP/1.1.
type httpConn struct {
	*tls.Conn
	peer    identity.Identity // empty on moult-join
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
