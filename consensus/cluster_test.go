package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"moult/consensus/fleet"
)

func TestMain(m *testing.M) {
	// raft 1.8.0 leaves what its FSM goroutine had queued at a shutdown unanswered
	// for ever, and so whoever waits for it (see DESIGN.md).
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/hashicorp/raft.(*deferError).Error"))
}

// fast fails over in a few hundred milliseconds.
var fast = Timing{
	Heartbeat: 100 * time.Millisecond, Election: 100 * time.Millisecond, Lease: 100 * time.Millisecond,
	Commit: 5 * time.Millisecond, RPC: 500 * time.Millisecond, Enqueue: 300 * time.Millisecond,
	Forward: time.Second, Probe: 50 * time.Millisecond, Promote: 100 * time.Millisecond,
	DiskStall: 2 * time.Second, Transfer: time.Second,
}

var errCut = errors.New("the network is cut")

// cluster is a group of servers in this process, connected by loopback TCP.
type cluster struct {
	tb     testing.TB
	dir    string
	adjust func(*Config)

	mu      sync.Mutex
	servers []*server
	ids     map[string]string // by address, those that were stopped too
	cut     map[string]bool   // servers that nobody reaches and that reach nobody
	conns   []link
	log     cappedLog // of all servers; printed when the test fails
}

// cappedLog keeps what was written last.
type cappedLog struct {
	mu   sync.Mutex
	text []byte
}

const maxKeptLog = 256 << 10 // bytes

func (l *cappedLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, b...)
	if over := len(l.text) - maxKeptLog; over > maxKeptLog { // not at each line
		l.text = append([]byte(nil), l.text[over:]...)
	}
	return len(b), nil
}

func (l *cappedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text[max(0, len(l.text)-maxKeptLog):])
}

type server struct {
	*Node
	id, addr string
}

type link struct {
	from, to string
	conn     net.Conn
}

// startCluster starts n voters.
func startCluster(tb testing.TB, n int, adjust func(*Config)) *cluster {
	tb.Helper()
	c := &cluster{tb: tb, dir: tb.TempDir(), adjust: adjust, ids: make(map[string]string), cut: make(map[string]bool)}
	tb.Cleanup(func() {
		if tb.Failed() {
			c.describe()
		}
		c.stop()
	})
	first := c.open("s1", "")
	if err := first.Bootstrap(c.within(patience)); err != nil {
		tb.Fatal(err)
	}
	mustPropose(tb, first, user("first"))
	for i := 2; i <= n; i++ {
		s := c.open(fmt.Sprintf("s%d", i), "")
		if err := first.AddServer(c.within(patience), s.id, s.addr); err != nil {
			tb.Fatal(err)
		}
	}
	awaitSoon(tb, "all servers are voters and ready", func() bool {
		for _, s := range c.all() {
			if s.voters() != n || s.Ready() != nil {
				return false
			}
		}
		return true
	})
	return c
}

// open starts a server on its directory; addr "" takes a free one.
func (c *cluster) open(id, addr string) *server {
	c.tb.Helper()
	if addr == "" {
		addr = loopback() + ":0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		c.tb.Fatal(err)
	}
	addr = l.Addr().String()
	cfg := Config{
		Dir: filepath.Join(c.dir, id), ServerID: id, Address: addr, Listener: l,
		Dial: func(ctx context.Context, to string) (net.Conn, error) { return c.dial(ctx, addr, to) },
		Forward: func(ctx context.Context, _, to string, req []byte) ([]byte, error) {
			return c.forward(ctx, addr, to, req)
		},
		Progress: func(_ context.Context, _, to string) (uint64, error) {
			s, err := c.reach(addr, to)
			if err != nil {
				return 0, err
			}
			return s.AppliedIndex(), nil
		},
		Tell: func(ctx context.Context, _, to string, m Membership) error {
			s, err := c.reach(addr, to)
			if err != nil {
				return err
			}
			return s.Hear(ctx, id, m)
		},
		Ask: func(_ context.Context, _, to string) (Membership, error) {
			s, err := c.reach(addr, to)
			if err != nil {
				return Membership{}, err
			}
			return s.Membership(), nil
		},
		Timing: fast, Logger: slog.New(slog.NewTextHandler(&c.log, nil)).With("server", id),
	}
	if c.adjust != nil {
		c.adjust(&cfg)
	}
	c.mu.Lock()
	c.ids[addr] = id
	c.mu.Unlock()
	n, err := Open(cfg)
	if err != nil {
		l.Close()
		c.tb.Fatal(err)
	}
	s := &server{Node: n, id: id, addr: addr}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.servers = append(c.servers, s)
	return s
}

// loopback is an address that only this process uses, where a machine has more than
// one: others' connections would take the ports of servers that are stopped for a while.
func loopback() string {
	if runtime.GOOS != "linux" {
		return "127.0.0.1"
	}
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d", 1+pid>>14%200, pid>>7%128, 1+pid%128)
}

// reach returns the running server at an address, if the network lets it.
func (c *cluster) reach(from, to string) (*server, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut[from] || c.cut[to] {
		return nil, errCut
	}
	for _, s := range c.servers {
		if s.addr == to {
			return s, nil
		}
	}
	return nil, errors.New("connection refused")
}

// dial connects servers that the network lets and that take each other for members,
// as the node port does.
func (c *cluster) dial(ctx context.Context, from, to string) (net.Conn, error) {
	s, err := c.reach(from, to)
	if err != nil {
		return nil, err
	}
	if s.Configured() && !s.IsMember(c.idAt(from)) {
		return nil, fmt.Errorf("%s takes who is at %s for no member", s.id, from)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", to)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut[from] || c.cut[to] {
		conn.Close()
		return nil, errCut
	}
	c.conns = append(c.conns, link{from, to, conn})
	return conn, nil
}

// idAt is the id of the server that was opened at an address last.
func (c *cluster) idAt(addr string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ids[addr]
}

// forward loses the answer when the network is cut on the way.
func (c *cluster) forward(ctx context.Context, from, to string, req []byte) ([]byte, error) {
	s, err := c.reach(from, to)
	if err != nil {
		return nil, err
	}
	remote, cancel := context.WithCancel(context.Background()) // the wire carries no context values
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	answer, err := s.ServeForwarded(remote, req)
	if _, lost := c.reach(from, to); lost != nil {
		return nil, lost
	}
	return answer, err
}

// Cut takes a server off the network.
func (c *cluster) Cut(s *server) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut[s.addr] = true
	for _, l := range c.conns {
		if l.from == s.addr || l.to == s.addr {
			l.conn.Close()
		}
	}
}

// Heal brings it back.
func (c *cluster) Heal(s *server) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.cut, s.addr)
}

// Kill stops a server without a word to the others.
func (c *cluster) Kill(s *server) {
	c.tb.Helper()
	c.Cut(s)
	c.Stop(s)
	c.Heal(s)
}

// Stop stops a server in good order.
func (c *cluster) Stop(s *server) {
	c.tb.Helper()
	if err := s.Close(c.within(patience)); err != nil {
		stacks := make([]byte, 1<<20)
		c.tb.Errorf("close %s: %v\n%s", s.id, err, stacks[:runtime.Stack(stacks, true)])
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, other := range c.servers {
		if other == s {
			c.servers = append(c.servers[:i:i], c.servers[i+1:]...)
		}
	}
}

func (c *cluster) stop() {
	for _, s := range c.all() {
		c.Cut(s) // nobody needs a handover any more
	}
	for _, s := range c.all() {
		c.Stop(s)
	}
}

func (c *cluster) all() []*server {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*server(nil), c.servers...)
}

// AwaitLeader returns the one server that leads, among those not cut off.
func (c *cluster) AwaitLeader() *server {
	c.tb.Helper()
	var leader *server
	awaitSoon(c.tb, "a leader", func() bool {
		for _, s := range c.all() {
			if _, err := c.reach(s.addr, s.addr); err == nil && s.IsLeader() {
				leader = s
				return true
			}
		}
		return false
	})
	return leader
}

// HandOver has another server lead. On a busy machine a target may be too slow for it.
func (c *cluster) HandOver(leader *server) {
	c.tb.Helper()
	awaitSoon(c.tb, "the handover", func() bool {
		return leader.TransferLeadership(c.within(time.Second)) == nil || c.AwaitLeader() != leader
	})
}

// Followers returns the others.
func (c *cluster) Followers(leader *server) []*server {
	var out []*server
	for _, s := range c.all() {
		if s != leader {
			out = append(out, s)
		}
	}
	return out
}

// AwaitEqual waits until all servers hold the same state at the same index.
func (c *cluster) AwaitEqual() {
	c.tb.Helper()
	awaitSoon(c.tb, "equal states", func() bool {
		all := c.all()
		first := all[0].View()
		for _, s := range all[1:] {
			v := s.View()
			if v.Index() != first.Index() {
				return false
			}
			if v.Hash() != first.Hash() { // waiting would not mend it
				c.tb.Fatalf("%s and %s differ at index %d:\n%s", all[0].id, s.id, v.Index(), difference(first, v))
			}
		}
		return true
	})
}

// difference is what only one of two states has, a row a line.
func difference(a, b fleet.View) string {
	rows := func(v fleet.View) []string {
		var text strings.Builder
		_ = v.Snapshot(&text) // a builder takes every byte
		return strings.Split(text.String(), "\n")
	}
	var out strings.Builder
	one, other := rows(a), rows(b)
	for _, side := range []struct {
		mark       string
		have, lack []string
	}{{"-", one, other}, {"+", other, one}} {
		for _, row := range side.have {
			if !slices.Contains(side.lack, row) {
				fmt.Fprintf(&out, "%s %s\n", side.mark, row)
			}
		}
	}
	return out.String()
}

// describe says how far each server is, and what they logged last.
func (c *cluster) describe() {
	for _, s := range c.all() {
		v := s.View()
		c.tb.Logf("%s at %d, state %.8s, ready: %v, %v", s.id, v.Index(), v.Hash(), s.Ready(), s.raft.Stats())
	}
	c.tb.Logf("log:\n%s", c.log.String())
}

// within returns a context that ends after d, or with the test.
func (c *cluster) within(d time.Duration) context.Context { return within(c.tb, d) }

func within(tb testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	tb.Cleanup(cancel)
	return ctx
}

// patience is long: the machines that run the tests are busy, and a failover
// that meets another one starts over.
const patience = time.Minute

// awaitSoon polls until the condition holds, or fails the test.
func awaitSoon(tb testing.TB, what string, holds func() bool) {
	tb.Helper()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	deadline := time.After(patience)
	for !holds() {
		select {
		case <-poll.C:
		case <-deadline:
			tb.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// user is a change that every server accepts, once.
func user(name string) fleet.UserCreated {
	return fleet.UserCreated{User: fleet.User{ID: "id-" + name, Name: name, Role: fleet.Viewer, PasswordHash: "$argon2id$x"}}
}

func hasUser(s *server, name string) bool {
	_, ok := s.View().UserByName(name)
	return ok
}

func mustPropose(tb testing.TB, s *server, c fleet.Change) fleet.Result {
	tb.Helper()
	r, err := s.Propose(within(tb, patience), "user:test", c)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}
