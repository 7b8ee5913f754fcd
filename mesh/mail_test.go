package mesh

import (
	"testing"
	"time"
)

func TestWaysThatFailedComeLast(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s := c.node("s1", "left")
		for _, r := range []string{"r1", "r2", "r3"} {
			c.node(r, "left", "right")
		}
		c.node("a1", "right")
		awaitLiveness(t, 20*time.Second, "a1", Online, s)
		last := func() string {
			ways := s.ways("a1", []string{"s1"})
			if len(ways) != 3 {
				t.Fatalf("%d ways", len(ways))
			}
			return ways[2].relay
		}
		for name, way := range map[string]string{"a stream to it failed": "r2", "it found no way on": "r2/a1"} {
			s.pools[0].noteWay(way, false)
			for range 10 {
				if got := last(); got != "r2" {
					t.Errorf("%s: the last way is %s", name, got)
				}
			}
			s.pools[0].noteWay(way, true)
		}
		s.pools[0].noteWay("r2", false)
		time.Sleep(failureMemory + time.Second)
		if s.pools[0].failedLately("r2") {
			t.Error("a failure is remembered for ever")
		}
	})
}

func TestMailIsTakenOnce(t *testing.T) {
	var got []string
	p := &pool{self: "b", mail: newMailbox(1), peers: newPeers(), removed: nobody, receive: func(_ *pool, msg []byte) { got = append(got, string(msg)) }}
	refused := 0
	p.malformed = func() { refused++ }
	var w writer
	for _, to := range []string{"b", "c"} {
		w.uint64(7)
		w.text8(to)
		w.text8("a")
		w.bytes32([]byte("for " + to))
	}
	p.MergeRemoteState(w.b, true)
	p.MergeRemoteState(w.b, false)
	if len(got) != 1 || got[0] != "for b" {
		t.Errorf("received %q", got)
	}
	p.MergeRemoteState(w.b[:len(w.b)-1], false)
	if refused != 1 || len(got) != 1 {
		t.Errorf("a truncated exchange: refused %d, received %q", refused, got)
	}
}

func TestMailIsBounded(t *testing.T) {
	p := &pool{self: "a", mail: newMailbox(1), peers: newPeers(), removed: nobody, broadcast: newBroadcastQueue(func() int { return 1 })}
	big := make([]byte, maxMailBytes/2+1)
	_, drop := p.leave("b", big)
	if taken, _ := p.leave("b", big); taken != nil {
		t.Error("more is left than may wait")
	}
	drop()
	for range 2 * maxMail {
		p.leave("b", nil)
	}
	if len(p.mail.waiting) != maxMail {
		t.Errorf("%d messages wait", len(p.mail.waiting))
	}
}
