package mesh

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"

	"moult/mesh/identity"
)

// maxPeers bounds what a pool knows of members: of those that are gone the
// oldest are forgotten, and when all are alive no further ones are let in. A
// pool is meant for a thousand; a holder of the gossip key can make up any number.
const maxPeers = 4096

// peer is memberlist's view of a member. Under the pool's lock, as all of this file.
type peer struct {
	node    memberlist.Node // a copy; Meta is its own
	alive   bool
	place   int // in peers.here, while it is alive
	since   time.Time
	change  uint64 // counts the pool's changes
	counted bool   // its present record was already counted as refused
}

func (q *peer) leaving() bool {
	rec, err := DecodeRecord(q.node.Meta)
	return err == nil && rec.Leaving
}

// isServer is what its record says, which need not be true.
func (q *peer) isServer() bool {
	rec, err := DecodeRecord(q.node.Meta)
	return err == nil && rec.Role == string(identity.RoleServer)
}

// peers is a pool's members but for the node itself. What is done for each packet,
// or each second, does not go through all of them.
type peers struct {
	byID map[string]*peer
	here []*peer // those that are alive, in no order
	// untaken are those that the roster is to take over: from when on; zero: now.
	untaken map[string]time.Time
	changes uint64
}

func newPeers() peers {
	return peers{byID: map[string]*peer{}, untaken: map[string]time.Time{}}
}

// put has a member be as memberlist tells. When there is no room the one that is gone
// for longest is forgotten.
func (t *peers) put(node memberlist.Node, alive bool) {
	old := t.byID[node.Name]
	if old == nil && len(t.byID) >= maxPeers {
		gone := t.oldestGone()
		delete(t.byID, gone)
		delete(t.untaken, gone)
	}
	t.changes++
	q := &peer{node: node, alive: alive, since: time.Now(), change: t.changes}
	was := old != nil && old.alive
	switch {
	case alive && was:
		q.place = old.place
		t.here[q.place] = q
	case alive:
		q.place = len(t.here)
		t.here = append(t.here, q)
	case was:
		last := len(t.here) - 1
		t.swap(old.place, last)
		t.here[last] = nil
		t.here = t.here[:last]
	}
	t.byID[node.Name], t.untaken[node.Name] = q, time.Time{}
}

func (t *peers) swap(i, j int) {
	t.here[i], t.here[j] = t.here[j], t.here[i]
	t.here[i].place, t.here[j].place = i, j
}

// full tells whether there is no room for a further one.
func (t *peers) full() bool { return len(t.byID) >= maxPeers && t.oldestGone() == "" }

// oldestGone returns the member that is gone for longest, "" when none is.
func (t *peers) oldestGone() (oldest string) {
	if len(t.here) == len(t.byID) {
		return ""
	}
	for id, q := range t.byID {
		if !q.alive && (oldest == "" || q.since.Before(t.byID[oldest].since)) {
			oldest = id
		}
	}
	return oldest
}

// same returns the member if it is as it was when q was copied; nil: it is not.
func (t *peers) same(q peer) *peer {
	if now := t.byID[q.node.Name]; now != nil && now.change == q.change {
		return now
	}
	return nil
}

// note takes over what memberlist tells of a member.
func (p *pool) note(n *memberlist.Node, alive bool) {
	if n.Name == p.self {
		return
	}
	node := *n
	node.Meta = bytes.Clone(n.Meta)
	p.mu.Lock()
	p.peers.put(node, alive)
	here := int64(len(p.peers.here))
	if before := p.live.Swap(here); before == 0 && here > 0 {
		poke(p.broadcast.filled) // with what was queued while nobody was here
	}
	p.mu.Unlock()
	p.notify()
}

// shows tells whether a member that was let in shows the record that it showed then.
func (p *pool) shows(n *memberlist.Node) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	q, ok := p.peers.byID[n.Name]
	return ok && bytes.Equal(q.node.Meta, n.Meta)
}

// livePeer returns a member that memberlist holds for alive.
func (p *pool) livePeer(hostID string) (*memberlist.Node, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	q, ok := p.peers.byID[hostID]
	if !ok || !q.alive || p.removed(hostID) {
		return nil, false
	}
	node := q.node
	return &node, true
}

// livePeers returns the host ids of the other members that are alive.
func (p *pool) livePeers() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var ids []string
	for _, q := range p.peers.here {
		if !p.removed(q.node.Name) {
			ids = append(ids, q.node.Name)
		}
	}
	slices.Sort(ids)
	return ids
}

// livePeerCount is how many livePeers returns.
func (p *pool) livePeerCount() (count int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, q := range p.peers.here {
		if !p.removed(q.node.Name) {
			count++
		}
	}
	return count
}

// anyPeers returns so many live members, at random, without one of them.
func (p *pool) anyPeers(count int, without string) (chosen []memberlist.Node) {
	p.mu.Lock()
	defer p.mu.Unlock()
	here := p.peers.here
	for i := 0; i < len(here) && len(chosen) < count; i++ { // as one shuffles, no further than needed
		p.peers.swap(i, i+rand.IntN(len(here)-i))
		if id := here[i].node.Name; id != without && !p.removed(id) {
			chosen = append(chosen, here[i].node)
		}
	}
	return chosen
}

// changedPeers returns copies of the members that the roster has not taken yet.
func (p *pool) changedPeers() (changed []peer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for id, due := range p.peers.untaken {
		if now.After(due) {
			changed = append(changed, *p.peers.byID[id])
		}
	}
	return changed
}

// settled notes that the roster took q, unless it changed meanwhile.
func (p *pool) settled(q peer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.peers.same(q) != nil {
		delete(p.peers.untaken, q.node.Name)
	}
}

// lookAgain has the roster take q again later, unless it changed meanwhile.
func (p *pool) lookAgain(q peer, after time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.peers.same(q) != nil {
		p.peers.untaken[q.node.Name] = time.Now().Add(after)
	}
}

// firstRefusal tells whether q's present record is refused for the first time.
func (p *pool) firstRefusal(q peer) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.peers.byID[q.node.Name]
	if now == nil || now.counted {
		return false
	}
	now.counted = true
	return true
}
