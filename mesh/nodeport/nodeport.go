// Package nodeport is the one TLS port of a host. Its protocols share it by
// ALPN:
//
//	moult-raft  server ⇄ server   to a net.Listener, which consensus accepts from
//	moult-http  host ⇄ host       to the peer handler; PeerFrom says who asks
//	moult-join  new host → server to the join handler; nobody is authenticated
//
// The port speaks TLS 1.3 only. Who may speak what is decided in the handshake
// by identity.Credentials.ServerTLS and the allow function, and once more at each
// request of moult-http and at each read of moult-raft, so that a removed host's
// open connections end too. Raft itself would go on believing them: it takes
// entries of a higher term from whoever sends them.
//
// Everything that a peer can make the port wait for or hold is bounded: the
// constants in limits.go. What a stranger can hold is handshakes and joins, both
// by address too, and a new handshake is never kept waiting by old ones.
package nodeport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"moult/mesh/identity"
)

// Port is a listening node port. Its methods are safe for concurrent use.
type Port struct {
	listener net.Listener
	creds    func() (identity.Credentials, bool)
	allow    func(alpn string, id identity.Identity) error
	logger   *slog.Logger

	handshakes       handshakes
	limits           *connLimits
	raft, peer, join *queue

	// Ends accepting and handshakes; requests outlive it by drainTimeout.
	accepting     context.Context
	stopAccepting context.CancelFunc
	serving       context.Context
	stopServing   context.CancelFunc
	tasks         sync.WaitGroup // accepting, handshakes, http.Server.Serve
	requests      sync.WaitGroup // handlers; Add only under mu, with closing false

	mu      sync.Mutex
	closing bool
	servers []*http.Server
}

// Listen opens the port at addr (HOST:PORT). creds returns what the port shows,
// and is asked at each connection, so that a renewed certificate takes effect
// without a restart; while it returns false, connections are closed. allow (nil:
// anybody) decides on hosts with a certificate of the cluster; it is called often
// and concurrently and must not block. Close the port when done.
func Listen(addr string, creds func() (identity.Credentials, bool), allow func(alpn string, id identity.Identity) error, logger *slog.Logger) (*Port, error) {
	l, err := net.Listen("tcp", addr)
	if inUse(err) {
		return nil, fmt.Errorf("the node port %s is in use; stop what uses it, or give another one with --peer: %w", addr, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on the node port: %w; give an address of this host with --peer HOST:PORT", err)
	}
	return open(l, creds, allow, logger), nil
}

// open makes a port of a listener, which becomes the port's own.
func open(l net.Listener, creds func() (identity.Credentials, bool), allow func(alpn string, id identity.Identity) error, logger *slog.Logger) *Port {
	if allow == nil {
		allow = func(string, identity.Identity) error { return nil }
	}
	p := &Port{
		listener: l, creds: creds, allow: allow, logger: logger,
		limits: newConnLimits(),
		raft:   newQueue(l.Addr()), peer: newQueue(l.Addr()), join: newQueue(l.Addr()),
	}
	p.accepting, p.stopAccepting = context.WithCancel(context.Background())
	p.serving, p.stopServing = context.WithCancel(context.Background())
	p.tasks.Go(p.accept)
	return p
}

// inUse tells whether another process has the address.
func inUse(err error) bool {
	const wsaeAddrInUse = syscall.Errno(10048) // Windows' own; package syscall does not name it
	return errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, wsaeAddrInUse)
}

// Addr is where the port listens.
func (p *Port) Addr() net.Addr { return p.listener.Addr() }

// Raft returns the listener of other servers' Raft connections: their
// handshakes are done, and identity.RoleServer is proven. Closing it leaves the
// rest of the port open.
func (p *Port) Raft() net.Listener { return p.raft }

func (p *Port) accept() {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			if p.accepting.Err() != nil {
				return
			}
			p.logger.Warn("accept a connection", "error", err)
			select {
			case <-time.After(acceptRetry): // most likely out of file descriptors: do not spin
			case <-p.accepting.Done():
				return
			}
			continue
		}
		end := p.handshakes.begin(conn)
		p.tasks.Go(func() {
			tc, err := p.handshake(conn)
			end() // whoever waits for its protocol holds no slot
			if err != nil {
				p.logger.Debug("connection refused", "remote", conn.RemoteAddr().String(), "error", err)
				conn.Close()
				return
			}
			p.dispatch(tc)
		})
	}
}

func (p *Port) handshake(conn net.Conn) (*tls.Conn, error) {
	creds, ok := p.creds()
	if !ok {
		return nil, errors.New("this host has no certificate yet")
	}
	ctx, cancel := context.WithTimeout(p.accepting, handshakeTimeout)
	defer cancel()
	tc := tls.Server(conn, creds.ServerTLS(p.allow))
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	return tc, nil
}

// dispatch hands a connection to its protocol, or closes it.
func (p *Port) dispatch(tc *tls.Conn) {
	var err error
	switch alpn := tc.ConnectionState().NegotiatedProtocol; alpn {
	case identity.ALPNRaft, identity.ALPNHTTP:
		err = p.dispatchPeer(alpn, tc)
	case identity.ALPNJoin:
		var release func()
		if release, err = p.limits.admit(alpn, source(tc.RemoteAddr())); err == nil {
			err = p.join.put(&httpConn{Conn: tc, release: release})
		}
	default:
		err = fmt.Errorf("no protocol is called %q", alpn)
	}
	if err != nil {
		p.logger.Debug("connection refused", "remote", tc.RemoteAddr().String(), "error", err)
		tc.Close()
	}
}

func (p *Port) dispatchPeer(alpn string, tc *tls.Conn) error {
	id, err := identity.PeerIdentity(tc.ConnectionState())
	if err != nil {
		return err
	}
	release, err := p.limits.admit(alpn, id.HostID)
	if err != nil {
		return err
	}
	if alpn == identity.ALPNRaft {
		return p.raft.put(&raftConn{Conn: tc, release: release, recheck: func() error { return p.allow(alpn, id) }})
	}
	return p.peer.put(&httpConn{Conn: tc, peer: id, release: release})
}

// Close stops the port, within ctx: it accepts no more, lets requests in flight
// finish for up to a second, then cuts them off and waits for their handlers.
// Raft connections that were accepted are their owner's to close. Closing again
// does nothing.
func (p *Port) Close(ctx context.Context) error {
	p.mu.Lock()
	if p.closing {
		p.mu.Unlock()
		return nil
	}
	p.closing = true
	servers := p.servers
	p.mu.Unlock()

	// Accepting ends first, else new requests would keep the drain going.
	p.stopAccepting()
	err := p.listener.Close()
	for _, q := range []*queue{p.raft, p.peer, p.join} {
		_ = q.Close() // never errs
	}
	drain, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	var draining sync.WaitGroup
	for _, srv := range servers {
		draining.Go(func() {
			if srv.Shutdown(drain) != nil {
				_ = srv.Close() // cut off what is left; what it says is of no more use
			}
		})
	}
	draining.Wait()
	p.stopServing()

	done := make(chan struct{})
	go func() {
		p.tasks.Wait()
		p.requests.Wait()
		close(done)
	}()
	select {
	case <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("close the node port: a request's handler does not end: %w", ctx.Err())
	}
}
