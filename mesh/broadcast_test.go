package mesh

import (
	"bytes"
	"fmt"
	"testing"
)

// Many equal-sized messages at once: each must go out, each often enough.
func TestBroadcastsAllGoOut(t *testing.T) {
	q := newBroadcastQueue(func() int { return 100 })
	for i := range 500 {
		q.add(fmt.Sprint(i), fmt.Appendf(nil, "%04d", i))
	}
	sent := map[string]int{}
	for range 10_000 {
		for _, m := range q.take(2, 60) {
			sent[string(m)]++
		}
	}
	for i := range 500 {
		if n := sent[fmt.Sprintf("%04d", i)]; n != 12 {
			t.Fatalf("message %d went out %d times", i, n)
		}
	}
	if q.pending() != 0 {
		t.Errorf("%d messages remain", q.pending())
	}
}

func TestBroadcastsRespectTheLimitAndReplace(t *testing.T) {
	q := newBroadcastQueue(func() int { return 1 })
	q.add("a", []byte("old"))
	q.add("a", []byte("new"))
	q.add("b", bytes.Repeat([]byte("x"), 100))
	got := q.take(2, 50)
	if len(got) != 1 || string(got[0]) != "new" {
		t.Errorf("took %q", got)
	}
	for i := range maxBroadcasts + 100 {
		q.add(fmt.Sprint("k", i), []byte("m"))
	}
	if n := q.pending(); n > maxBroadcasts {
		t.Errorf("%d messages queued", n)
	}
}

// A pool asks ten times a second, for each of three members, what there is to
// gossip, and mostly there is nothing: that must cost nothing.
func TestNothingToGossipCostsNothing(t *testing.T) {
	asked := 0
	q := newBroadcastQueue(func() int { asked++; return 200 })
	if n := testing.AllocsPerRun(100, func() { q.take(3, 1400) }); n != 0 || asked != 0 {
		t.Errorf("%v allocations; the members were counted %d times", n, asked)
	}
}
