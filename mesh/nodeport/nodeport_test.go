package nodeport

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"moult/mesh/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const clusterID = "cluster-1"

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// await waits for what another goroutine brings about.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func mustCA(t testing.TB) *identity.CA {
	t.Helper()
	ca, err := identity.NewCA(clusterID, time.Now().AddDate(-1, 0, 0)) // certificates may have expired since
	must(t, err)
	return ca
}

func credentials(t testing.TB, ca *identity.CA, role identity.Role, host string) identity.Credentials {
	t.Helper()
	key, err := identity.NewKey()
	must(t, err)
	id := identity.Identity{Cluster: clusterID, HostID: host, Name: host, Role: role}
	cert, err := ca.Issue(id, key.Public().(ed25519.PublicKey), time.Now(), time.Hour)
	must(t, err)
	return identity.Credentials{Identity: id, Key: key, CertPEM: cert, CAPEM: ca.CertPEM()}
}

// world is a port of server s1, and who might talk to it.
type world struct {
	ca         *identity.CA
	port       *Port
	addr       string
	s1, s2, a1 identity.Credentials
	joins      chan string   // what the join handler was sent
	hold       chan struct{} // closed when handlers of /hold may end
	mu         sync.Mutex
	removed    map[string]bool
}

func (w *world) allow(_ string, id identity.Identity) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.removed[id.HostID] {
		return errors.New("this host was removed; join it again with a new token")
	}
	return nil
}

func (w *world) remove(host string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.removed[host] = true
}

// ServeHTTP is the peer handler: it says who asks, and echoes the body.
func (w *world) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	switch r.URL.Path {
	case "/hold":
		select {
		case <-w.hold:
		case <-r.Context().Done():
		}
	case "/redirect":
		http.Redirect(rw, r, "/", http.StatusFound)
		return
	}
	rw.Write([]byte(PeerFrom(r.Context()).String() + " " + string(body)))
}

func newWorld(t testing.TB, options ...Option) *world {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	return newWorldOn(t, l, options...)
}

func newWorldOn(t testing.TB, l net.Listener, options ...Option) *world {
	t.Helper()
	ca := mustCA(t)
	w := &world{
		ca: ca, removed: map[string]bool{}, joins: make(chan string, 2*maxJoinConns), hold: make(chan struct{}),
		s1: credentials(t, ca, identity.RoleServer, "s1"), s2: credentials(t, ca, identity.RoleServer, "s2"), a1: credentials(t, ca, identity.RoleAgent, "a1"),
	}
	w.port = open(l, func() (identity.Credentials, bool) { return w.s1, true }, w.allow, slog.New(slog.DiscardHandler), options...)
	w.addr = w.port.Addr().String()
	w.port.ServeHTTP(Handlers{Peer: w, Join: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if id := PeerFrom(r.Context()); id != (identity.Identity{}) {
			body = []byte("somebody: " + id.String())
		}
		w.joins <- string(body)
		rw.Write([]byte("welcome, seen from " + r.RemoteAddr))
	}), Renew: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if !w.a1.Key.Public().(ed25519.PublicKey).Equal(PeerKeyFrom(r.Context())) {
			http.Error(rw, "somebody else's key", http.StatusForbidden)
			return
		}
		rw.Write([]byte("fresh for " + PeerFrom(r.Context()).HostID))
	})})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		must(t, w.port.Close(ctx))
	})
	return w
}

// get asks the port as a host of the cluster.
func (w *world) get(t testing.TB, c *http.Client, path string, body io.Reader) (int, string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+w.addr+path, body)
	must(t, err)
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, strings.TrimSpace(string(text)), err
}

// dialFrom connects from one of loopback's addresses.
func (w *world) dialFrom(t testing.TB, ip string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}, Timeout: 10 * time.Second}
	conn, err := d.DialContext(t.Context(), "tcp", w.addr)
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// raftPair is a Raft connection of s2 with s1, both ends.
func (w *world) raftPair(t testing.TB) (dialed, accepted net.Conn) {
	t.Helper()
	dialed, err := DialRaft(t.Context(), w.s2, w.addr, nil)
	must(t, err)
	t.Cleanup(func() { dialed.Close() })
	accepted, err = w.port.Raft().Accept()
	must(t, err)
	t.Cleanup(func() { accepted.Close() })
	return dialed, accepted
}

func bareTLS(alpn string) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{alpn}, InsecureSkipVerify: true}
}

// ended waits until the other side has closed a connection.
func ended(t testing.TB, conn net.Conn) error {
	t.Helper()
	must(t, conn.SetReadDeadline(time.Now().Add(20*time.Second)))
	_, err := conn.Read(make([]byte, 1))
	var timeout net.Error
	if err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("the connection stays open: %v", err)
	}
	return err
}

func client(t testing.TB, c identity.Credentials) *http.Client {
	t.Helper()
	hc := Client(func() identity.Credentials { return c }, nil)
	t.Cleanup(hc.CloseIdleConnections)
	return hc
}

func TestProtocolsShareThePort(t *testing.T) {
	w := newWorld(t)
	// moult-http: the handler learns who asks by the certificate.
	for _, c := range []identity.Credentials{w.a1, w.s2} {
		status, text, err := w.get(t, client(t, c), "/", strings.NewReader("hello"))
		if err != nil || status != http.StatusOK || text != c.String()+" hello" {
			t.Errorf("%s: %d %q %v", c.HostID, status, text, err)
		}
	}
	// moult-raft: a stream of bytes, each way.
	raft, accepted := w.raftPair(t)
	for _, way := range [][2]net.Conn{{raft, accepted}, {accepted, raft}} {
		_, err := way[0].Write([]byte("append"))
		must(t, err)
		got := make([]byte, 6)
		if _, err := io.ReadFull(way[1], got); err != nil || string(got) != "append" {
			t.Errorf("got %q, %v", got, err)
		}
	}
	// moult-join: anybody, and nobody in particular; one request a connection.
	conn, err := tls.Dial("tcp", w.addr, bareTLS(identity.ALPNJoin))
	must(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte("POST /join HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nsecret"))
	must(t, err)
	answer, err := io.ReadAll(conn)
	if err != nil || !bytes.Contains(answer, []byte("welcome")) || <-w.joins != "secret" {
		t.Errorf("join: %q, %v", answer, err)
	}
	if w.port.Raft().Addr().String() != w.addr {
		t.Error("the Raft listener has another address")
	}
}

// Invariant 18, as far as the port keeps it: who is no server under the
// cluster's CA, or is none any more, gets nowhere near Raft.
func TestOnlyServersReachRaft(t *testing.T) {
	w := newWorld(t)
	foreign := credentials(t, mustCA(t), identity.RoleServer, "s2")
	foreign.CAPEM = w.ca.CertPEM()
	w.remove("s9")
	for name, cfg := range map[string]*tls.Config{
		"an agent":        w.a1.ClientTLS(identity.ALPNRaft, nil),
		"no certificate":  bareTLS(identity.ALPNRaft),
		"another CA":      foreign.ClientTLS(identity.ALPNRaft, nil),
		"a removed host":  credentials(t, w.ca, identity.RoleServer, "s9").ClientTLS(identity.ALPNRaft, nil),
		"a forged HTTP":   bareTLS(identity.ALPNHTTP),
		"foreign on HTTP": foreign.ClientTLS(identity.ALPNHTTP, nil),
	} {
		conn, err := tls.Dial("tcp", w.addr, cfg)
		if err != nil {
			continue // refused already
		}
		if err := ended(t, conn); !strings.Contains(err.Error(), "remote error") {
			t.Errorf("%s: %v", name, err)
		}
		conn.Close()
	}
	// The first that Accept returns is the one that was let in.
	good, accepted := w.raftPair(t)
	if accepted.RemoteAddr().String() != good.LocalAddr().String() {
		t.Errorf("somebody else was let in: %v", accepted.RemoteAddr())
	}
}

// What was let in once is cut when its host is removed.
func TestRemovedHostsConnectionsEnd(t *testing.T) {
	w := newWorld(t)
	agent := client(t, w.a1)
	if status, _, err := w.get(t, agent, "/", nil); status != http.StatusOK {
		t.Fatal(status, err)
	}
	raft, accepted := w.raftPair(t)
	_, err := raft.Write([]byte("one"))
	must(t, err)
	if _, err := io.ReadFull(accepted, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	buf := make([]byte, 8)
	go func() { // Raft waits for the next message all the time
		_, err := accepted.Read(buf)
		read <- err
	}()
	w.remove("s2")
	w.remove("a1")
	_, err = raft.Write([]byte("two"))
	must(t, err)
	if err := <-read; err == nil || !strings.Contains(err.Error(), "was removed") {
		t.Errorf("a removed server's message was read: %v", err)
	}
	_ = ended(t, raft)
	status, text, err := w.get(t, agent, "/", nil)
	if err != nil || status != http.StatusForbidden || !strings.Contains(text, "join it again") {
		t.Errorf("a removed host on its open connection: %d %q %v", status, text, err)
	}
}

func TestNoCertificateYet(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	p := open(l, func() (identity.Credentials, bool) { return identity.Credentials{}, false }, nil, slog.New(slog.DiscardHandler))
	defer func() { must(t, p.Close(context.Background())) }()
	conn, err := net.Dial("tcp", p.Addr().String())
	must(t, err)
	defer conn.Close()
	_ = ended(t, conn)
}

func TestListenNamesTheFlag(t *testing.T) {
	w := newWorld(t)
	none := func() (identity.Credentials, bool) { return identity.Credentials{}, false }
	for addr, says := range map[string]string{
		w.addr: "in use; stop what uses it, or give another one with --peer", "127.0.0.1": "--peer HOST:PORT", "192.0.2.1:7947": "--peer HOST:PORT", "127.0.0.1:99999": "--peer HOST:PORT",
	} {
		if p, err := Listen(addr, none, nil, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), says) || p != nil {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

func TestClient(t *testing.T) {
	w := newWorld(t)
	picky := Client(func() identity.Credentials { return w.a1 }, func(id identity.Identity) error {
		if id.HostID != "s7" {
			return errors.New("not the host that was asked for")
		}
		return nil
	})
	if _, _, err := w.get(t, picky, "/", nil); err == nil || !strings.Contains(err.Error(), "not the host that was asked for") || !strings.Contains(err.Error(), w.addr) {
		t.Errorf("another host answered: %v", err)
	}
	foreign := client(t, credentials(t, mustCA(t), identity.RoleAgent, "a1"))
	if _, _, err := w.get(t, foreign, "/", nil); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("a client of another CA: %v", err)
	}
	c := client(t, w.a1)
	if status, _, err := w.get(t, c, "/redirect", nil); status != http.StatusFound {
		t.Errorf("a redirect was followed: %d %v", status, err)
	}
	if _, err := c.Get("http://" + w.addr + "/"); err == nil || !strings.Contains(err.Error(), "https://") {
		t.Errorf("without TLS: %v", err)
	}
	early, err := DialRaft(t.Context(), w.a1, w.addr, nil)
	must(t, err) // TLS 1.3: it learns on its first read that it is refused
	defer early.Close()
	_ = ended(t, early)
	agentPort, err := Listen("127.0.0.1:0", func() (identity.Credentials, bool) { return w.a1, true }, nil, slog.New(slog.DiscardHandler))
	must(t, err)
	defer func() { must(t, agentPort.Close(context.Background())) }()
	if _, err := DialRaft(t.Context(), w.s2, agentPort.Addr().String(), nil); err == nil || !strings.Contains(err.Error(), "is not a server") {
		t.Errorf("Raft with an agent: %v", err)
	}
}
