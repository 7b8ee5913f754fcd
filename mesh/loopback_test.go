package mesh

import (
	"net"
	"strings"
	"testing"
	"time"
)

// loopback makes a host's configuration on real sockets.
func (c *cluster) loopback(host string, seeds ...string) Config {
	cfg := c.config(host, "default")
	cfg.Transport = nil
	cfg.Pools[0].Bind, cfg.Pools[0].Join = "127.0.0.1:0", seeds
	cfg.Timing = Timing{Gossip: 20 * time.Millisecond, Probe: 200 * time.Millisecond, PushPull: 500 * time.Millisecond, Rejoin: time.Second}
	return cfg
}

func TestThreeNodesOnRealSockets(t *testing.T) {
	c := newCluster(t)
	s := c.start(c.loopback("s1"))
	a := c.start(c.loopback("a1", s.GossipAddrs()...))
	b := c.start(c.loopback("a2", s.GossipAddrs()...))
	for _, h := range []string{"s1", "a1", "a2"} {
		awaitLiveness(t, 20*time.Second, h, Online, s, a, b)
	}
	in := collect(s, "report")
	large := strings.Repeat("x", MaxPayload)
	must(t, a.Send(short(t), "s1", "report", []byte(large)))
	await(t, 10*time.Second, "the report", func() bool { return in.has(large) })

	a.Announce(PhasePreflight, "job-1")
	await(t, 10*time.Second, "the new phase", func() bool {
		m, _ := b.Roster().Member("a1")
		return m.Phase == PhasePreflight
	})
	must(t, a.Leave(20*time.Second))
	must(t, a.Close())
	awaitLiveness(t, 20*time.Second, "a1", Left, s, b)
	must(t, b.Close()) // without a goodbye
	awaitLiveness(t, 30*time.Second, "a2", Offline, s)
}

func TestPortInUseSaysWhatToDo(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	c := newCluster(t)
	cfg := c.loopback("s1")
	cfg.Pools[0].Bind = l.Addr().String()
	if _, err := Start(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "in use") || !strings.Contains(err.Error(), "--gossip") {
		t.Errorf("got %v", err)
	}
}

func TestCloseDoesNotWaitForABlackHole(t *testing.T) {
	c := newCluster(t)
	cfg := c.loopback("s1", "192.0.2.1:7946") // TEST-NET-1: nobody answers
	cfg.Timing.Stream = time.Minute
	s := c.start(cfg)
	start := time.Now()
	must(t, s.Close())
	must(t, s.Close())
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("closing took %v", took)
	}
}

func TestBadConfigurationIsRefused(t *testing.T) {
	c := newCluster(t)
	for name, spoil := range map[string]func(*Config){
		"no pool":            func(c *Config) { c.Pools = nil },
		"five pools":         func(c *Config) { c.Pools = make([]PoolConfig, MaxSegments+1) },
		"segment twice":      func(c *Config) { c.Pools = append(c.Pools, c.Pools[0]) },
		"no gossip key":      func(c *Config) { c.Pools[0].Keys = nil },
		"short gossip key":   func(c *Config) { c.Pools[0].Keys = [][]byte{{1}} },
		"bad segment":        func(c *Config) { c.Pools[0].Segment = "a b" },
		"peer without port":  func(c *Config) { c.PeerAddr = "localhost" },
		"long version":       func(c *Config) { c.Version = strings.Repeat("v", maxVersion+1) },
		"digest of a prefix": func(c *Config) { c.Digest = "ab" },
		"no digits":          func(c *Config) { c.Digest = strings.Repeat("z", 64) },
		"bad network":        func(c *Config) { c.Pools[0].Allow = []string{"10.0.0.0/99"} },
		"bad bind":           func(c *Config) { c.Pools[0].Bind = "7946" },
	} {
		cfg := c.loopback("s1")
		spoil(&cfg)
		if n, err := Start(t.Context(), cfg); err == nil {
			n.Close()
			t.Errorf("%s: started", name)
		}
	}
}
