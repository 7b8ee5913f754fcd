package nodeport

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"moult/mesh/identity"
)

// pipes is a listener of net.Pipes, which simulated time can see through.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	ended chan struct{}
}

func newPipes() *pipes {
	return &pipes{conns: make(chan net.Conn), ended: make(chan struct{})}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.ended:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.ended) })
	return nil
}

func (*pipes) Addr() net.Addr { return &named{"pipe"} }

func (p *pipes) dial(t testing.TB) net.Conn {
	t.Helper()
	here, there := net.Pipe()
	p.conns <- there
	t.Cleanup(func() { here.Close() })
	return here
}

// untilClosed reads until the other side closes, and returns after how long.
func untilClosed(conn net.Conn) time.Duration {
	began := time.Now()
	_, _ = io.Copy(io.Discard, conn) // the other side ends it, whichever way
	return time.Since(began)
}

// simulated runs a test on simulated time, with a port on pipes.
func simulated(t *testing.T, f func(t *testing.T, w *world, l *pipes)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := newPipes()
		f(t, newWorldOn(t, l), l)
	})
}

func TestSlowHandshake(t *testing.T) {
	simulated(t, func(t *testing.T, _ *world, l *pipes) {
		silent := l.dial(t)
		if took := untilClosed(silent); took != handshakeTimeout {
			t.Errorf("a silent client was held for %v", took)
		}
		// A byte every second is no progress either.
		drip := l.dial(t)
		began := time.Now()
		for {
			if _, err := drip.Write([]byte{22}); err != nil {
				break
			}
			time.Sleep(time.Second)
		}
		if took := time.Since(began); took > handshakeTimeout+time.Second {
			t.Errorf("a dripping client was held for %v", took)
		}
	})
}

func TestSlowRequests(t *testing.T) {
	simulated(t, func(t *testing.T, w *world, l *pipes) {
		for name, tc := range map[string]struct {
			cfg   *tls.Config
			send  string
			limit time.Duration
		}{
			"no header":          {w.a1.ClientTLS(identity.ALPNHTTP, nil), "", headerTimeout},
			"half a header":      {w.a1.ClientTLS(identity.ALPNHTTP, nil), "POST / HTTP/1.1\r\nHost: x\r\nX: ", headerTimeout},
			"half a body":        {w.a1.ClientTLS(identity.ALPNHTTP, nil), "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf", bodyTimeout},
			"idle after one":     {w.a1.ClientTLS(identity.ALPNHTTP, nil), "GET / HTTP/1.1\r\nHost: x\r\n\r\n", idleTimeout},
			"join: no header":    {bareTLS(identity.ALPNJoin), "", headerTimeout},
			"join: half a body":  {bareTLS(identity.ALPNJoin), "POST /join HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf", bodyTimeout},
			"join: one is all":   {bareTLS(identity.ALPNJoin), "POST /join HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 0},
			"join: half a verse": {bareTLS(identity.ALPNJoin), "POST", headerTimeout},
		} {
			conn := tls.Client(l.dial(t), tc.cfg)
			must(t, conn.Handshake())
			_, err := conn.Write([]byte(tc.send))
			must(t, err)
			// net/http may linger half a second over what it has answered in vain.
			if took := untilClosed(conn); took < tc.limit || took > tc.limit+time.Second {
				t.Errorf("%s: held for %v, not %v", name, took, tc.limit)
			}
		}
	})
}

// A reader that has stopped reading does not hold a handler for ever; one that
// takes its time does, as long as it takes something.
func TestSlowReaders(t *testing.T) {
	simulated(t, func(t *testing.T, w *world, _ *pipes) {
		l := newPipes()
		ended := make(chan error, 1)
		p := open(l, func() (identity.Credentials, bool) { return w.s1, true }, nil, w.port.logger)
		defer func() { must(t, p.Close(context.Background())) }()
		p.ServeHTTP(Handlers{Peer: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			_, err := io.CopyN(rw, endless{}, 1<<20)
			ended <- err
		})})
		ask := func() *tls.Conn {
			conn := tls.Client(l.dial(t), w.a1.ClientTLS(identity.ALPNHTTP, nil))
			must(t, conn.Handshake())
			_, err := conn.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
			must(t, err)
			return conn
		}
		ask()
		const closeTimeout = 6 * time.Second // crypto/tls gives its goodbye five
		began := time.Now()
		var timeout net.Error
		if err := <-ended; !errors.As(err, &timeout) || !timeout.Timeout() || time.Since(began) < writeTimeout || time.Since(began) > writeTimeout+closeTimeout {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		slow := ask()
		began = time.Now()
		read := make(chan struct{})
		go func() {
			defer close(read)
			buf := make([]byte, 64<<10)
			for {
				if _, err := io.ReadFull(slow, buf); err != nil {
					return
				}
				time.Sleep(writeTimeout / 2)
			}
		}()
		if err := <-ended; err != nil || time.Since(began) < writeTimeout {
			t.Errorf("a slow reader was cut off after %v: %v", time.Since(began), err)
		}
		slow.Close()
		<-read
	})
}

// A handler's context ends when the caller goes away, though a body came with it.
func TestCallerGoesAway(t *testing.T) {
	simulated(t, func(t *testing.T, w *world, l *pipes) {
		conn := tls.Client(l.dial(t), w.a1.ClientTLS(identity.ALPNHTTP, nil))
		must(t, conn.Handshake())
		_, err := conn.Write([]byte("POST /hold HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"))
		must(t, err)
		synctest.Wait()
		conn.Close()
		synctest.Wait()
		began := time.Now()
		must(t, w.port.Close(t.Context()))
		if took := time.Since(began); took >= drainTimeout {
			t.Errorf("a handler still waited, for %v", took)
		}
	})
}
