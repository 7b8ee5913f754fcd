package consensus

import (
	"context"
	"errors"
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
	switch {
	case n.ctx.Err() != nil:
		return ErrClosed
	case n.barred() != nil:
		return n.barred()
	case !n.Configured():
		return errors.New("this server does not belong to a cluster yet")
	case !n.IsMember(n.cfg.ServerID):
		return errors.New("this server was removed from the cluster")
	case !n.HasLeader():
		return errors.New("no leader; a majority of the servers must be up")
	case !n.caughtUp.Load():
		return errors.New("catching up with the leader")
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
