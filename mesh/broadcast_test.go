package mesh

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/hashicorp/memberlist"
)

// broadcasts is what the queues of moult and of memberlist have in common.
type broadcasts interface {
	put(key string, msg []byte)
	take(overhead, limit int) [][]byte
}

type ownQueue struct{ *broadcastQueue }

func (q ownQueue) put(key string, msg []byte) { q.add(key, msg, 0) }

type memberlistQueue struct {
	memberlist.TransmitLimitedQueue
}

func (q *memberlistQueue) put(key string, msg []byte) { q.QueueBroadcast(namedBroadcast{key, msg}) }

func (q *memberlistQueue) take(overhead, limit int) [][]byte { return q.GetBroadcasts(overhead, limit) }

type namedBroadcast struct {
	name string
	msg  []byte
}

func (b namedBroadcast) Name() string                          { return b.name }
func (b namedBroadcast) Message() []byte                       { return b.msg }
func (b namedBroadcast) Finished()                             {}
func (b namedBroadcast) Invalidates(memberlist.Broadcast) bool { return false }

// lost plays a fleet that restarts: messages of equal length come in while others are
// on their way, now and then all of them. It returns how many did not go out as often
// as they should.
func lost(q broadcasts, times int) (short int) {
	r := rand.New(rand.NewPCG(1, 2))
	sent := map[string]int{}
	take := func() {
		for _, m := range q.take(2, 60) {
			sent[string(m)]++
		}
	}
	const messages = 500
	for i := range messages {
		key := fmt.Sprintf("%04d", i)
		q.put(key, []byte(key))
		for range r.IntN(3) {
			take()
		}
	}
	for range messages * times {
		take()
	}
	for i := range messages {
		if sent[fmt.Sprintf("%04d", i)] != times {
			short++
		}
	}
	return short
}

func TestBroadcastsAllGoOutOftenEnough(t *testing.T) {
	members := func() int { return 100 }
	own := ownQueue{newBroadcastQueue(members)}
	if n := lost(own, 18); n > 0 {
		t.Errorf("%d messages did not go out 18 times", n)
	}
	if own.pending() != 0 {
		t.Errorf("%d messages remain", own.pending())
	}
	// Here memberlist's queue shows that the test finds what it is for. Once it loses
	// nothing the queue of our own may not be needed any more.
	other := &memberlistQueue{memberlist.TransmitLimitedQueue{NumNodes: members, RetransmitMult: retransmitMult}}
	if n := lost(other, 18); n == 0 {
		t.Error("memberlist's queue lost nothing: see the comment on broadcastQueue")
	}
}

func TestBroadcastsRespectTheLimitAndReplace(t *testing.T) {
	q := newBroadcastQueue(func() int { return 1 })
	q.add("a", []byte("old"), 0)
	q.add("a", []byte("new"), 0)
	q.add("b", bytes.Repeat([]byte("x"), 100), 0)
	got := q.take(2, 50)
	if len(got) != 1 || string(got[0]) != "new" {
		t.Errorf("took %q", got)
	}
	for i := range maxBroadcasts + 100 {
		q.add(fmt.Sprint("k", i), []byte("m"), 0)
	}
	if n := q.pending(); n > maxBroadcasts {
		t.Errorf("%d messages queued", n)
	}
}

// What was sent already is sent less often, and after what was not.
func TestBroadcastsCountWhatWasSent(t *testing.T) {
	q := newBroadcastQueue(func() int { return 1 })
	q.add("new", []byte("new"), 0)
	q.add("old", []byte("old"), retransmitMult-1)
	if got := q.take(1, 4); len(got) != 1 || string(got[0]) != "new" {
		t.Errorf("took %q", got)
	}
	for range 2 * retransmitMult {
		q.take(1, 8)
	}
	if q.pending() != 0 {
		t.Errorf("%d messages remain", q.pending())
	}
}

// Messages that no packet has room for do not keep smaller ones back.
func TestBroadcastsPassOverMisfits(t *testing.T) {
	q := newBroadcastQueue(func() int { return 1 })
	q.add("small", []byte("small"), 0)
	for i := range 3 * maxMisfits {
		q.add(fmt.Sprint("big", i), bytes.Repeat([]byte("x"), 100), 0)
	}
	for range 4 {
		if got := q.take(2, 50); len(got) == 1 && string(got[0]) == "small" {
			return
		}
	}
	t.Error("the small message waits behind those that do not fit")
}

// A pool asks five times a second what there is to gossip, and mostly there is
// nothing: that must cost nothing.
func TestNothingToGossipCostsNothing(t *testing.T) {
	asked := 0
	q := newBroadcastQueue(func() int { asked++; return 200 })
	if n := testing.AllocsPerRun(100, func() { q.take(3, 1400) }); n != 0 || asked != 0 {
		t.Errorf("%v allocations; the members were counted %d times", n, asked)
	}
}
