package mesh

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"moult/mesh/identity"
	"moult/mesh/meshtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testCluster = "6f7c2a10-0000-4000-8000-000000000001"

// cluster starts nodes on one in-memory network, under one CA, and knows all
// their keys as a server's enrolment would.
type cluster struct {
	t   *testing.T
	net *meshtest.Network
	ca  *identity.CA
	v   *identity.Verifier

	mu    sync.Mutex
	keys  map[string]ed25519.PrivateKey
	boots map[string]uint64
	nodes map[string]*Node
	ports int
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	ca, err := identity.NewCA(testCluster, time.Now())
	must(t, err)
	v, err := identity.NewVerifier(testCluster, ca.CertPEM())
	must(t, err)
	return &cluster{
		t: t, net: meshtest.New(1), ca: ca, v: v,
		keys: map[string]ed25519.PrivateKey{}, boots: map[string]uint64{}, nodes: map[string]*Node{},
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) key(host string) ed25519.PrivateKey {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.keys[host] == nil {
		key, err := identity.NewKey()
		must(c.t, err)
		c.keys[host] = key
	}
	return c.keys[host]
}

func (c *cluster) keyOf(host string) (ed25519.PublicKey, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key, ok := c.keys[host]
	if !ok {
		return nil, false
	}
	return key.Public().(ed25519.PublicKey), true
}

// roleOf is the enrolled role: hosts named s… are servers.
func roleOf(host string) (identity.Role, bool) {
	if strings.HasPrefix(host, "s") {
		return identity.RoleServer, true
	}
	return identity.RoleAgent, true
}

func (c *cluster) certificate(id identity.Identity, key ed25519.PrivateKey) []byte {
	text, err := c.ca.Issue(id, key.Public().(ed25519.PublicKey), time.Now(), 365*24*time.Hour)
	must(c.t, err)
	block, _ := pem.Decode(text)
	return block.Bytes
}

func gossipKey(fill byte) []byte { return bytes.Repeat([]byte{fill}, 32) }

// config makes the configuration of a host in some segments, which it joins by all
// that are there. Hosts named s… are servers.
func (c *cluster) config(host string, segments ...string) Config {
	c.t.Helper()
	cfg := c.configAlone(host, segments...)
	for i := range cfg.Pools {
		for _, n := range c.nodes {
			for _, p := range n.pools {
				if p.segment == cfg.Pools[i].Segment {
					cfg.Pools[i].Join = append(cfg.Pools[i].Join, p.ownAddr)
				}
			}
		}
	}
	return cfg
}

// configAlone is config of a host that nobody told of the others.
func (c *cluster) configAlone(host string, segments ...string) Config {
	c.t.Helper()
	role, _ := roleOf(host)
	id := identity.Identity{Cluster: testCluster, HostID: host, Name: host, Role: role}
	key := c.key(host)
	c.boots[host]++
	cfg := Config{
		Identity: id, Key: key, CertDER: c.certificate(id, key), Verifier: c.v, Boot: c.boots[host],
		OS: "linux", Arch: "amd64", Version: "1.0.0", Digest: strings.Repeat("ab", 32), PeerAddr: "127.0.0.1:7947",
		Transport: c.net.Host(host),
	}
	if os.Getenv("MESH_TEST_LOG") != "" {
		cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", host)
	}
	if id.Role == identity.RoleServer {
		cfg.KeyOf, cfg.RoleOf = c.keyOf, roleOf
	}
	for _, s := range segments {
		c.ports++
		cfg.Pools = append(cfg.Pools, PoolConfig{Segment: s, Bind: fmt.Sprintf("10.0.0.1:%d", c.ports), Keys: [][]byte{gossipKey(s[0])}})
	}
	return cfg
}

func (c *cluster) start(cfg Config) *Node {
	c.t.Helper()
	n, err := Start(c.t.Context(), cfg)
	must(c.t, err)
	c.nodes[cfg.Identity.HostID] = n
	c.t.Cleanup(func() { must(c.t, n.Close()) })
	return n
}

func (c *cluster) node(host string, segments ...string) *Node {
	c.t.Helper()
	return c.start(c.config(host, segments...))
}

// await waits, on the bubble's clock, until the condition holds.
func await(t *testing.T, within time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(within)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", within, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// awaitLiveness waits until each of the nodes sees the host so.
func awaitLiveness(t *testing.T, within time.Duration, host string, want Liveness, nodes ...*Node) {
	t.Helper()
	for _, n := range nodes {
		await(t, within, fmt.Sprintf("%s sees %s %s", n.cfg.Identity.HostID, host, want), func() bool {
			m, ok := n.Roster().Member(host)
			return ok && m.Liveness == want
		})
	}
}

// inbox collects what a node receives under a topic.
type inbox struct {
	mu   sync.Mutex
	got  []string
	from []identity.Identity
}

func collect(n *Node, topic string) *inbox {
	in := &inbox{}
	n.Handle(topic, func(from identity.Identity, payload []byte) {
		in.mu.Lock()
		defer in.mu.Unlock()
		in.got, in.from = append(in.got, string(payload)), append(in.from, from)
	})
	return in
}

func (in *inbox) has(payload string) bool { return in.count(payload) > 0 }

func (in *inbox) count(payload string) (n int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, g := range in.got {
		if g == payload {
			n++
		}
	}
	return n
}

func short(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		// Runs last: memberlist's probes end by the clock, which stops with the bubble.
		t.Cleanup(func() { time.Sleep(time.Minute) })
		f(t)
	})
}

func testDigest(fill byte) string { return hex.EncodeToString(bytes.Repeat([]byte{fill}, 32)) }
