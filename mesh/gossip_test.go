package mesh

import (
	"bytes"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"
)

// A host at rest is not woken: there are rounds only while something waits.
func TestRoundsRestWhileNothingIsToTell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const interval = 50 * time.Millisecond
		q := newBroadcastQueue(func() int { return 1 })
		stop := make(chan struct{})
		var alone atomic.Bool
		var played atomic.Int64
		go rounds(stop, q.filled, interval, func() bool { return !alone.Load() && q.pending() > 0 }, func() {
			played.Add(1)
			q.take(0, 10)
		})
		rests := func(after string, want int64) {
			t.Helper()
			time.Sleep(time.Hour)
			synctest.Wait()
			if got := played.Load(); got != want {
				t.Errorf("%d rounds after %s, want %d", got, after, want)
			}
		}
		rests("nothing", 0)
		q.add("a", []byte("first"), 0)
		time.Sleep(interval)
		synctest.Wait()
		if played.Load() == 0 {
			t.Error("the first round is late")
		}
		rests("one message", retransmitMult)
		q.add("a", []byte("second"), 0)
		rests("another one", 2*retransmitMult)
		alone.Store(true)
		q.add("a", []byte("third"), 0)
		rests("one to nobody", 2*retransmitMult)
		alone.Store(false)
		poke(q.filled) // somebody came
		rests("all", 3*retransmitMult)
		close(stop)
	})
}

// What was queued while a host was alone is told to who comes.
func TestWhoComesWakesGossip(t *testing.T) {
	c := newCluster(t)
	p := &pool{self: "self", peers: newPeers(), removed: nobody, notify: func() {}, broadcast: newBroadcastQueue(func() int { return 1 })}
	p.NotifyJoin(&memberlist.Node{Name: "a1", Meta: signed(t, agentRecord("a1", 1, 1), c.key("any")).Raw})
	select {
	case <-p.broadcast.filled:
	default:
		t.Error("the first member wakes nobody")
	}
}

// Records share packets, none longer than there is room for, and one that is alone
// goes as versions that know no bundles read it.
func TestRecordsShareAPacket(t *testing.T) {
	c := newCluster(t)
	const room = 1200
	q := newBroadcastQueue(func() int { return 1 })
	want := map[string]bool{}
	for i := range 12 {
		rec := signed(t, agentRecord(fmt.Sprint("a", i), 1, 1), c.key("any"))
		q.add(rec.HostID, recordPacket(rec), retransmitMult-1) // goes once
		want[string(rec.Raw)] = true
	}
	q.add("sighting", []byte{kindSighting, 1}, retransmitMult-1)
	packets := 0
	for q.pending() > 0 {
		for _, packet := range bundle(q.take(recordOverhead, room)) {
			packets++
			switch {
			case len(packet) > room:
				t.Errorf("a packet of %d bytes", len(packet))
			case packet[0] == kindRecord:
				delete(want, string(packet[1:]))
			case packet[0] == kindRecords:
				for rd := (&reader{b: packet[1:]}); len(rd.b) > 0; {
					raw := rd.bytes32(MaxRecord)
					if !want[string(raw)] {
						t.Fatalf("the packet has %x", raw)
					}
					delete(want, string(raw))
				}
			case !bytes.Equal(packet, []byte{kindSighting, 1}):
				t.Errorf("a packet %x", packet)
			}
		}
	}
	if len(want) > 0 || packets > 5 {
		t.Errorf("%d packets lack %d records", packets, len(want))
	}
	alone := []byte{kindRecord, 1, 2}
	if got := bundle([][]byte{alone}); len(got) != 1 || !bytes.Equal(got[0], alone) {
		t.Errorf("one record goes as %x", got)
	}
}
