package artifact

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"testing"
	"time"

	"moult/mesh/identity"
	"moult/mesh/nodeport"
	"moult/updater/release"
)

// ports are hosts of one cluster with real node ports on loopback: a server that
// holds a signed artifact, a relay, and a host that is told of the relay only.
type ports struct {
	server, relay, host *portHost
	size                int64
	digest              string
	manifest, signature []byte
}

type portHost struct {
	creds  identity.Credentials
	store  *Store
	peer   Peer
	client *http.Client
}

func newPorts(tb testing.TB, size int64) *ports {
	tb.Helper()
	now := time.Now()
	ca, err := identity.NewCA("cluster-1", now)
	must(tb, err)
	public, secret, err := release.GenerateKey()
	must(tb, err)
	p := &ports{size: size}
	p.server = newPortHost(tb, ca, "server-1", identity.RoleServer)
	p.relay = newPortHost(tb, ca, "relay-1", identity.RoleAgent)
	p.host = newPortHost(tb, ca, "agent-1", identity.RoleAgent)
	p.digest, err = p.server.store.Import(io.LimitReader(rand.NewChaCha8([32]byte{7}), size), size, func(string, int64) bool { return true })
	must(tb, err)
	p.manifest, err = json.Marshal(release.Manifest{
		Product: release.Product, Version: "2.0.0", Number: 2, Created: now.UTC(),
		Artifacts: []release.Artifact{{OS: "linux", Arch: "amd64", Size: size, SHA256: p.digest}},
	})
	must(tb, err)
	p.signature, err = release.Sign(secret, p.manifest)
	must(tb, err)
	p.server.serve(tb, nil)
	puller, err := NewPuller(PullerConfig{
		HostID: "relay-1", Store: p.relay.store, HTTP: p.relay.client, ReleaseKeys: func() release.KeySet { return release.Pinned(public) },
		Candidates: func(string) []Peer { return []Peer{p.server.peer} }, Relays: func([]string) []Peer { return nil },
		Active: func() bool { return true }, Prune: true,
	})
	must(tb, err)
	tb.Cleanup(puller.Close)
	p.relay.serve(tb, puller)
	return p
}

func newPortHost(tb testing.TB, ca *identity.CA, id string, role identity.Role) *portHost {
	tb.Helper()
	key, err := identity.NewKey()
	must(tb, err)
	who := identity.Identity{Cluster: "cluster-1", HostID: id, Name: "name of " + id, Role: role}
	cert, err := ca.Issue(who, key.Public().(ed25519.PublicKey), time.Now(), time.Hour)
	must(tb, err)
	h := &portHost{creds: identity.Credentials{Identity: who, Key: key, CertPEM: cert, CAPEM: ca.CertPEM()}}
	h.store, err = OpenStore(tb.TempDir(), "", "")
	must(tb, err)
	h.client = nodeport.Client(func() identity.Credentials { return h.creds }, nil)
	tb.Cleanup(h.client.CloseIdleConnections)
	return h
}

func (h *portHost) serve(tb testing.TB, puller *Puller) {
	tb.Helper()
	port, err := nodeport.Listen("127.0.0.1:0", func() (identity.Credentials, bool) { return h.creds, true }, nil, slog.New(slog.DiscardHandler))
	must(tb, err)
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := port.Close(ctx); err != nil {
			tb.Error(err)
		}
	})
	mux := http.NewServeMux()
	mux.Handle("/artifact/", Handler(h.store, DefaultLimits))
	if puller != nil {
		mux.Handle("POST /artifact/{digest}/pull", puller)
	}
	port.ServeHTTP(nodeport.Handlers{Peer: mux})
	h.peer = Peer{HostID: h.creds.HostID, Addr: port.Addr().String()}
}

func (p *ports) request() FetchRequest {
	return FetchRequest{
		Store: p.host.store, Digest: p.digest, Size: p.size, HTTP: p.host.client,
		Candidates: func() []Peer { return nil },
		Pull: &Pull{
			HostID: "agent-1", Manifest: p.manifest, Signature: p.signature,
			Relays: func([]string) []Peer { return []Peer{p.relay.peer} },
		},
	}
}

// Over real node ports: who asks is known by its certificate, and so is who
// answers.
func TestPullOverNodePorts(t *testing.T) {
	p := newPorts(t, 3<<20)
	// In another host's name.
	body, err := json.Marshal(pullAsk{Manifest: p.manifest, Signature: p.signature, Via: []string{"agent-2"}})
	must(t, err)
	resp, err := p.host.client.Post("https://"+p.relay.peer.Addr+pathPrefix+p.digest+pullSuffix, "application/json", bytes.NewReader(body))
	must(t, err)
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest || p.relay.store.Has(p.digest) {
		t.Errorf("asked in another's name: %s", resp.Status)
	}
	sources, err := Fetch(t.Context(), p.request())
	must(t, err)
	if len(sources) != 1 || sources[0].Peer.Name != "name of relay-1" || sources[0].Bytes != p.size {
		t.Errorf("sources %+v", sources)
	}
}

// BenchmarkPull brings 64 MB to a host through a relay that lacks it, and straight
// from the server, in turns: over real node ports, verified and durable at each
// step. A relay verifies before it serves, so twice the time is what a way of two
// links costs; x-direct beyond 2 is what pulling adds.
func BenchmarkPull(b *testing.B) {
	p := newPorts(b, benchSize)
	direct := p.request()
	direct.Candidates, direct.Pull = func() []Peer { return []Peer{p.server.peer} }, nil
	took := map[string][]time.Duration{}
	for b.Loop() {
		for name, req := range map[string]FetchRequest{"direct": direct, "relay": p.request()} {
			start := time.Now()
			_, err := Fetch(b.Context(), req)
			must(b, err)
			took[name] = append(took[name], time.Since(start))
			must(b, p.host.store.Remove(p.digest))
			must(b, p.relay.store.Remove(p.digest))
		}
	}
	median := func(name string) float64 {
		slices.Sort(took[name])
		return took[name][len(took[name])/2].Seconds()
	}
	b.ReportMetric(0, "ns/op") // of both together: says nothing
	b.ReportMetric(benchSize/1e6/median("relay"), "relay-MB/s")
	b.ReportMetric(benchSize/1e6/median("direct"), "direct-MB/s")
	b.ReportMetric(median("relay")/median("direct"), "x-direct")
}
