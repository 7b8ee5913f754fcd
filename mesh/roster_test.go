package mesh

import (
	"fmt"
	"testing"

	"github.com/hashicorp/memberlist"
)

// A host asks for its servers and counts its peers again and again: what that takes
// must not grow with the pool.
func TestAskingForServersCopiesNoOthers(t *testing.T) {
	c := newCluster(t)
	r := newRoster("self", []string{"default"}, DefaultTiming, recordVerifier{cluster: "c1"})
	p := &pool{self: "self", peers: newPeers(), removed: nobody, notify: func() {}, broadcast: newBroadcastQueue(func() int { return 1 })}
	for i := range 200 {
		rec := agentRecord(fmt.Sprint("a", i), 1, 1)
		if i == 7 {
			rec.Role = "server"
		}
		s := signed(t, rec, c.key("any"))
		if _, err := r.record(s, fromPool); err != nil {
			t.Fatal(err)
		}
		r.see(rec.HostID, sightingKey{segment: "default"}, sighting{alive: true})
		p.NotifyJoin(&memberlist.Node{Name: rec.HostID, Meta: s.Raw})
	}
	if got := r.Servers(); len(got) != 1 || got[0].HostID != "a7" {
		t.Fatalf("the servers are %+v", got)
	}
	if n := testing.AllocsPerRun(20, func() { r.Servers() }); n > 10 {
		t.Errorf("%v allocations for one server of 200 members", n)
	}
	if got := p.livePeerCount(); got != 200 {
		t.Errorf("%d of 200 peers are alive", got)
	}
	p.NotifyLeave(&memberlist.Node{Name: "a1"})
	if n := testing.AllocsPerRun(20, func() { p.livePeerCount() }); n > 0 || p.livePeerCount() != 199 {
		t.Errorf("%v allocations to count %d peers", n, p.livePeerCount())
	}
}
