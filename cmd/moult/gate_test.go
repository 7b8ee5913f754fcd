package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/consensus"
	"moult/consensus/fleet"
	"moult/mesh/identity"
	"moult/mesh/nodeport"
)

// Only configured servers speak Raft: a certificate says "server" for a year,
// the configuration says who is one today, and it is asked at each message.
func TestOnlyConfiguredServersSpeakRaft(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	host := startCertifier(t).mustCertify
	s1, s2 := host("s1", identity.RoleServer), host("s2", identity.RoleServer)
	gate := &memberGate{}
	port, err := nodeport.Listen("127.0.0.1:0", func() (identity.Credentials, bool) { return s1, true }, gate.allow, quiet)
	must(t, err)
	defer nodekit.CloseWithin(port.Close, quiet, "node port")
	addr := port.Addr().String()

	// A client in TLS 1.3 learns on its first read whether it was let in.
	dial := func(c identity.Credentials) net.Conn {
		conn, err := nodeport.DialRaft(ctx, c, addr, nil)
		must(t, err)
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	refused := func(when string, conn net.Conn) {
		t.Helper()
		must(t, conn.SetDeadline(time.Now().Add(5*time.Second)))
		_, _ = conn.Write([]byte{0}) // an AppendEntries begins; Raft itself would wait for the rest
		var timeout net.Error
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("%s: it is not refused: %v", when, err)
		}
	}
	refused("before Raft is open", dial(s2))

	raft, err := consensus.Open(consensus.Config{
		Dir: filepath.Join(t.TempDir(), "raft"), ServerID: "s1", Address: addr, Listener: port.Raft(),
		Dial: func(ctx context.Context, addr string) (net.Conn, error) { return nodeport.DialRaft(ctx, s1, addr, nil) },
		Forward: func(context.Context, string, string, []byte) ([]byte, error) {
			return nil, errors.New("nobody else is here")
		},
		Logger: quiet,
	})
	must(t, err)
	defer nodekit.CloseWithin(raft.Close, quiet, "raft")
	must(t, raft.Bootstrap(ctx))
	gate.open(raft)

	if err := gate.allow(identity.ALPNRaft, s1.Identity); err != nil {
		t.Errorf("the configured server: %v", err)
	}
	if err := gate.allow(identity.ALPNRaft, identity.Identity{Cluster: "cluster-1", HostID: "s1", Role: identity.RoleAgent}); err == nil {
		t.Error("an agent under a server's id is let in")
	}
	if err := gate.allow(identity.ALPNRaft, s2.Identity); err == nil {
		t.Error("a server that is not configured is let in")
	}
	refused("a server that is not configured", dial(s2))

	must(t, raft.AddServer(ctx, "s2", "127.0.0.1:1"))
	if err := gate.allow(identity.ALPNRaft, s2.Identity); err != nil {
		t.Errorf("a configured server: %v", err)
	}
	member := dial(s2)
	must(t, member.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
	var timeout net.Error
	if _, err := member.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("a configured server is cut off: %v", err)
	}
	must(t, raft.RemoveServer(ctx, "s2"))
	refused("a removed server on its open connection", member)
}

// A host that the state does not know gets nothing from a server's node port. A
// server among them may tell of a configuration, which is then looked into.
func TestStrangersMayOnlyTellOfAConfiguration(t *testing.T) {
	raft := startLoneRaft(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := raft.Bootstrap(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := raft.Propose(ctx, "system", fleet.ClusterInitialized{
		Cluster: fleet.Cluster{ID: "c1"}, Server: fleet.Host{ID: "s1", Name: "server-1"},
		Admin: fleet.User{ID: "u1", Name: "admin", PasswordHash: "x"}, Token: fleet.APIToken{ID: "t1", Name: "bootstrap", Hash: "h1"},
	}); err != nil {
		t.Fatal(err)
	}
	gate := &memberGate{}
	gate.open(raft)
	if err := gate.allow(identity.ALPNHTTP, identity.Identity{HostID: "a9", Role: identity.RoleAgent}); err == nil {
		t.Error("an agent that was removed gets through")
	}
	if err := gate.allow(identity.ALPNRaft, identity.Identity{HostID: "s9", Role: identity.RoleServer}); err == nil {
		t.Error("a server that was removed speaks Raft")
	}
	served := 0
	h := gate.onlyHosts(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served++ }))
	for _, op := range []struct{ method, path string }{
		{"POST", pathPropose},
		{"POST", pathAddServer},
		{"GET", pathStatus},
		{"GET", pathMembers},
		{"POST", pathRelease},
		{"POST", pathCheckIns},
		{"GET", "/artifact/x"},
		{"GET", pathState},
		{"POST", pathMembers + "/../servers"},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(op.method, op.path, nil)) // of nobody, whom the state does not know
		if w.Code != http.StatusForbidden {
			t.Errorf("%s %s: %d", op.method, op.path, w.Code)
		}
	}
	if served != 0 {
		t.Errorf("%d requests were served", served)
	}
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", pathMembers, nil))
	if served != 1 {
		t.Error("a server cannot tell of a configuration")
	}
}

// An agent's certificate is of the cluster, and opens nothing that is for servers:
// neither their endpoints nor Raft, over a real node port that lets agents in.
func TestAgentsAreRefusedWhereServersSpeak(t *testing.T) {
	raft := startLoneRaft(t)
	host := startCertifier(t).mustCertify
	server, agent := host("s1", identity.RoleServer), host("a1", identity.RoleAgent)
	port, err := nodeport.Listen("127.0.0.1:0", func() (identity.Credentials, bool) { return server, true }, nil, quiet)
	must(t, err)
	defer nodekit.CloseWithin(port.Close, quiet, "node port")
	asked := 0
	api := http.NewServeMux()
	addServerAPI(api, raft, &membership{raft: raft}, &publisher{raft: raft, logger: quiet}, &checkInDesk{})
	port.ServeHTTP(nodeport.Handlers{Peer: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		api.ServeHTTP(w, r)
	})})

	client := nodeport.Client(func() identity.Credentials { return agent }, nil)
	defer client.CloseIdleConnections()
	operations := []struct{ method, path string }{
		{"POST", pathPropose},
		{"POST", pathAddServer},
		{"GET", pathStatus},
		{"GET", pathState},
		{"GET", pathMembers},
		{"POST", pathMembers},
		{"POST", pathRelease},
		{"POST", pathCheckIns},
	}
	for _, op := range operations {
		req, err := http.NewRequestWithContext(t.Context(), op.method, "https://"+port.Addr().String()+op.path, strings.NewReader(`{"id":"a1","address":"127.0.0.1:1"}`))
		must(t, err)
		resp, err := client.Do(req)
		must(t, err)
		resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s %s: %s", op.method, op.path, resp.Status)
		}
	}
	if asked != len(operations) {
		t.Errorf("%d requests arrived", asked)
	}
	conn, err := nodeport.DialRaft(t.Context(), agent, port.Addr().String(), nil)
	if err == nil { // in TLS 1.3 the first read tells
		defer conn.Close()
		must(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
		var timeout net.Error
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("an agent speaks Raft: %v", err)
		}
	}
}
