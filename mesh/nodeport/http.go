package nodeport

import (
	"context"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"time"

	"moult/mesh/identity"
)

type peerKey struct{}

// PeerFrom returns who sent a request that the peer handler got; it is empty in
// any other context.
func PeerFrom(ctx context.Context) identity.Identity {
	id, _ := ctx.Value(peerKey{}).(identity.Identity)
	return id
}

// ServeHTTP starts serving other hosts' requests with peer, and joining hosts'
// with join (nil: this host takes none in). Connections that came before wait
// for it. Call it once. Handlers' contexts end when the caller goes away, and
// when the port closes.
func (p *Port) ServeHTTP(peer, join http.Handler) {
	p.serve(p.peer, p.recheck(peer), true)
	if join == nil {
		join = http.NotFoundHandler()
	}
	p.serve(p.join, join, false) // one request a connection: nobody has proven anything yet
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
			return context.WithValue(ctx, peerKey{}, c.(*httpConn).peer)
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
func (p *Port) recheck(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := p.allow(identity.ALPNHTTP, PeerFrom(r.Context())); err != nil {
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
