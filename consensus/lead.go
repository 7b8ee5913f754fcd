package consensus

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// leadership tells whether this server leads and may act: it was elected, its
// state contains everything its predecessors committed, and its disk answers.
type leadership struct {
	mu      sync.Mutex
	current context.Context // the term of office; nil: none
	changed chan struct{}   // closed when current changes
}

func newLeadership() leadership { return leadership{changed: make(chan struct{})} }

// get returns the running term of office, or nil, and a channel that is closed
// when that changes.
func (l *leadership) get() (context.Context, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current != nil && l.current.Err() != nil {
		return nil, l.changed
	}
	return l.current, l.changed
}

func (l *leadership) begin(term context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current = term
	l.announce()
}

func (l *leadership) clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current = nil
	l.announce()
}

// announce wakes those who wait; the caller holds mu.
func (l *leadership) announce() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// watchLeadership begins and ends terms of office.
func (n *Node) watchLeadership() {
	check := time.NewTicker(max(n.timing.DiskStall/8, time.Millisecond))
	defer check.Stop()
	var (
		elected bool
		end     = func() {}
		ended   = true
	)
	defer func() { end() }()
	for {
		select {
		case elected = <-n.raft.LeaderCh():
			// Also on true: the channel keeps only the newest signal, so this may
			// be a new election after a loss that was never seen.
			end()
			ended = true
		case <-check.C:
		case <-n.ctx.Done():
			return
		}
		bar := n.barred()
		switch {
		case bar != nil && !ended:
			n.logger.Error("giving up leadership", "error", bar)
			end()
			ended = true
		case elected && bar == nil && ended:
			end = n.beginTerm()
			ended = false
		}
	}
}

// barred says why this server must not lead now; nil: it may.
func (n *Node) barred() error {
	err := n.disk.stalled()
	if err == nil && n.voters() > 1 {
		err = n.cfg.Unfit()
	}
	return err
}

// beginTerm starts a term of office, which others see once a Barrier is
// through. The returned function ends it, and waits for nothing but that.
func (n *Node) beginTerm() (end func()) {
	term, cancel := context.WithCancel(n.ctx)
	opened := make(chan struct{})
	go func() {
		defer close(opened)
		for term.Err() == nil {
			number := n.raft.CurrentTerm()
			err := await(term, func() error { return n.raft.Barrier(n.timing.Enqueue).Error() })
			if err == nil && n.raft.CurrentTerm() == number { // else the barrier may be of an earlier one
				n.term.begin(context.WithValue(term, termNumber{}, number))
				return
			}
			pause(term, n.timing.Commit)
		}
	}()
	return func() {
		cancel()
		<-opened
		n.term.clear()
	}
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// termKey finds the term of office in the contexts that Lead hands out, and
// termNumber finds Raft's number of it in a term of office.
type (
	termKey    struct{}
	termNumber struct{}
)

// Lead runs f on this server whenever it leads: not before its state contains
// everything committed under earlier leaders, and with a context that ends at
// once when leadership is lost. f is called again each time leadership is
// gained, never twice at a time, and, after a pause of one heartbeat timeout,
// when it returns while this server still leads. Lead returns when ctx ends or
// the node closes, after f has returned.
//
// f's context fences proposals: one made under it is appended by this server in
// this term of office, or Propose returns an error, a *fleet.Error among them.
func (n *Node) Lead(ctx context.Context, f func(context.Context)) {
	for {
		term, changed := n.term.get()
		if term == nil {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return
			case <-n.ctx.Done():
				return
			}
		}
		run, stop := context.WithCancel(context.WithValue(ctx, termKey{}, term))
		unhook := context.AfterFunc(term, stop)
		f(run)
		pause(run, n.timing.Heartbeat)
		unhook()
		stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// IsLeader tells whether this server leads and may act on it.
func (n *Node) IsLeader() bool {
	term, _ := n.term.get()
	return term != nil
}

// Leader returns the leader that this server knows of; both are empty when it
// knows none.
func (n *Node) Leader() (id, addr string) {
	a, i := n.raft.LeaderWithID()
	return string(i), string(a)
}

// WaitLeader blocks until this server knows a leader.
func (n *Node) WaitLeader(ctx context.Context) error {
	for {
		changed := n.leader.changes()
		if id, _ := n.Leader(); id != "" {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for a leader: %w; a majority of the servers must be up", ctx.Err())
		case <-n.ctx.Done():
			return ErrClosed
		}
	}
}

// leaderWatch wakes those who wait for another leader.
type leaderWatch struct {
	mu      sync.Mutex
	changed chan struct{} // closed at the next change
}

func newLeaderWatch() leaderWatch { return leaderWatch{changed: make(chan struct{})} }

func (w *leaderWatch) changes() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changed
}

func (w *leaderWatch) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.changed)
	w.changed = make(chan struct{})
}

// watchLeader turns Raft's observations into wake-ups.
func (n *Node) watchLeader() {
	seen := make(chan raft.Observation, 1) // one is enough: it only says "look again"
	observer := raft.NewObserver(seen, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	n.raft.RegisterObserver(observer)
	defer n.raft.DeregisterObserver(observer)
	for {
		n.leader.wake() // first for a change before the observer was registered
		select {
		case <-seen:
		case <-n.ctx.Done():
			return
		}
	}
}
