package mesh

import (
	"bytes"
	"time"
)

// Limits of what is left to be fetched. See DESIGN.md, "Messages".
const (
	// dialPatience is how long a stream may take before its message is also left.
	dialPatience = time.Second
	maxMail      = 64      // messages that wait in one pool
	maxMailBytes = 1 << 20 // of them
	// mailMemory is how long a receiver remembers what it fetched, and a sender
	// that a member fetches.
	mailMemory = 10 * time.Minute
	maxFetched = 4096 // messages that are remembered
)

// mailbox holds messages for members that this host cannot open a stream to,
// because a firewall is open in the other direction only: they open one. What
// carries them is memberlist's full exchange, which whoever opens it does in both
// directions. It is under the pool's lock.
type mailbox struct {
	next     uint64
	waiting  map[uint64]*mail
	fetches  map[string]time.Time  // members that fetched lately, by host id
	fetched  map[mailKey]time.Time // what this host fetched lately
	fetching map[string]bool       // from whom it does now
}

type mail struct {
	to    string
	msg   []byte
	taken chan struct{} // closed when the receiver says that it has it
}

// mailKey names a message of a sender. Its number is unique over the sender's
// starts, for the boot number is in it.
type mailKey struct {
	from string
	id   uint64
}

func newMailbox(boot uint64) mailbox {
	return mailbox{
		next: boot << 20, waiting: map[uint64]*mail{}, fetches: map[string]time.Time{},
		fetched: map[mailKey]time.Time{}, fetching: map[string]bool{},
	}
}

// fetchesMail tells whether a member is known to fetch what is left for it.
func (p *pool) fetchesMail(hostID string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.mail.fetches[hostID]
	return ok && time.Since(at) < mailMemory
}

// leave puts a message down for a member and lets it know. It returns a channel
// that closes when the member has it, and what takes the message away again.
func (p *pool) leave(to string, msg []byte) (taken <-chan struct{}, drop func()) {
	p.mu.Lock()
	bytes := len(msg)
	for _, m := range p.mail.waiting {
		bytes += len(m.msg)
	}
	if len(p.mail.waiting) >= maxMail || bytes > maxMailBytes {
		p.mu.Unlock()
		return nil, func() {}
	}
	p.mail.next++
	id, m := p.mail.next, &mail{to: to, msg: msg, taken: make(chan struct{})}
	p.mail.waiting[id] = m
	p.mu.Unlock()

	var w writer
	w.byte(kindRing)
	w.text8(to)
	w.text8(p.self)
	p.broadcast.add("ring/"+to, w.b, 0) // a packet straight there may not pass either
	p.packet(to, w.b)
	return m.taken, func() {
		p.mu.Lock()
		delete(p.mail.waiting, id)
		p.mu.Unlock()
	}
}

// packet sends a small message to a live member, which may get lost.
func (p *pool) packet(to string, msg []byte) {
	if node, ok := p.livePeer(to); ok {
		_ = p.list.SendBestEffort(node, msg) // what comes of it shows elsewhere
	}
}

// LocalState is memberlist asking, in a full exchange, for what to hand over: mail,
// and the records that its own state does not have.
func (p *pool) LocalState(bool) []byte {
	var w writer
	if records := p.unannounced(); len(records) > 0 {
		w.uint64(0)
		w.text8("") // for whoever reads it; versions that do not, skip what is not for them
		w.text8(p.self)
		w.bytes32(records)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, m := range p.mail.waiting {
		w.uint64(id)
		w.text8(m.to)
		w.text8(p.self)
		w.bytes32(m.msg)
	}
	return w.b
}

// MergeRemoteState is memberlist handing over what the other side had. Messages
// for others are none of this host's business.
func (p *pool) MergeRemoteState(b []byte, join bool) {
	rd := &reader{b: bytes.Clone(b)}
	for len(rd.b) > 0 {
		id, to, from, msg := rd.uint64(), rd.text8(maxID), rd.text8(maxID), rd.bytes32(maxMailBytes)
		if rd.failed {
			p.malformed()
			return
		}
		if to == "" {
			if join && len(msg) > 0 && msg[0] == kindRecords {
				msg[0] = kindJoinRecords
			}
			p.receive(p, msg)
			continue
		}
		if to != p.self {
			continue
		}
		if p.firstTime(mailKey{from, id}) {
			p.receive(p, msg)
		}
		var w writer
		w.byte(kindTaken)
		w.text8(p.self)
		w.uint64(id)
		p.packet(from, w.b)
	}
}

// firstTime tells whether a message was not fetched before.
func (p *pool) firstTime(key mailKey) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, again := p.mail.fetched[key]; again {
		return false
	}
	for k, at := range p.mail.fetched {
		if time.Since(at) > mailMemory || len(p.mail.fetched) >= maxFetched {
			delete(p.mail.fetched, k)
		}
	}
	p.mail.fetched[key] = time.Now()
	return true
}

// ring handles the news that a member has left something for this host.
func (n *Node) ring(p *pool, body []byte) {
	rd := reader{b: body}
	to, from := rd.text8(maxID), rd.text8(maxID)
	if rd.failed {
		n.counters.malformedMessage.Add(1)
		return
	}
	node, ok := p.livePeer(from)
	if to != p.self || !ok {
		return
	}
	p.mu.Lock()
	busy := p.mail.fetching[from]
	p.mail.fetching[from] = true
	p.mu.Unlock()
	if busy {
		return
	}
	done := func() {
		p.mu.Lock()
		delete(p.mail.fetching, from)
		p.mu.Unlock()
	}
	if !n.goIfOpen(func() {
		defer done()
		if _, err := p.list.Join([]string{node.Address()}); err != nil {
			n.logger.Debug("messages are not fetched", "host", from, "error", err)
		}
	}) {
		done()
	}
}

// taken handles a member's word that it has what was left for it.
func (n *Node) taken(p *pool, body []byte) {
	rd := reader{b: body}
	by, id := rd.text8(maxID), rd.uint64()
	if rd.failed {
		n.counters.malformedMessage.Add(1)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.mail.waiting[id]
	if m == nil || m.to != by {
		return
	}
	delete(p.mail.waiting, id)
	close(m.taken)
	for host, at := range p.mail.fetches {
		if time.Since(at) > mailMemory {
			delete(p.mail.fetches, host)
		}
	}
	p.mail.fetches[by] = time.Now()
	delete(p.failed, by)
}
