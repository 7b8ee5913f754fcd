package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// A leader whose message got through but not its answer begins again at the end of
// the snapshot that it sent. The follower, whose log begins behind that, must
// recognise the place, or it gets the snapshot again for ever.
func TestFollowerKnowsWhereItsSnapshotEnds(t *testing.T) {
	c := startCluster(t, 3, func(cfg *Config) {
		cfg.Snapshots = Snapshots{Interval: 20 * time.Millisecond, Threshold: 40, Trailing: 1}
		if cfg.ServerID == "s4" {
			cfg.Snapshots.Threshold = 10_000 // it keeps to the one that it was sent
		}
	})
	leader := c.AwaitLeader()
	for i := range 60 {
		mustPropose(t, leader, user(fmt.Sprint("before-", i)))
	}
	fresh := c.open("s4", "")
	if err := leader.AddServer(c.within(patience), fresh.id, fresh.addr); err != nil {
		t.Fatal(err)
	}
	awaitSoon(t, "the new server is a voter", func() bool { return fresh.Ready() == nil && fresh.voters() == 4 })
	for i := range 10 {
		mustPropose(t, c.AwaitLeader(), user(fmt.Sprint("after-", i)))
	}
	c.AwaitEqual()
	stats := fresh.raft.Stats()
	index, term := mustNumber(t, stats["last_snapshot_index"]), mustNumber(t, stats["last_snapshot_term"])
	if index == 0 || fresh.raft.LastIndex() <= index {
		t.Fatalf("the new server has a snapshot to %d and its log to %d", index, fresh.raft.LastIndex())
	}
	ask := func(term uint64) bool {
		leader := c.AwaitLeader()
		req := &raft.AppendEntriesRequest{
			RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(leader.id), Addr: []byte(leader.addr)},
			Term:      leader.raft.CurrentTerm(), PrevLogEntry: index, PrevLogTerm: term,
		}
		var resp raft.AppendEntriesResponse
		if err := plainTransport(t).AppendEntries(raft.ServerID(fresh.id), raft.ServerAddress(fresh.addr), req, &resp); err != nil {
			t.Fatal(err)
		}
		return resp.Success
	}
	if !ask(term) {
		t.Error("it does not know the end of its own snapshot")
	}
	if ask(term + 1) {
		t.Error("it takes an entry of another term for the end of its snapshot")
	}
}

// plainTransport is a transport that speaks to the servers of a cluster.
func plainTransport(t *testing.T) *transport {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stream := newStreamLayer(Config{
		Listener: l, Address: l.Addr().String(),
		Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		},
	})
	tr := newTransport(stream, &diskWatch{limit: time.Minute}, func() error { return nil }, time.Second, raftLogger{out: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() { tr.Close(); stream.Close() })
	return tr
}

func mustNumber(t *testing.T, text string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// What is made up for a follower must never be taken for an entry.
func TestBoundaryIsNoEntry(t *testing.T) {
	leads := false
	end := &boundary{leads: func() bool { return leads }}
	logs := boundaryLog{raft.NewInmemStore(), end}
	get := func(index uint64) (l raft.Log, err error) { err = logs.GetLog(index, &l); return l, err }
	for _, index := range []uint64{0, 7} {
		if _, err := get(index); !errors.Is(err, raft.ErrLogNotFound) {
			t.Errorf("without a snapshot %d is %v", index, err)
		}
	}
	end.set(7, 3)
	l, err := get(7)
	if err != nil || l.Index != 7 || l.Term != 3 {
		t.Fatalf("%+v, %v", l, err)
	}
	if err := plainTransport(t).AppendEntries("s2", "127.0.0.1:1", &raft.AppendEntriesRequest{Entries: []*raft.Log{&l}}, nil); !errors.Is(err, errBoundaryEntry) {
		t.Errorf("it was sent: %v", err)
	}
	for _, index := range []uint64{6, 8} {
		if _, err := get(index); !errors.Is(err, raft.ErrLogNotFound) {
			t.Errorf("%d is %v", index, err)
		}
	}
	leads = true
	if _, err := get(7); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("a leader is told %v: it would send that instead of the snapshot", err)
	}
	leads = false
	if err := logs.StoreLog(&raft.Log{Index: 7, Term: 3, Data: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	if l, err := get(7); err != nil || string(l.Data) != "x" {
		t.Errorf("the entry itself is %+v, %v", l, err)
	}
}

// A server whose log went another way for longer than the snapshot that it is sent:
// it wrote down more than others committed since. It must give that up at the end of
// the snapshot, too, or it gets the snapshot again for ever.
func TestDivergedFollowerTakesASnapshot(t *testing.T) {
	c := startCluster(t, 3, func(cfg *Config) {
		cfg.Snapshots = Snapshots{Interval: 20 * time.Millisecond, Threshold: 20, Trailing: 1}
		if cfg.ServerID == "s1" {
			cfg.Snapshots = Snapshots{Interval: time.Hour, Threshold: 10_000, Trailing: 10_000} // it keeps all it has
		}
	})
	mustPropose(t, c.AwaitLeader(), user("common"))
	c.AwaitEqual()
	var s1 *server
	for _, s := range c.all() {
		if s.id == "s1" {
			s1 = s
		}
	}
	last, term := s1.raft.LastIndex(), s1.raft.CurrentTerm()
	c.Stop(s1)
	store, err := openStore(s1.cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	const more = 200 // entries that nobody else has
	var entries []*raft.Log
	for i := uint64(1); i <= more; i++ {
		entries = append(entries, &raft.Log{Index: last + i, Term: term, Type: raft.LogCommand, Data: []byte("{}")})
	}
	if err := errors.Join(store.StoreLogs(entries), store.Close()); err != nil {
		t.Fatal(err)
	}
	c.HandOver(c.AwaitLeader()) // another term
	leader := c.AwaitLeader()
	for i := range 60 {
		mustPropose(t, leader, user(fmt.Sprint("other-", i)))
	}
	awaitSoon(t, "the others have compacted their logs", func() bool {
		for _, s := range c.all() {
			if first, err := s.store.FirstIndex(); err != nil || first <= last+1 {
				return false
			}
		}
		return true
	})
	if end := c.AwaitLeader().raft.LastIndex(); end >= last+more {
		t.Fatalf("the others are at %d: the stray entries end before that, at %d", end, last+more)
	}
	back := c.open(s1.id, s1.addr)
	awaitSoon(t, "it has caught up", func() bool { return back.Ready() == nil && hasUser(back, "other-59") })
	mustPropose(t, back, user("after"))
	c.AwaitEqual()
}
