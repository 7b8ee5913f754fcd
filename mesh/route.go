package mesh

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"time"
)

// The first byte of each message between nodes.
const (
	kindEnvelope byte = 1 // envelope, to its final receiver
	kindRelay    byte = 2 // relayHeader, envelope: please pass on
	kindResult   byte = 3 // id 8, code 1: what became of a kindRelay
	kindRecord   byte = 4 // a signed record
	kindSighting byte = 5 // one sighting, gossiped as a hint
	kindRenewal  byte = 6 // a signed record, straight to a relay: a sign of life
	kindRing     byte = 7 // receiver, sender: something is left to be fetched
	kindTaken    byte = 8 // receiver, id 8: it was fetched
	kindRecords  byte = 9 // signed records, each behind its length 4: what an exchange hands over
	// kindJoinRecords is kindRecords of an exchange by which somebody joins. It is not sent.
	kindJoinRecords byte = 255
)

const (
	// hopBudget bounds one attempt through one relay, its further hops included.
	hopBudget = 10 * time.Second
	// failureMemory is how long a way that failed is tried after all others.
	failureMemory = 30 * time.Second
	// fairTrial is how long a way must have had before its silence is a failure.
	fairTrial = 2 * time.Second
	// relayWorkers is how many messages a relay passes on at once.
	relayWorkers = 64
	resultOK     = 1
	resultFailed = 2
)

// relayHeader travels before an envelope that is to be passed on. Nobody signs
// it: it only steers the message, which cannot be altered.
type relayHeader struct {
	id      uint64 // names the attempt in the result
	budget  time.Duration
	visited []string // hosts that have it already, the sender of this hop last
}

func (h relayHeader) encode(env []byte) []byte {
	var w writer
	w.b = make([]byte, 0, len(env)+64*(1+len(h.visited)))
	w.byte(kindRelay)
	w.uint64(h.id)
	w.uint16(uint16(min(h.budget.Milliseconds(), 1<<16-1)))
	w.byte(byte(len(h.visited)))
	for _, v := range h.visited {
		w.text8(v)
	}
	w.raw(env)
	return w.b
}

// decodeRelay reads what follows the kind byte.
func decodeRelay(b []byte) (h relayHeader, env []byte, err error) {
	rd := reader{b: b}
	h.id = rd.uint64()
	h.budget = time.Duration(rd.uint16()) * time.Millisecond
	for range rd.count(MaxHops) {
		h.visited = append(h.visited, rd.text8(maxID))
	}
	if rd.failed || len(h.visited) == 0 {
		return relayHeader{}, nil, errEnvelopeMalformed
	}
	return h, rd.b, nil
}

// results holds the attempts that wait for a relay's answer.
type results struct {
	mu      sync.Mutex
	waiting map[uint64]chan byte
}

func (r *results) open() (uint64, <-chan byte) {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails; unguessable, because results are not signed
	id := binary.BigEndian.Uint64(b[:])
	ch := make(chan byte, 1)
	r.mu.Lock()
	r.waiting[id] = ch
	r.mu.Unlock()
	return id, ch
}

func (r *results) drop(id uint64) {
	r.mu.Lock()
	delete(r.waiting, id)
	r.mu.Unlock()
}

func (r *results) answer(id uint64, code byte) {
	r.mu.Lock()
	ch, ok := r.waiting[id]
	delete(r.waiting, id)
	r.mu.Unlock()
	if ok {
		ch <- code
	}
}

// Send carries payload, at most MaxPayload bytes, to the handler of topic on
// another host, or on this one. Nil means that the receiver's memberlist, or the
// last relay on the way to it, got the message onto its connection; see the
// package comment for what that does not promise. It returns ErrTooLarge,
// ErrUnreachable, ErrClosed or ctx's error.
func (n *Node) Send(ctx context.Context, hostID, topic string, payload []byte) error {
	if len(payload) > MaxPayload {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(payload), MaxPayload)
	}
	if topic == "" || len(topic) > maxTopic {
		return fmt.Errorf("topic %q: want 1 to %d bytes", topic, maxTopic)
	}
	if !validID(hostID) {
		return fmt.Errorf("%w: %q is no host id", ErrUnreachable, hostID)
	}
	if n.stopped() {
		return ErrClosed
	}
	if hostID == n.cfg.Identity.HostID {
		if !n.handlers.deliver(topic, n.cfg.Identity, slices.Clone(payload)) {
			n.counters.dropped.Add(1)
			return fmt.Errorf("%w: nobody handles topic %q here, or its queue is full", ErrUnreachable, topic)
		}
		return nil
	}
	return n.route(ctx, n.envelope(hostID, topic, payload), nil)
}

func (n *Node) envelope(to, topic string, payload []byte) envelope {
	return envelope{
		from: n.cfg.Identity.HostID, to: to, topic: topic,
		boot: n.cfg.Boot, seq: n.sendSeq.Add(1), cert: *n.cert.Load(), payload: payload,
	}.seal(n.cfg.Identity.Cluster, n.cfg.Key)
}

// route passes an envelope on: straight to its receiver in a shared pool, else
// through one relay after the other, nearest first, until one gets through. Ways
// that failed lately come last.
func (n *Node) route(ctx context.Context, e envelope, visited []string) error {
	visited = append(slices.Clone(visited), n.cfg.Identity.HostID)
	var failures []error
	ways := n.ways(e.to, visited)
	for i, way := range ways {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(failures, err)...)
		}
		err := n.try(ctx, way, e, visited, i == len(ways)-1)
		if err == nil {
			return nil
		}
		failures = append(failures, err)
	}
	if err := ctx.Err(); err != nil {
		return errors.Join(append(failures, err)...)
	}
	if len(failures) == 0 && len(visited) > MaxHops {
		return fmt.Errorf("%w: no way to host %s within %d relays", ErrUnreachable, e.to, MaxHops)
	}
	if len(failures) == 0 {
		return fmt.Errorf("%w: host %s is in no segment that this host or an online relay reaches", ErrUnreachable, e.to)
	}
	return fmt.Errorf("%w: host %s: %w", ErrUnreachable, e.to, errors.Join(failures...))
}

// try sends an envelope one way, and leaves half of the time for the others
// unless it is the last one.
func (n *Node) try(ctx context.Context, way hop, e envelope, visited []string, last bool) error {
	began := time.Now()
	if deadline, ok := ctx.Deadline(); ok && !last {
		half, cancel := context.WithTimeout(ctx, time.Until(deadline)/2)
		defer cancel()
		ctx = half
	}
	if way.relay == e.to {
		return n.stream(ctx, way.pool, e.to, append([]byte{kindEnvelope}, e.raw...))
	}
	err := n.viaRelay(ctx, way, e, visited)
	if err == nil || !errors.Is(err, context.DeadlineExceeded) || time.Since(began) >= fairTrial {
		way.pool.noteWay(way.toward(e.to), err == nil)
	}
	if err != nil {
		return fmt.Errorf("through relay %s: %w", way.relay, err)
	}
	return nil
}

// ways lists the ways to a host in the order in which they are tried.
func (n *Node) ways(to string, visited []string) []hop {
	var ways []hop
	for _, p := range n.pools {
		if _, ok := p.livePeer(to); ok {
			ways = append(ways, hop{pool: p, relay: to})
		}
	}
	if len(visited) <= MaxHops {
		ways = append(ways, n.nextHops(to, visited)...)
	}
	failed := func(h hop) int {
		if h.pool.failedLately(h.relay) || h.pool.failedLately(h.toward(to)) {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(ways, func(a, b hop) int { return cmp.Compare(failed(a), failed(b)) })
	return ways
}

// stream sends over a pool, but no longer than ctx: memberlist takes none. A
// message that a stream does not carry at once is also left for its receiver.
func (n *Node) stream(ctx context.Context, p *pool, to string, msg []byte) error {
	select {
	case n.streams <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-n.stop:
		return ErrClosed
	}
	done := make(chan error, 1)
	started := n.goIfOpen(func() {
		defer func() { <-n.streams }()
		done <- p.send(to, msg)
	})
	if !started {
		<-n.streams
		return ErrClosed
	}
	began := time.Now()
	patience := time.NewTimer(dialPatience)
	defer patience.Stop()
	if p.fetchesMail(to) || p.failedLately(to) {
		patience.Reset(0)
	}
	var taken <-chan struct{}
	for {
		select {
		case err := <-done:
			p.noteWay(to, err == nil)
			return err
		case <-patience.C: // it may be for the other one to open a stream
			var drop func()
			taken, drop = p.leave(to, msg)
			defer drop()
		case <-taken:
			return nil
		case <-ctx.Done():
			if time.Since(began) >= fairTrial {
				p.noteWay(to, false)
			}
			return ctx.Err()
		}
	}
}

func (n *Node) viaRelay(ctx context.Context, hop hop, e envelope, visited []string) error {
	budget := hopBudget
	if deadline, ok := ctx.Deadline(); ok {
		budget = min(budget, time.Until(deadline))
	}
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	id, answered := n.results.open()
	defer n.results.drop(id)
	// The relay gets less time, so that its answer arrives while it is awaited.
	msg := relayHeader{id: id, budget: budget * 3 / 4, visited: visited}.encode(e.raw)
	if err := n.stream(ctx, hop.pool, hop.relay, msg); err != nil {
		return err
	}
	select {
	case code := <-answered:
		if code != resultOK {
			return errors.New("it found no way on")
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-n.stop:
		return ErrClosed
	}
}

// relay passes on what another node sent for a third one, and says how it went.
func (n *Node) relay(p *pool, h relayHeader, raw []byte) {
	e, err := decodeEnvelope(raw)
	if err != nil {
		n.counters.malformedMessage.Add(1)
		return
	}
	if _, err := n.envelopes.open(e, time.Now()); err != nil {
		n.counters.unverifiedMessages.Add(1)
		n.logger.Debug("message to pass on is not verified", "from", e.from, "to", e.to, "error", err)
		return
	}
	code := byte(resultFailed)
	if e.to == n.cfg.Identity.HostID {
		n.deliver(raw)
		code = resultOK
	} else {
		ctx, cancel := context.WithTimeout(context.Background(), min(h.budget, hopBudget))
		if err := n.route(ctx, e, h.visited); err == nil {
			code = resultOK
			n.counters.forwarded.Add(1)
		} else {
			n.logger.Debug("message cannot be passed on", "from", e.from, "to", e.to, "error", err)
		}
		cancel()
	}
	var w writer
	w.byte(kindResult)
	w.uint64(h.id)
	w.byte(code)
	if err := p.send(h.visited[len(h.visited)-1], w.b); err != nil {
		n.logger.Debug("result of a relayed message is lost", "error", err)
	}
}

// hop is a relay to hand a message to, and the pool to reach it in.
type hop struct {
	pool     *pool
	relay    string
	distance int
}

// toward names the way through a relay to a host.
func (h hop) toward(to string) string { return h.relay + "/" + to }

const farAway = 1 << 10

// nextHops lists the live relays of this node's pools for a message to a host.
func (n *Node) nextHops(to string, visited []string) []hop {
	m, _ := n.roster.Member(to)
	return n.relayHops(m.Segments, append(slices.Clone(visited), to))
}

// relayHops lists the live relays of this node's pools, by their distance in
// segments from the target's, in random order among equals, so that a message sent
// again tries another one. Where the target's segments are not known all relays
// count as equal: one of them may know more.
func (n *Node) relayHops(target, visited []string) []hop {
	relays := map[string][]string{}
	for _, m := range n.roster.Members() {
		if m.Liveness == Online && m.Relay() && !slices.Contains(visited, m.HostID) {
			relays[m.HostID] = m.Segments
		}
	}
	distance := segmentDistances(target, relays)
	var hops []hop
	for _, p := range n.pools {
		for _, id := range p.livePeers() {
			segments, ok := relays[id]
			if !ok || slices.ContainsFunc(hops, func(h hop) bool { return h.relay == id }) {
				continue
			}
			h := hop{pool: p, relay: id, distance: farAway}
			for _, s := range segments {
				if d, ok := distance[s]; ok {
					h.distance = min(h.distance, d)
				}
			}
			hops = append(hops, h)
		}
	}
	mathrand.Shuffle(len(hops), func(i, j int) { hops[i], hops[j] = hops[j], hops[i] })
	slices.SortStableFunc(hops, func(a, b hop) int { return cmp.Compare(a.distance, b.distance) })
	return hops
}

// segmentDistances counts the relays between each segment and the nearest of
// the target's segments.
func segmentDistances(target []string, relays map[string][]string) map[string]int {
	distance := map[string]int{}
	for _, s := range target {
		distance[s] = 0
	}
	frontier := slices.Clone(target)
	for d := 1; len(frontier) > 0; d++ {
		var next []string
		for _, segments := range relays {
			if !slices.ContainsFunc(segments, func(s string) bool { return slices.Contains(frontier, s) }) {
				continue
			}
			for _, s := range segments {
				if _, seen := distance[s]; !seen {
					distance[s] = d
					next = append(next, s)
				}
			}
		}
		frontier = next
	}
	return distance
}
