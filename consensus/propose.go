package consensus

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"

	"moult/consensus/fleet"
)

// Propose has the change appended to the log and applied, by whichever server
// leads, and returns its result once the local state contains it. It goes on
// through leader changes until ctx ends, so give it a deadline; the proposal
// carries an id, so it is applied at most once.
//
// The entry's From is the origin of ctx (fleet.WithOrigin).
//
// A refusal by the state comes back as its result and the *fleet.Error in it.
// Any other error leaves no result: ErrNoLeader (it was not and will not be
// applied), ErrOutcomeUnknown (it may be), ErrTooLarge or ErrClosed. When the
// change was applied but ctx ended before the local state had it, Propose
// returns the result with ctx's error.
func (n *Node) Propose(ctx context.Context, actor string, c fleet.Change) (fleet.Result, error) {
	entry, err := fleet.NewEntry(uuid.NewString(), actor, n.now(), c)
	if err != nil {
		return fleet.Result{}, fmt.Errorf("propose %s: %w", c.Kind(), err)
	}
	entry.From = fleet.Origin(ctx)
	if len(entry.Body) > MaxEntry {
		return fleet.Result{}, fmt.Errorf("propose %s: %w: %d bytes of at most %d", c.Kind(), ErrTooLarge, len(entry.Body), MaxEntry)
	}
	result, err := n.propose(ctx, entry)
	if err != nil {
		return fleet.Result{}, fmt.Errorf("propose %s: %w", c.Kind(), err)
	}
	if err := n.awaitApplied(ctx, result.Index); err != nil {
		return result, fmt.Errorf("propose %s: applied at index %d, wait for this server to follow: %w", c.Kind(), result.Index, err)
	}
	if result.Err != nil {
		return result, result.Err
	}
	return result, nil
}

func (n *Node) propose(ctx context.Context, entry fleet.Entry) (fleet.Result, error) {
	term, fenced := ctx.Value(termKey{}).(context.Context)
	if fenced {
		return n.proposeInTerm(ctx, term, entry)
	}
	resp, err := n.atLeader(ctx, request{Op: opPropose, Entry: &entry})
	if err != nil {
		return fleet.Result{}, err
	}
	if resp.Result == nil {
		return fleet.Result{}, errors.New("the leader's answer lacks a result; bring all servers to the same version")
	}
	return *resp.Result, nil
}

// proposeInTerm proposes for the callback of Lead: here and in this term, or not
// at all. Once the term is over nothing is appended, and nothing forwarded.
func (n *Node) proposeInTerm(ctx, term context.Context, entry fleet.Entry) (fleet.Result, error) {
	var unknown error
	for {
		if err := errors.Join(ctx.Err(), term.Err()); err != nil {
			return fleet.Result{}, gaveUp(err, unknown)
		}
		resp := n.servePropose(ctx, entry)
		switch {
		case resp.Result != nil:
			return *resp.Result, nil
		case resp.Unknown != "":
			unknown = errors.New(resp.Unknown)
		}
		pause(ctx, firstPause)
	}
}

// servePropose appends the entry on this server, which leads, and waits until it
// is applied.
func (n *Node) servePropose(ctx context.Context, e fleet.Entry) response {
	for _, needed := range e.Needs() {
		if refused := n.tooNew(ctx, needed); refused != nil {
			return response{Result: &fleet.Result{Err: refused}}
		}
	}
	future, err := n.appendEntry(ctx, e)
	if err != nil {
		return n.outcome(err)
	}
	if err := await(ctx, future.Error); err != nil {
		return n.outcome(err)
	}
	switch answer := future.Response().(type) {
	case fleet.Result:
		return response{Result: &answer}
	case void:
		if _, fenced := ctx.Value(termKey{}).(context.Context); fenced {
			return response{Result: &answer.Result}
		}
		return n.notLeader() // nobody applied it: it is to be proposed anew, with another time
	default:
		return response{Unknown: fmt.Sprintf("the state machine answered %T", answer)}
	}
}

// outcome turns Raft's errors into what they say about the request.
func (n *Node) outcome(err error) response {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrEnqueueTimeout),
		errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, errNotAppended), errors.Is(err, ErrClosed):
		return n.notLeader()
	}
	// Among them ErrLeadershipLost: another leader may have the entry and commit it.
	return response{Unknown: err.Error()}
}

// errNotAppended: the request ended before the entry was handed to Raft.
var errNotAppended = errors.New("not appended")

// appendEntry stamps the entry and hands it to Raft. Entries are handed over
// one at a time, so their times never go back along the log. Each carries the
// number of the term that it was stamped in: a leader that lost its office and won
// it again before it noticed would stamp by a state that lacks what was decided in
// between.
func (n *Node) appendEntry(ctx context.Context, e fleet.Entry) (raft.ApplyFuture, error) {
	if err := n.acquire(ctx, n.append); err != nil {
		return nil, fmt.Errorf("%w: %w", errNotAppended, err)
	}
	defer func() { <-n.append }()
	term, fenced := ctx.Value(termKey{}).(context.Context)
	if !fenced {
		term, _ = n.term.get()
	}
	if term == nil || term.Err() != nil || ctx.Err() != nil || n.barred() != nil {
		return nil, errNotAppended
	}
	number, _ := term.Value(termNumber{}).(uint64)
	fence := binary.BigEndian.AppendUint64(nil, number)
	e.At = n.stamp()
	data, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotAppended, err)
	}
	return n.raft.ApplyLog(raft.Log{Data: data, Extensions: fence}, n.timing.Enqueue), nil
}

// maxClockSkew is how far an earlier entry's time may lie ahead for the next one
// to keep to it. What is further ahead is of a clock that was wrong: if time
// stood still until it is right, no join token and no session would be good.
const maxClockSkew = 24 * time.Hour

// stamp returns the time for the next entry: now, but not before an earlier
// entry's, whoever appended that by whatever clock, within maxClockSkew. The
// caller holds n.append, and leads, so the state contains all earlier terms'
// entries.
func (n *Node) stamp() time.Time {
	_, applied := n.fsm.position()
	at := n.now()
	for _, earlier := range []time.Time{n.lastAt, applied} {
		if earlier.After(at) && earlier.Sub(at) <= maxClockSkew {
			at = earlier
		}
	}
	n.lastAt = at
	return at
}

// now is the wall clock, as it is written to the log.
func (n *Node) now() time.Time { return n.cfg.now().UTC().Round(0) }

// awaitApplied blocks until the local state contains the entry at index.
func (n *Node) awaitApplied(ctx context.Context, index uint64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	err := n.fsm.await(ctx, index)
	if err != nil && n.ctx.Err() != nil {
		return ErrClosed
	}
	return err
}
