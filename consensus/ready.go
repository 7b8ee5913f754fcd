package consensus

import (
	"context"
	"sync/atomic"
	"time"
)

// caughtUp tells whether this server's state has reached, since it last lost
// touch, what the leader had applied by then.
type caughtUp struct{ atomic.Bool }

// Ready returns nil when this server can serve users: it is a member, knows a
// leader, hears from it, and its state has caught up. The error says what is
// missing. It asks nobody and does not block.
func (n *Node) Ready() error {
	if n.ctx.Err() != nil {
		return ErrClosed
	}
	if err := n.barred(); err != nil {
		return err
	}
	if err := n.disk.failed(); err != nil {
		return err
	}
	switch {
	case !n.Configured():
		return ErrNotMember
	case !n.IsMember(n.cfg.ServerID):
		return ErrRemoved
	case !n.HasLeader():
		return ErrLeaderless
	case !n.caughtUp.Load():
		return ErrBehind
	}
	return nil
}

// HasLeader tells whether this server leads, or knows a leader and has heard
// from it within three heartbeat timeouts.
func (n *Node) HasLeader() bool {
	id, _ := n.Leader()
	switch id {
	case "":
		return false
	case n.cfg.ServerID:
		return n.IsLeader()
	}
	return time.Since(n.raft.LastContact()) < 3*n.timing.Heartbeat
}

// watchCatchUp keeps caughtUp. Raft's own numbers do not tell a follower how
// far behind it is: after a start its commit index is 0, heartbeats do not
// raise it, and its log may lack entries. So it asks the leader once.
func (n *Node) watchCatchUp() {
	tick := time.NewTicker(min(n.timing.Heartbeat/4, 100*time.Millisecond))
	defer tick.Stop()
	for {
		switch {
		case !n.HasLeader():
			n.caughtUp.Store(false)
		case !n.caughtUp.Load():
			n.caughtUp.Store(n.catchUp())
		}
		select {
		case <-tick.C:
		case <-n.ctx.Done():
			return
		}
	}
}

// catchUp asks the leader for its index and waits for the local state to reach
// it, each for a bounded time.
func (n *Node) catchUp() bool {
	ctx, cancel := context.WithTimeout(n.ctx, n.timing.Forward)
	defer cancel()
	resp, err := n.attempt(ctx, request{Op: opIndex}, response{})
	if err != nil || resp.NotLeader || resp.Refused != "" {
		return false
	}
	return n.fsm.await(ctx, resp.Index) == nil
}
