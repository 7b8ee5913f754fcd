package nodeport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"moult/mesh/identity"
)

// addressed is a connection from some address; it remembers being closed.
type addressed struct {
	net.Conn
	from   string
	closed bool
}

func (a *addressed) RemoteAddr() net.Addr {
	ap, err := net.ResolveTCPAddr("tcp", a.from)
	if err != nil {
		panic(err)
	}
	return ap
}

func (a *addressed) Close() error {
	a.closed = true
	return nil
}

type named struct{ text string }

func (*named) Network() string  { return "tcp" }
func (n *named) String() string { return n.text }

func TestConnectionLimits(t *testing.T) {
	l := newConnLimits()
	var releases []func()
	admit := func(alpn, who string) error {
		release, err := l.admit(alpn, who)
		if err == nil {
			releases = append(releases, release)
		}
		return err
	}
	fill := func(alpn, who string, n int) {
		for range n {
			if err := admit(alpn, who); err != nil {
				t.Fatal(err)
			}
		}
	}
	fill(identity.ALPNHTTP, "a1", maxHostConns)
	if err := admit(identity.ALPNHTTP, "a1"); err == nil {
		t.Error("one host has no limit")
	}
	fill(identity.ALPNRaft, "s1", maxHostConns)
	if err := admit(identity.ALPNRaft, "s1"); err == nil {
		t.Error("one server has no limit on Raft")
	}
	for i := 1; i < maxPeerConns/maxHostConns; i++ {
		fill(identity.ALPNHTTP, fmt.Sprint("b", i), maxHostConns)
	}
	if err := admit(identity.ALPNHTTP, "late"); err == nil {
		t.Error("all hosts together have no limit")
	}
	fill(identity.ALPNRaft, "s2", 1) // which costs Raft nothing
	for i := range maxJoinConns / maxSourceJoinConns {
		from := fmt.Sprint("10.0.0.", i)
		fill(identity.ALPNJoin, from, maxSourceJoinConns)
		if err := admit(identity.ALPNJoin, from); err == nil {
			t.Error("one address has no limit on joining")
		}
	}
	if err := admit(identity.ALPNJoin, "10.0.1.1"); err == nil {
		t.Error("joining has no limit")
	}
	for _, release := range releases {
		release()
		release() // counts once
	}
	if len(l.open) != 0 {
		t.Errorf("after all have gone it still counts %v", l.open)
	}
	fill(identity.ALPNHTTP, "a1", maxHostConns)
}

// A host at its limit is refused, on real sockets; one connection less, and it
// is let in again. Nobody else notices.
func TestOneHostCannotHoldAllConnections(t *testing.T) {
	w := newWorld(t)
	cfg := w.a1.ClientTLS(identity.ALPNHTTP, nil)
	var held []net.Conn
	for range maxHostConns {
		conn, err := tls.Dial("tcp", w.addr, cfg)
		must(t, err)
		defer conn.Close()
		held = append(held, conn)
	}
	await(t, "all are counted", func() bool { return w.open(identity.ALPNHTTP, "a1") == maxHostConns })
	more, err := tls.Dial("tcp", w.addr, cfg)
	must(t, err)
	defer more.Close()
	_ = ended(t, more)
	if status, _, err := w.get(t, client(t, w.s2), "/", nil); status != http.StatusOK {
		t.Errorf("another host: %d %v", status, err)
	}
	held[0].Close()
	await(t, "the closed one is counted out", func() bool { return w.open(identity.ALPNHTTP, "a1") < maxHostConns })
	if status, _, err := w.get(t, client(t, w.a1), "/", nil); status != http.StatusOK {
		t.Errorf("after one was closed: %d %v", status, err)
	}
}

func (w *world) open(alpn, who string) int {
	w.port.limits.mu.Lock()
	defer w.port.limits.mu.Unlock()
	return w.port.limits.open[connKey{alpn, who}]
}

// Strangers open connections and say nothing, from several addresses and from
// the servers' own; some finish the handshake of moult-join and send no request.
// Raft and the peers get through all the same.
func TestFloodKeepsNobodyOut(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux gives loopback more addresses than one")
	}
	w := newWorld(t)
	sources := []string{"127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"}
	for _, ip := range sources {
		for range 2 * maxSourceHandshakes {
			conn := w.dialFrom(t, ip)
			_, err := conn.Write([]byte{22, 3, 1}) // the beginning of a handshake
			if err != nil && !errors.Is(err, io.ErrClosedPipe) && !strings.Contains(err.Error(), "reset") && !strings.Contains(err.Error(), "broken pipe") {
				t.Fatal(err)
			}
		}
		for range maxSourceJoinConns + 1 {
			_ = tls.Client(w.dialFrom(t, ip), bareTLS(identity.ALPNJoin)).Handshake() // the last ones are refused
		}
	}
	await(t, "joins are at their limit", func() bool { return w.open(identity.ALPNJoin, "") == maxJoinConns })
	if pending := w.port.handshakes.Len(); pending < maxSourceHandshakes {
		t.Fatalf("only %d handshakes are pending: this is no flood", pending)
	}
	for range 5 {
		began := time.Now()
		w.raftPair(t)
		if status, _, err := w.get(t, client(t, w.a1), "/", nil); status != http.StatusOK {
			t.Errorf("an agent: %d %v", status, err)
		}
		// Far below handshakeTimeout, which is what waiting for a slot would take.
		if took := time.Since(began); took > handshakeTimeout/2 {
			t.Errorf("it took %v", took)
		}
	}
}

// Connections that nobody accepts are closed at once beyond the backlog.
func TestQueue(t *testing.T) {
	q := newQueue(&named{"here"})
	var conns []*addressed
	for range backlog + 1 {
		conns = append(conns, &addressed{from: "10.0.0.1:1"})
	}
	for i, c := range conns {
		if err := q.put(c); (err == nil) != (i < backlog) || c.closed != (i == backlog) {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	if c, err := q.Accept(); err != nil || c != net.Conn(conns[0]) {
		t.Errorf("accepted %v, %v", c, err)
	}
	must(t, q.Close())
	must(t, q.Close())
	if !conns[1].closed || conns[0].closed {
		t.Error("closing did not close what nobody accepted, or more than that")
	}
	if _, err := q.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v", err)
	}
	late := &addressed{from: "10.0.0.1:1"}
	if err := q.put(late); !errors.Is(err, net.ErrClosed) || !late.closed {
		t.Errorf("put after close: %v", err)
	}
}

func TestBodiesAreBounded(t *testing.T) {
	w := newWorld(t)
	c := client(t, w.a1)
	if status, text, err := w.get(t, c, "/", io.LimitReader(endless{}, maxBodyBytes+1)); err != nil || status != http.StatusBadRequest || !strings.Contains(text, "too large") {
		t.Errorf("too long a body: %d %.100q %v", status, text, err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+w.addr+"/", nil)
	must(t, err)
	req.Header.Set("X", strings.Repeat("x", 2*maxHeaderBytes))
	if resp, err := c.Do(req); err == nil {
		resp.Body.Close()
		if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("too long a header: %d", resp.StatusCode)
		}
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'x'
	}
	return len(b), nil
}

// Close is bounded, whoever holds on: idle connections, handshakes that stand
// still, joins without a request, handlers that wait for their context.
func TestCloseIsBounded(t *testing.T) {
	w := newWorld(t)
	c := client(t, w.a1)
	if status, _, err := w.get(t, c, "/", nil); status != http.StatusOK {
		t.Fatal(status, err)
	}
	stuck := w.dialFrom(t, "127.0.0.1")
	join := tls.Client(w.dialFrom(t, "127.0.0.1"), bareTLS(identity.ALPNJoin))
	must(t, join.Handshake())
	raft, err := DialRaft(t.Context(), w.s2, w.addr) // and nobody accepts it
	must(t, err)
	defer raft.Close()
	held := make(chan error, 1)
	go func() {
		status, _, err := w.get(t, client(t, w.a1), "/hold", nil)
		if status != 0 {
			err = fmt.Errorf("answered %d", status)
		}
		held <- err
	}()
	await(t, "all are here", func() bool {
		return w.open(identity.ALPNHTTP, "a1") >= 2 && w.open(identity.ALPNRaft, "s2") == 1 && w.open(identity.ALPNJoin, "127.0.0.1") == 1
	})
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	must(t, w.port.Close(ctx))
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("closing took %v", took)
	}
	must(t, w.port.Close(ctx)) // again
	for name, conn := range map[string]net.Conn{"handshake": stuck, "join": join, "raft": raft} {
		if err := ended(t, conn); err == nil {
			t.Errorf("%s is still open", name)
		}
	}
	<-held
	if _, err := w.port.Raft().Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v", err)
	}
	if conn, err := net.DialTimeout("tcp", w.addr, time.Second); err == nil {
		conn.Close()
		t.Error("the port still listens")
	}
}

// Closing ends the context of a handler that has not read its request's body:
// net/http itself ends only those that have.
func TestCloseEndsHandlersContexts(t *testing.T) {
	w := newWorld(t)
	entered := make(chan struct{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	p := open(l, func() (identity.Credentials, bool) { return w.s1, true }, nil, w.port.logger)
	p.ServeHTTP(Handlers{Peer: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
	})})
	w.addr = p.Addr().String()
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		_, _, _ = w.get(t, client(t, w.a1), "/", strings.NewReader("a body that nobody reads")) // it is cut off
	}()
	<-entered
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	must(t, p.Close(ctx))
	<-asked
}

// A handler that does not end is told of, in time.
func TestCloseTellsOfAHandlerThatDoesNotEnd(t *testing.T) {
	w := newWorld(t)
	release, entered := make(chan struct{}), make(chan struct{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	p := open(l, func() (identity.Credentials, bool) { return w.s1, true }, nil, w.port.logger)
	p.ServeHTTP(Handlers{Peer: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(entered)
		<-release
	})})
	w.addr = p.Addr().String()
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		_, _, _ = w.get(t, client(t, w.a1), "/", nil) // it is cut off
	}()
	<-entered
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := p.Close(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "handler does not end") {
		t.Errorf("closed: %v", err)
	}
	close(release)
	<-asked
	p.tasks.Wait()
	p.requests.Wait()
}

// Where hosts share an address, that may hold as many times as much, and never more
// than there is in all.
func TestHostsThatShareAnAddress(t *testing.T) {
	for hosts, want := range map[int]int{1: maxSourceJoinConns, 3: 3 * maxSourceJoinConns, 100: maxJoinConns} {
		p := open(newPipes(), func() (identity.Credentials, bool) { return identity.Credentials{}, false }, nil, slog.New(slog.DiscardHandler), HostsPerAddress(hosts))
		admitted := 0
		for range maxJoinConns + 1 {
			if _, err := p.limits.admit(identity.ALPNJoin, "10.0.0.1"); err == nil {
				admitted++
			}
		}
		if admitted != want {
			t.Errorf("%d hosts: %d joins at once", hosts, admitted)
		}
		var first addressed
		first.from = "10.0.0.1:1"
		begin := func(c net.Conn) { _, _ = p.begin(c) }
		begin(&first)
		for range min(hosts*maxSourceHandshakes, maxHandshakes) - 1 {
			begin(&addressed{from: "10.0.0.1:2"})
		}
		if first.closed {
			t.Errorf("%d hosts: a handshake was pushed out before the limit", hosts)
		}
		begin(&addressed{from: "10.0.0.1:3"})
		if !first.closed {
			t.Errorf("%d hosts: none was pushed out at the limit", hosts)
		}
		must(t, p.Close(t.Context()))
	}
}
