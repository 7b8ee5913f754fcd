package nodeport

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"moult/mesh/identity"
)

// relay is an agent's port that passes connections on along ways.
func (w *world) relay(t testing.TB, host string, ways ...Way) (addr string, p *Port) {
	t.Helper()
	creds := credentials(t, w.ca, identity.RoleAgent, host)
	p, err := Listen("127.0.0.1:0", func() (identity.Credentials, bool) { return creds, true }, nil, slog.New(slog.DiscardHandler))
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		must(t, p.Close(ctx))
	})
	p.Relay(func(visited []string) []Way {
		return slices.DeleteFunc(slices.Clone(ways), func(w Way) bool { return slices.Contains(visited, w.HostID) })
	})
	p.ServeHTTP(Handlers{Peer: http.NotFoundHandler()})
	return p.Addr().String(), p
}

// joining is what a joining host does: TLS with whoever answers, and one request.
func joining(t testing.TB, addr, secret string) (answered identity.Identity, answer string, err error) {
	t.Helper()
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 20 * time.Second}, "tcp", addr, bareTLS(identity.ALPNJoin))
	if err != nil {
		return answered, "", err
	}
	defer conn.Close()
	answered, err = identity.PeerIdentity(conn.ConnectionState())
	must(t, err)
	if answered.Role != identity.RoleServer {
		return answered, "", nil // as identity.Join does: the secret is not sent
	}
	_, err = fmt.Fprintf(conn, "POST /join HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(secret), secret)
	must(t, err)
	text, err := io.ReadAll(conn)
	return answered, string(text), err
}

// A host that reaches relays only joins through them, and speaks TLS with the
// server itself.
func TestJoiningThroughAChainOfRelays(t *testing.T) {
	w := newWorld(t)
	far, _ := w.relay(t, "r1", Way{"s1", w.addr})
	near, _ := w.relay(t, "r2", Way{"gone", "127.0.0.1:1"}, Way{"r1", far})
	for hops, addr := range []string{w.addr, far, near} {
		secret := fmt.Sprintf("secret-%d", hops)
		answered, answer, err := joining(t, addr, secret)
		if err != nil || answered != w.s1.Identity || !strings.Contains(answer, "welcome") || <-w.joins != secret {
			t.Errorf("behind %d relays: %v answered %q, %v", hops, answered, answer, err)
		}
		// The address that the first relay saw is the one that the server goes by.
		if !strings.Contains(answer, "seen from 127.0.0.1:") {
			t.Errorf("behind %d relays: %q", hops, answer)
		}
	}
	await(t, "everything is counted out", func() bool {
		return w.open(identity.ALPNJoin, "") == 0 && w.open(identity.ALPNRelay, "") == 0
	})
}

// A relay that knows no way answers for itself: the host learns whom it asked,
// and sends no secret.
func TestRelayWithoutAWayAnswersForItself(t *testing.T) {
	w := newWorld(t)
	lost, _ := w.relay(t, "r1")
	behind, _ := w.relay(t, "r2", Way{"r1", lost}, Way{"", "127.0.0.1:1"})
	for _, addr := range []string{lost, behind} {
		if answered, _, err := joining(t, addr, "secret"); err != nil || !strings.HasPrefix(answered.HostID, "r") {
			t.Errorf("answered %v, %v", answered, err)
		}
	}
}

// Relays that know of each other only find out, and soon: no connection visits a
// host twice, nor more hosts than there may be.
func TestPassingOnEndsInARing(t *testing.T) {
	w := newWorld(t)
	ports := make([]*Port, maxHops+2)
	addrs := make([]string, len(ports))
	for i := range ports {
		addrs[i], ports[i] = w.relay(t, fmt.Sprintf("r%d", i))
	}
	ring := func(length int) {
		for i := range length {
			next := (i + 1) % length
			ports[i].Relay(func([]string) []Way { return []Way{{"", addrs[next]}} }) // it does not mind who was visited
		}
	}
	for _, length := range []int{1, 2, 3, len(ports)} {
		ring(length)
		began := time.Now()
		if answered, _, err := joining(t, addrs[0], "secret"); err != nil || answered.HostID != "r0" || time.Since(began) > passageBudget {
			t.Errorf("a ring of %d: %v answered after %v, %v", length, answered, time.Since(began), err)
		}
	}
	// And a chain of as many as may be gets through. Its last ones have a quarter of a
	// second each: where one of them stood still for longer, the host tries again.
	for i := range maxHops {
		ports[i].Relay(func([]string) []Way { return []Way{{"", addrs[i+1]}} })
	}
	ports[maxHops-1].Relay(func([]string) []Way { return []Way{{"s1", w.addr}} })
	await(t, fmt.Sprintf("%d relays lead to the server", maxHops), func() bool {
		answered, _, err := joining(t, addrs[0], "secret")
		return err == nil && answered == w.s1.Identity
	})
	ports[maxHops-1].Relay(func([]string) []Way { return []Way{{"", addrs[maxHops]}} })
	ports[maxHops].Relay(func([]string) []Way { return []Way{{"s1", w.addr}} })
	if answered, _, err := joining(t, addrs[0], "secret"); err != nil || answered.Role == identity.RoleServer {
		t.Errorf("%d relays: %v answered, %v", maxHops+1, answered, err)
	}
}

// A host whose certificate has expired gets to the renewal, directly and through
// relays, and to nothing else.
func TestExpiredCertificateReachesTheRenewalOnly(t *testing.T) {
	w := newWorld(t)
	relay, _ := w.relay(t, "r1", Way{"s1", w.addr})
	reissue := func(ended time.Duration) identity.Credentials {
		c := w.a1
		cert, err := w.ca.Issue(c.Identity, c.Key.Public().(ed25519.PublicKey), time.Now().Add(-ended-time.Hour), time.Hour)
		must(t, err)
		c.CertPEM = cert
		return c
	}
	renewal := func(c identity.Credentials, addr string) (string, error) {
		conn, err := tls.Dial("tcp", addr, c.ClientTLS(identity.ALPNRenew, nil))
		must(t, err)
		defer conn.Close()
		if _, err := conn.Write([]byte("POST /renew HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")); err != nil {
			return "", err
		}
		answer, err := io.ReadAll(conn)
		return string(answer), err
	}
	for _, addr := range []string{w.addr, relay} {
		for ended, good := range map[time.Duration]bool{
			-time.Minute: true, time.Minute: true, identity.RenewalGrace - time.Hour: true, identity.RenewalGrace + 2*time.Minute: false,
			// Issued by a clock that ran ahead: it holds from two hours later on, or much later.
			-4 * time.Hour: true, -identity.RenewalGrace - 4*time.Hour: false,
		} {
			answer, err := renewal(reissue(ended), addr)
			if got := strings.Contains(answer, "fresh for a1"); got != good || good != (err == nil) {
				t.Errorf("ended %v ago, at %s: %q, %v", ended, addr, answer, err)
			}
		}
	}
	for _, ago := range []time.Duration{time.Minute, -4 * time.Hour} {
		for _, alpn := range []string{identity.ALPNHTTP, identity.ALPNRelay} {
			conn, err := tls.Dial("tcp", w.addr, reissue(ago).ClientTLS(alpn, nil))
			must(t, err)
			if err := ended(t, conn); !strings.Contains(err.Error(), "remote error") {
				t.Errorf("%s, ended %v ago: %v", alpn, ago, err)
			}
			conn.Close()
		}
	}
	foreign := credentials(t, mustCA(t), identity.RoleAgent, "a1")
	foreign.CAPEM = w.ca.CertPEM()
	if answer, err := renewal(foreign, relay); err == nil {
		t.Errorf("a certificate of another CA: %q", answer)
	}
	w.remove("a1")
	if answer, err := renewal(w.a1, relay); err == nil {
		t.Errorf("a removed host: %q", answer)
	}
}

// What relays carry on is joining and renewing. Who is no relay carries nothing,
// and a relay says no more of others than it knows of itself.
func TestWhatIsNotPassedOn(t *testing.T) {
	w := newWorld(t)
	plain := credentials(t, w.ca, identity.RoleAgent, "a7")
	p, err := Listen("127.0.0.1:0", func() (identity.Credentials, bool) { return plain, true }, nil, slog.New(slog.DiscardHandler))
	must(t, err)
	defer func() { must(t, p.Close(context.Background())) }()
	p.ServeHTTP(Handlers{Peer: http.NotFoundHandler()})
	if answered, _, err := joining(t, p.Addr().String(), "secret"); err != nil || answered.HostID != "a7" {
		t.Errorf("a host that is no relay: %v answered, %v", answered, err)
	}
	good := passage{Visited: []string{"a1"}, Budget: 5000, From: "10.0.0.1:1"}
	for name, tc := range map[string]struct {
		addr  string
		spoil func(*passage)
		says  string
	}{
		"a host that is no relay": {p.Addr().String(), func(*passage) {}, "no relay"},
		"another relay's name":    {w.addr, func(h *passage) { h.Visited = []string{"r9"} }, "not the one"},
		"no relay":                {w.addr, func(h *passage) { h.Visited = nil }, "0 relays"},
		"too many":                {w.addr, func(h *passage) { h.Visited = make([]string, maxHops+1) }, "relays"},
		"here already":            {w.addr, func(h *passage) { h.Visited = []string{"s1", "a1"} }, "here already"},
		"no time":                 {w.addr, func(h *passage) { h.Budget = 0 }, "no time"},
		"no address":              {w.addr, func(h *passage) { h.From = "somewhere" }, "where it comes from"},
	} {
		h := good
		tc.spoil(&h)
		conn, err := dial(t.Context(), tc.addr, w.a1.ClientTLS(identity.ALPNRelay, nil))
		must(t, err)
		must(t, writeMessage(conn, h))
		var v verdict
		if err := readMessage(conn, &v); err != nil || !strings.Contains(v.Error, tc.says) {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
		conn.Close()
	}
	for _, alpn := range []string{identity.ALPNRaft, identity.ALPNHTTP, identity.ALPNRelay} {
		conn, err := along(t.Context(), w.s2, Way{"s1", w.addr}, []string{"s2"}, "10.0.0.1:1")
		must(t, err)
		inner := tls.Client(conn, w.s2.ClientTLS(alpn, nil))
		if err := inner.Handshake(); err == nil {
			t.Errorf("%s within moult-relay: let in", alpn)
		}
		conn.Close()
	}
	await(t, "everything is counted out", func() bool { return w.open(identity.ALPNRelay, "") == 0 })
}

// Strangers hold few of a relay's connections, however many they are, and relays
// few of a server's.
func TestPassedOnConnectionsAreBounded(t *testing.T) {
	w := newWorld(t)
	addr, p := w.relay(t, "r1", Way{"s1", w.addr})
	open := func() int {
		p.limits.mu.Lock()
		defer p.limits.mu.Unlock()
		return p.limits.open[connKey{spliceKey, "127.0.0.2"}]
	}
	var held []*tls.Conn
	for range maxSourceSplices {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.2")}}
		conn, err := tls.DialWithDialer(&d, "tcp", addr, bareTLS(identity.ALPNJoin))
		must(t, err)
		defer conn.Close()
		held = append(held, conn)
	}
	if open() != maxSourceSplices {
		t.Errorf("%d are open", open())
	}
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.2")}}
	conn, err := tls.DialWithDialer(&d, "tcp", addr, bareTLS(identity.ALPNJoin))
	must(t, err)
	if answered, err := identity.PeerIdentity(conn.ConnectionState()); err != nil || answered.HostID != "r1" {
		t.Errorf("one more: %v answered, %v", answered, err)
	}
	conn.Close()
	if answered, _, err := joining(t, addr, "secret"); err != nil || answered != w.s1.Identity {
		t.Errorf("from another address: %v answered, %v", answered, err)
	}
	for _, c := range held {
		c.Close()
	}
	await(t, "all are counted out", func() bool { return open() == 0 })
}

// A connection that is passed on carries no more than joining takes.
func TestPassedOnBytesAreBounded(t *testing.T) {
	w := newWorld(t)
	addr, _ := w.relay(t, "r1", Way{"s1", w.addr})
	conn, err := tls.Dial("tcp", addr, bareTLS(identity.ALPNJoin))
	must(t, err)
	defer conn.Close()
	_, err = fmt.Fprintf(conn, "POST /join HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", 8*spliceBytes)
	must(t, err)
	chunk := bytes.Repeat([]byte("x"), 8<<10)
	for range 8 * spliceBytes / len(chunk) {
		if _, err := conn.Write(chunk); err != nil {
			break // cut already
		}
	}
	if got := len(<-w.joins); got == 0 || got > spliceBytes {
		t.Errorf("%d bytes went through", got)
	}
	_ = ended(t, conn)
}

// Nor does it stay longer, idle or busy.
func TestPassedOnConnectionsEndInTime(t *testing.T) {
	simulated(t, func(t *testing.T, w *world, _ *pipes) {
		for name, tc := range map[string]struct {
			every time.Duration // between two bytes
			limit time.Duration
		}{"idle": {time.Hour, spliceIdle}, "dripping": {spliceIdle / 2, spliceTime}} {
			a, left := net.Pipe()
			right, b := net.Pipe()
			done := make(chan time.Duration, 1)
			began := time.Now()
			go func() {
				w.port.splice(left, right)
				done <- time.Since(began)
			}()
			stop, cancel := context.WithCancel(t.Context())
			drip := func(conn net.Conn) {
				for stop.Err() == nil {
					if _, err := conn.Write([]byte{1}); err != nil {
						return
					}
					select {
					case <-stop.Done():
					case <-time.After(tc.every):
					}
				}
			}
			for _, conn := range []net.Conn{a, b} {
				go drip(conn)
				go func() { _, _ = io.Copy(io.Discard, conn) }()
			}
			if took := <-done; took < tc.limit || took > tc.limit+time.Second {
				t.Errorf("%s: it stayed for %v, not %v", name, took, tc.limit)
			}
			cancel()
			a.Close()
			b.Close()
			synctest.Wait()
		}
	})
}

// Closing the port ends what it passes on.
func TestCloseEndsWhatIsPassedOn(t *testing.T) {
	w := newWorld(t)
	addr, p := w.relay(t, "r1", Way{"s1", w.addr})
	conn, err := tls.Dial("tcp", addr, bareTLS(identity.ALPNJoin))
	must(t, err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	must(t, p.Close(ctx))
	if err := ended(t, conn); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Error("it is still open")
	}
}
