package updater

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"
)

// maxSidelined bounds, in bytes, what waits to be printed.
const maxSidelined = 256 << 10

// sideline prints beside the supervisor. Where the output goes may stop taking
// any (a paused terminal, a hung log daemon); a supervisor that waited for it
// could roll nothing back. What finds no room is dropped and counted. Safe for
// concurrent use.
type sideline struct {
	to io.Writer

	mu      sync.Mutex
	queue   []func()
	held    int // bytes in the queue
	dropped int // bytes
	running bool
	drained chan struct{} // closed when the goroutine that empties the queue ends
}

// do has f called later, in turn. f holds about size bytes.
func (s *sideline) do(size int, f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held+size > maxSidelined {
		s.dropped += size
		return
	}
	if n := s.dropped; n > 0 {
		s.dropped = 0
		s.queue = append(s.queue, func() { fmt.Fprintf(s.to, "[%d bytes of output were dropped: nothing took them]\n", n) })
	}
	s.queue = append(s.queue, f)
	s.held += size
	if !s.running {
		s.running, s.drained = true, make(chan struct{})
		go s.drain(s.drained)
	}
}

// drain calls what is queued and ends when nothing is left.
func (s *sideline) drain(done chan struct{}) {
	defer close(done)
	for {
		s.mu.Lock()
		batch := s.queue
		s.queue, s.held = nil, 0
		if len(batch) == 0 {
			s.running = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		for _, f := range batch {
			f()
		}
	}
}

// flush waits until all is printed, at most for d.
func (s *sideline) flush(d time.Duration) {
	s.mu.Lock()
	drained, running := s.drained, s.running
	s.mu.Unlock()
	if !running {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-drained:
	case <-t.C:
	}
}

// Write never errs and never waits.
func (s *sideline) Write(p []byte) (int, error) {
	b := bytes.Clone(p)
	s.do(len(b), func() { _, _ = s.to.Write(b) })
	return len(p), nil
}

// sidelinedHandler has another handler handle records beside the supervisor.
type sidelinedHandler struct {
	slog.Handler
	side *sideline
}

// recordSize is what a log record is taken to hold, in bytes.
const recordSize = 512

func (h sidelinedHandler) Handle(ctx context.Context, r slog.Record) error {
	ctx, r = context.WithoutCancel(ctx), r.Clone()
	h.side.do(recordSize, func() { _ = h.Handler.Handle(ctx, r) })
	return nil
}

func (h sidelinedHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return sidelinedHandler{h.Handler.WithAttrs(attrs), h.side}
}

func (h sidelinedHandler) WithGroup(name string) slog.Handler {
	return sidelinedHandler{h.Handler.WithGroup(name), h.side}
}
