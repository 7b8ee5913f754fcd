package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/consensus"
	"moult/consensus/fleet"
	"moult/mesh/identity"
)

// Parts of a cluster that tests put together by hand, in one process.

var quiet = slog.New(slog.DiscardHandler)

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// certifier certifies hosts of the cluster "cluster-1".
type certifier struct {
	tb testing.TB
	ca *identity.CA
}

func startCertifier(tb testing.TB) certifier {
	tb.Helper()
	ca, err := identity.NewCA("cluster-1", time.Now())
	must(tb, err)
	return certifier{tb, ca}
}

// mustCertify returns what a host has that joined under a name, which is its id too.
func (c certifier) mustCertify(name string, role identity.Role) identity.Credentials {
	c.tb.Helper()
	key, err := identity.NewKey()
	must(c.tb, err)
	id := identity.Identity{Cluster: "cluster-1", HostID: name, Name: name, Role: role}
	cert, err := c.ca.Issue(id, key.Public().(ed25519.PublicKey), time.Now(), time.Hour)
	must(c.tb, err)
	return identity.Credentials{
		Identity: id, Key: key, CertPEM: cert, CAPEM: c.ca.CertPEM(),
		Segment: "default", GossipKeys: [][]byte{make([]byte, 32)},
	}
}

// startLoneRaft opens the Raft node of server s1, which reaches nobody and is in no
// group yet. It is closed with the test.
func startLoneRaft(tb testing.TB) *consensus.Node {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(tb, err)
	nobody := errors.New("nobody else is here")
	raft, err := consensus.Open(consensus.Config{
		Dir: filepath.Join(tb.TempDir(), "raft"), ServerID: "s1", Address: l.Addr().String(), Listener: l,
		Dial:    func(context.Context, string) (net.Conn, error) { return nil, nobody },
		Forward: func(context.Context, string, string, []byte) ([]byte, error) { return nil, nobody },
		Logger:  quiet,
	})
	must(tb, err)
	tb.Cleanup(func() { nodekit.CloseWithin(raft.Close, quiet, "raft") })
	return raft
}

// startLoneCluster has a cluster of that server alone, and returns how to change its
// state.
func startLoneCluster(ctx context.Context, tb testing.TB, name string) (*consensus.Node, func(fleet.Change)) {
	tb.Helper()
	raft := startLoneRaft(tb)
	must(tb, raft.Bootstrap(ctx))
	propose := func(c fleet.Change) {
		tb.Helper()
		_, err := raft.Propose(ctx, "system", c)
		must(tb, err)
	}
	propose(fleet.ClusterInitialized{
		Cluster: fleet.Cluster{ID: "cluster-1"}, Server: fleet.Host{ID: "s1", Name: name, OS: "linux", Arch: "amd64"},
		Admin: fleet.User{ID: "u1", Name: "admin"}, Token: fleet.APIToken{ID: "t1", Name: "t", Hash: "h"},
	})
	return raft, propose
}
