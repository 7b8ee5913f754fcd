package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"moult/consensus/fleet"
)

const (
	logFile       = "log.db"
	snapshotsKept = 2
	logCacheSize  = 512
	lockTimeout   = 2 * time.Second // to get the log file's lock
)

// Node is one server's part in the Raft group. Safe for concurrent use.
type Node struct {
	cfg    Config
	timing Timing
	logger *slog.Logger

	raft   *raft.Raft
	fsm    *fsm
	store  *raftboltdb.BoltStore
	logs   raft.LogStore
	stable raft.StableStore
	snaps  raft.SnapshotStore
	stream *streamLayer
	disk   *diskWatch

	kinds    *kinds
	term     leadership    // of this server
	leader   leaderWatch   // whoever it is
	append   chan struct{} // one token: who holds it stamps and appends
	lastAt   time.Time     // owned by the token's holder
	members  chan struct{} // one token: who holds it changes the servers
	caughtUp caughtUp
	barriers shared // of reads
	vouched  vouched

	ctx     context.Context // ends when Close begins to stop things
	stop    context.CancelFunc
	tasks   sync.WaitGroup
	closing sync.Once
	closed  error // of the one call of close
}

// Open opens the node on its directory and takes part in the group that the
// directory belongs to, if any. The caller must Close it.
func Open(cfg Config) (*Node, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the raft directory: %w", err)
	}
	store, err := openStore(cfg.Dir)
	if err != nil {
		return nil, err
	}
	n := &Node{
		cfg: cfg, timing: cfg.Timing, logger: cfg.Logger,
		fsm: newFSM(), store: store, stream: newStreamLayer(cfg), disk: &diskWatch{limit: cfg.Timing.DiskStall},
		append: make(chan struct{}, 1), members: make(chan struct{}, 1),
		term: newLeadership(), leader: newLeaderWatch(), kinds: newKinds(cfg.Kinds),
	}
	n.fsm.serverRemoved = n.stream.dropAccepted
	n.ctx, n.stop = context.WithCancel(context.Background())
	if err := n.startRaft(watchedLog{cfg.wrapLog(store), n.disk}, watchedStable{store, n.disk}); err != nil {
		n.stop()
		return nil, errors.Join(err, n.stream.Close(), store.Close())
	}
	n.tasks.Go(n.watchLeadership)
	n.tasks.Go(n.watchLeader)
	n.tasks.Go(n.watchCatchUp)
	if cfg.Tell != nil {
		n.tasks.Go(n.tellMembers)
	}
	if cfg.Progress != nil {
		n.tasks.Go(func() { n.Lead(n.ctx, n.promoteCaughtUp) })
	}
	return n, nil
}

func (n *Node) startRaft(logs raft.LogStore, stable raft.StableStore) error {
	logger := raftLogger{out: n.logger, repeats: &repeats{}}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(n.cfg.Dir, snapshotsKept, logger)
	if err != nil {
		return fmt.Errorf("open the snapshots in %s: %w", n.cfg.Dir, err)
	}
	cached, err := raft.NewLogCache(logCacheSize, logs)
	if err != nil {
		return err
	}
	var running atomic.Pointer[raft.Raft] // its goroutines ask before NewRaft returns
	end := &boundary{leads: func() bool {
		r := running.Load()
		return r != nil && r.State() == raft.Leader
	}}
	if n.snaps, err = keepBoundary(snaps, end, cached); err != nil {
		return fmt.Errorf("list the snapshots in %s: %w", n.cfg.Dir, err)
	}
	n.logs, n.stable = boundaryLog{cached, end}, stable
	transport := newTransport(n.stream, n.disk, n.cfg.Unfit, n.timing.RPC, logger)
	n.raft, err = raft.NewRaft(n.raftConfig(logger), n.fsm, n.logs, n.stable, n.snaps, transport)
	if err != nil {
		return errors.Join(fmt.Errorf("start raft on %s: %w", n.cfg.Dir, err), transport.Close())
	}
	running.Store(n.raft)
	return nil
}

func (n *Node) raftConfig(logger raftLogger) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(n.cfg.ServerID)
	c.HeartbeatTimeout = n.timing.Heartbeat
	c.ElectionTimeout = n.timing.Election
	c.LeaderLeaseTimeout = n.timing.Lease
	c.CommitTimeout = n.timing.Commit
	c.SnapshotInterval = n.cfg.Snapshots.Interval
	c.SnapshotThreshold = n.cfg.Snapshots.Threshold
	c.TrailingLogs = n.cfg.Snapshots.Trailing
	c.ShutdownOnRemove = false // the process decides what becomes of a removed server
	c.NoLegacyTelemetry = true
	c.Logger = logger
	return c
}

// Bootstrap makes this server the first and only member of a new group. It
// returns ErrBootstrapped when the directory holds any Raft state.
func (n *Node) Bootstrap(ctx context.Context) error {
	exists, err := raft.HasExistingState(n.logs, n.stable, n.snaps)
	if err != nil {
		return fmt.Errorf("look for raft state in %s: %w", n.cfg.Dir, err)
	}
	if exists {
		return fmt.Errorf("bootstrap %s: %w", n.cfg.Dir, ErrBootstrapped)
	}
	self := raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(n.cfg.ServerID), Address: raft.ServerAddress(n.cfg.Address)}
	err = await(ctx, n.raft.BootstrapCluster(raft.Configuration{Servers: []raft.Server{self}}).Error)
	if errors.Is(err, raft.ErrCantBootstrap) {
		err = ErrBootstrapped // another server reached this one in between
	}
	if err != nil {
		return fmt.Errorf("bootstrap %s: %w", n.cfg.Dir, err)
	}
	return nil
}

// State returns the local replica of the state.
func (n *Node) State() *fleet.State { return n.fsm.state }

// View returns a consistent picture of the local state.
func (n *Node) View() fleet.View { return n.fsm.state.View() }

// Subscribe tells of changes to the local state; see fleet.State.Subscribe.
func (n *Node) Subscribe() (<-chan fleet.Event, func()) { return n.fsm.state.Subscribe() }

// AppliedIndex returns the index of the last log entry that the local state
// contains. At equal index all servers' states are equal.
func (n *Node) AppliedIndex() uint64 {
	index, _ := n.fsm.position()
	return index
}

// Close hands leadership over, if this server has it and another can take it
// (at most Timing.Transfer), then stops. It is bounded by ctx: with a hung disk
// it returns an error and leaves Raft's goroutines behind for the process's
// exit to end. Every call returns when the first is done, with its error.
func (n *Node) Close(ctx context.Context) error {
	n.closing.Do(func() { n.closed = n.close(ctx) })
	return n.closed
}

func (n *Node) close(ctx context.Context) error {
	// First, while everything still runs: the others have a new leader at once
	// instead of after an election timeout.
	if n.IsLeader() && n.voters() > 1 {
		handover, cancel := context.WithTimeout(ctx, n.timing.Transfer)
		if err := n.transferFromHere(handover); err != nil {
			n.logger.Warn("stopping without a handover of leadership", "error", err)
		}
		cancel()
	}
	n.stop()
	if err := await(ctx, n.raft.Shutdown().Error); err != nil {
		return errors.Join(fmt.Errorf("stop raft: %w", err), n.stream.Close())
	}
	streamErr := n.stream.Close() // ends the goroutines of accepted connections
	n.tasks.Wait()
	if err := errors.Join(streamErr, n.store.Close()); err != nil { // the store last: Raft writes to it
		return fmt.Errorf("close raft's files and connections: %w", err)
	}
	return nil
}

// await runs a call that knows no context and returns its error, or ctx's when
// that ends first; the call then runs on.
func await(ctx context.Context, call func() error) error {
	done := make(chan error, 1)
	go func() { done <- call() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// acquire takes a token, giving up when ctx or the node ends.
func (n *Node) acquire(ctx context.Context, token chan struct{}) error {
	select {
	case token <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-n.ctx.Done():
		return ErrClosed
	}
}
