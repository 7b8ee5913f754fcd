package main

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/mesh"
	"moult/mesh/identity"
	"moult/mesh/nodeport"
)

// What a node reaches is its host's affair: another member learns nothing, nor
// does the host believe another one that answers at its address.
func TestOnlyTheHostItselfIsTold(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	host := startCertifier(t).mustCertify
	a1 := host("a1", identity.RoleAgent)
	port, err := nodeport.Listen("127.0.0.1:0", func() (identity.Credentials, bool) { return a1, true }, nodekit.AgentGate(false, a1.Denials.Host), quiet)
	must(t, err)
	defer nodekit.CloseWithin(port.Close, quiet, "node port")
	addr := port.Addr().String()
	me, err := nodekit.DescribeSelf(t.TempDir(), thisBuild(), nil)
	must(t, err)
	node, err := mesh.Start(ctx, mesh.Config{
		Identity: a1.Identity, Key: a1.Key, CertDER: a1.CertDER(), Verifier: a1.Verifier(), Boot: me.Boot,
		OS: "linux", Arch: "amd64", Version: "1.0.0", Digest: me.Digest, PeerAddr: addr,
		Pools: []mesh.PoolConfig{{Segment: a1.Segment, Bind: "127.0.0.1:0", Keys: a1.GossipKeys}},
	})
	must(t, err)
	defer node.Close()
	api := http.NewServeMux()
	api.Handle("GET "+nodekit.PathSelf, nodekit.SelfEndpoint(node, a1.HostID, version))
	port.ServeHTTP(nodeport.Handlers{Peer: api})

	self, err := askSelf(ctx, a1, addr)
	must(t, err)
	if len(self.Survey.Pools) != 1 || self.Survey.Pools[0].Segment != "default" {
		t.Errorf("the host itself learns %+v", self)
	}
	for _, other := range []identity.Credentials{host("a2", identity.RoleAgent), host("s1", identity.RoleServer)} {
		_, err := (&serverClient{http: nodeport.Client(func() identity.Credentials { return other }, nodekit.AnyMember)}).Send(ctx, http.MethodGet, addr, nodekit.PathSelf, nil)
		if err == nil || !strings.Contains(err.Error(), "403") {
			t.Errorf("%s is told: %v", other.Name, err)
		}
		if _, err := askSelf(ctx, other, addr); err == nil || !strings.Contains(err.Error(), "another host") {
			t.Errorf("%s believes another host: %v", other.Name, err)
		}
	}
}
