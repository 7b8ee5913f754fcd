package mesh

import (
	"errors"
	"time"

	"moult/mesh/identity"
)

// receive is called by memberlist with a message's own copy. It never blocks:
// what does not fit is dropped and counted.
func (n *Node) receive(p *pool, msg []byte) {
	if n.inboxBytes.Add(int64(len(msg))) > inboxBytes {
		n.inboxBytes.Add(-int64(len(msg)))
		n.counters.dropped.Add(1)
		return
	}
	select {
	case n.inbox <- inboxItem{p, msg}:
	default:
		n.inboxBytes.Add(-int64(len(msg)))
		n.counters.dropped.Add(1)
	}
}

func (n *Node) readLoop() {
	for {
		select {
		case <-n.stop:
			return
		case item := <-n.inbox:
			n.inboxBytes.Add(-int64(len(item.msg)))
			n.read(item.pool, item.msg)
		}
	}
}

// read takes one message apart by its kind.
func (n *Node) read(p *pool, msg []byte) {
	if len(msg) == 0 {
		n.counters.malformedMessage.Add(1)
		return
	}
	body := msg[1:]
	switch msg[0] {
	case kindEnvelope:
		n.deliver(body)
	case kindRelay:
		n.startRelay(p, body)
	case kindResult:
		rd := reader{b: body}
		id, code := rd.uint64(), rd.byte()
		if rd.failed {
			n.counters.malformedMessage.Add(1)
			return
		}
		n.results.answer(id, code)
	case kindRecord:
		n.takeGossip(p, body, true)
	case kindRecords:
		n.takeRecords(p, body, true)
	case kindJoinRecords:
		n.takeRecords(p, body, false)
	case kindSighting:
		n.takeHint(body)
	case kindRing:
		n.ring(p, body)
	case kindTaken:
		n.taken(p, body)
	case kindRenewal:
		n.takeRenewal(p, body)
	default:
		n.counters.malformedMessage.Add(1) // from a newer version, perhaps
	}
}

// deliver opens an envelope for this host and queues it for its handler.
func (n *Node) deliver(raw []byte) {
	from, e, err := n.open(raw)
	switch {
	case errors.Is(err, errEnvelopeMalformed):
		n.counters.malformedMessage.Add(1)
	case errors.Is(err, errEnvelopeReplayed):
		n.counters.replayedMessages.Add(1)
	case errors.Is(err, identity.ErrDenied), err != nil && n.verifier.removed(e.from):
		n.counters.removed.Add(1)
	case err != nil:
		n.counters.unverifiedMessages.Add(1)
	case !n.handlers.deliver(e.topic, from, e.payload):
		n.counters.dropped.Add(1)
		n.logger.Debug("message dropped: nobody handles its topic, or its queue is full", "topic", e.topic, "from", e.from)
	}
	if err != nil {
		n.logger.Debug("message refused", "from", e.from, "error", err)
	}
}

func (n *Node) open(raw []byte) (identity.Identity, envelope, error) {
	e, err := decodeEnvelope(raw)
	if err != nil {
		return identity.Identity{}, e, err
	}
	if e.to != n.cfg.Identity.HostID {
		return identity.Identity{}, e, errEnvelopeUnverified
	}
	from, err := n.envelopes.open(e, time.Now())
	if err != nil {
		return identity.Identity{}, e, err
	}
	if !n.replays.fresh(e.from, e.boot, e.seq) {
		return identity.Identity{}, e, errEnvelopeReplayed
	}
	return from, e, nil
}

// startRelay passes a message on beside the reading of others.
func (n *Node) startRelay(p *pool, body []byte) {
	h, raw, err := decodeRelay(body)
	if err != nil {
		n.counters.malformedMessage.Add(1)
		return
	}
	select {
	case n.relaying <- struct{}{}:
	default:
		n.counters.dropped.Add(1) // the sender tries another relay
		return
	}
	started := n.goIfOpen(func() {
		defer func() { <-n.relaying }()
		n.relay(p, h, raw)
	})
	if !started {
		<-n.relaying
	}
}

// takeGossip takes a record that was gossiped as a message, and gossips it on, if it
// is to, while it is news. Most of what comes is known.
func (n *Node) takeGossip(p *pool, raw []byte, on bool) {
	if n.roster.has(raw) {
		return
	}
	rec, err := DecodeRecord(raw)
	if err != nil {
		n.counters.malformedRecords.Add(1)
		return
	}
	news, err := n.takeNews(rec, fromGossip)
	if err != nil || !news {
		return
	}
	if on {
		p.spread(rec)
	}
	if q, ok := p.livePeer(rec.HostID); ok {
		n.observed(p, rec.HostID, true, q.Addr)
	}
}

// watchLoop takes over into the roster what memberlist noticed, and looks after
// what no event announces: records that become verifiable when their host's
// enrolment arrives, sightings that expire, exchanges that are due.
func (n *Node) watchLoop() {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	nextExchange, nextRenewal := time.Now(), time.Now()
	for {
		select {
		case <-n.stop:
			return
		case <-n.peersDirty:
			if n.takePeers() {
				now := time.Now() // a server or relay came: tell it all
				nextExchange, nextRenewal = now, now
			}
		case now := <-ticker.C:
			if n.takePeers() {
				nextExchange, nextRenewal = now, now
			}
			n.roster.expire(hintLifetime)
			if len(n.pools) > 1 && !now.Before(nextExchange) {
				n.exchange()
				nextExchange = now.Add(n.cfg.Timing.Exchange)
			}
			if !now.Before(nextRenewal) {
				n.renew()
				nextRenewal = now.Add(n.cfg.Timing.Renew)
			}
		}
	}
}

// takePeers takes over the members that changed, and returns whether a server or
// relay came.
func (n *Node) takePeers() (audience bool) {
	for _, p := range n.pools {
		for _, q := range p.changedPeers() {
			if n.takePeer(p, q) {
				audience = true
			}
		}
	}
	return audience
}

// takePeer puts one member's record and liveness into the roster.
func (n *Node) takePeer(p *pool, q peer) (audience bool) {
	id := q.node.Name
	rec, err := DecodeRecord(q.node.Meta)
	if err != nil { // NotifyAlive lets none in
		n.counters.malformedRecords.Add(1)
		p.settled(q)
		return false
	}
	enrolled := n.verifier.enrolled(id) // before the record is judged: the enrolment may arrive right after
	_, err = n.roster.record(rec, fromPool)
	switch {
	case errors.Is(err, ErrUnverified):
		if p.firstRefusal(q) {
			n.countForged(id, q.node.Addr)
			n.logger.Debug("record refused", "host", id, "error", err)
		}
		if !enrolled {
			return false // stays changed: its enrolment may be under way
		}
		p.settled(q)
		if q.alive {
			return false // who cannot show the host's record does not stand for the host
		}
	case errors.Is(err, ErrStale):
		p.settled(q)
		if !n.verifier.strict() {
			p.lookAgain(q, hintGrace)
		}
		// Of the same start it is normal: memberlist's metadata follows the record.
		if known, ok := n.roster.signed(id); ok && rec.Boot < known.Boot {
			n.counters.staleRecords.Add(1)
			if q.alive {
				return false // gossip lags behind, or somebody kept the record
			}
		}
	case err == nil:
		p.settled(q)
	}
	key := sightingKey{segment: p.segment}
	old, had := n.roster.current(id, key)
	n.roster.see(id, key, sighting{alive: q.alive, ip: q.node.Addr})
	if q.alive {
		n.roster.forget(id, sightingKey{}) // gossip knows better than its own word now
	}
	if err != nil && had && old.alive == q.alive {
		return false
	}
	n.observed(p, id, q.alive, q.node.Addr)
	if !q.alive || old.alive || n.rank(id) == rankMember {
		return false
	}
	p.packet(id, recordPacket(n.Record())) // who has just come may be told by nobody else for long
	return true
}

// takeRecords takes records that came together: in a packet, or handed over in an
// exchange. Those of an exchange by which somebody joins are not gossiped on: all
// that there is is news to who has just started, and when a site starts anew, all its
// hosts would tell each other all of it.
func (n *Node) takeRecords(p *pool, body []byte, on bool) {
	for rd := (&reader{b: body}); len(rd.b) > 0; {
		raw := rd.bytes32(MaxRecord)
		if rd.failed {
			n.counters.malformedMessage.Add(1)
			return
		}
		n.takeGossip(p, raw, on)
	}
}
