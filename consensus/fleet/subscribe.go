package fleet

import "sync"

// Event tells that the state changed: which topics, at which index. Topics are
// "cluster", "hosts", "host:ID", "releases", "fleet-updates", "fleet-update:ID",
// "jobs", "job:ID", "job-log:ID", "alerts", "audit", "users", "tokens", "webhooks", or "*" when the
// subscriber was too slow to be told each.
type Event struct {
	Index  uint64
	Topics []string
}

// subscriberBuffer is how many events a subscriber may lag behind before they
// are folded into one that says "*".
const subscriberBuffer = 64

type subscribers struct {
	mu   sync.Mutex
	next int
	all  map[int]chan Event
}

// Subscribe returns a channel of events and a function that ends it. A slow
// subscriber never holds Apply up.
func (s *State) Subscribe() (<-chan Event, func()) {
	sub := &s.subscribers
	sub.mu.Lock()
	defer sub.mu.Unlock()
	if sub.all == nil {
		sub.all = map[int]chan Event{}
	}
	id := sub.next
	sub.next++
	ch := make(chan Event, subscriberBuffer)
	sub.all[id] = ch
	return ch, func() {
		sub.mu.Lock()
		defer sub.mu.Unlock()
		delete(sub.all, id)
	}
}

func (sub *subscribers) publish(e Event) {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	for _, ch := range sub.all {
		select {
		case ch <- e:
		default:
			// Full: make room for one event that stands for all that were missed.
			select {
			case <-ch:
			default:
			}
			select {
			case ch <- Event{Index: e.Index, Topics: []string{"*"}}:
			default:
			}
		}
	}
}
