package nodeport

import (
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"moult/mesh/identity"
)

// Who is shut out loses what is under way, too, of each protocol, at once; nobody
// else does.
func TestCutRefused(t *testing.T) {
	w := newWorld(t)
	defer close(w.hold)
	hold := func(c *http.Client) chan error {
		out := make(chan error, 1)
		go func() {
			status, text, err := w.get(t, c, "/hold", nil)
			if err == nil && status != http.StatusOK { // it had not quite begun
				err = errors.New(text)
			}
			out <- err
		}()
		return out
	}
	removed, stays := hold(client(t, w.a1)), hold(client(t, credentials(t, w.ca, "agent", "a2")))
	raft, accepted := w.raftPair(t)
	read := make(chan error, 1)
	go func() {
		_, err := accepted.Read(make([]byte, 1))
		read <- err
	}()
	await(t, "the connections", func() bool { return len(w.port.members.all()) == 3 })
	w.remove("a1")
	w.remove("s2")
	w.port.CutRefused()
	for name, ch := range map[string]chan error{"an agent's request": removed, "a server's Raft connection": read} {
		select {
		case err := <-ch:
			if err == nil {
				t.Errorf("%s ended well", name)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("%s goes on", name)
		}
	}
	_ = ended(t, raft)
	select {
	case err := <-stays:
		t.Errorf("another host's request ended: %v", err)
	default:
	}
	await(t, "the others to be counted out", func() bool { return len(w.port.members.all()) == 1 })
}

// A host that is shut out between its handshake and the moment at which its
// connection is known leaves none behind.
func TestShutOutDuringTheHandshake(t *testing.T) {
	ca := mustCA(t)
	s1, s2 := credentials(t, ca, identity.RoleServer, "s1"), credentials(t, ca, identity.RoleServer, "s2")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var asked atomic.Int32
	port := open(l, func() (identity.Credentials, bool) { return s1, true }, func(string, identity.Identity) error {
		if asked.Add(1) > 1 {
			return errors.New("shut out")
		}
		return nil
	}, slog.New(slog.DiscardHandler))
	defer func() { must(t, port.Close(t.Context())) }()
	conn, err := DialRaft(t.Context(), s2, port.Addr().String(), nil)
	must(t, err)
	defer conn.Close()
	_ = ended(t, conn)
	await(t, "the connection to be counted out", func() bool { return len(port.members.all()) == 0 })
	if n := len(port.raft.conns); n != 0 {
		t.Errorf("%d connections wait for Raft", n)
	}
}

// Only connections from the networks that are named get as far as TLS; the machine
// itself always does.
func TestAllowFrom(t *testing.T) {
	tries := func(w *world, ip string) error {
		conn := w.dialFrom(t, ip)
		defer conn.Close()
		tc := tls.Client(conn, w.a1.ClientTLS(identity.ALPNHTTP, nil))
		must(t, tc.SetDeadline(time.Now().Add(20*time.Second)))
		return tc.HandshakeContext(t.Context())
	}
	must(t, tries(newWorld(t), "127.0.0.9"))
	w := newWorld(t, AllowFrom([]netip.Prefix{netip.MustParsePrefix("127.0.0.8/32"), netip.MustParsePrefix("10.0.0.0/8")}))
	if err := tries(w, "127.0.0.9"); err == nil {
		t.Error("a connection from another network is let in")
	}
	must(t, tries(w, "127.0.0.8"))
	must(t, tries(w, "127.0.0.1")) // where the port listens
}
