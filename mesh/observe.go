package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"

	"moult/mesh/identity"
)

// topicSightings carries relays' observations between members of one pool.
const topicSightings = "mesh/sightings"

const (
	sightingBatch = 200 << 10 // bytes of one message of sightings
	maxIP         = 16
)

// report is one observer's sighting of a host, with the host's own record, as it
// travels. See DESIGN.md, "Sightings".
type report struct {
	observer string
	boot     uint64 // of the observer
	version  uint64 // rises with each report of the observer
	segment  string // where the host was seen
	alive    bool
	ip       net.IP
	record   SignedRecord
}

type reportKey struct{ observer, segment, host string }

func (s report) key() reportKey { return reportKey{s.observer, s.segment, s.record.HostID} }

func (s report) encode(w *writer) {
	w.text8(s.observer)
	w.uint64(s.boot)
	w.uint64(s.version)
	w.text8(s.segment)
	var alive byte
	if s.alive {
		alive = 1
	}
	w.byte(alive)
	w.text8(string(s.ip))
	w.bytes32(s.record.Raw)
}

func decodeReport(rd *reader) (report, error) {
	var s report
	s.observer = rd.text8(maxID)
	s.boot, s.version = rd.uint64(), rd.uint64()
	s.segment = rd.text8(maxSegment)
	s.alive = rd.byte() == 1
	s.ip = net.IP(rd.text8(maxIP))
	raw := rd.bytes32(MaxRecord)
	if rd.failed || !validID(s.observer) || !validSegment(s.segment) || len(s.ip) != 0 && len(s.ip) != 4 && len(s.ip) != 16 {
		return report{}, fmt.Errorf("%w: sighting", ErrMalformed)
	}
	var err error
	s.record, err = DecodeRecord(raw)
	return s, err
}

// outbox collects what is to be told in one pool, the newest per key.
type outbox struct {
	mu      sync.Mutex
	pending map[reportKey]report
	wake    chan struct{} // capacity 1
}

func newOutbox() *outbox {
	return &outbox{pending: map[reportKey]report{}, wake: make(chan struct{}, 1)}
}

func (o *outbox) put(s report) {
	o.mu.Lock()
	o.pending[s.key()] = s
	o.mu.Unlock()
	poke(o.wake)
}

func (o *outbox) take() []report {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := make([]report, 0, len(o.pending))
	for _, s := range o.pending {
		all = append(all, s)
	}
	clear(o.pending)
	return all
}

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// tell passes a report to the pools that have no view of their own of the
// segment in question, except where it came from.
func (n *Node) tell(s report, cameFrom *pool) {
	if len(n.pools) < 2 {
		return
	}
	for _, p := range n.pools {
		if p != cameFrom && p.segment != s.segment {
			n.outboxes[p].put(s)
		}
	}
}

// observed makes this node's own report of a member of a pool.
func (n *Node) observed(p *pool, hostID string, alive bool, ip net.IP) {
	if len(n.pools) < 2 {
		return
	}
	m, ok := n.roster.signed(hostID)
	if !ok {
		return
	}
	if ip4 := ip.To4(); ip4 != nil {
		ip = ip4
	}
	n.tell(report{
		observer: n.cfg.Identity.HostID, boot: n.cfg.Boot, version: n.reportSeq.Add(1),
		segment: p.segment, alive: alive, ip: ip, record: m,
	}, p)
}

// exchange reports every member of every pool again: what a single report did
// not bring about, the next exchange does.
func (n *Node) exchange() {
	for _, p := range n.pools {
		p.mu.Lock()
		all := make([]peer, 0, len(p.peers.byID))
		for _, q := range p.peers.byID {
			all = append(all, *q)
		}
		p.mu.Unlock()
		for _, q := range all {
			n.observed(p, q.node.Name, q.alive, q.node.Addr)
		}
	}
}

// tellLoop sends what collects in a pool's outbox: to its servers and relays
// everything, in signed messages; to all others, by gossip and as a hint, only
// what they need to find a way: the servers and relays of other segments.
func (n *Node) tellLoop(p *pool) {
	box := n.outboxes[p]
	for {
		select {
		case <-n.stop:
			return
		case <-box.wake:
		}
		if !pause(n.stop, n.cfg.Timing.Gossip/2) { // collect
			return
		}
		reports := box.take()
		n.tellMembers(p, reports)
		for _, s := range reports {
			if s.record.Relay() || s.record.Role == string(identity.RoleServer) {
				w := writer{b: []byte{kindSighting}}
				s.encode(&w)
				p.broadcast.add("sighting/"+s.observer+"/"+s.segment+"/"+s.record.HostID, w.b, 0)
			}
		}
	}
}

func (n *Node) tellMembers(p *pool, reports []report) {
	var to []string
	for _, id := range p.livePeers() {
		if m, ok := n.roster.Member(id); ok && (m.Relay() || m.Role == string(identity.RoleServer)) {
			to = append(to, id)
		}
	}
	if len(to) == 0 {
		return
	}
	for batch := range slices.Chunk(reports, sightingBatch/(MaxRecord+2*maxID+maxSegment+64)) {
		var w writer
		for _, s := range batch {
			s.encode(&w)
		}
		var sent sync.WaitGroup
		for _, id := range to {
			sent.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), n.cfg.Timing.Stream)
				defer cancel()
				e := n.envelope(id, topicSightings, w.b)
				if err := n.stream(ctx, p, id, append([]byte{kindEnvelope}, e.raw...)); err != nil {
					n.logger.Debug("sightings not delivered", "host", id, "segment", p.segment, "error", err)
				}
			})
		}
		sent.Wait()
	}
}

// takeSightings handles a relay's reports. Only relays may report, and only to
// members of their own pools.
func (n *Node) takeSightings(from identity.Identity, payload []byte) {
	m, ok := n.roster.Member(from.HostID)
	if !ok || !m.Relay() {
		n.counters.unverifiedMessages.Add(1)
		return
	}
	var via *pool
	for _, p := range n.pools {
		if _, ok := p.livePeer(from.HostID); ok {
			via = p
			break
		}
	}
	if via == nil {
		n.counters.dropped.Add(1)
		return
	}
	rd := &reader{b: payload}
	for len(rd.b) > 0 {
		s, err := decodeReport(rd)
		if err != nil {
			n.counters.malformedRecords.Add(1)
			if rd.failed {
				return
			}
			continue
		}
		if n.takeReport(s) {
			n.tell(s, via)
		}
	}
}

// takeHint handles a gossiped report. On servers hints count for nothing. Relays
// get the same report in a signed message, which they pass on only while it is
// news: the hint must not come before it.
func (n *Node) takeHint(b []byte) {
	if n.verifier.strict() || len(n.pools) > 1 {
		return
	}
	rd := &reader{b: b}
	s, err := decodeReport(rd)
	if err != nil {
		n.counters.malformedRecords.Add(1)
		return
	}
	n.takeReport(s)
}

// report takes a relay's report of a host, and tells whether it was new here. A
// stale record is no error: the host may have been quicker than its relay.
func (r *Roster) report(s report) (news bool, err error) {
	if _, err := r.record(s.record, fromGossip); errors.Is(err, ErrUnverified) {
		return false, err
	}
	seen := sighting{
		alive: s.alive, ip: s.ip, boot: s.boot, version: s.version,
		expires: r.now().Add(r.timing.sightingLife()),
	}
	return r.see(s.record.HostID, sightingKey{s.segment, s.observer}, seen), nil
}

// takeReport puts a report into the roster. It returns whether it was new here.
func (n *Node) takeReport(s report) bool {
	self := n.cfg.Identity.HostID
	if s.observer == self || s.record.HostID == self || n.inSegment(s.segment) {
		return false
	}
	if !slices.Contains(s.record.Segments, s.segment) {
		n.counters.malformedRecords.Add(1)
		return false
	}
	news, err := n.roster.report(s)
	if errors.Is(err, ErrUnverified) {
		n.countForged(s.record.HostID, nil)
	}
	return news
}

func (n *Node) inSegment(segment string) bool {
	return slices.ContainsFunc(n.pools, func(p *pool) bool { return p.segment == segment })
}
