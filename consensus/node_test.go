package consensus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// hangingLog is a log on a disk that can be made to hang.
type hangingLog struct {
	raft.LogStore
	mu   sync.Mutex
	gate chan struct{} // nil: writes pass
}

func (h *hangingLog) wrap(l raft.LogStore) raft.LogStore { h.LogStore = l; return h }

func (h *hangingLog) hang() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gate = make(chan struct{})
}

func (h *hangingLog) resume() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gate != nil {
		close(h.gate)
		h.gate = nil
	}
}

func (h *hangingLog) StoreLogs(ls []*raft.Log) error {
	h.mu.Lock()
	gate := h.gate
	h.mu.Unlock()
	if gate != nil {
		<-gate
	}
	return h.LogStore.StoreLogs(ls)
}

// failingLog is a log on a disk that can be full.
type failingLog struct {
	raft.LogStore
	full atomic.Bool
}

func (f *failingLog) StoreLogs(ls []*raft.Log) error {
	if f.full.Load() {
		return syscall.ENOSPC
	}
	return f.LogStore.StoreLogs(ls)
}

func TestServerThatCannotWriteSaysSo(t *testing.T) {
	disks := make(map[string]*failingLog)
	c := startCluster(t, 3, func(cfg *Config) {
		d := &failingLog{}
		disks[cfg.ServerID] = d
		cfg.wrapLog = func(l raft.LogStore) raft.LogStore { d.LogStore = l; return d }
	})
	s := c.Followers(c.AwaitLeader())[0]
	disks[s.id].full.Store(true)
	mustPropose(t, c.AwaitLeader(), user("ann"))
	awaitSoon(t, "it says that its disk is full", func() bool {
		return errors.Is(s.Ready(), ErrDiskFailed) && errors.Is(s.Ready(), syscall.ENOSPC)
	})
	disks[s.id].full.Store(false)
	awaitSoon(t, "it is well again", func() bool { return s.Ready() == nil })
	c.AwaitEqual()
}

func TestBootstrapHappensOnce(t *testing.T) {
	c := startCluster(t, 1, nil)
	s := c.all()[0]
	if err := s.Bootstrap(c.within(time.Second)); !errors.Is(err, ErrBootstrapped) {
		t.Errorf("second bootstrap: %v", err)
	}
	c.Stop(s)
	again := c.open(s.id, s.addr)
	if !again.Configured() || !again.IsMember(s.id) {
		t.Error("a restarted server forgot its group")
	}
	if err := again.Bootstrap(c.within(time.Second)); !errors.Is(err, ErrBootstrapped) {
		t.Errorf("bootstrap after a restart: %v", err)
	}
}

func TestDirectoryInUseIsNamed(t *testing.T) {
	c := startCluster(t, 1, nil)
	s := c.all()[0]
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := s.cfg
	cfg.Listener = l
	if n, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "another moult server uses this data directory") {
		t.Errorf("second open: %v, %v", n, err)
	}
}

func TestRestartFromDiskGivesTheSameState(t *testing.T) {
	c := startCluster(t, 3, nil)
	for i := range 20 {
		mustPropose(t, c.all()[i%3], user(fmt.Sprintf("u%d", i)))
	}
	c.AwaitEqual()
	stopped := c.all()
	// One from a snapshot and the log behind it, two from the log alone.
	if err := stopped[0].raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	mustPropose(t, stopped[0], user("behind-the-snapshot"))
	c.AwaitEqual()
	index, hash := stopped[0].AppliedIndex(), stopped[0].State().Hash()
	for _, s := range stopped {
		c.Stop(s)
	}
	for _, s := range stopped {
		c.open(s.id, s.addr)
	}
	awaitSoon(t, "all are ready", func() bool {
		for _, s := range c.all() {
			if s.Ready() != nil {
				return false
			}
		}
		return true
	})
	for _, s := range c.all() {
		if s.AppliedIndex() != index || s.State().Hash() != hash {
			t.Errorf("%s: index %d, hash %s; before the restart %d, %s", s.id, s.AppliedIndex(), s.State().Hash(), index, hash)
		}
	}
}

func TestSnapshotIsInstalledOnAFarBehindFollower(t *testing.T) {
	c := startCluster(t, 3, func(cfg *Config) { cfg.Snapshots.Trailing = 1 })
	leader := c.AwaitLeader()
	behind := c.Followers(leader)[0]
	c.Stop(behind)
	last := behind.AppliedIndex()
	for i := range 50 {
		mustPropose(t, leader, user(fmt.Sprintf("u%d", i)))
	}
	for _, s := range c.all() {
		if err := s.raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
		if first, err := s.store.FirstIndex(); err != nil || first <= last+1 {
			t.Fatalf("%s still has log entry %d (%v); the follower at %d needs no snapshot", s.id, first, err, last)
		}
	}
	back := c.open(behind.id, behind.addr)
	awaitSoon(t, "the follower is ready", func() bool { return back.Ready() == nil })
	c.AwaitEqual()
	if !hasUser(back, "u49") {
		t.Error("the follower lacks what the snapshot held")
	}
	mustPropose(t, back, user("after"))
}

func TestNewServerIsPromotedWhenCaughtUp(t *testing.T) {
	c := startCluster(t, 1, nil)
	leader := c.all()[0]
	s := c.open("s2", "")
	if s.Configured() || s.Ready() == nil {
		t.Error("a server that nobody added is configured or ready")
	}
	c.Cut(s) // its progress cannot be seen
	ctx := c.within(patience)
	if err := leader.AddServer(ctx, s.id, s.addr); err != nil {
		t.Fatal(err)
	}
	status := leader.Servers()
	if len(status) != 2 || status[1].Voter || status[1].ID != "s2" || !status[0].Leader || !status[0].Voter {
		t.Fatalf("after AddServer: %+v", status)
	}
	if err := leader.AddServer(ctx, s.id, s.addr); err != nil {
		t.Errorf("adding it again: %v", err)
	}
	if err := leader.AddServer(ctx, "s3", s.addr); !errors.Is(err, ErrRefused) {
		t.Errorf("a second server at its address: %v", err)
	}
	for i := range 3 { // each takes longer than a round of probes
		mustPropose(t, leader, user(fmt.Sprintf("u%d", i)))
	}
	if leader.voters() != 1 {
		t.Fatal("a server that does not answer became a voter")
	}
	c.Heal(s)
	awaitSoon(t, "it is a voter", func() bool { return s.voters() == 2 && leader.voters() == 2 })
	c.AwaitEqual()
}

func TestPromotable(t *testing.T) {
	start := time.Unix(1000, 0)
	ok, behind := progress{applied: 1000}, progress{applied: 900}
	steps := []struct {
		after   time.Duration
		answers map[string]progress
		want    string
	}{
		{0, map[string]progress{"a": ok, "b": ok, "c": behind, "d": {}}, ""},
		{2 * time.Second, map[string]progress{"a": ok, "b": {err: errCut}, "c": ok, "d": {}}, ""},
		{3 * time.Second, map[string]progress{"a": ok, "b": ok, "c": ok, "d": {}}, "a"},
		{4 * time.Second, map[string]progress{"b": ok, "c": ok, "d": {}}, ""}, // b began anew at 3, c at 2
		{5 * time.Second, map[string]progress{"b": ok, "c": ok, "d": {}}, "c"},
		{6 * time.Second, map[string]progress{"a": ok, "b": ok}, "b"}, // a was away: begins anew
	}
	since := make(map[string]time.Time)
	for _, s := range steps {
		if got := promotable(s.answers, 1000, since, start.Add(s.after), 3*time.Second); got != s.want {
			t.Errorf("after %s: %q, want %q", s.after, got, s.want)
		}
	}
	if got := promotable(map[string]progress{"a": {}}, 0, map[string]time.Time{"a": start}, start.Add(time.Hour), time.Second); got != "" {
		t.Errorf("a server that has applied nothing was promoted")
	}
}

func TestServersAreRemoved(t *testing.T) {
	c := startCluster(t, 3, nil)
	ctx := c.within(patience)
	leader := c.AwaitLeader()
	followers := c.Followers(leader)

	c.Cut(followers[0])
	err := leader.RemoveServer(ctx, followers[1].id)
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), followers[0].id) {
		t.Errorf("removing one of the two that answer: %v", err)
	}
	if err := followers[1].RemoveServer(ctx, followers[0].id); err != nil {
		t.Fatalf("removing the one that is down, from a follower: %v", err)
	}
	awaitSoon(t, "it is gone", func() bool { return !leader.IsMember(followers[0].id) && !followers[1].IsMember(followers[0].id) })
	if err := leader.RemoveServer(ctx, followers[0].id); err != nil {
		t.Errorf("removing it again: %v", err)
	}
	// The leader hands over first.
	if err := leader.RemoveServer(ctx, leader.id); err != nil {
		t.Fatalf("removing the leader: %v", err)
	}
	awaitSoon(t, "the last one leads alone", func() bool { return followers[1].IsLeader() && followers[1].voters() == 1 })
	if err := followers[1].RemoveServer(ctx, followers[1].id); !errors.Is(err, ErrRefused) {
		t.Errorf("removing the only voter: %v", err)
	}
	mustPropose(t, followers[1], user("alone"))
}

func TestLeadershipIsTransferredToAServerThatAnswers(t *testing.T) {
	c := startCluster(t, 3, nil)
	old := c.AwaitLeader()
	followers := c.Followers(old)
	c.Cut(followers[0]) // Raft on its own might pick this one
	// On a busy machine a target may be too slow, or the old leader come back by chance.
	awaitSoon(t, "the one that answers leads", func() bool {
		if old.IsLeader() {
			_ = followers[1].TransferLeadership(c.within(5 * time.Second))
		}
		return followers[1].IsLeader()
	})
	c.Cut(old)
	awaitSoon(t, "it notices that it is alone", func() bool { return !followers[1].IsLeader() })
}

func TestCloseHandsLeadershipOver(t *testing.T) {
	c := startCluster(t, 3, func(cfg *Config) {
		// Long enough that only a handover gives a leader within the test's patience.
		cfg.Timing.Heartbeat, cfg.Timing.Election = 20*time.Second, 20*time.Second
		if cfg.ServerID == "s1" {
			cfg.Timing.Heartbeat, cfg.Timing.Election = 100*time.Millisecond, 100*time.Millisecond
		}
	})
	old := c.AwaitLeader()
	c.Stop(old)
	if c.AwaitLeader() == old {
		t.Fatal("the closed server leads")
	}
	if _, err := old.Propose(c.within(time.Second), "user:test", user("late")); !errors.Is(err, ErrClosed) {
		t.Errorf("Propose on a closed node: %v", err)
	}
	if err := old.Close(context.Background()); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// TestHeartbeatsTakeTheOrdinaryWay guards against the fast path of
// hashicorp/raft issue 695.
func TestHeartbeatsTakeTheOrdinaryWay(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stream := newStreamLayer(Config{
		Listener: l, Address: l.Addr().String(),
		Dial: func(ctx context.Context, to string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", to)
		},
	})
	tr := newTransport(stream, &diskWatch{limit: time.Second}, func() error { return nil }, 2*time.Second, raftLogger{out: slog.New(slog.DiscardHandler)})
	defer tr.Close()
	tr.SetHeartbeatHandler(func(rpc raft.RPC) {
		t.Error("the heartbeat handler was called")
		rpc.Respond(&raft.AppendEntriesResponse{}, nil)
	})
	answered := make(chan error, 1)
	go func() {
		heartbeat := raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ID: []byte("x"), Addr: []byte("y")}, Term: 7}
		answered <- tr.AppendEntries("self", raft.ServerAddress(l.Addr().String()), &heartbeat, &raft.AppendEntriesResponse{})
	}()
	select {
	case rpc := <-tr.Consumer():
		rpc.Respond(&raft.AppendEntriesResponse{Success: true}, nil)
	case <-time.After(5 * time.Second):
		t.Fatal("the heartbeat did not reach Raft's main goroutine")
	}
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
}

func TestCloseEndsAcceptedConnections(t *testing.T) {
	c := startCluster(t, 1, nil)
	s := c.all()[0]
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	awaitSoon(t, "the connection is accepted", func() bool {
		s.stream.mu.Lock()
		defer s.stream.mu.Unlock()
		return len(s.stream.conns) == 1
	})
	c.Stop(s)
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection is still open after Close")
	}
}

func TestRaftLoggerWritesToSlog(t *testing.T) {
	var out bytes.Buffer
	h := slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelInfo})
	l := raftLogger{out: slog.New(h)}.Named("raft").With("a", 1)
	l.Debug("hidden")
	l.Warn("shown", "servers", hclog.Fmt("%d of %d", 2, 3))
	if got := out.String(); strings.Contains(got, "hidden") || !strings.Contains(got, `level=WARN msg=shown a=1 servers="2 of 3"`) {
		t.Errorf("wrote %q", got)
	}
	if l.IsDebug() || !l.IsWarn() || l.GetLevel() != hclog.Info || l.Named("net").Name() != "raft.net" {
		t.Error("levels or names are wrong")
	}
}
