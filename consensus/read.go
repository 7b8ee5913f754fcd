package consensus

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// CatchUp returns once the local state contains every change that was
// acknowledged, on any server, before the call, and every change that anybody
// read after a CatchUp that had returned by then. What is read from the state
// afterwards is therefore linearizable.
//
// It costs the group an entry that changes nothing, which calls that wait on the
// leader at the same time share. It fails with ErrNoLeader when ctx ends first.
func (n *Node) CatchUp(ctx context.Context) error {
	resp, err := n.atLeader(ctx, request{Op: opReadIndex})
	if err == nil {
		err = n.awaitApplied(ctx, resp.Index)
	}
	if errors.Is(err, ErrOutcomeUnknown) { // an entry that changes nothing: asking again does no harm
		err = fmt.Errorf("%w: %w", ErrNoLeader, ctx.Err())
	}
	if err != nil {
		return fmt.Errorf("catch up with the leader: %w", err)
	}
	return nil
}

// serveReadIndex answers an index that contains what was committed before the
// request came. A Barrier that was appended later is committed, so no other leader
// had an entry committed before it that this one lacks.
func (n *Node) serveReadIndex(ctx context.Context) response {
	if err := n.barriers.wait(ctx, func() error { return n.raft.Barrier(n.timing.Enqueue).Error() }); err != nil {
		return n.notLeader() // whatever it was, asking again does no harm
	}
	return response{Index: n.AppliedIndex()}
}

// shared runs a call for all who wait for one that began after they came. One runs
// at a time; the next is for all who came meanwhile.
type shared struct {
	mu      sync.Mutex
	running bool
	next    *round // of who waits for the next run; nil: nobody
}

type round struct {
	done chan struct{}
	err  error
}

// wait returns the error of a run that began after it was called, or ctx's.
func (s *shared) wait(ctx context.Context, call func() error) error {
	s.mu.Lock()
	if s.next == nil {
		s.next = &round{done: make(chan struct{})}
	}
	mine := s.next
	if !s.running {
		s.running = true
		go s.run(call)
	}
	s.mu.Unlock()
	select {
	case <-mine.done:
		return mine.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run calls until nobody waits.
func (s *shared) run(call func() error) {
	for {
		s.mu.Lock()
		r := s.next
		s.next = nil
		s.running = r != nil
		s.mu.Unlock()
		if r == nil {
			return
		}
		r.err = call()
		close(r.done)
	}
}
