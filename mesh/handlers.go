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

// handlers runs each topic's handler on goroutines of its own, behind bounded
// queues: a slow handler delays its topic, never the mesh.
type handlers struct {
	stop <-chan struct{}
	wg   *sync.WaitGroup

	mu     sync.Mutex
	closed bool
	topics map[string]*topic
	bytes  int
}

type topic struct {
	handle func(from identity.Identity, payload []byte)
	shards [handlerShards]chan delivery
}

type delivery struct {
	from    identity.Identity
	payload []byte
}

func newHandlers(stop <-chan struct{}, wg *sync.WaitGroup) *handlers {
	return &handlers{stop: stop, wg: wg, topics: map[string]*topic{}}
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
	t := &topic{handle: f}
	h.topics[name] = t
	for i := range t.shards {
		queue := make(chan delivery, handlerQueue)
		t.shards[i] = queue
		h.wg.Go(func() { h.work(t, queue) })
	}
}

func (h *handlers) work(t *topic, queue <-chan delivery) {
	for {
		select {
		case <-h.stop:
			return
		case d := <-queue:
			h.mu.Lock()
			h.bytes -= len(d.payload)
			f := t.handle
			h.mu.Unlock()
			f(d.from, d.payload)
		}
	}
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
	select {
	case t.shards[sum.Sum32()%handlerShards] <- delivery{from, payload}:
		h.bytes += len(payload)
		return true
	default:
		return false
	}
}

// close refuses further messages; the workers end by stop.
func (h *handlers) close() {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
}
