// Package coordinator updates the fleet, host by host, while this server leads.
//
// Command moult calls Run from consensus.Node.Lead, so one coordinator runs in
// a cluster, on the leader, after its state contains everything that was
// committed before. The package has two halves:
//
//   - plan (plan.go, plan_turn.go, plan_job.go) says what to do. It is a pure
//     function of the replicated state, of what is observed of the hosts, of
//     what this leader remembers of the job in flight, and of the time. The
//     scenarios in testdata/plan are its specification and its tests.
//   - Run (run.go) does it. It wakes when one of these inputs changes, or when
//     the plan asked to be woken, plans, and carries the plan out: commits
//     changes, sends orders, adds lines to the job's log.
//
// Promises. An order is sent only for a job whose JobDispatched entry is
// applied here. One job is in flight at a time; after a failure that halted a
// fleet update nothing more of it is dispatched (package fleet refuses it,
// too). Run keeps nothing that a new leader would need: that one starts from
// the state alone and gives the job in flight fresh waits on its own clock, so
// neither a change of leader nor a clock that is off can fail a healthy host.
//
// DESIGN.md says why the rules are as they are.
package coordinator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"moult/consensus/fleet"
)

// Actor is who the coordinator's own changes are by.
const Actor = "coordinator"

// Log is the replicated log and the state that it makes.
type Log interface {
	// Propose returns once the change is applied here, or refused (*fleet.Error).
	// After any other error it may or may not be applied later.
	Propose(ctx context.Context, actor string, c fleet.Change) (fleet.Result, error)
	State() *fleet.State
}

// Roster is what is observed of the hosts.
type Roster interface {
	// Observations returns, by host ID, what changed since a call that returned this
	// version, and the version now; the map is the caller's own. With whole it is all
	// that is known: always for version 0, and otherwise where hosts may have gone.
	Observations(since uint64) (changed map[string]Observation, now uint64, whole bool)
	// Changed returns a channel that is closed at the next change.
	Changed() <-chan struct{}
}

// Orders sends the order behind a committed dispatch. Send may be repeated for
// the same job; it returns when ctx ends, at the latest. Next tells a host, once, that
// its turn to be updated to a release comes next: it may be lost, and bids nothing that
// shows.
type Orders interface {
	Send(ctx context.Context, j fleet.Job, r fleet.Release, h fleet.Host) error
	Next(ctx context.Context, r fleet.Release, h fleet.Host) error
}

// Servers are the servers that hold the log. Group asks them how they are and
// returns within a second; TransferLeadership has another one lead, or tells why
// that is not possible.
type Servers interface {
	Group(ctx context.Context) []fleet.GroupMember
	TransferLeadership(ctx context.Context) error
}

// Observation is what this server sees of a host: its signed record, and the
// last report that it sent about the job in that record. A host without an
// Observation was never seen by this server.
type Observation struct {
	Online, Left bool
	// Unreachable: not online, and nobody looks into its segments, so that nobody
	// knows.
	Unreachable bool
	// Unsighted: its record has come, and nobody has told yet whether it is here. Records
	// come first to a server that has just started.
	Unsighted   bool
	Server      bool
	Segments    []string // two or more: it is a relay
	Boot, Seq   uint64
	Version     string
	Digest      string // the first 16 hex digits of the running binary's sha256
	Phase       string // as in the mesh's record: idle, fetching, …
	JobID       string // the job that Phase is about
	Done, Total int64  // bytes of the download
	Pulled      int64  // bytes that relays moved for it, before any reach it
	Error       string // why the job failed, from the host's report
	LastOutput  string // the new binary's last line of output
	Sources     []fleet.Source
	Holds       []string // the first 16 hex digits of artifacts that it has, besides what it runs
	Stage       StageObservation
	Since       time.Time // of the last change of Online, Left or Unreachable, on this server's clock
	LastSeen    time.Time
}

// Timeouts are the coordinator's waits.
type Timeouts struct {
	Resend  time.Duration // between two sendings of an order
	NoSign  time.Duration // after a dispatch, until the host must show the job
	Stalled time.Duration // without progress of a download
	Rejoin  time.Duration // from `restarting` until the host is back
	Reason  time.Duration // for a host's own reason to follow its failure
}

// DefaultTimeouts are the waits when nothing else is said.
var DefaultTimeouts = Timeouts{
	Resend: 2 * time.Second, NoSign: 15 * time.Second, Stalled: 60 * time.Second,
	Rejoin: 90 * time.Second, Reason: 3 * time.Second,
}

// Validate names the first wait that is not positive.
func (t Timeouts) Validate() error {
	var errs []error
	for _, w := range []struct {
		name string
		d    time.Duration
	}{{"resend", t.Resend}, {"no-sign", t.NoSign}, {"stalled", t.Stalled}, {"rejoin", t.Rejoin}, {"reason", t.Reason}} {
		if w.d <= 0 {
			errs = append(errs, fmt.Errorf("%s is %v; give a positive duration", w.name, w.d))
		}
	}
	return errors.Join(errs...)
}

// UnreachablePolicy is what a fleet update makes of a host that is cut off
// because no relay of its segment is online.
type UnreachablePolicy string

// The policies. UnreachableIsOffline is the default.
const (
	UnreachableIsOffline UnreachablePolicy = "offline"
	WaitForUnreachable   UnreachablePolicy = "wait"
)

// Validate refuses a policy that does not exist.
func (p UnreachablePolicy) Validate() error {
	if p != UnreachableIsOffline && p != WaitForUnreachable {
		return fmt.Errorf("unreachable is %q; give %s or %s", string(p), UnreachableIsOffline, WaitForUnreachable)
	}
	return nil
}

// ReturnWait is how long a host may have been away at its turn before it counts as
// offline: an agent that is restarted by its service manager is gone for a second.
const ReturnWait = 5 * time.Second

// Limits of waits for what somebody else has to mend.
const (
	// UnreachableWait is how long WaitForUnreachable waits before the host counts as
	// offline.
	UnreachableWait = 10 * time.Minute
	// RelayWait is how long the update of a relay waits for another one to be back,
	// when nothing else is left to do.
	RelayWait = 2 * time.Minute
	// QuorumWait is how long the update of a server waits for the others to be a
	// healthy majority without it.
	QuorumWait = 10 * time.Minute
	// quorumLook is how often it looks meanwhile.
	quorumLook = time.Second
)

// Config is what Run needs. A nil Logger logs nothing; an empty Unreachable is
// UnreachableIsOffline.
type Config struct {
	Log         Log
	Roster      Roster
	Orders      Orders
	Self        string  // this server's host id
	Servers     Servers // nil: fleet updates with servers wait at the first one
	Timeouts    Timeouts
	Unreachable UnreachablePolicy
	// StageWait is how long the first turn of a fleet update waits for its host to have
	// the release staged, if there are signs that it is getting it. 0: it does not.
	StageWait time.Duration
	Logger    *slog.Logger
}

func (c *Config) validate() error {
	if c.Log == nil || c.Roster == nil || c.Orders == nil {
		return errors.New("coordinator: Log, Roster and Orders must be given")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Unreachable == "" {
		c.Unreachable = UnreachableIsOffline
	}
	if err := c.Unreachable.Validate(); err != nil {
		return fmt.Errorf("coordinator: %w", err)
	}
	return c.Timeouts.Validate()
}
