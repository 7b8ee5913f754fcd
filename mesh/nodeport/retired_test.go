package nodeport

import (
	"crypto/ed25519"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"moult/mesh/identity"
)

// enrolled is a server with a store, so that it can follow a change of the CA.
func enrolled(t *testing.T, ca *identity.CA) identity.Credentials {
	t.Helper()
	store, err := identity.OpenStore(t.TempDir())
	must(t, err)
	hostID, key, err := store.HostKey()
	must(t, err)
	id := identity.Identity{Cluster: clusterID, HostID: hostID, Name: "server", Role: identity.RoleServer}
	cert, err := ca.Issue(id, key.Public().(ed25519.PublicKey), time.Now(), time.Hour)
	must(t, err)
	must(t, store.Save(identity.Enrolment{Identity: id, CertPEM: cert, CAPEM: ca.CertPEM(), Segment: "default", GossipKeys: [][]byte{make([]byte, 32)}}))
	creds, err := store.Load()
	must(t, err)
	return creds
}

// Once a CA is retired, what was believed by it ends: connections that others opened,
// and those that this host did. Renewing stays, for hosts that were off.
func TestRetiredCAsConnectionsEnd(t *testing.T) {
	old, next := mustCA(t), mustCA(t)
	succession, err := old.SignSuccession(clusterID, 1, next)
	must(t, err)
	retirement, err := next.SignRetirement(clusterID, 1)
	must(t, err)
	follow := func(c identity.Credentials, chain identity.CAChain) {
		t.Helper()
		news, err := c.Trusted.Follow(clusterID, chain)
		if err != nil || !news {
			t.Fatal(news, err)
		}
	}
	prepared := identity.CAChain{Successions: [][]byte{succession}}
	retired := identity.CAChain{Successions: prepared.Successions, Retirement: retirement}

	s1, s2 := enrolled(t, old), enrolled(t, old)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	port := open(l, func() (identity.Credentials, bool) { return s1, true }, nil, slog.New(slog.DiscardHandler))
	defer func() { must(t, port.Close(t.Context())) }()
	hello := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("hello")) })
	port.ServeHTTP(Handlers{Peer: hello, Join: hello, Renew: hello})
	addr := port.Addr().String()
	go func() { // as Raft does
		for {
			conn, err := port.Raft().Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(io.Discard, conn)
				conn.Close()
			}()
		}
	}()

	// The same of a server with a certificate of the new CA goes on.
	stays := credentials(t, next, identity.RoleServer, "s3")
	stays.Trusted = s2.Trusted
	follow(s1, prepared)
	follow(s2, prepared)
	inbound, err := DialRaft(t.Context(), credentials(t, old, identity.RoleServer, "thief"), addr, nil)
	must(t, err)
	defer inbound.Close()
	kept, err := DialRaft(t.Context(), stays, addr, nil)
	must(t, err)
	defer kept.Close()
	outbound, err := DialRaft(t.Context(), s2, addr, nil)
	must(t, err)
	defer outbound.Close()
	client := Client(func() identity.Credentials { return s2 }, nil)
	defer client.CloseIdleConnections()
	get := func() error {
		resp, err := client.Get("https://" + addr + "/")
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body) // so that the connection is kept
			resp.Body.Close()
		}
		return err
	}
	must(t, get())
	await(t, "the connections", func() bool { return len(port.members.all()) == 4 })
	port.CutRefused()
	if n := len(port.members.all()); n != 4 {
		t.Fatalf("of 4 connections %d are left while both CAs are trusted", n)
	}

	follow(s1, retired)
	port.CutRefused()
	_ = ended(t, inbound)
	await(t, "the others to be counted out", func() bool { return len(port.members.all()) == 1 })

	// The other side would go on with what it has; this one does not.
	s4 := enrolled(t, old)
	other, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	stale := open(other, func() (identity.Credentials, bool) { return s4, true }, nil, slog.New(slog.DiscardHandler))
	defer func() { must(t, stale.Close(t.Context())) }()
	stale.ServeHTTP(Handlers{Peer: hello, Join: hello, Renew: hello})
	dialled, err := DialRaft(t.Context(), s2, stale.Addr().String(), nil)
	must(t, err)
	defer dialled.Close()
	addr = stale.Addr().String()
	must(t, get())
	follow(s2, retired)
	if _, err := dialled.Write([]byte("entries")); err == nil || !strings.Contains(err.Error(), "no longer trusted") {
		t.Errorf("it writes to a server of the retired CA: %v", err)
	}
	if err := get(); err == nil {
		t.Error("it asks a server of the retired CA, over the connection that it has")
	}
}
