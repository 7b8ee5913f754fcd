package nodeport

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"time"

	"moult/mesh/identity"
)

type (
	peerKey      struct{}
	peerPubKey   struct{}
	handshakeKey struct{}
)

// PeerFrom returns who sent a request that the peer handler got; it is empty in
// any other context.
func PeerFrom(ctx context.Context) identity.Identity {
	id, _ := ctx.Value(peerKey{}).(identity.Identity)
	return id
}

// PeerKeyFrom returns the key that the sender of a renewal has proven to hold.
func PeerKeyFrom(ctx context.Context) ed25519.PublicKey {
	key, _ := ctx.Value(peerPubKey{}).(ed25519.PublicKey)
	return key
}

// HandshakeFrom returns a moment after which the sender of a request was proven to
// hold its key: when its handshake began.
func HandshakeFrom(ctx context.Context) time.Time {
	at, _ := ctx.Value(handshakeKey{}).(time.Time)
	return at
}

// Handlers are what a port serves by HTTP.
type Handlers struct {
	Peer  http.Handler // moult-http: other hosts' requests
	Join  http.Handler // moult-join; nil: this host takes none in
	Renew http.Handler // moult-renew; nil: this host renews no certificates
}

// ServeHTTP starts serving. Connections that came before wait for it. Call it
// once. Handlers' contexts end when the caller goes away, and when the port
// closes.
func (p *Port) ServeHTTP(h Handlers) {
	for _, missing := range []*http.Handler{&h.Join, &h.Renew} {
		if *missing == nil {
			*missing = http.NotFoundHandler()
		}
	}
	p.serve(p.peer, p.recheck(identity.ALPNHTTP, h.Peer), true)
	p.serve(p.join, h.Join, false) // one request a connection: nobody has proven anything yet
	p.serve(p.renew, p.recheck(identity.ALPNRenew, h.Renew), false)
}

// serve runs a server for one protocol until the port closes.
func (p *Port) serve(l net.Listener, h http.Handler, keepAlive bool) {
	srv := &http.Server{
		Handler:           p.track(boundBody(h)),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		Protocols:         new(http.Protocols),
		BaseContext:       func(net.Listener) context.Context { return p.serving },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			hc := c.(*httpConn)
			ctx = context.WithValue(context.WithValue(ctx, peerKey{}, hc.peer), peerPubKey{}, hc.key)
			return context.WithValue(ctx, handshakeKey{}, hc.began)
		},
		ErrorLog: log.New(logWriter{p.logger}, "", 0),
	}
	srv.Protocols.SetHTTP1(true)
	srv.SetKeepAlivesEnabled(keepAlive)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closing {
		return
	}
	p.servers = append(p.servers, srv)
	p.tasks.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			p.logger.Error("serve HTTP on the node port", "error", err)
		}
	})
}

// track counts a handler, so that Close can wait for it.
func (p *Port) track(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		if p.closing {
			p.mu.Unlock()
			w.Header().Set("Connection", "close")
			http.Error(w, "this host is stopping; ask another one", http.StatusServiceUnavailable)
			return
		}
		p.requests.Add(1)
		p.mu.Unlock()
		defer p.requests.Done()
		next.ServeHTTP(w, r)
	})
}

// recheck asks allow again at each request: a connection outlives the moment
// at which its host was removed.
func (p *Port) recheck(alpn string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := p.allow(alpn, PeerFrom(r.Context())); err != nil {
			w.Header().Set("Connection", "close")
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// boundBody bounds a request's body in size and time. http.Server's ReadTimeout
// would do the latter, but also ends the contexts of handlers that take longer.
func boundBody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body != http.NoBody {
			rc := http.NewResponseController(w)
			if err := rc.SetReadDeadline(time.Now().Add(bodyTimeout)); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			r.Body = &boundedBody{ReadCloser: http.MaxBytesReader(w, r.Body, maxBodyBytes), whole: func() {
				_ = rc.SetReadDeadline(time.Time{}) // errs on a connection that is gone only
			}}
		}
		next.ServeHTTP(w, r)
	})
}

// boundedBody lifts the deadline once the body has been read.
type boundedBody struct {
	io.ReadCloser
	whole func()
}

func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		b.whole()
	}
	return n, err
}

// logWriter takes what net/http has to say about single connections.
type logWriter struct{ logger *slog.Logger }

func (w logWriter) Write(b []byte) (int, error) {
	w.logger.Debug("node port HTTP", "error", string(b))
	return len(b), nil
}
