package consensus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"moult/consensus/fleet"
)

// The requests that a server passes to the leader.
const (
	opPropose      = "propose"
	opAddServer    = "add_server"
	opRemoveServer = "remove_server"
	opDemoteServer = "demote_server"
	opTransfer     = "transfer_leadership"
	opIndex        = "index"      // how far is the leader's state?
	opReadIndex    = "read_index" // an index with all that was committed when this was asked
)

// request is what Forward carries. Which fields count depends on Op.
type request struct {
	Op      string       `json:"op"`
	Entry   *fleet.Entry `json:"entry,omitempty"`
	ID      string       `json:"id,omitempty"`
	Address string       `json:"address,omitempty"`
}

// response answers a request. At most one of NotLeader, Unknown and Refused is
// set; with none of them the request was carried out.
type response struct {
	Result *fleet.Result `json:"result,omitempty"`
	Index  uint64        `json:"index,omitempty"`

	NotLeader  bool   `json:"not_leader,omitempty"` // nothing was done; try the server below, if any
	LeaderID   string `json:"leader_id,omitempty"`
	LeaderAddr string `json:"leader_addr,omitempty"`

	Unknown string `json:"unknown,omitempty"` // it may have been done: repeat it
	Refused string `json:"refused,omitempty"` // it must not be done: do not repeat it
}

// ServeForwarded is the other end of Forward: it carries out a request if this
// server leads, and says who does otherwise. It returns an error only for a
// request that it cannot read.
func (n *Node) ServeForwarded(ctx context.Context, req []byte) ([]byte, error) {
	var r request
	if err := json.Unmarshal(req, &r); err != nil {
		return nil, fmt.Errorf("read forwarded request: %w", err)
	}
	return json.Marshal(n.serve(ctx, r))
}

// serve carries out r on this server.
func (n *Node) serve(ctx context.Context, r request) response {
	if !n.IsLeader() {
		return n.notLeader()
	}
	switch {
	case r.Op == opPropose && r.Entry != nil && len(r.Entry.Body) > MaxEntry:
		return response{Refused: fmt.Sprintf("the change has %d bytes; the log takes at most %d", len(r.Entry.Body), MaxEntry)}
	case r.Op == opPropose && r.Entry != nil:
		return n.servePropose(ctx, *r.Entry)
	case r.Op == opAddServer:
		return n.serveAddServer(ctx, r.ID, r.Address)
	case r.Op == opRemoveServer:
		return n.serveRemoveServer(ctx, r.ID)
	case r.Op == opDemoteServer:
		return n.serveDemoteServer(ctx, r.ID)
	case r.Op == opTransfer:
		return n.serveTransfer(ctx)
	case r.Op == opIndex:
		return response{Index: n.AppliedIndex()}
	case r.Op == opReadIndex:
		return n.serveReadIndex(ctx)
	}
	return response{Refused: fmt.Sprintf("this server does not know the request %q; bring all servers to the same version", r.Op)}
}

func (n *Node) notLeader() response {
	id, addr := n.Leader()
	if id == n.cfg.ServerID {
		id, addr = "", "" // elected, but not ready to act
	}
	return response{NotLeader: true, LeaderID: id, LeaderAddr: addr}
}

// The pauses between attempts to reach a leader.
const (
	firstPause = 10 * time.Millisecond
	lastPause  = 250 * time.Millisecond
)

// atLeader has the leader carry out r, wherever it is, trying again until ctx
// ends. r must bear repetition.
func (n *Node) atLeader(ctx context.Context, r request) (response, error) {
	var (
		unknown error // the last attempt that may have had effect
		hint    response
		wait    = firstPause
	)
	for {
		elsewhere := n.leader.changes()
		_, here := n.term.get()
		resp, err := n.attempt(ctx, r, hint)
		hint = response{}
		switch {
		case errors.Is(err, ErrClosed):
			return response{}, err
		case err != nil: // sent, no answer
			unknown = err
		case resp.Unknown != "":
			unknown = errors.New(resp.Unknown)
		case resp.Refused != "":
			return resp, fmt.Errorf("%w: %s", ErrRefused, resp.Refused)
		case resp.NotLeader:
			hint = resp
		default:
			return resp, nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-elsewhere:
		case <-here:
		case <-timer.C:
			wait = min(2*wait, lastPause)
		case <-ctx.Done():
		case <-n.ctx.Done():
		}
		timer.Stop()
		if n.ctx.Err() != nil {
			return response{}, ErrClosed
		}
		if ctx.Err() != nil {
			return response{}, gaveUp(ctx.Err(), unknown)
		}
	}
}

// gaveUp says what is known of a request that was not confirmed until cause.
// unknown is the last attempt's error after which it may have been carried out.
func gaveUp(cause, unknown error) error {
	if unknown == nil {
		return fmt.Errorf("%w: %w", ErrNoLeader, cause)
	}
	return fmt.Errorf("%w: %w (last attempt: %w)", ErrOutcomeUnknown, cause, unknown)
}

// attempt tries r once: here, or at the leader this server knows, or at the one
// that hint names. An error other than ErrClosed means that r was sent
// somewhere and not answered.
func (n *Node) attempt(ctx context.Context, r request, hint response) (response, error) {
	if n.ctx.Err() != nil {
		return response{}, ErrClosed
	}
	if n.IsLeader() {
		return n.serve(ctx, r), nil
	}
	id, addr := n.Leader()
	if hint.LeaderID != "" && hint.LeaderID != n.cfg.ServerID {
		id, addr = hint.LeaderID, hint.LeaderAddr
	}
	if id == "" || id == n.cfg.ServerID || n.cfg.Forward == nil {
		return response{NotLeader: true}, nil
	}
	body, err := json.Marshal(r)
	if err != nil {
		return response{Refused: err.Error()}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, n.timing.Forward)
	defer cancel()
	// A leader that died without closing its connections never answers; the
	// election of another one ends the wait.
	go n.cancelOnOtherLeader(ctx, cancel, id)
	answer, err := n.cfg.Forward(ctx, id, addr, body)
	if err != nil {
		return response{}, fmt.Errorf("forward to server %s at %s: %w", id, addr, err)
	}
	var resp response
	if err := json.Unmarshal(answer, &resp); err != nil {
		return response{}, fmt.Errorf("read the answer of server %s at %s: %w", id, addr, err)
	}
	return resp, nil
}

func (n *Node) cancelOnOtherLeader(ctx context.Context, cancel context.CancelFunc, id string) {
	for {
		changed := n.leader.changes()
		if now, _ := n.Leader(); now != "" && now != id {
			cancel()
		}
		select {
		case <-changed:
		case <-n.ctx.Done():
			cancel()
			return
		case <-ctx.Done():
			return
		}
	}
}
