package mesh

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"time"
)

// How records get around in a pool. See DESIGN.md, "Records".
const (
	// A record that is news goes to so many members at once, without waiting for the
	// next round of gossip: a few times in a row, then once in so many rounds. When
	// all change at once, full packets carry more than hurried ones.
	hurryTo    = 3
	hurryBurst = 4
	hurryEvery = 10 // rounds of gossip

	// memberlist's metadata follows a change after a pause, and some time that grows
	// with the pool: about five members a second do it, however many changed. It
	// takes precedence in packets, so more would hold up what is news.
	announcePause  = time.Second
	announceSpread = 200 * time.Millisecond // for each member
	announceLatest = 3 * time.Minute
	// hintGrace is how long memberlist's metadata, being late, does not replace a
	// newer record that nobody can verify.
	hintGrace = announceLatest + time.Minute

	// maxHandedOver bounds the records that one full exchange carries besides
	// memberlist's state, in bytes; they differ from exchange to exchange.
	maxHandedOver = 256 << 10
)

// recordPacket is a record as it is gossiped, or goes straight to a member.
func recordPacket(rec SignedRecord) []byte { return append([]byte{kindRecord}, rec.Raw...) }

// spread gossips a record that is news.
func (p *pool) spread(rec SignedRecord) {
	msg, sent := recordPacket(rec), 0
	if p.hurry.Allow() {
		for _, node := range p.anyPeers(hurryTo, rec.HostID) {
			if p.list.SendBestEffort(&node, msg) == nil {
				sent++
			}
		}
	}
	p.broadcast.add("record/"+rec.HostID, msg, sent)
}

// announceLoop gives memberlist the node's record some time after it changed, and
// the last one at once.
func (p *pool) announceLoop(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-p.announceNow:
		case <-p.announce:
			spread := min(time.Duration(p.live.Load())*announceSpread, announceLatest)
			timer := time.NewTimer(announcePause + rand.N(spread+1))
			select {
			case <-stop:
				timer.Stop()
				return
			case <-p.announceNow:
			case <-timer.C:
			}
			timer.Stop()
			select { // what changed meanwhile goes along
			case <-p.announce:
			default:
			}
		}
		// It queues the record at once; the timeout ends only the wait for its sending.
		_ = p.list.UpdateNode(p.timing.Gossip)
	}
}

// unannounced returns the newest records of hosts for which memberlist has one that
// says something else, each behind its length and all behind their kind; nil: there
// are none. Renewals, which say nothing new, are for relays alone: whoever gets a
// record gossips it on.
func (p *pool) unannounced() []byte {
	type shown struct {
		id   string
		meta []byte
	}
	p.mu.Lock()
	all := make([]shown, 0, len(p.peers.byID)+1)
	for id, q := range p.peers.byID {
		all = append(all, shown{id, q.node.Meta})
	}
	p.mu.Unlock()
	var w writer
	if announced := p.announced.Load(); announced != nil {
		all = append(all, shown{p.self, *announced})
	}
	for _, s := range all { // in a map's order, another one each time
		rec, ok := p.known(s.id)
		if !ok || bytes.Equal(rec.Raw, s.meta) || len(w.b)+len(rec.Raw) > maxHandedOver {
			continue
		}
		if old, err := DecodeRecord(s.meta); err == nil && rec.sameButSeq(old.Record) {
			continue
		}
		if len(w.b) == 0 {
			w.byte(kindRecords)
		}
		w.bytes32(rec.Raw)
	}
	return slices.Clip(w.b)
}
