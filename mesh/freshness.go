package mesh

import (
	"context"
	"slices"
	"time"
)

// How long others' words count. See DESIGN.md, "Freshness".
const (
	// sightingLives: a sighting is dropped when so many exchanges went by without it.
	sightingLives = 3.5
	// proofLives: a host that renews its record is not online by others' words
	// alone when so many renewals failed to come.
	proofLives = 4
	// contestLives: where relays disagree, the host has this many renewals' time to
	// prove by a newer record that those who hold it for failed are wrong.
	contestLives = 2
	// maxRenewals bounds the relays of one pool that a record is renewed with.
	maxRenewals = 8
)

func (t Timing) sightingLife() time.Duration {
	return time.Duration(sightingLives * float64(t.Exchange))
}

func (t Timing) freshSighting() time.Duration { return t.Exchange * 3 / 2 }

// alive weighs what is said of a host; the lock is held. What this node sees
// itself needs no proof. What others say does, where this node can check one:
// the host's own signature, lately.
func (r *Roster) alive(h *host, now time.Time) bool {
	checked := h.verified && h.record.Renews
	proven := now.Sub(h.proved) <= proofLives*r.timing.Renew
	for _, s := range h.sightings {
		if s.alive && (s.observer == "" || !checked || proven && !r.contested(h, s.sighting, now)) {
			return true
		}
	}
	return false
}

// contested tells whether another observer saw the host fail and the host has
// signed nothing since: then who begins to call it alive is not believed, and who
// did so before only for as long as the host may need to prove it.
func (r *Roster) contested(h *host, alive sighting, now time.Time) bool {
	for _, s := range h.sightings {
		if s.observer == "" || s.alive || !s.since.After(h.proved) {
			continue
		}
		if alive.since.After(s.since) || now.Sub(s.since) > contestLives*r.timing.Renew {
			return true
		}
	}
	return false
}

// renew signs the own record anew and hands it to the relays of the own pools,
// which carry it to those who cannot see this host. Where there is no relay it
// costs nothing.
func (n *Node) renew() {
	type receiver struct {
		pool *pool
		id   string
	}
	var to []receiver
	relays := n.roster.relayIDs()
	for _, p := range n.pools {
		sent := 0
		for _, id := range relays {
			if _, ok := p.livePeer(id); ok && sent < maxRenewals {
				to = append(to, receiver{p, id})
				sent++
			}
		}
	}
	if len(to) == 0 || n.stopped() {
		return
	}
	n.changing.Lock()
	err := n.publish(func(*Record) {})
	rec := n.Record()
	if err == nil {
		n.roster.set(rec, n.pools[0].ownIP)
	}
	n.changing.Unlock()
	if err != nil {
		n.logger.Error("own record cannot be renewed", "error", err)
		return
	}
	msg := append([]byte{kindRenewal}, rec.Raw...)
	for _, rc := range to {
		n.goIfOpen(func() {
			ctx, cancel := context.WithTimeout(context.Background(), n.cfg.Timing.Stream)
			defer cancel()
			if err := n.stream(ctx, rc.pool, rc.id, slices.Clone(msg)); err != nil {
				n.logger.Debug("renewed record not delivered", "host", rc.id, "segment", rc.pool.segment, "error", err)
			}
		})
	}
}

// takeRenewal takes a member's renewed record. The next exchange carries it on;
// one that was missed for some time, or says something new, is told at once.
func (n *Node) takeRenewal(p *pool, raw []byte) {
	rec, err := DecodeRecord(raw)
	if err != nil {
		n.counters.malformedRecords.Add(1)
		return
	}
	q, ok := p.livePeer(rec.HostID)
	if !ok {
		return // memberlist will tell of it first
	}
	old, came, known := n.roster.newest(rec.HostID)
	news, err := n.takeNews(rec, fromGossip)
	if err != nil || !news {
		return
	}
	if !known || !rec.sameButSeq(old.Record) || time.Since(came) > contestLives*n.cfg.Timing.Renew {
		n.observed(p, rec.HostID, true, q.Addr)
	}
}
