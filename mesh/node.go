package mesh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"moult/mesh/identity"
)

const (
	inboxLength = 1024 // messages that wait to be read
	// tick is how often the node looks after what no event announces.
	tick = time.Second
	// hintLifetime is how long a host that nobody can verify is remembered.
	hintLifetime = 24 * time.Hour
	// goodbyeRounds of gossip are waited for, at most, until the last record is told.
	goodbyeRounds = 8
	// goodbyeSlack: memberlist's own goodbye is waited for as long as a round of its gossip
	// takes, and this. It would wait until its last copy has gone out, some rounds later.
	goodbyeSlack = 20 * time.Millisecond
	// closeTimeout bounds how long Close waits for handlers.
	closeTimeout = 5 * time.Second
)

// Node is one host's part in the mesh.
//
//	memberlist ─ callbacks ─▶ inbox ─▶ readLoop ─▶ handlers (per topic)
//	     │                                 └─────▶ relay workers ─▶ streams
//	     └─ events ─▶ pool.peers ─ poke ─▶ watchLoop ─▶ Roster
//	                                           └─▶ outboxes ─▶ tellLoop (relays)
type Node struct {
	cfg       Config
	logger    *slog.Logger
	verifier  recordVerifier
	envelopes envelopeVerifier
	roster    *Roster
	pools     []*pool
	outboxes  map[*pool]*outbox
	handlers  *handlers
	replays   *replayGuard
	results   *results
	pings     pings
	counters  counters

	cert      atomic.Pointer[[]byte]
	sendSeq   atomic.Uint64 // of envelopes
	reportSeq atomic.Uint64 // of sightings

	inbox      chan inboxItem
	inboxBytes atomic.Int64
	peersDirty chan struct{} // capacity 1
	streams    chan struct{} // as many as may be open
	relaying   chan struct{} // as many as are passed on at once

	stop chan struct{}
	wg   sync.WaitGroup

	life    sync.Mutex // guards the starting of goroutines against Close
	closing bool

	changing sync.Mutex // held while a change of the own record is announced
	mu       sync.Mutex // own record
	own      SignedRecord
}

type inboxItem struct {
	pool *pool
	msg  []byte
}

// Start listens in each segment, then looks for the other members in the
// background: a host that finds nobody yet has started all the same. ctx bounds
// nothing but the start.
func Start(ctx context.Context, cfg Config) (*Node, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("start mesh: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	port, err := cfg.peerPort()
	if err != nil {
		return nil, fmt.Errorf("start mesh: %w", err)
	}
	cfg.Timing = cfg.Timing.withDefaults()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	id := cfg.Identity
	verifier := cfg.recordVerifier()
	n := &Node{
		cfg: cfg, logger: cfg.Logger, verifier: verifier,
		envelopes:  envelopeVerifier{cluster: id.Cluster, certs: cfg.Verifier, records: verifier},
		roster:     newRoster(id.HostID, cfg.segments(), cfg.Timing, verifier),
		outboxes:   map[*pool]*outbox{},
		replays:    newReplayGuard(maxSenders),
		results:    &results{waiting: map[uint64]chan byte{}},
		pings:      pings{waiting: map[string]chan ping{}},
		inbox:      make(chan inboxItem, inboxLength),
		peersDirty: make(chan struct{}, 1),
		streams:    make(chan struct{}, 64),
		relaying:   make(chan struct{}, relayWorkers),
		stop:       make(chan struct{}),
	}
	n.cert.Store(&cfg.CertDER)
	n.handlers = newHandlers(&n.wg)
	rec := Record{
		HostID: id.HostID, Boot: cfg.Boot, Role: string(id.Role), Version: cfg.Version,
		Digest: strings.ToLower(cfg.Digest)[:2*digestPrefix], OS: cfg.OS, Arch: cfg.Arch, PeerPort: port, Phase: PhaseIdle,
		Segments: cfg.segments(), Renews: true,
	}
	if err := n.publish(func(r *Record) { *r = rec }); err != nil {
		return nil, fmt.Errorf("start mesh: %w", err)
	}
	if err := n.openPools(); err != nil {
		return nil, errors.Join(fmt.Errorf("start mesh: %w", err), n.Close())
	}
	n.roster.set(n.Record(), n.pools[0].ownIP)
	n.run()
	return n, nil
}

func (n *Node) openPools() error {
	for _, pc := range n.cfg.Pools {
		p := &pool{
			segment: pc.Segment, server: n.cfg.Identity.Role == identity.RoleServer, seeds: slices.Clone(pc.Join), self: n.cfg.Identity.HostID, timing: n.cfg.Timing,
			meta:    func() []byte { return n.Record().Raw },
			receive: n.receive, notify: func() { poke(n.peersDirty) },
			removed: n.verifier.removed,
			refused: func(hostID string, ip net.IP) {
				n.counters.malformedRecords.Add(1)
				n.counters.forged(hostID, ip)
			},
			malformed: func() { n.counters.malformedMessage.Add(1) }, mail: newMailbox(n.cfg.Boot),
			announce: make(chan struct{}, 1), announceNow: make(chan struct{}, 1), peers: newPeers(), misses: map[string]int{}, failed: map[string]time.Time{},
		}
		if n.cfg.FindSeeds != nil {
			p.findSeeds = func(ctx context.Context) []string {
				return n.cfg.FindSeeds(ctx, pc.Segment, n.whoKnows(pc.Segment))
			}
		}
		p.known = n.roster.signed
		p.broadcast = newBroadcastQueue(func() int { return int(p.live.Load()) })
		if err := p.open(n.cfg, pc, n.logger.With("segment", pc.Segment)); err != nil {
			return err
		}
		n.pools = append(n.pools, p)
		n.outboxes[p] = newOutbox()
	}
	return nil
}

func (n *Node) run() {
	n.handlers.handle(topicSightings, n.takeSightings)
	n.answerPings()
	n.wg.Go(n.readLoop)
	n.wg.Go(n.watchLoop)
	for _, p := range n.pools {
		n.wg.Go(func() { p.rejoin(n.stop) })
		n.wg.Go(func() { p.announceLoop(n.stop) })
		n.wg.Go(func() { p.gossipLoop(n.stop) })
		if len(n.pools) > 1 {
			n.wg.Go(func() { n.tellLoop(p) })
		}
	}
}

// SetCertificate replaces the certificate that messages carry, after a renewal.
// It is the new one of the same identity and key.
func (n *Node) SetCertificate(der []byte) error {
	if len(der) == 0 || len(der) > maxCert {
		return fmt.Errorf("the certificate has %d bytes; want 1 to %d", len(der), maxCert)
	}
	n.cert.Store(&der)
	return nil
}

// SetKeys replaces the gossip keys of a segment that this node is in: what is
// encrypted with any of them is read, the first one encrypts.
func (n *Node) SetKeys(segment string, keys [][]byte) error {
	for _, p := range n.pools {
		if p.segment == segment {
			return p.setKeys(keys)
		}
	}
	return fmt.Errorf("this host is not in segment %q", segment)
}

// Record returns the node's own record.
func (n *Node) Record() SignedRecord {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.own
}

// Roster returns who is known, this node included.
func (n *Node) Roster() *Roster { return n.roster }

// Announce says what the updater does, for which job. It does not wait for the
// gossip. A phase or job id that cannot be encoded is logged and changes nothing.
func (n *Node) Announce(phase Phase, jobID string) {
	n.change(func(r *Record) { r.Phase, r.JobID = phase, jobID })
}

// SetHolds says which artifacts the host can serve besides the one it runs:
// sha256 digests, of which the first four are announced.
func (n *Node) SetHolds(digests []string) {
	var holds []string
	for _, d := range digests {
		if len(d) >= 2*digestPrefix && len(holds) < maxHolds {
			holds = append(holds, strings.ToLower(d[:2*digestPrefix]))
		}
	}
	n.change(func(r *Record) { r.Holds = holds })
}

// change alters the own record and tells of it: the servers and relays of the own
// pools straight, all others by gossip. memberlist's metadata follows later.
func (n *Node) change(f func(*Record)) {
	n.changing.Lock() // or the older of two records would be announced last
	defer n.changing.Unlock()
	if err := n.publish(f); err != nil {
		n.logger.Error("own record cannot be announced", "error", err)
		return
	}
	rec := n.Record()
	n.roster.set(rec, n.pools[0].ownIP)
	for _, p := range n.pools {
		for _, id := range n.audience(p) {
			p.packet(id, recordPacket(rec))
		}
		p.spread(rec)
		if rec.Leaving {
			poke(p.announceNow)
		} else {
			poke(p.announce)
		}
	}
}

func (n *Node) publish(f func(*Record)) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	rec := n.own.Record
	leaving := rec.Leaving
	f(&rec)
	rec.Leaving = rec.Leaving || leaving // there is no way back from goodbye
	rec.Seq = n.own.Seq + 1
	signed, err := rec.Sign(n.cfg.Identity.Cluster, n.cfg.Key)
	if err == nil {
		n.own = signed
	}
	return err
}

// Handle sets the handler of a topic. Set it before messages are expected:
// without one they are dropped. Handlers run on goroutines of the topic, in
// order per sender, and own the payload. from is what the sender's certificate
// proves.
func (n *Node) Handle(topic string, h func(from identity.Identity, payload []byte)) {
	n.life.Lock()
	defer n.life.Unlock()
	if !n.closing {
		n.handlers.handle(topic, h)
	}
}

// Offer takes a signed record that came by another way than gossip, such as a
// report. It counts as a sign of life: the host is online for Timing.Reach, by
// when gossip should know better. It returns nil for the record that is the
// newest known already, ErrStale, ErrUnverified or ErrMalformed.
func (n *Node) Offer(raw []byte) error {
	rec, err := DecodeRecord(raw)
	if err != nil {
		n.counters.malformedRecords.Add(1)
		return err
	}
	news, err := n.takeNews(rec, fromGossip)
	if err != nil {
		return err
	}
	// Only a new record proves life: anybody may have kept a copy of an old one.
	if news && !rec.Leaving {
		n.roster.see(rec.HostID, sightingKey{}, sighting{alive: true, expires: time.Now().Add(n.cfg.Timing.Reach)})
	}
	return nil
}

// takeNews puts a record into the roster, and counts what is refused.
func (n *Node) takeNews(rec SignedRecord, how trust) (bool, error) {
	news, err := n.roster.record(rec, how)
	switch {
	case errors.Is(err, ErrUnverified):
		n.countForged(rec.HostID, nil)
	case errors.Is(err, ErrStale):
		n.counters.staleRecords.Add(1)
	}
	return news, err
}

// countForged counts a record that its host did not sign. Those of removed hosts,
// whose agents run on, are told apart.
func (n *Node) countForged(hostID string, ip net.IP) {
	if n.verifier.removed(hostID) {
		n.counters.removed.Add(1)
		return
	}
	n.counters.unverifiedRecords.Add(1)
	n.counters.forged(hostID, ip)
}

// Join contacts members by their gossip addresses, in each segment, and returns
// how many answered. A node looks for its configured and known peers by itself.
func (n *Node) Join(addrs []string) (int, error) {
	if n.stopped() {
		return 0, ErrClosed
	}
	total := 0
	var errs []error
	for _, p := range n.pools {
		joined, err := p.list.Join(addrs)
		total += joined
		errs = append(errs, err)
	}
	if total == 0 {
		return 0, errors.Join(errs...)
	}
	return total, nil
}

// LivePeers returns how many other hosts are alive in this node's own pools.
func (n *Node) LivePeers() int {
	if len(n.pools) == 1 {
		return n.pools[0].livePeerCount()
	}
	ids := map[string]bool{}
	for _, p := range n.pools {
		for _, id := range p.livePeers() {
			ids[id] = true
		}
	}
	return len(ids)
}

// GossipAddrs returns the advertised gossip address of each pool, in order.
func (n *Node) GossipAddrs() []string {
	var addrs []string
	for _, p := range n.pools {
		addrs = append(addrs, p.ownAddr)
	}
	return addrs
}

// Counters returns what was refused since the start.
func (n *Node) Counters() Counters { return n.counters.snapshot() }

// Leave says goodbye, so that the others see this host as left and not as
// failed, and returns within about timeout. Close the node afterwards.
func (n *Node) Leave(timeout time.Duration) error {
	if n.stopped() {
		return ErrClosed
	}
	deadline := time.Now().Add(timeout)
	n.change(func(r *Record) { r.Leaving = true })
	n.sayGoodbye(timeout / 2)
	// memberlist's goodbye would displace the record that is still queued.
	for range goodbyeRounds {
		if n.broadcastsPending() == 0 || !time.Now().Add(n.cfg.Timing.Gossip).Before(deadline) || !pause(n.stop, n.cfg.Timing.Gossip) {
			break
		}
	}
	errs := make([]error, len(n.pools))
	var left sync.WaitGroup
	for i, p := range n.pools {
		left.Go(func() {
			rest, round := time.Until(deadline), p.livenessRound()+goodbyeSlack
			err := p.list.Leave(max(min(rest, round), time.Millisecond))
			if rest < round { // else a round went out: who has heard of it passes it on
				errs[i] = err
			}
		})
	}
	left.Wait()
	return errors.Join(errs...)
}

func (n *Node) broadcastsPending() (pending int) {
	for _, p := range n.pools {
		pending += p.broadcast.pending()
	}
	return pending
}

// sayGoodbye hands the last record straight to a few members, servers first.
func (n *Node) sayGoodbye(timeout time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	msg := recordPacket(n.Record())
	var sent sync.WaitGroup
	for _, p := range n.pools {
		ids := p.livePeers()
		slices.SortStableFunc(ids, func(a, b string) int { return n.rank(a) - n.rank(b) })
		for _, id := range ids[:min(len(ids), 5)] {
			sent.Go(func() { _ = n.stream(ctx, p, id, msg) })
		}
	}
	sent.Wait()
}

// The ranks of members, by how much depends on their knowing.
const (
	rankServer = iota
	rankRelay
	rankMember
)

func (n *Node) rank(hostID string) int {
	m, ok := n.roster.signed(hostID)
	switch {
	case ok && m.Role == string(identity.RoleServer):
		return rankServer
	case ok && m.Relay():
		return rankRelay
	}
	return rankMember
}

// maxAudience bounds to how many members of a pool a changed record goes straight.
const maxAudience = 8

// audience returns whom a pool's members tell of changes before all others: its
// servers, then its relays.
func (n *Node) audience(p *pool) (ids []string) {
	ranks := map[string]int{}
	for _, id := range p.livePeers() {
		if r := n.rank(id); r != rankMember {
			ids = append(ids, id)
			ranks[id] = r
		}
	}
	slices.SortStableFunc(ids, func(a, b string) int { return ranks[a] - ranks[b] })
	return ids[:min(len(ids), maxAudience)]
}

func (n *Node) stopped() bool {
	select {
	case <-n.stop:
		return true
	default:
		return false
	}
}

// goIfOpen starts a goroutine that Close waits for, unless Close has begun.
func (n *Node) goIfOpen(f func()) bool {
	n.life.Lock()
	defer n.life.Unlock()
	if n.closing {
		return false
	}
	n.wg.Go(f)
	return true
}

// Close stops all at once, without a goodbye, and waits for the handlers that
// run, at most five seconds. Further calls do nothing.
func (n *Node) Close() error {
	n.life.Lock()
	if n.closing {
		n.life.Unlock()
		return nil
	}
	n.closing = true
	close(n.stop)
	n.life.Unlock()
	n.handlers.close()

	var errs []error
	for _, p := range n.pools {
		errs = append(errs, p.list.Shutdown())
	}
	done := make(chan struct{})
	go func() {
		n.wg.Wait()
		close(done)
	}()
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		errs = append(errs, errors.New("a message handler still runs"))
	}
	return errors.Join(errs...)
}
