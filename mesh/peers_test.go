package mesh

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

// Whatever memberlist tells of members, a pool finds those that are alive, and those
// that the roster has not taken yet, without looking at the others.
func TestPeersAreFound(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 0))
		removed := map[string]bool{}
		p := &pool{
			self: "self", peers: newPeers(), notify: func() {}, removed: func(id string) bool { return removed[id] },
			broadcast: newBroadcastQueue(func() int { return 1 }),
		}
		alive, untaken := map[string]bool{}, map[string]bool{}
		for step := range 500 {
			id := fmt.Sprint("a", rng.IntN(30))
			switch rng.IntN(5) {
			case 0:
				p.NotifyLeave(&memberlist.Node{Name: id})
				delete(alive, id)
				untaken[id] = true
			case 1:
				for _, q := range p.changedPeers() {
					p.settled(q)
				}
				clear(untaken)
			case 2:
				removed[id] = !removed[id]
			default:
				p.NotifyJoin(&memberlist.Node{Name: id})
				alive[id], untaken[id] = true, true
			}
			var changed []string
			for _, q := range p.changedPeers() {
				changed = append(changed, q.node.Name)
			}
			if slices.Sort(changed); !slices.Equal(changed, slices.Sorted(maps.Keys(untaken))) {
				t.Fatalf("seed %d, step %d: to be taken are %v, of %v", seed, step, changed, untaken)
			}
			want := slices.DeleteFunc(slices.Sorted(maps.Keys(alive)), func(id string) bool { return removed[id] })
			if got := p.livePeers(); !slices.Equal(got, want) || p.livePeerCount() != len(want) || int(p.live.Load()) != len(alive) {
				t.Fatalf("seed %d, step %d: alive are %v; want %v", seed, step, got, want)
			}
			without := slices.DeleteFunc(want, func(other string) bool { return other == id })
			var drawn []string
			for _, node := range p.anyPeers(len(alive)+1, id) {
				drawn = append(drawn, node.Name)
			}
			if slices.Sort(drawn); !slices.Equal(drawn, without) {
				t.Fatalf("seed %d, step %d: drawn are %v; want %v", seed, step, drawn, without)
			}
		}
	}
}

// Each member is as likely to be told as any other.
func TestPeersAreDrawnFairly(t *testing.T) {
	p := &pool{self: "self", peers: newPeers(), removed: nobody, notify: func() {}, broadcast: newBroadcastQueue(func() int { return 1 })}
	for i := range 20 {
		p.NotifyJoin(&memberlist.Node{Name: fmt.Sprint("a", i)})
	}
	const draws = 20_000
	told := map[string]int{}
	for range draws {
		for _, node := range p.anyPeers(gossipTo, "a0") {
			told[node.Name]++
		}
	}
	for i := 1; i < 20; i++ { // 3158 expected of each, six times the deviation is 310
		if n := told[fmt.Sprint("a", i)]; n < 2800 || n > 3500 {
			t.Errorf("a%d is drawn %d of %d times, by threes of 19", i, n, draws)
		}
	}
	if told["a0"] > 0 {
		t.Error("whom the record is of is told it")
	}
}

// What is to be looked at again later is not taken before, nor forgotten.
func TestPeersToBeTakenLater(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := &pool{self: "self", peers: newPeers(), removed: nobody, notify: func() {}, broadcast: newBroadcastQueue(func() int { return 1 })}
		p.NotifyJoin(&memberlist.Node{Name: "a1"})
		q := p.changedPeers()[0]
		p.lookAgain(q, time.Minute)
		if n := len(p.changedPeers()); n != 0 {
			t.Errorf("%d at once", n)
		}
		time.Sleep(time.Minute + 1)
		if n := len(p.changedPeers()); n != 1 {
			t.Errorf("%d after the time", n)
		}
		p.NotifyUpdate(&memberlist.Node{Name: "a1"})
		p.settled(q) // as it was before
		if n := len(p.changedPeers()); n != 1 {
			t.Errorf("%d: the roster took what has changed since", n)
		}
	})
}
