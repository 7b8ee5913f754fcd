package mesh

import (
	"cmp"
	"math"
	"slices"
	"sync"
)

// broadcastQueue holds the messages that a pool gossips along with memberlist's
// own: for each key the newest, sent a limited number of times, the least sent
// first. memberlist's TransmitLimitedQueue is not used, because it loses
// messages of equal length when its counter starts over.
type broadcastQueue struct {
	members func() int

	mu    sync.Mutex
	next  uint64
	queue map[string]*broadcast
}

type broadcast struct {
	key   string
	msg   []byte
	sent  int
	order uint64
}

const (
	maxBroadcasts  = 2048
	retransmitMult = 4
)

func newBroadcastQueue(members func() int) *broadcastQueue {
	return &broadcastQueue{members: members, queue: map[string]*broadcast{}}
}

// add queues a message in place of an older one of the same key. When the queue
// is full the message that was sent most often goes.
func (q *broadcastQueue) add(key string, msg []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.next++
	q.queue[key] = &broadcast{key: key, msg: msg, order: q.next}
	if len(q.queue) > maxBroadcasts {
		all := q.sorted()
		delete(q.queue, all[len(all)-1].key)
	}
}

func (q *broadcastQueue) sorted() []*broadcast {
	all := make([]*broadcast, 0, len(q.queue))
	for _, b := range q.queue {
		all = append(all, b)
	}
	slices.SortFunc(all, func(a, b *broadcast) int {
		return cmp.Or(cmp.Compare(a.sent, b.sent), cmp.Compare(b.order, a.order))
	})
	return all
}

// take returns what fits into limit bytes, each message at a cost of overhead.
func (q *broadcastQueue) take(overhead, limit int) (msgs [][]byte) {
	if q.pending() == 0 {
		return nil // most of the time, and asked for many times a second
	}
	members := q.members()
	q.mu.Lock()
	defer q.mu.Unlock()
	times := retransmitMult * int(math.Ceil(math.Log10(float64(members+2))))
	for _, b := range q.sorted() {
		if cost := overhead + len(b.msg); cost <= limit {
			limit -= cost
			msgs = append(msgs, b.msg)
			if b.sent++; b.sent >= times {
				delete(q.queue, b.key)
			}
		}
	}
	return msgs
}

// pending tells how many messages wait.
func (q *broadcastQueue) pending() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.queue)
}
