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
	last   error     // of the last one that ended
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

// failed returns ErrDiskFailed when the last write failed.
func (d *diskWatch) failed() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.last == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrDiskFailed, d.last)
}

func (d *diskWatch) begin() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.writes == 0 {
		d.since = time.Now()
	}
	d.writes++
}

func (d *diskWatch) end(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last = err
	d.writes--
	if d.writes > 0 {
		d.since = time.Now() // one of them came through: the disk answers
	}
}

// timed does one write.
func (d *diskWatch) timed(write func() error) (err error) {
	d.begin()
	defer func() { d.end(err) }()
	return write()
}

// watchedLog is a raft.LogStore whose appends are watched.
type watchedLog struct {
	raft.LogStore
	watch *diskWatch
}

func (w watchedLog) StoreLog(l *raft.Log) error {
	return w.watch.timed(func() error { return w.LogStore.StoreLog(l) })
}

func (w watchedLog) StoreLogs(ls []*raft.Log) error {
	return w.watch.timed(func() error { return w.LogStore.StoreLogs(ls) })
}

// watchedStable is a raft.StableStore (term and vote) whose writes are watched.
type watchedStable struct {
	raft.StableStore
	watch *diskWatch
}

func (w watchedStable) Set(key, val []byte) error {
	return w.watch.timed(func() error { return w.StableStore.Set(key, val) })
}

func (w watchedStable) SetUint64(key []byte, val uint64) error {
	return w.watch.timed(func() error { return w.StableStore.SetUint64(key, val) })
}
