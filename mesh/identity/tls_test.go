package identity_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"moult/mesh/identity"
)

// connect does one handshake over a real socket, both sides, and has each side
// send a byte: in TLS 1.3 a refused client learns it on its first read.
func connect(t *testing.T, listening, dialing *tls.Config) (serverSide tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		tc := tls.Server(conn, listening)
		if err = tc.Handshake(); err == nil {
			serverSide = tc.ConnectionState()
			_, err = tc.Write([]byte("s"))
		}
		done <- err
	}()
	conn, err := net.DialTimeout("tcp", l.Addr().String(), 10*time.Second)
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	tc := tls.Client(conn, dialing)
	if clientErr = tc.Handshake(); clientErr == nil {
		_, clientErr = io.ReadFull(tc, make([]byte, 1))
	}
	conn.Close()
	return serverSide, <-done, clientErr
}

func TestMutualTLS(t *testing.T) {
	ca := mustCA(t, clusterID, time.Now())
	foreignCA := mustCA(t, clusterID, time.Now())
	elsewhereCA := mustCA(t, "elsewhere", time.Now())
	s1, s2, a1 := credentials(t, ca, server("s1")), credentials(t, ca, server("s2")), credentials(t, ca, agent("a1"))
	foreign := credentials(t, foreignCA, server("s2"))
	foreign.CAPEM = ca.CertPEM() // it believes the cluster, the cluster must not believe it
	elsewhere := credentials(t, elsewhereCA, identity.Identity{Cluster: "elsewhere", HostID: "s2", Name: "s2", Role: identity.RoleServer})
	expired := s2
	expired.CertPEM = mustIssue(t, ca, s2.Identity, s2.Key, time.Now().Add(-3*time.Hour), time.Hour)
	stolen := s2 // the certificate of a server, without its key
	stolen.Key = mustKey(t)
	bare := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{identity.ALPNHTTP}, InsecureSkipVerify: true}
	bareRaft := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{identity.ALPNRaft}, InsecureSkipVerify: true}
	removed := errors.New("this host was removed")
	allow := func(_ string, id identity.Identity) error {
		if id.HostID == "gone" {
			return removed
		}
		return nil
	}
	const raft, http = identity.ALPNRaft, identity.ALPNHTTP
	for name, tc := range map[string]struct {
		dialing *tls.Config
		says    string // of the listening side; "": let in
	}{
		"server, Raft":           {s2.ClientTLS(raft, nil), ""},
		"server, HTTP":           {s2.ClientTLS(http, nil), ""},
		"agent, HTTP":            {a1.ClientTLS(http, nil), ""},
		"agent, Raft":            {a1.ClientTLS(raft, nil), "only servers speak Raft"},
		"removed, HTTP":          {credentials(t, ca, agent("gone")).ClientTLS(http, nil), "was removed"},
		"removed, Raft":          {credentials(t, ca, server("gone")).ClientTLS(raft, nil), "was removed"},
		"no certificate, HTTP":   {bare, "certificate"},
		"no certificate, Raft":   {bareRaft, "certificate"},
		"another CA":             {foreign.ClientTLS(raft, nil), "unknown authority"},
		"another cluster":        {withRoots(elsewhere, ca).ClientTLS(raft, nil), "verify certificate"},
		"expired":                {expired.ClientTLS(raft, nil), "clocks"},
		"without the key":        {stolen.ClientTLS(raft, nil), "signature"},
		"none of the protocols":  {&tls.Config{NextProtos: []string{"h2", "http/1.1"}, InsecureSkipVerify: true}, "none of moult's protocols"},
		"no ALPN":                {&tls.Config{InsecureSkipVerify: true}, "none of moult's protocols"},
		"TLS 1.2":                {tls12(s2.ClientTLS(raft, nil)), "versions"},
		"join and Raft together": {alpns(bareRaft, identity.ALPNJoin, raft), ""}, // join is what it gets
	} {
		cs, serverErr, clientErr := connect(t, s1.ServerTLS(allow), tc.dialing)
		switch {
		case tc.says == "" && (serverErr != nil || clientErr != nil):
			t.Errorf("%s: refused: %v, %v", name, serverErr, clientErr)
		case tc.says != "" && (serverErr == nil || clientErr == nil || !strings.Contains(serverErr.Error(), tc.says)):
			t.Errorf("%s: %v, %v", name, serverErr, clientErr)
		}
		if name == "join and Raft together" && cs.NegotiatedProtocol != identity.ALPNJoin {
			t.Errorf("without a certificate it speaks %q", cs.NegotiatedProtocol)
		}
		if name == "agent, HTTP" {
			if id, err := identity.PeerIdentity(cs); err != nil || id != a1.Identity {
				t.Errorf("the listener takes it for %v, %v", id, err)
			}
		}
	}
	if _, err := identity.PeerIdentity(tls.ConnectionState{}); err == nil {
		t.Error("a connection without a certificate has an identity")
	}
}

// The dialing side believes no address, and for Raft no agent.
func TestDialingSideVerifies(t *testing.T) {
	ca := mustCA(t, clusterID, time.Now())
	s1, s2, a1 := credentials(t, ca, server("s1")), credentials(t, ca, server("s2")), credentials(t, ca, agent("a1"))
	foreign := credentials(t, mustCA(t, clusterID, time.Now()), server("s1"))
	wantS1 := func(id identity.Identity) error {
		if id.HostID != "s1" {
			return errors.New("not who was asked for")
		}
		return nil
	}
	const raft, http = identity.ALPNRaft, identity.ALPNHTTP
	for name, tc := range map[string]struct {
		listening identity.Credentials
		alpn      string
		want      func(identity.Identity) error
		says      string
	}{
		"the server":                   {s1, raft, wantS1, ""},
		"another host":                 {a1, http, wantS1, "not who was asked for"},
		"an agent answers Raft":        {a1, raft, nil, "not a server"},
		"another CA":                   {foreign, raft, nil, "unknown authority"},
		"another CA, HTTP, no opinion": {foreign, http, nil, "unknown authority"},
	} {
		_, _, err := connect(t, tc.listening.ServerTLS(nil), s2.ClientTLS(tc.alpn, tc.want))
		if tc.says == "" && err != nil || tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	plain := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der(s1.CertPEM)}, PrivateKey: s1.Key}}}
	if _, _, err := connect(t, plain, s2.ClientTLS(http, nil)); err == nil || !strings.Contains(err.Error(), "is this a node port") {
		t.Errorf("a listener without ALPN: %v", err)
	}
}

func withRoots(c identity.Credentials, ca *identity.CA) identity.Credentials {
	c.CAPEM, c.Cluster = ca.CertPEM(), clusterID
	return c
}

func tls12(cfg *tls.Config) *tls.Config {
	cfg.MinVersion, cfg.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	return cfg
}

func alpns(cfg *tls.Config, protos ...string) *tls.Config {
	cfg = cfg.Clone()
	cfg.NextProtos = protos
	return cfg
}
