package consensus

import (
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// diskWatch knows how long the oldest unfinished write to the log has been
// going on. Raft's main goroutine writes and cannot be asked for anything while
// a write hangs, hence the watch from outside. Safe for concurrent use.
type diskWatch struct {
	limit time.Duration

	mu     sync.Mutex
	writes int       // unfinished
	since  time.Time // when writes last rose from 0
}

// stalled returns ErrDiskStalled while a write takes longer than the limit.
func (d *diskWatch) stalled() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.writes == 0 {
		return nil
	}
	if took := time.Since(d.since); took > d.limit {
		return fmt.Errorf("%w: a write has been waiting for %s", ErrDiskStalled, took.Round(time.Millisecond))
	}
	return nil
}

func (d *diskWatch) begin() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.writes == 0 {
		d.since = time.Now()
	}
	d.writes++
}

func (d *diskWatch) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.writes--
	if d.writes > 0 {
		d.since = time.Now() // one of them came through: the disk answers
	}
}

// watchedLog is a raft.LogStore whose appends are watched.
type watchedLog struct {
	raft.LogStore
	watch *diskWatch
}

func (w watchedLog) StoreLog(l *raft.Log) error {
	w.watch.begin()
	defer w.watch.end()
	return w.LogStore.StoreLog(l)
}

func (w watchedLog) StoreLogs(ls []*raft.Log) error {
	w.watch.begin()
	defer w.watch.end()
	return w.LogStore.StoreLogs(ls)
}

// watchedStable is a raft.StableStore (term and vote) whose writes are watched.
type watchedStable struct {
	raft.StableStore
	watch *diskWatch
}

func (w watchedStable) Set(key, val []byte) error {
	w.watch.begin()
	defer w.watch.end()
	return w.StableStore.Set(key, val)
}

func (w watchedStable) SetUint64(key []byte, val uint64) error {
	w.watch.begin()
	defer w.watch.end()
	return w.StableStore.SetUint64(key, val)
}
