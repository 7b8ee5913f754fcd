// Package consensus is the Raft node of a moult server: it keeps the
// replicated log and feeds package fleet's state with it.
//
// A server opens one Node on its data directory. Exactly one server of a
// cluster calls Bootstrap, once; every other one is added by AddServer, starts
// as a non-voter and is promoted by the leader when it has caught up. Any
// server takes proposals (Propose): a follower passes them to the leader, a
// leader change in between is waited out, and a proposal is applied at most
// once however often it had to be sent. When Propose returns, the local State
// already shows the change.
//
// Lead runs the work that only the leader may do. Proposals made under the
// context that Lead hands out are fenced: they are appended by this leader in
// this term of office, or they are void on every server, so in the order of the log everything one
// leader's callback wrote precedes everything its successor's wrote.
//
// # What the node needs from outside
//
// A listener and a dial function for Raft's own connections (already
// authenticated: the node trusts whoever it is connected to), a Forward
// function that carries an opaque request to another server's ServeForwarded,
// and a Progress function that asks another server for its AppliedIndex.
//
// # On disk
//
//	DIR/log.db       log entries, term and vote (bbolt)
//	DIR/snapshots/   the two newest snapshots of the state
//
// # Messages
//
// Log entries are fleet.Entry as JSON. Forwarded requests and their answers are
// the JSON of request and response in forward.go; unknown fields are ignored,
// since servers of two versions talk to each other during an upgrade.
//
// DESIGN.md beside this file says why things are the way they are.
package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/hashicorp/raft"
)

// What can go wrong apart from a refusal by the state (*fleet.Error).
var (
	// ErrNoLeader: the context ended before a leader took the request. It was
	// not applied and never will be.
	ErrNoLeader = errors.New("no leader took the request; a majority of the servers must be up (see: moult status)")
	// ErrOutcomeUnknown: the context ended after the request had been handed to
	// a leader that did not confirm it. It may still be applied, once.
	ErrOutcomeUnknown = errors.New("a leader took the request but did not confirm it; look whether it took effect before you repeat it")
	// ErrBootstrapped: Bootstrap on a directory that already has Raft state.
	ErrBootstrapped = errors.New("this server already belongs to a cluster; start it without --bootstrap")
	// ErrRefused: a change of the servers that must not be made; the message says why.
	ErrRefused = errors.New("refused")
	// ErrTooLarge: a change of more than MaxEntry bytes.
	ErrTooLarge = errors.New("the change is too large for the log")
	// ErrDiskStalled: a write to the log has not returned for Timing.DiskStall.
	ErrDiskStalled = errors.New("the disk that holds the Raft log does not answer")
	// ErrDiskFailed: the last write to the log failed.
	ErrDiskFailed = errors.New("the Raft log cannot be written")
	// ErrClosed: the node was closed.
	ErrClosed = errors.New("the raft node is closed")
)

// What Ready finds missing, besides ErrClosed, ErrDiskStalled and ErrDiskFailed.
var (
	ErrNotMember  = errors.New("this server does not belong to a cluster yet")
	ErrRemoved    = errors.New("this server was removed from the cluster")
	ErrLeaderless = errors.New("no leader")
	ErrBehind     = errors.New("catching up with the leader")
)

// MaxEntry is the largest log entry, in bytes of JSON.
const MaxEntry = 1 << 20

// Config is what Open needs. Fields without a remark are required.
type Config struct {
	Dir      string // the node's own directory; made if absent
	ServerID string // never reused: a wiped server is a new server
	Address  string // where the others dial this server, host:port

	// Listener accepts the other servers' Raft connections. Close closes it.
	Listener net.Listener
	// Dial opens a Raft connection to another server.
	Dial func(ctx context.Context, addr string) (net.Conn, error)

	// Forward carries req to the server's ServeForwarded and returns the answer.
	// nil: this server works alone.
	Forward func(ctx context.Context, serverID, addr string, req []byte) ([]byte, error)
	// Progress asks a server for its AppliedIndex. nil: non-voters are never promoted.
	Progress func(ctx context.Context, serverID, addr string) (uint64, error)

	// Kinds asks a server which kinds of changes it knows (fleet.Kinds). A change that
	// one does not know is refused with fleet.CodeUnknownChange. nil: none is.
	Kinds func(ctx context.Context, serverID, addr string) ([]string, error)

	// Tell carries what this server knows of the configuration to the server's Hear,
	// and Ask asks a server for its Membership, sure that it is the one. nil: a
	// server that was away while all others were replaced stays out.
	Tell func(ctx context.Context, serverID, addr string, m Membership) error
	Ask  func(ctx context.Context, serverID, addr string) (Membership, error)

	Timing Timing // zero fields take DefaultTiming's values
	// Unfit says why this server must not lead now; nil: it may. A leader that is unfit
	// falls silent, so that another is elected, and one that is unfit is not elected. It
	// is asked before each message, so it must answer at once. A server without others
	// leads all the same. Nil: always fit.
	Unfit     func() error
	Snapshots Snapshots    // zero fields take DefaultSnapshots' values
	Logger    *slog.Logger // nil: slog.Default

	now     func() time.Time                  // the wall clock; tests turn it back
	wrapLog func(raft.LogStore) raft.LogStore // around the log on disk; tests hang it
}

// Timing holds the node's timers.
type Timing struct {
	Heartbeat time.Duration // a follower that hears nothing for this long (up to twice) stands for election
	Election  time.Duration // a candidate that is not elected in this time (up to twice) tries again
	Lease     time.Duration // a leader that reaches no majority for this long steps down; at most Heartbeat
	Commit    time.Duration // an idle leader tells followers the commit index after this time
	RPC       time.Duration // one Raft message, dial included; snapshots get more by size
	Enqueue   time.Duration // a proposal waits this long for a busy leader before it is tried anew
	Forward   time.Duration // one attempt to pass a request to the leader
	Probe     time.Duration // between looks at the non-voters
	Promote   time.Duration // a non-voter must have been caught up for this long to become a voter
	DiskStall time.Duration // a log write that takes longer costs the leader its leadership
	Transfer  time.Duration // a planned stop spends at most this on handing over leadership
}

// DefaultTiming fails over in about a second. Shorter heartbeats gave spurious
// elections on busy two-core machines.
var DefaultTiming = Timing{
	Heartbeat: 500 * time.Millisecond,
	Election:  500 * time.Millisecond,
	Lease:     500 * time.Millisecond,
	Commit:    50 * time.Millisecond,
	RPC:       3 * time.Second,
	Enqueue:   time.Second,
	Forward:   5 * time.Second,
	Probe:     time.Second,
	Promote:   3 * time.Second,
	DiskStall: 4 * time.Second,
	Transfer:  2 * time.Second,
}

// Snapshots says when the log is compacted.
type Snapshots struct {
	Interval  time.Duration // between looks whether a snapshot is due (up to twice this)
	Threshold uint64        // entries since the last one that make it due
	Trailing  uint64        // entries kept behind a snapshot, for followers a little behind
}

// DefaultSnapshots keeps the log to some tens of thousands of entries.
var DefaultSnapshots = Snapshots{Interval: 2 * time.Minute, Threshold: 8192, Trailing: 10240}

// orDefault sets *v to d when it is zero.
func orDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

func (t *Timing) fill() {
	d := DefaultTiming
	orDefault(&t.Heartbeat, d.Heartbeat)
	orDefault(&t.Election, max(d.Election, t.Heartbeat))
	orDefault(&t.Lease, min(d.Lease, t.Heartbeat))
	orDefault(&t.Commit, d.Commit)
	orDefault(&t.RPC, d.RPC)
	orDefault(&t.Enqueue, d.Enqueue)
	orDefault(&t.Forward, d.Forward)
	orDefault(&t.Probe, d.Probe)
	orDefault(&t.Promote, d.Promote)
	orDefault(&t.DiskStall, d.DiskStall)
	orDefault(&t.Transfer, d.Transfer)
}

// validate checks c and fills in defaults.
func (c *Config) validate() error {
	switch {
	case c.Dir == "":
		return errors.New("consensus: Config.Dir is empty")
	case c.ServerID == "":
		return errors.New("consensus: Config.ServerID is empty")
	case c.Address == "":
		return errors.New("consensus: Config.Address is empty")
	case c.Listener == nil || c.Dial == nil:
		return errors.New("consensus: Config needs Listener and Dial")
	}
	c.Timing.fill()
	if c.Timing.Lease > c.Timing.Heartbeat || c.Timing.Election < c.Timing.Heartbeat {
		return fmt.Errorf("consensus: Config.Timing wants Lease (%s) <= Heartbeat (%s) <= Election (%s)",
			c.Timing.Lease, c.Timing.Heartbeat, c.Timing.Election)
	}
	orDefault(&c.Snapshots.Interval, DefaultSnapshots.Interval)
	orDefault(&c.Snapshots.Threshold, DefaultSnapshots.Threshold)
	orDefault(&c.Snapshots.Trailing, DefaultSnapshots.Trailing)
	orDefault(&c.Logger, slog.Default())
	if c.Unfit == nil {
		c.Unfit = func() error { return nil }
	}
	if c.now == nil {
		c.now = time.Now
	}
	if c.wrapLog == nil {
		c.wrapLog = func(l raft.LogStore) raft.LogStore { return l }
	}
	return nil
}
