package mesh

import (
	"container/list"
	"math"
	"sync"
)

// broadcastQueue holds the messages that a pool gossips along with memberlist's
// own: for each key the newest, sent a limited number of times, the least sent
// first. memberlist's TransmitLimitedQueue is not used, because it loses
// messages of equal length when its counter starts over.
type broadcastQueue struct {
	members func() int
	filled  chan struct{} // there is something to send; capacity 1

	mu    sync.Mutex
	byKey map[string]*list.Element
	tiers []*list.List // of *broadcast, by how often they were sent
}

type broadcast struct {
	key  string
	msg  []byte
	sent int
}

const (
	maxBroadcasts = 2048
	// retransmitMult times the digits of the pool's size is how often each member
	// sends what is news to it. With 18 times at 500 members, one in 10^8 is expected
	// to miss a message that no socket drops; with the usual 12, when all change at
	// once, one member misses one.
	retransmitMult = 6
	// maxMisfits is how many messages of a tier that no longer fit into a packet are
	// passed over in search of a smaller one.
	maxMisfits = 8
)

func newBroadcastQueue(members func() int) *broadcastQueue {
	return &broadcastQueue{members: members, filled: make(chan struct{}, 1), byKey: map[string]*list.Element{}}
}

// times returns how often a message is sent.
func (q *broadcastQueue) times() int {
	return retransmitMult * int(math.Ceil(math.Log10(float64(q.members()+2))))
}

// add queues a message that was sent so many times already, in place of an older
// one of the same key. When the queue is full the message that was sent most often
// goes.
func (q *broadcastQueue) add(key string, msg []byte, sent int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.byKey) == 0 {
		poke(q.filled)
	}
	q.remove(key)
	q.byKey[key] = q.tier(sent).PushFront(&broadcast{key: key, msg: msg, sent: sent})
	if len(q.byKey) <= maxBroadcasts {
		return
	}
	for i := len(q.tiers) - 1; i >= 0; i-- {
		if last := q.tiers[i].Back(); last != nil {
			q.remove(last.Value.(*broadcast).key)
			return
		}
	}
}

// tier returns the messages that were sent so often; the lock is held.
func (q *broadcastQueue) tier(sent int) *list.List {
	for len(q.tiers) <= sent {
		q.tiers = append(q.tiers, list.New())
	}
	return q.tiers[sent]
}

// remove forgets a message; the lock is held.
func (q *broadcastQueue) remove(key string) {
	if e, ok := q.byKey[key]; ok {
		q.tiers[e.Value.(*broadcast).sent].Remove(e)
		delete(q.byKey, key)
	}
}

// take returns what fits into limit bytes, each message at a cost of overhead.
func (q *broadcastQueue) take(overhead, limit int) (msgs [][]byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.byKey) == 0 {
		return nil
	}
	times := q.times()
	var taken []*broadcast
	for _, tier := range q.tiers {
		misfits := 0
		for e := tier.Front(); e != nil && limit > overhead && misfits < maxMisfits; {
			b, next := e.Value.(*broadcast), e.Next()
			if cost := overhead + len(b.msg); cost <= limit {
				limit -= cost
				q.remove(b.key)
				msgs, taken = append(msgs, b.msg), append(taken, b)
			} else {
				tier.MoveToBack(e) // or those that fit into no packet would hide the others
				misfits++
			}
			e = next
		}
	}
	for _, b := range taken {
		if b.sent++; b.sent < times {
			q.byKey[b.key] = q.tier(b.sent).PushBack(b)
		}
	}
	return msgs
}

// pending tells how many messages wait.
func (q *broadcastQueue) pending() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.byKey)
}
