package artifact

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// watchEvery is how often those who wait for another's fetch of an artifact look
// how far it is.
const watchEvery = 500 * time.Millisecond

// flight is a fetch of an artifact that is under way: one at a time for each
// digest, which the others watch. Safe for concurrent use.
type flight struct {
	ended chan struct{} // closed when the partial file loses its owner

	readers atomic.Int32 // streams that are served of what comes in

	mu    sync.Mutex
	state flightState
	file  *chunkFile // set: what is verified of it is served
}

// flightState is how far a flight is.
type flightState struct {
	size    int64 // of the artifact
	done    int64 // bytes here
	from    Peer  // who sent the newest
	pull    PullProgress
	through []string // host ids of the relays that it waits for, the nearest first; none while bytes come in from elsewhere
	whole   bool     // it comes in as a whole
	sources []Source // once it has succeeded
}

// moved counts the bytes that came over any link on their way to here.
func (s flightState) moved() int64 { return s.done + s.pull.Moved }

func (f *flight) update(change func(*flightState)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.state)
}

func (f *flight) now() flightState {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

// await tells watch how far the flight is until it has ended.
func (f *flight) await(ctx context.Context, watch func(flightState)) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-f.ended:
			watch(f.now())
			return nil
		case <-tick.C:
			watch(f.now())
		}
	}
}

// claim makes the caller the only one to write a digest's partial file, after
// waiting for who does now, whose state it passes on to watch.
func (s *Store) claim(ctx context.Context, digest string, watch func(flightState)) (own *flight, release func(), err error) {
	for {
		s.mu.Lock()
		other, busy := s.fetching[digest]
		if !busy {
			own = &flight{ended: make(chan struct{})}
			s.fetching[digest] = own
			s.mu.Unlock()
			return own, func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				delete(s.fetching, digest)
				close(own.ended)
			}, nil
		}
		s.mu.Unlock()
		if err := other.await(ctx, watch); err != nil {
			return nil, nil, err
		}
	}
}

// coming returns the artifact that is being fetched chunk by chunk, if it is.
func (s *Store) coming(digest string) (*flight, *chunkFile) {
	s.mu.Lock()
	f, ok := s.fetching[digest]
	s.mu.Unlock()
	if !ok {
		return nil, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f, f.file
}

// isRead tells whether chunks are being served of an artifact that comes in.
func (s *Store) isRead(digest string) bool {
	s.mu.Lock()
	f, ok := s.fetching[digest]
	s.mu.Unlock()
	return ok && f.readers.Load() > 0
}

// nextSource is closed when the next artifact can be served while it comes in.
func (s *Store) nextSource() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.began
}

// announceSources wakes who waits for an artifact to begin.
func (s *Store) announceSources() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.began)
	s.began = make(chan struct{})
}

// share has the verified chunks of a file served; nil: no longer.
func (f *flight) share(file *chunkFile) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.file = file
}

// flying returns how far the fetch of an artifact is that is under way, if any.
func (s *Store) flying(digest string) flightState {
	s.mu.Lock()
	f, ok := s.fetching[digest]
	s.mu.Unlock()
	if !ok {
		return flightState{}
	}
	return f.now()
}
