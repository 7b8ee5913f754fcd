package mesh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/time/rate"
)

// pool is one segment: a memberlist, and what it last said of each member.
type pool struct {
	segment   string
	server    bool // this node is one
	seeds     []string
	keyring   *memberlist.Keyring
	keysMu    sync.Mutex // orders setKeys
	list      *memberlist.Memberlist
	self      string
	ownAddr   string
	ownIP     net.IP
	broadcast *broadcastQueue
	// packetRoom is how long a message in a packet may be, in bytes.
	packetRoom int
	timing     Timing

	meta    func() []byte                  // the node's own signed record
	receive func(*pool, []byte)            // takes over the bytes; never blocks
	notify  func()                         // peers changed; never blocks
	refused func(hostID string, ip net.IP) // a member was kept out; never blocks
	removed func(hostID string) bool

	malformed func()                             // what a member handed over does not decode; never blocks
	findSeeds func(ctx context.Context) []string // may be nil

	known func(hostID string) (SignedRecord, bool) // the newest record of a host, in the roster

	announce    chan struct{} // own record changed; capacity 1
	announceNow chan struct{} // it is the last one; capacity 1

	live      atomic.Int64           // members that are alive, this node not counted
	announced atomic.Pointer[[]byte] // the record that memberlist was given last
	hurry     *rate.Limiter          // of spreading without waiting for a round of gossip

	mu     sync.Mutex
	peers  peers
	mail   mailbox
	failed map[string]time.Time // ways that failed: when they did last
	misses map[string]int       // by seed: attempts in vain since one succeeded, if any did; absent: not tried
}

// open starts the memberlist. The delegates are complete before it: memberlist
// calls them while it is created.
func (p *pool) open(cfg Config, pc PoolConfig, logger *slog.Logger) error {
	if !validSegment(pc.Segment) {
		return fmt.Errorf("segment %q: want 1 to %d letters, digits, '-', '_' or '.'", pc.Segment, maxSegment)
	}
	keyring, err := memberlist.NewKeyring(pc.Keys, pc.Keys[0])
	if err != nil {
		return fmt.Errorf("gossip keys of segment %q: %w", pc.Segment, err)
	}
	allowed, err := parseNetworks(pc.Allow)
	if err != nil {
		return fmt.Errorf("segment %q: %w", pc.Segment, err)
	}
	mc := memberlist.DefaultLANConfig()
	mc.Name = cfg.Identity.HostID
	mc.Label = "moult/" + cfg.Identity.Cluster + "/" + pc.Segment
	mc.Keyring, p.keyring = keyring, keyring
	mc.EnableCompression = false // doubles the CPU for little
	mc.GossipInterval = p.livenessRound()
	mc.PushPullInterval = p.timing.PushPull
	mc.ProbeInterval = p.timing.Probe
	mc.ProbeTimeout = p.timing.Probe / 2
	mc.DeadNodeReclaimTime = p.timing.Reclaim
	mc.TCPTimeout = p.timing.Stream
	mc.CIDRsAllowed = allowed
	mc.Logger = log.New(newMemberlistLog(logger), "", 0)
	mc.Delegate, mc.Events, mc.Alive = p, p, p
	p.packetRoom = mc.UDPBufferSize - len(mc.Label) - packetOverhead
	transport, bound, err := openTransport(cfg.Transport, pc, mc.Logger)
	if err != nil {
		return err
	}
	p.hurry = rate.NewLimiter(rate.Every(hurryEvery*p.timing.Gossip), hurryBurst)
	bounded := newBoundedTransport(transport, p.timing.Stream, min(max(1, cfg.HostsPerAddress)*maxSourceStreams, maxStreams), allowed)
	mc.Transport = bounded
	if mc.AdvertiseAddr, mc.AdvertisePort, err = advertised(pc, bound); err != nil {
		return errors.Join(err, bounded.Shutdown())
	}
	p.list, err = memberlist.Create(mc)
	if err != nil {
		return errors.Join(fmt.Errorf("start gossip in segment %q: %w", pc.Segment, err), bounded.Shutdown())
	}
	// Read once, here: memberlist writes to the node it returns.
	local := p.list.LocalNode()
	p.ownAddr, p.ownIP = local.Address(), local.Addr
	return nil
}

func parseNetworks(cidrs []string) ([]net.IPNet, error) {
	if len(cidrs) == 0 {
		return nil, nil
	}
	nets, err := memberlist.ParseCIDRs(cidrs)
	if err != nil {
		return nil, fmt.Errorf("allowed networks: %w", err)
	}
	return nets, nil
}

// setKeys brings the keyring to these keys. Whatever the members encrypt with
// meanwhile is read.
func (p *pool) setKeys(keys [][]byte) error {
	if len(keys) == 0 {
		return fmt.Errorf("segment %q has no gossip key", p.segment)
	}
	p.keysMu.Lock()
	defer p.keysMu.Unlock()
	for _, k := range keys {
		if err := p.keyring.AddKey(k); err != nil {
			return fmt.Errorf("gossip keys of segment %q: %w", p.segment, err)
		}
	}
	// From the last one on, so that those to be removed come to stand behind them
	// all: memberlist's RemoveKey moves what follows a key, in an array that is
	// being read.
	for _, k := range slices.Backward(keys) {
		if err := p.keyring.UseKey(k); err != nil {
			return fmt.Errorf("gossip keys of segment %q: %w", p.segment, err)
		}
	}
	for _, k := range slices.Backward(slices.Clone(p.keyring.GetKeys())) {
		if !slices.ContainsFunc(keys, func(kept []byte) bool { return bytes.Equal(k, kept) }) {
			if err := p.keyring.RemoveKey(k); err != nil {
				return fmt.Errorf("gossip keys of segment %q: %w", p.segment, err)
			}
		}
	}
	return nil
}

// NodeMeta is memberlist asking for the node's record.
func (p *pool) NodeMeta(int) []byte {
	raw := p.meta()
	p.announced.Store(&raw)
	return raw
}

// NotifyMsg is memberlist handing over a message, whose memory it keeps.
func (p *pool) NotifyMsg(b []byte) { p.receive(p, bytes.Clone(b)) }

// GetBroadcasts is memberlist asking for what to gossip along.
func (p *pool) GetBroadcasts(overhead, limit int) [][]byte {
	return p.broadcast.take(overhead, limit)
}

// NotifyAlive keeps members out whose metadata is not the record of a host of
// that name. Whether the host signed it is judged later, because the enrolment
// may reach this server after the host does.
func (p *pool) NotifyAlive(n *memberlist.Node) error {
	if n.Name == p.self {
		return nil
	}
	if p.removed(n.Name) {
		return fmt.Errorf("%w: host %s was removed", ErrUnverified, n.Name)
	}
	if p.shows(n) {
		return nil // as it did before: most of a full exchange is no news
	}
	rec, err := DecodeRecord(n.Meta)
	if err == nil && rec.HostID != n.Name {
		err = fmt.Errorf("%w: member %s carries the record of %s", ErrMalformed, n.Name, rec.HostID)
	}
	if err != nil {
		p.refused(n.Name, n.Addr)
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.peers.byID[n.Name]; !known && p.peers.full() {
		return fmt.Errorf("the pool of segment %q is full with %d members; use more segments", p.segment, maxPeers)
	}
	return nil
}

// NotifyJoin, NotifyUpdate and NotifyLeave note what changed; the node's own
// goroutine takes it from there. memberlist holds its lock meanwhile.
func (p *pool) NotifyJoin(n *memberlist.Node)   { p.note(n, true) }
func (p *pool) NotifyUpdate(n *memberlist.Node) { p.note(n, true) }
func (p *pool) NotifyLeave(n *memberlist.Node)  { p.note(n, false) }

// noteWay remembers how a way went: a stream to a member, by its host id, or a
// relay's attempt to pass a message on.
func (p *pool) noteWay(way string, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ok {
		delete(p.failed, way)
		delete(p.mail.fetches, way) // who can be streamed to need not fetch
		return
	}
	for w, at := range p.failed {
		if time.Since(at) > failureMemory || len(p.failed) >= maxPeers {
			delete(p.failed, w)
		}
	}
	p.failed[way] = time.Now()
}

// failedLately tells whether a way fails these days.
func (p *pool) failedLately(way string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.failed[way]
	return ok && time.Since(at) <= failureMemory
}

// send carries one message to a live member over a stream.
func (p *pool) send(hostID string, msg []byte) error {
	node, ok := p.livePeer(hostID)
	if !ok {
		return ErrUnreachable
	}
	if err := p.list.SendReliable(node, msg); err != nil {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return nil
}

// seedPatience is how many times in a row a seed that does not answer is tried
// in each round: for two minutes, by when a site that lost power is up again.
const seedPatience = 12

// nowAndThenRounds is in how many rounds, on average, a pool that is not alone looks
// for what it most likely has no need of.
const nowAndThenRounds = 6

// alone tells whether nobody is here by whom this node would be found. Servers that
// all start anew know each other at once, and agents that have not noticed do not look
// for them: so to a server other servers are not enough. Under the lock.
func (p *pool) alone() bool {
	return !slices.ContainsFunc(p.peers.here, func(q *peer) bool { return !p.server || !q.isServer() })
}

func (p *pool) isAlone() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.alone()
}

// serverRounds is for how many rounds a server that is alone does not look less and less
// often: until the servers that start anew have a leader, none knows whom to ask.
const serverRounds = 5

// find asks others for members of the segment, when that is due.
func (p *pool) find(stop <-chan struct{}) []string {
	if p.findSeeds == nil || p.livePeerCount() > 0 && !p.isAlone() && rand.N(nowAndThenRounds) != 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), p.timing.Stream)
	defer cancel()
	go func() {
		select {
		case <-stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	found := p.findSeeds(ctx)
	return found[:min(len(found), 2*MaxSeeds)]
}

// missing returns addresses to join by, at most eight, at random: of those that
// others named, of peers that failed, and of the seeds that are not among the live
// members. A seed that has
// answered may never look live, because its members advertise another address,
// and one that has not for long may be gone for good: a pool that is not alone
// asks for those only now and then.
func (p *pool) missing(found []string) (addrs []string, alone bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	alone = p.alone()
	want := map[string]bool{}
	if len(p.peers.here) < len(p.peers.byID) {
		for _, q := range p.peers.byID {
			if !q.alive && time.Since(q.since) < hintLifetime && (alone || !q.leaving()) {
				want[q.node.Address()] = true
			}
		}
	}
	for _, f := range found {
		want[f] = true
	}
	nowAndThen := rand.N(nowAndThenRounds) == 0
	for _, s := range p.seeds {
		misses, tried := p.misses[s]
		if due := !tried || misses > 0 && misses < seedPatience; due || alone || nowAndThen {
			want[s] = true
		}
	}
	if len(want) == 0 {
		return nil, alone
	}
	delete(want, p.ownAddr)
	for _, q := range p.peers.here {
		delete(want, q.node.Address())
	}
	addrs = slices.Sorted(maps.Keys(want))
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	return addrs[:min(len(addrs), 8)], alone
}

// noteSeed remembers whether an address answered, if it is a seed's.
func (p *pool) noteSeed(addr string, answered bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !slices.Contains(p.seeds, addr):
	case answered:
		p.misses[addr] = 0
	default:
		p.misses[addr]++
	}
}

// rejoin looks for known peers that are missing until stop closes: a mass
// restart, or a healed partition, must come together without anybody's help.
func (p *pool) rejoin(stop <-chan struct{}) {
	first := min(time.Second, p.timing.Rejoin)
	wait, rounds := first, 0 // of being alone
	for {
		addrs, alone := p.missing(p.find(stop))
		for _, a := range addrs {
			select {
			case <-stop:
				return
			default:
			}
			_, err := p.list.Join([]string{a}) // memberlist logs why not
			p.noteSeed(a, err == nil)
			if err == nil && !alone {
				break // gossip brings the others; each exchange carries all that there is
			}
		}
		next := p.timing.Rejoin
		if alone {
			next = wait
			if rounds++; !p.server || rounds > serverRounds {
				wait = min(2*wait, p.timing.Rejoin)
			}
		} else {
			wait, rounds = first, 0
		}
		// Spread, so that the hosts of a restarted site don't all knock at once.
		if !pause(stop, next*3/4+rand.N(next/4+1)) {
			return
		}
	}
}

func pause(stop <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-stop:
		return false
	case <-t.C:
		return true
	}
}

func atoi(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	return int(n), err
}
