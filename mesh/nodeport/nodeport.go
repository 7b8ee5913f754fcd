// Package nodeport is the one TLS port of a host. Its protocols share it by
// ALPN:
//
//	moult-raft   server ⇄ server    to a net.Listener, which consensus accepts from
//	moult-http   host ⇄ host        to the peer handler; PeerFrom says who asks
//	moult-join   new host → server  to the join handler; nobody is authenticated
//	moult-renew  host → server      to the renewal handler
//	moult-relay  relay → server     carries a connection of one of the last two, of
//	                                a host that reaches no server itself
//
// A relay reads the first message of a connection, sees that it is for a server,
// and passes the bytes on, straight to a server or through further relays. TLS
// stays between the host and the server: the relay learns no secret and can alter
// nothing. Where there is no way it answers for itself, and the host sees by its
// certificate who that is.
//
// The port speaks TLS 1.3 only. Who may speak what is decided in the handshake
// by identity.Credentials.ServerTLS and the allow function, and once more at each
// request of moult-http and at each read of moult-raft, so that a removed host's
// open connections end too; CutRefused ends what is under way on them. Raft itself would go on believing them: it takes
// entries of a higher term from whoever sends them.
//
// Everything that a peer can make the port wait for or hold is bounded: the
// constants in limits.go. What a stranger can hold is handshakes and joins, both
// by address too, and a new handshake is never kept out by old ones. Handshakes of
// addresses from which no member has come yet begin at a bounded pace.
package nodeport

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"moult/mesh/crowd"
	"moult/mesh/identity"
)

// Port is a listening node port. Its methods are safe for concurrent use.
type Port struct {
	listener net.Listener
	creds    func() (identity.Credentials, bool)
	allow    func(alpn string, id identity.Identity) error
	logger   *slog.Logger

	// Connections of which nobody knows yet who is at the other end.
	handshakes              *crowd.Crowd
	pace                    *crowd.Pace
	members                 memberConns
	limits                  *connLimits
	from                    []netip.Prefix // connections may come from; empty: from everywhere
	raft, peer, join, renew *queue

	// Ends accepting and handshakes; requests outlive it by drainTimeout.
	accepting     context.Context
	stopAccepting context.CancelFunc
	serving       context.Context
	stopServing   context.CancelFunc
	tasks         sync.WaitGroup // accepting, handshakes, http.Server.Serve
	requests      sync.WaitGroup // handlers; Add only under mu, with closing false

	mu       sync.Mutex
	closing  bool
	servers  []*http.Server
	ways     func(visited []string) []Way // nil: this port passes nothing on
	lastLost time.Time                    // when it was last told that there was no way
}

// Listen opens the port at addr (HOST:PORT). creds returns what the port shows,
// and is asked at each connection, so that a renewed certificate takes effect
// without a restart; while it returns false, connections are closed. allow (nil:
// anybody) decides on hosts with a certificate of the cluster; it is called often
// and concurrently and must not block. Close the port when done.
func Listen(addr string, creds func() (identity.Credentials, bool), allow func(alpn string, id identity.Identity) error, logger *slog.Logger, options ...Option) (*Port, error) {
	l, err := net.Listen("tcp", addr)
	if inUse(err) {
		return nil, fmt.Errorf("the node port %s is in use; stop what uses it, or give another one with --peer: %w", addr, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on the node port: %w; give an address of this host with --peer HOST:PORT", err)
	}
	return open(l, creds, allow, logger, options...), nil
}

// allowed tells whether a connection comes from where it may.
func (p *Port) allowed(conn net.Conn) bool {
	if len(p.from) == 0 {
		return true
	}
	remote, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return false
	}
	ip := remote.Addr().Unmap()
	local, err := netip.ParseAddrPort(conn.LocalAddr().String())
	if err == nil && local.Addr().Unmap() == ip {
		return true
	}
	return slices.ContainsFunc(p.from, func(n netip.Prefix) bool { return n.Contains(ip) })
}

// open makes a port of a listener, which becomes the port's own.
func open(l net.Listener, creds func() (identity.Credentials, bool), allow func(alpn string, id identity.Identity) error, logger *slog.Logger, options ...Option) *Port {
	if allow == nil {
		allow = func(string, identity.Identity) error { return nil }
	}
	p := &Port{
		listener: l, creds: creds, allow: allow, logger: logger,
		limits: newConnLimits(),
		raft:   newQueue(l.Addr()), peer: newQueue(l.Addr()), join: newQueue(l.Addr()), renew: newQueue(l.Addr()),
	}
	for _, option := range options {
		option(p)
	}
	if p.pace == nil {
		p.pace = crowd.NewPace(paceLimits(p.limits.perAddress))
	}
	p.handshakes = crowd.New(crowd.Limits{Total: maxHandshakes, PerSource: min(p.limits.perAddress*maxSourceHandshakes, maxHandshakes)})
	p.accepting, p.stopAccepting = context.WithCancel(context.Background())
	p.serving, p.stopServing = context.WithCancel(context.Background())
	p.tasks.Go(func() { p.pace.Run(p.accepting) })
	p.tasks.Go(p.accept)
	return p
}

// Option changes a port that is about to listen.
type Option func(*Port)

// HostsPerAddress says how many hosts share one address, as behind NAT: what an
// address may hold is that many times as much. At least 1.
func HostsPerAddress(n int) Option { return func(p *Port) { p.limits.perAddress = n } }

// AllowFrom lets only connections in that come from these networks, or from this
// machine itself; others are closed before TLS begins. What a relay passes on counts
// as the relay's. No networks: all.
func AllowFrom(networks []netip.Prefix) Option { return func(p *Port) { p.from = networks } }

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
		if !p.allowed(conn) {
			p.logger.Debug("connection refused", "remote", conn.RemoteAddr().String(), "error", "it is from a network that --allow-from does not name")
			conn.Close()
			continue
		}
		ctx, end := p.begin(conn)
		p.tasks.Go(func() { p.serveConn(ctx, conn, end) })
	}
}

// begin counts a connection among the handshakes until end is called. ctx ends then,
// or when the connection is pushed out, or the port closes.
func (p *Port) begin(conn net.Conn) (ctx context.Context, end func()) {
	ctx, cancel := context.WithCancel(p.accepting)
	m, _ := p.handshakes.Admit(pending{conn, cancel}, origin(conn)) // there is always room: none is worth more than the others
	return ctx, func() {
		m.End()
		cancel()
	}
}

// pending is a connection that may be pushed out.
type pending struct {
	conn   net.Conn
	cancel context.CancelFunc
}

// Close pushes it out.
func (c pending) Close() error {
	c.cancel()
	return c.conn.Close()
}

// serveConn finds out what a connection is for, and hands it to its protocol, or
// closes it. end gives back its slot among the handshakes.
func (p *Port) serveConn(ctx context.Context, conn net.Conn, end func()) {
	if err := p.take(ctx, conn, end); err != nil {
		p.logger.Debug("connection refused", "remote", conn.RemoteAddr().String(), "error", err)
		conn.Close()
	}
}

func (p *Port) take(ctx context.Context, conn net.Conn, end func()) error {
	creds, ok := p.creds()
	if !ok {
		end()
		return errors.New("this host has no certificate yet")
	}
	began := time.Now()
	h := &hello{Conn: conn, keep: true}
	tc, err := p.handshake(ctx, creds, conn, h)
	end() // whoever waits for its protocol holds no slot
	if !errors.Is(err, errForServers) {
		if err != nil {
			return err
		}
		return p.dispatch(tc, conn, began)
	}
	if err := p.passOn(creds, conn, h.read); err == nil {
		return nil
	}
	// No way: this host answers for itself, so that the other one knows whom it
	// asked, and that this is no server.
	ctx, end = p.begin(conn)
	tc, err = p.handshake(ctx, creds, conn, &replay{Conn: conn, read: bytes.NewReader(h.read)})
	end()
	if err != nil {
		return err
	}
	return p.dispatch(tc, conn, began)
}

// errForServers ends the handshake of a connection that is to be passed on.
var errForServers = errors.New("this connection is for a server")

// handshake is the server's side of TLS on raw, which is conn or wraps it. It
// returns errForServers, and has answered nothing, when raw keeps what it reads
// and the connection is to be passed on.
func (p *Port) handshake(ctx context.Context, creds identity.Credentials, conn, raw net.Conn) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	cfg := &tls.Config{MinVersion: tls.VersionTLS13} // of a connection that has not said what it is for
	cfg.GetConfigForClient = func(hi *tls.ClientHelloInfo) (*tls.Config, error) {
		alpn := identity.ChosenALPN(hi.SupportedProtos)
		forServers := alpn == identity.ALPNJoin || alpn == identity.ALPNRenew
		if _, inner := conn.(*passed); inner && !forServers {
			return nil, fmt.Errorf("relays do not pass on %s", alpn)
		}
		if h, ok := raw.(*hello); ok {
			passOn := forServers && creds.Role != identity.RoleServer && p.relayWays() != nil
			h.decide(passOn)
			if passOn {
				return nil, errForServers
			}
		}
		// Up to here the connection has cost next to nothing, and waiting costs none.
		if err := p.pace.Await(ctx, origin(conn)); err != nil {
			return nil, err
		}
		return creds.ServerTLS(p.allow).GetConfigForClient(hi)
	}
	// Closed by hand and not by HandshakeContext, which would close a connection
	// that is still to be passed on.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	tc := tls.Server(raw, cfg)
	if err := tc.Handshake(); err != nil {
		if ctx.Err() != nil {
			err = errors.Join(ctx.Err(), err)
		}
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	return tc, nil
}

// dispatch hands a connection to its protocol, or closes it. One of moult-relay is
// served to its end.
func (p *Port) dispatch(tc *tls.Conn, conn net.Conn, began time.Time) error {
	alpn := tc.ConnectionState().NegotiatedProtocol
	var peer identity.Identity
	who := origin(conn)
	if alpn != identity.ALPNJoin { // there nobody is anybody yet
		var err error
		if peer, err = identity.PeerIdentity(tc.ConnectionState()); err != nil {
			return err
		}
		who = peer.HostID
	}
	release, err := p.limits.admit(alpn, who)
	if err == nil && alpn != identity.ALPNJoin {
		release = p.members.add(&memberConn{alpn: alpn, peer: peer, conn: conn}, release)
		err = p.allow(alpn, peer) // it may have changed its mind since the handshake, and CutRefused has run
		if err != nil {
			release()
		}
	}
	if _, inner := conn.(*passed); err == nil && alpn != identity.ALPNJoin && !inner {
		p.pace.Met(origin(conn))
	}
	if err == nil {
		err = p.put(alpn, tc, peer, began, release)
	}
	if err != nil {
		tc.Close()
	}
	return err
}

// CutRefused closes the open connections of hosts that allow refuses by now,
// whatever is under way on them. Call it when who may speak has changed.
func (p *Port) CutRefused() {
	for _, c := range p.members.all() {
		if err := p.allow(c.alpn, c.peer); err != nil {
			p.logger.Info("connection cut", "host", c.peer.HostID, "protocol", c.alpn, "why", err)
			c.conn.Close() // beneath TLS: a goodbye could block
		}
	}
}

func (p *Port) put(alpn string, tc *tls.Conn, peer identity.Identity, began time.Time, release func()) error {
	switch alpn {
	case identity.ALPNRaft:
		return p.raft.put(&raftConn{Conn: tc, release: release, recheck: func() error { return p.allow(alpn, peer) }})
	case identity.ALPNJoin:
		return p.join.put(&httpConn{Conn: tc, release: release})
	case identity.ALPNHTTP:
		return p.peer.put(&httpConn{Conn: tc, peer: peer, release: release})
	case identity.ALPNRenew:
		key, _ := tc.ConnectionState().PeerCertificates[0].PublicKey.(ed25519.PublicKey) // the handshake has seen to it
		return p.renew.put(&httpConn{Conn: tc, peer: peer, key: key, began: began, release: release})
	case identity.ALPNRelay:
		c := &relayConn{Conn: tc, by: peer, release: release}
		err := p.takePassage(c)
		if err != nil {
			_ = c.Close() // it says why
		}
		return err
	}
	release()
	return fmt.Errorf("no protocol is called %q", alpn)
}

// origin is where a connection comes from, as far as limits are concerned: an
// address, or the relay that passed it on, whatever that says of addresses.
func origin(conn net.Conn) string {
	if c, ok := conn.(*passed); ok {
		return "relay " + c.by.HostID
	}
	return crowd.Source(conn.RemoteAddr())
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
	for _, q := range []*queue{p.raft, p.peer, p.join, p.renew} {
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
