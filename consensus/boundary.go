package consensus

import (
	"errors"
	"fmt"
	"sync"

	"github.com/hashicorp/raft"
)

// boundary is the last entry that the newest snapshot contains: its index and
// term. Raft 1.8.0 forgets it as soon as the log goes on behind it: a follower
// that installed a snapshot and has later entries looks the entry up in its log,
// where it never was, and refuses whatever follows it. A leader that begins there
// again, because an answer was lost, sends the snapshot again, and again, for ever
// (hashicorp/raft issue 697, see DESIGN.md). Safe for concurrent use.
type boundary struct {
	leads func() bool // whether this server leads

	mu          sync.Mutex
	index, term uint64
}

func (b *boundary) set(index, term uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.index, b.term = index, term
}

// at returns the term of the boundary if it is at this index.
func (b *boundary) at(index uint64) (term uint64, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.term, index != 0 && index == b.index
}

// boundaryLog is a raft.LogStore that knows index and term of the boundary. A
// leader is not told: it must not take for an entry what is only the end of one.
type boundaryLog struct {
	raft.LogStore
	boundary *boundary
}

// boundaryEntry is the type of what boundaryLog makes up. No entry has it, and
// the transport sends none.
const boundaryEntry raft.LogType = 0xff

func (l boundaryLog) GetLog(index uint64, out *raft.Log) error {
	err := l.LogStore.GetLog(index, out)
	if !errors.Is(err, raft.ErrLogNotFound) || l.boundary.leads() {
		return err
	}
	term, ok := l.boundary.at(index)
	if !ok {
		return err
	}
	*out = raft.Log{Index: index, Term: term, Type: boundaryEntry}
	return nil
}

// errBoundaryEntry: this server stopped leading while it read its log.
var errBoundaryEntry = errors.New("the entry is in a snapshot, no longer in the log")

// sendable refuses to send what boundaryLog made up.
func sendable(entries []*raft.Log) error {
	for _, e := range entries {
		if e.Type == boundaryEntry {
			return errBoundaryEntry
		}
	}
	return nil
}

// boundarySnapshots is a raft.SnapshotStore that keeps the boundary, and a log in
// step with it.
type boundarySnapshots struct {
	raft.SnapshotStore
	boundary *boundary
	logs     raft.LogStore
}

func keepBoundary(s raft.SnapshotStore, b *boundary, logs raft.LogStore) (boundarySnapshots, error) {
	kept, err := s.List()
	if err == nil && len(kept) > 0 {
		b.set(kept[0].Index, kept[0].Term)
	}
	return boundarySnapshots{s, b, logs}, err
}

func (s boundarySnapshots) Create(version raft.SnapshotVersion, index, term uint64, c raft.Configuration, cIndex uint64, t raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.SnapshotStore.Create(version, index, term, c, cIndex, t)
	if err != nil {
		return nil, err
	}
	return &boundarySink{SnapshotSink: sink, snapshots: s, index: index, term: term}, nil
}

type boundarySink struct {
	raft.SnapshotSink
	snapshots   boundarySnapshots
	index, term uint64
}

// Close puts the snapshot in place of what the log holds up to its end, if that is
// another story: entries of a leader that could not commit them. Raft keeps the
// newest TrailingLogs of them, and finds the wrong term where its leader begins
// again after the snapshot.

func (s *boundarySink) Close() error {
	if err := s.SnapshotSink.Close(); err != nil {
		return err
	}
	s.snapshots.boundary.set(s.index, s.term)
	return dropDiverged(s.snapshots.logs, s.index, s.term)
}

// dropDiverged deletes the log up to an index where it does not hold the entry of
// that term. What it holds beyond, Raft deletes when the next entry comes.
func dropDiverged(logs raft.LogStore, index, term uint64) error {
	var l raft.Log
	switch err := logs.GetLog(index, &l); {
	case errors.Is(err, raft.ErrLogNotFound), err == nil && l.Term == term:
		return nil
	case err != nil:
		return fmt.Errorf("read the log where the snapshot ends: %w", err)
	}
	first, err := logs.FirstIndex()
	if err == nil {
		err = logs.DeleteRange(first, index)
	}
	if err != nil {
		return fmt.Errorf("delete what the log holds instead of the snapshot: %w", err)
	}
	return nil
}
