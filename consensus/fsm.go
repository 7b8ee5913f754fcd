package consensus

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"moult/consensus/fleet"
)

// fsm feeds the state from the log and remembers how far it came. Apply,
// Snapshot and Restore are called by Raft's own goroutine, one at a time.
type fsm struct {
	state         *fleet.State
	serverRemoved func()        // called when a server was, or may have been, removed; must not block
	servers       []raft.Server // of the last configuration; owned by Raft's goroutine

	mu      sync.Mutex
	applied uint64        // index of the last command in state
	lastAt  time.Time     // the last entry's
	moved   chan struct{} // closed when applied rises
}

func newFSM() *fsm {
	return &fsm{state: fleet.New(), moved: make(chan struct{})}
}

// StoreConfiguration is Raft saying that a configuration is committed.
func (f *fsm) StoreConfiguration(_ uint64, c raft.Configuration) {
	gone := func(s raft.Server) bool {
		return !slices.ContainsFunc(c.Servers, func(t raft.Server) bool { return t.ID == s.ID })
	}
	if f.servers == nil || slices.ContainsFunc(f.servers, gone) { // nil: what was before is in a snapshot
		f.serverRemoved()
	}
	f.servers = c.Clone().Servers
}

// Apply applies one command. An entry that is not JSON can only come from a
// broken or newer server; it takes the way of an unknown change, which every
// server refuses alike. One that was proposed for another term than it was
// appended in comes too late (see Lead): it is void on all servers.
func (f *fsm) Apply(l *raft.Log) any {
	if fence := l.Extensions; len(fence) == 8 && binary.BigEndian.Uint64(fence) != l.Term {
		result := f.state.Pass(l.Index, "the leader that proposed this was deposed; look again before you repeat it")
		f.reached(l.Index, time.Time{})
		return void{result}
	}
	e, _ := fleet.DecodeEntry(l.Data) // the zero entry when it is none
	result := f.state.Apply(l.Index, e)
	f.reached(l.Index, e.At)
	return result
}

// void is the answer to an entry that no server applies.
type void struct{ fleet.Result }

// Snapshot takes a view, which costs nothing and does not change while Raft
// applies further entries: what Persist writes later is the state at this index.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	return viewSnapshot{f.state.View()}, nil
}

// Restore replaces the state.
func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	if err := f.state.Restore(r); err != nil {
		return fmt.Errorf("restore the state: %w", err)
	}
	v := f.state.View()
	var at time.Time // of the newest change that left an audit entry; near enough to keep times rising
	if newest := v.Audit(0, 1); len(newest) > 0 {
		at = newest[0].At
	}
	f.reached(v.Index(), at)
	return nil
}

func (f *fsm) reached(index uint64, at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.applied = index
	if !at.IsZero() {
		f.lastAt = at
	}
	close(f.moved)
	f.moved = make(chan struct{})
}

// position returns the index of the last command applied and the time that the
// last one carried.
func (f *fsm) position() (index uint64, at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.applied, f.lastAt
}

// await blocks until the state has reached index.
func (f *fsm) await(ctx context.Context, index uint64) error {
	for {
		f.mu.Lock()
		applied, moved := f.applied, f.moved
		f.mu.Unlock()
		if applied >= index {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// viewSnapshot is the state at one index.
type viewSnapshot struct{ view fleet.View }

// Persist writes the state to Raft's snapshot store.
func (s viewSnapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.view.Snapshot(sink); err != nil {
		_ = sink.Cancel() // the write's error is the one that counts
		return fmt.Errorf("write snapshot: %w", err)
	}
	return sink.Close()
}

// Release has nothing to release.
func (viewSnapshot) Release() {}
