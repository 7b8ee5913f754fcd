package mesh

import (
	"math/rand/v2"
	"time"
)

// memberlist's rounds of gossip never pause: each wakes the host, whether there is
// something to tell or not. So they are no faster than its own standard, which is
// what suspicions and their refutations are made for, and carry what waits in our
// queue along. While something does, rounds of our own go out as often as
// Timing.Gossip says; at rest there are none.
const (
	livenessGossip = 200 * time.Millisecond // memberlist's DefaultLANConfig
	gossipTo       = 3                      // members in each round; as memberlist has it
	// packetOverhead is what memberlist and its encryption add to a message in a packet,
	// besides the label: 2 bytes before that, 1 for the kind, 45 for the encryption.
	packetOverhead = 64
	// recordOverhead is the length before each record of a packet that has several.
	recordOverhead = 4
)

// livenessRound is the time between two of memberlist's rounds.
func (p *pool) livenessRound() time.Duration { return max(p.timing.Gossip, livenessGossip) }

// gossipLoop sends rounds of gossip while there is something to tell, and somebody to
// tell it to, until stop closes.
func (p *pool) gossipLoop(stop <-chan struct{}) {
	due := func() bool { return p.live.Load() > 0 && p.broadcast.pending() > 0 }
	rounds(stop, p.broadcast.filled, p.timing.Gossip, due, p.gossipRound)
}

// rounds plays a round each interval while it is due, and then waits to be woken.
func rounds(stop, wake <-chan struct{}, interval time.Duration, due func() bool, round func()) {
	for {
		select {
		case <-stop:
			return
		case <-wake:
		}
		// Members that hear of the same do not all tell it at the same moment.
		for wait := rand.N(interval); due(); wait = interval {
			if !pause(stop, wait) {
				return
			}
			round()
		}
	}
}

// gossipRound sends what waits to a few members, to each what was sent least by then.
func (p *pool) gossipRound() {
	for _, node := range p.anyPeers(gossipTo, "") {
		msgs := p.broadcast.take(recordOverhead, p.packetRoom)
		if len(msgs) == 0 {
			return
		}
		for _, packet := range bundle(msgs) {
			_ = p.list.SendBestEffort(&node, packet) // counts as sent: others get it, too
		}
	}
}

// bundle puts messages into as few packets as it can: all records go together,
// anything else for itself.
func bundle(msgs [][]byte) (packets [][]byte) {
	var records [][]byte
	for _, msg := range msgs {
		if msg[0] == kindRecord {
			records = append(records, msg)
		} else {
			packets = append(packets, msg)
		}
	}
	if len(records) < 2 {
		return append(packets, records...) // as versions before this one read it
	}
	w := writer{b: []byte{kindRecords}}
	for _, msg := range records {
		w.bytes32(msg[1:])
	}
	return append(packets, w.b)
}
