package mesh

import (
	"bytes"
	"cmp"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"moult/mesh/identity"
)

// Liveness is whether a host is here.
type Liveness string

// The states of a host. One that left said so itself.
const (
	Online  Liveness = "online"
	Offline Liveness = "offline"
	Left    Liveness = "left"
)

// Member is a host as this node sees it: its newest record and its liveness.
type Member struct {
	Record
	Addr     string // ip:port of its node port; "" while no address is known
	Liveness Liveness
	Since    time.Time // of the last change of Liveness
	LastSeen time.Time // now, while online
	Verified bool      // the record was checked against the enrolled key
	SeenVia  string    // host id of the relay that sees it; "" when seen directly
}

// maxRoster bounds the roster where records are hints, so that a holder of the
// gossip key cannot fill the memory with hosts that do not exist.
const maxRoster = 16384

// maxSightings bounds how many observers' words are kept on one host: a relay
// passes on what others saw, and can make up observers.
const maxSightings = 64

// Roster is who is known, the node itself included. A host that failed or left
// stays in it.
type Roster struct {
	self     string
	verifier recordVerifier
	now      func() time.Time

	mu      sync.Mutex
	hosts   map[string]*host
	changed chan struct{} // closed at the next change, then replaced
}

// host is one entry of the roster, under the roster's lock.
type host struct {
	record    SignedRecord
	verified  bool
	sightings map[sightingKey]sighting
	online    bool
	liveness  Liveness
	since     time.Time
	lastSeen  time.Time
}

// sightingKey says who saw the host, and in which segment.
type sightingKey struct {
	segment  string // "": by its own word, see Roster.offer
	observer string // host id; "" is this node
}

// sighting is one observer's word on a host's liveness in one segment.
type sighting struct {
	alive   bool
	ip      net.IP
	boot    uint64    // of the observer
	version uint64    // counts the observer's sightings
	expires time.Time // zero: never
}

func newRoster(self string, v recordVerifier) *Roster {
	return &Roster{
		self: self, verifier: v, now: time.Now,
		hosts: map[string]*host{}, changed: make(chan struct{}),
	}
}

// Changed returns a channel that is closed at the next change. Fetch it before
// reading the roster, and no change is missed.
func (r *Roster) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// Member returns one host.
func (r *Roster) Member(hostID string) (Member, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h, ok := r.hosts[hostID]
	if !ok {
		return Member{}, false
	}
	return r.member(h), true
}

// Members returns all hosts, by host id.
func (r *Roster) Members() []Member {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]Member, 0, len(r.hosts))
	for _, h := range r.hosts {
		all = append(all, r.member(h))
	}
	slices.SortFunc(all, func(a, b Member) int { return cmp.Compare(a.HostID, b.HostID) })
	return all
}

// Servers returns the servers that are online, by host id.
func (r *Roster) Servers() []Member {
	return slices.DeleteFunc(r.Members(), func(m Member) bool {
		return m.Role != string(identity.RoleServer) || m.Liveness != Online
	})
}

func (r *Roster) member(h *host) Member {
	m := Member{
		Record: h.record.Record, Liveness: h.liveness,
		Since: h.since, LastSeen: h.lastSeen, Verified: h.verified,
	}
	m.Segments, m.Holds = slices.Clone(m.Segments), slices.Clone(m.Holds)
	if h.online {
		m.LastSeen = r.now()
	}
	if key, s, ok := h.best(); ok {
		m.SeenVia = key.observer
		if s.ip != nil {
			m.Addr = net.JoinHostPort(s.ip.String(), strconv.Itoa(int(m.PeerPort)))
		}
	}
	return m
}

// best returns the sighting to reach the host by: alive before dead, an address
// before none, own before others'.
func (h *host) best() (key sightingKey, best sighting, ok bool) {
	rank := func(k sightingKey, s sighting) (n int) {
		if s.alive {
			n += 4
		}
		if s.ip != nil {
			n += 2
		}
		if k.observer == "" {
			n++
		}
		return n
	}
	for k, s := range h.sightings {
		if !ok || cmp.Or(cmp.Compare(rank(k, s), rank(key, best)), cmp.Compare(key.observer, k.observer), cmp.Compare(key.segment, k.segment)) > 0 {
			key, best, ok = k, s, true
		}
	}
	return key, best, ok
}

// set stores the node's own record.
func (r *Roster) set(rec SignedRecord, ip net.IP) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.host(rec)
	h.record, h.verified = rec, true
	h.sightings[sightingKey{}] = sighting{alive: true, ip: ip}
	r.settle(h, true)
}

// trust says how a record reached this node, which decides what a hint is worth.
type trust int

const (
	fromGossip trust = iota // could be an old one: must rise
	fromPool                // memberlist holds it for the newest
)

// record takes a host's record from any source. It returns no error when the
// record is now, or already was, the host's newest one, and whether it was news.
func (r *Roster) record(rec SignedRecord, how trust) (news bool, err error) {
	if rec.HostID == r.self {
		return false, nil // nobody tells this node what it runs
	}
	verified, err := r.verifier.check(rec)
	if err != nil {
		return false, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	h, known := r.hosts[rec.HostID]
	if !known {
		if !verified && len(r.hosts) >= maxRoster {
			return false, ErrUnverified
		}
		h = r.host(rec)
		h.record, h.verified = rec, verified
		r.settle(h, true)
		return true, nil
	}
	if bytes.Equal(h.record.Raw, rec.Raw) {
		return false, nil
	}
	// A hint can be forged: one with the highest boot number there is must not
	// shut out what memberlist holds for the host's own word.
	if !rec.newer(h.record.Record) && (verified || how != fromPool) {
		return false, ErrStale
	}
	h.record, h.verified = rec, verified
	r.settle(h, true)
	return true, nil
}

func (r *Roster) host(rec SignedRecord) *host {
	h, ok := r.hosts[rec.HostID]
	if !ok {
		h = &host{sightings: map[sightingKey]sighting{}, liveness: Offline, since: r.now()}
		r.hosts[rec.HostID] = h
	}
	return h
}

// see takes an observer's word on a host that has a record here. It returns
// whether the sighting was newer than the last one of that observer.
func (r *Roster) see(hostID string, key sightingKey, s sighting) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	h, ok := r.hosts[hostID]
	if !ok || hostID == r.self {
		return false
	}
	old, had := h.sightings[key]
	if !had && key.observer != "" && len(h.sightings) >= maxSightings {
		return false
	}
	if had && key.observer != "" && (s.boot < old.boot || s.boot == old.boot && s.version <= old.version) {
		return false
	}
	h.sightings[key] = s
	r.settle(h, !had || old.alive != s.alive || !old.ip.Equal(s.ip))
	return true
}

// current returns an observer's last word on a host.
func (r *Roster) current(hostID string, key sightingKey) (sighting, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h, ok := r.hosts[hostID]
	if !ok {
		return sighting{}, false
	}
	s, ok := h.sightings[key]
	return s, ok
}

// forget drops an observer's word on a host.
func (r *Roster) forget(hostID string, key sightingKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h, ok := r.hosts[hostID]
	if !ok || hostID == r.self {
		return
	}
	if _, had := h.sightings[key]; had {
		delete(h.sightings, key)
		r.settle(h, false)
	}
}

// signed returns a host's newest record as it was signed.
func (r *Roster) signed(hostID string) (SignedRecord, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h, ok := r.hosts[hostID]
	if !ok {
		return SignedRecord{}, false
	}
	return h.record, true
}

// settle recomputes a host's liveness and wakes who waits for changes.
func (r *Roster) settle(h *host, changed bool) {
	now := r.now()
	online := false
	for _, s := range h.sightings {
		online = online || s.alive
	}
	liveness := Offline
	switch {
	case h.record.Leaving:
		liveness, online = Left, false
	case online:
		liveness = Online
	}
	if h.online || online {
		h.lastSeen = now
	}
	if liveness != h.liveness {
		h.since, changed = now, true
	}
	h.online, h.liveness = online, liveness
	if changed {
		close(r.changed)
		r.changed = make(chan struct{})
	}
}

// expire forgets sightings that were not renewed in time, and hosts that are
// offline and no longer enrolled, or that were hints for too long.
func (r *Roster) expire(hintLifetime time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	for id, h := range r.hosts {
		if id == r.self {
			continue
		}
		expired := false
		for k, s := range h.sightings {
			if !s.expires.IsZero() && now.After(s.expires) {
				delete(h.sightings, k)
				expired = true
			}
		}
		if expired {
			r.settle(h, true)
		}
		if h.online {
			continue
		}
		gone := h.verified && !r.verifier.enrolled(id) || !h.verified && now.Sub(h.since) > hintLifetime
		if gone {
			delete(r.hosts, id)
			close(r.changed)
			r.changed = make(chan struct{})
		}
	}
}
