package mesh

import (
	"hash/fnv"
	"sync"

	"moult/mesh/identity"
)

const (
	handlerShards = 4   // a sender's messages keep their order within a topic
	handlerQueue  = 256 // messages that wait per shard
	// inboxBytes bounds what waits to be handled, over all queues.
	inboxBytes = 64 << 20
)

// handlers runs each topic's handler behind bounded queues: a slow handler delays
// its topic, never the mesh. A queue has a goroutine while something waits in it,
// and no memory otherwise: a host has many topics and seldom a message.
type handlers struct {
	wg *sync.WaitGroup

	mu     sync.Mutex
	closed bool
	topics map[string]*topic
	bytes  int
}

// topic is one topic's handler and what waits for it, under the lock of handlers.
type topic struct {
	handle func(from identity.Identity, payload []byte)
	shards [handlerShards]shard
}

type shard struct {
	waiting []delivery // in the order in which they came
	working bool
}

type delivery struct {
	from    identity.Identity
	payload []byte
}

func newHandlers(wg *sync.WaitGroup) *handlers {
	return &handlers{wg: wg, topics: map[string]*topic{}}
}

// handle sets the handler of a topic, or replaces it.
func (h *handlers) handle(name string, f func(from identity.Identity, payload []byte)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	if t, ok := h.topics[name]; ok {
		t.handle = f
		return
	}
	h.topics[name] = &topic{handle: f}
}

// work handles what waits in a queue until nothing does.
func (h *handlers) work(t *topic, s *shard) {
	for {
		f, d, ok := h.next(t, s)
		if !ok {
			return
		}
		f(d.from, d.payload)
	}
}

// next takes what waits for longest; false: nothing does, or the node closes.
func (h *handlers) next(t *topic, s *shard) (func(identity.Identity, []byte), delivery, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(s.waiting) == 0 || h.closed {
		s.waiting, s.working = nil, false
		return nil, delivery{}, false
	}
	d := s.waiting[0]
	s.waiting[0] = delivery{} // its payload is the handler's alone
	s.waiting = s.waiting[1:]
	h.bytes -= len(d.payload)
	return t.handle, d, true
}

// deliver queues a message. It returns false when nobody handles the topic or
// the queue is full.
func (h *handlers) deliver(name string, from identity.Identity, payload []byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	t, ok := h.topics[name]
	if !ok || h.closed || h.bytes+len(payload) > inboxBytes {
		return false
	}
	sum := fnv.New32a()
	sum.Write([]byte(from.HostID))
	s := &t.shards[sum.Sum32()%handlerShards]
	if len(s.waiting) >= handlerQueue {
		return false
	}
	s.waiting = append(s.waiting, delivery{from, payload})
	h.bytes += len(payload)
	if !s.working {
		s.working = true
		h.wg.Go(func() { h.work(t, s) })
	}
	return true
}

// close refuses further messages; the workers end with the one that they handle.
func (h *handlers) close() {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
}
