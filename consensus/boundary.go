package consensus

import (
	"errors"
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

// boundarySnapshots is a raft.SnapshotStore that keeps the boundary.
type boundarySnapshots struct {
	raft.SnapshotStore
	boundary *boundary
}

func keepBoundary(s raft.SnapshotStore, b *boundary) (boundarySnapshots, error) {
	kept, err := s.List()
	if err == nil && len(kept) > 0 {
		b.set(kept[0].Index, kept[0].Term)
	}
	return boundarySnapshots{s, b}, err
}

func (s boundarySnapshots) Create(version raft.SnapshotVersion, index, term uint64, c raft.Configuration, cIndex uint64, t raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.SnapshotStore.Create(version, index, term, c, cIndex, t)
	if err != nil {
		return nil, err
	}
	return &boundarySink{SnapshotSink: sink, boundary: s.boundary, index: index, term: term}, nil
}

type boundarySink struct {
	raft.SnapshotSink
	boundary    *boundary
	index, term uint64
}

func (s *boundarySink) Close() error {
	if err := s.SnapshotSink.Close(); err != nil {
		return err
	}
	s.boundary.set(s.index, s.term)
	return nil
}
