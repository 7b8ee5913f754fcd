package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"moult/mesh/crowd"
	"moult/webui"
)

// Limits of the UI's port: what anybody can make it wait for or hold. Bodies have
// theirs where they are read, in package webui.
const (
	maxUIConns       = 2048             // at once; a further one pushes one out
	maxSourceUIConns = 1200             // at once, of one address: behind a proxy that is everybody, with a thousand event streams
	uiHeaderTimeout  = 10 * time.Second // of a handshake, and of a request's header
	uiIdleTimeout    = 2 * time.Minute  // between requests
	uiWriteTimeout   = time.Minute      // without any progress of an answer
	uiMaxHeaderBytes = 32 << 10

	// TLS handshakes of addresses from which nobody has signed in yet.
	uiStrangersPerSecond = 200
	uiStrangersAtOnce    = 256
	uiKnownPerSecond     = 50 // of an address from which somebody has; more wait with the strangers
	uiKnownAtOnce        = 256
	uiKnownFor           = time.Hour
	maxKnownUI           = 8192 // addresses

	uiDrainTimeout = 3 * time.Second // of requests in flight when the server stops
)

// uiLimits bound the connections to the UI's port, where so many hosts share one
// address.
func uiLimits(hostsPerAddress int) crowd.Limits {
	return crowd.Limits{Total: maxUIConns, PerSource: min(hostsPerAddress*maxSourceUIConns, maxUIConns)}
}

// serveHTTP serves until ctx ends, then lets requests finish. cfg is nil for plain
// HTTP.
func serveHTTP(ctx context.Context, l net.Listener, limits crowd.Limits, h http.Handler, cfg *tls.Config, logger *slog.Logger) error {
	srv := &http.Server{
		Handler: served(h), ReadHeaderTimeout: uiHeaderTimeout, IdleTimeout: uiIdleTimeout, MaxHeaderBytes: uiMaxHeaderBytes,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnContext: withUIConn,
		Protocols:   new(http.Protocols),
		// What goes wrong with single connections, which anybody can have happen.
		ErrorLog: log.New(debugLines{logger}, "", 0),
	}
	srv.Protocols.SetHTTP1(true)
	pace := crowd.NewPace(crowd.PaceLimits{
		PerSecond: uiStrangersPerSecond, AtOnce: uiStrangersAtOnce,
		KnownPerSecond: uiKnownPerSecond, KnownAtOnce: uiKnownAtOnce, KnownFor: uiKnownFor, MaxKnown: maxKnownUI,
	})
	bounded := &uiListener{Listener: l, crowd: crowd.New(limits), pace: pace, logger: logger}
	if cfg != nil {
		srv.TLSConfig = cfg.Clone()
		srv.TLSConfig.GetConfigForClient = awaitTurn
		paced, stop := context.WithCancel(ctx)
		var running sync.WaitGroup
		running.Go(func() { pace.Run(paced) })
		defer running.Wait()
		defer stop()
	}
	ended := make(chan error, 1)
	go func() {
		if cfg == nil {
			ended <- srv.Serve(bounded)
		} else {
			ended <- srv.ServeTLS(bounded, "", "")
		}
	}()
	select {
	case err := <-ended:
		return fmt.Errorf("serve the UI: %w", err)
	case <-ctx.Done():
	}
	stopCtx, cancel := context.WithTimeout(context.Background(), uiDrainTimeout)
	defer cancel()
	if err := srv.Shutdown(stopCtx); errors.Is(err, context.DeadlineExceeded) {
		srv.Close()
	}
	return nil
}

// debugLines takes what net/http has to say about single connections.
type debugLines struct{ logger *slog.Logger }

func (d debugLines) Write(b []byte) (int, error) {
	d.logger.Debug("UI", "error", string(b))
	return len(b), nil
}

// uiListener bounds the connections that are open.
type uiListener struct {
	net.Listener
	crowd  *crowd.Crowd
	pace   *crowd.Pace
	logger *slog.Logger
}

func (l *uiListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err // of what passes, such as too many open files, net/http tries again
		}
		c := &uiConn{Conn: conn, source: crowd.Source(conn.RemoteAddr()), pace: l.pace}
		c.open, c.closed = context.WithCancel(context.Background())
		m, room := l.crowd.Admit(pushedOut{c}, c.source)
		if room {
			c.member = m
			return c, nil
		}
		c.closed()
		l.logger.Debug("UI: no room for a connection", "remote", conn.RemoteAddr().String())
		conn.Close()
	}
}

// uiConn is a connection to the UI, below TLS.
type uiConn struct {
	net.Conn
	member *crowd.Member
	source string
	pace   *crowd.Pace
	open   context.Context // until it is closed or pushed out
	closed context.CancelFunc
	once   sync.Once
}

// pushedOut is a connection for whoever pushes it out.
type pushedOut struct{ c *uiConn }

func (p pushedOut) Close() error {
	p.c.closed()
	return p.c.Conn.Close()
}

// awaitTurn holds a stranger's handshake back until it may begin.
func awaitTurn(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	c, ok := hello.Conn.(*uiConn)
	if !ok {
		return nil, errors.New("the connection is not of the UI's listener")
	}
	ctx, cancel := context.WithTimeout(c.open, uiHeaderTimeout)
	defer cancel()
	return nil, c.pace.Await(ctx, c.source) // no configuration: the server's own
}

// Write gives each piece of an answer its own deadline: an event stream or a large
// file may take their time, a reader that has stopped may not.
func (c *uiConn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(uiWriteTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// Close closes the connection and counts it out.
func (c *uiConn) Close() error {
	c.once.Do(func() {
		c.member.End()
		c.closed()
	})
	return c.Conn.Close()
}

type uiConnKey struct{}

// withUIConn has requests know what connection they came by.
func withUIConn(ctx context.Context, conn net.Conn) context.Context {
	if tc, ok := conn.(*tls.Conn); ok {
		conn = tc.NetConn()
	}
	c, ok := conn.(*uiConn)
	if !ok {
		return ctx
	}
	return context.WithValue(webui.WithKnown(ctx, func() {
		c.member.Keep(crowd.Known)
		c.pace.Met(c.source)
	}), uiConnKey{}, c.member)
}

// served says of a connection that it is being served, for as long as it is.
func served(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if m, ok := r.Context().Value(uiConnKey{}).(*crowd.Member); ok {
			m.Keep(crowd.Working)
			defer m.Keep(crowd.Silent)
		}
		next.ServeHTTP(w, r)
	})
}
