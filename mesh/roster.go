package mesh

import (
	"bytes"
	"cmp"
	"container/list"
	"crypto/ed25519"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"moult/mesh/identity"
)

// Liveness is whether a host is here.
type Liveness string

// The states of a host. One that left said so itself. One that is offline was
// seen to fail, or not heard of, by somebody who sees its segment; one that is
// unreachable is in segments that nobody sees, so nobody knows.
const (
	Online      Liveness = "online"
	Offline     Liveness = "offline"
	Unreachable Liveness = "unreachable"
	Left        Liveness = "left"
)

// Member is a host as this node sees it: its newest record and its liveness.
type Member struct {
	Record
	Addr     string // ip:port of its node port; "" while no address is known
	Liveness Liveness
	// Sighted: somebody told whether the host is here. Of one that is not online and
	// was not sighted nothing but its record has come yet, as after a start of this node.
	Sighted bool
	Since   time.Time // of the last change of Liveness
	// LastSeen is when the host was last known to be online: now, while this node
	// sees it itself, else when a relay last said so.
	LastSeen time.Time
	Verified bool   // the record was checked against the enrolled key
	SeenVia  string // host id of the relay that saw it last; "" when seen directly
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
	segments []string // of this node's own pools
	timing   Timing
	verifier recordVerifier
	now      func() time.Time

	mu      sync.Mutex
	hosts   map[string]*host
	relays  map[string]*host // those of them that are relays
	aging   map[string]*host // those that become another with the clock, see expire
	changed chan struct{}    // closed at the next change, then replaced
	version uint64           // counts the changes
	recent  *list.List       // of *host, the one that changed last at the back
	dropped uint64           // the version at which a host was dropped last
}

// host is one entry of the roster, under the roster's lock.
type host struct {
	record    SignedRecord
	verified  bool
	key       ed25519.PublicKey // that record was verified with; nil: with none
	sightings sightings
	online    bool
	liveness  Liveness
	sighted   bool
	since     time.Time
	lastSeen  time.Time
	proved    time.Time // when the newest record came: it is the host's own word that it lives
	version   uint64    // of the roster when the host changed last
	place     *list.Element
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
	at      time.Time // when it came
	since   time.Time // since when the observer says the same
	expires time.Time // zero: never
}

// sightings is what each observer said last of a host. Mostly that is one, for which
// a map would take a kilobyte.
type sightings []observed

type observed struct {
	sightingKey
	sighting
}

func (all sightings) by(key sightingKey) (sighting, bool) {
	for _, o := range all {
		if o.sightingKey == key {
			return o.sighting, true
		}
	}
	return sighting{}, false
}

func (all *sightings) put(key sightingKey, s sighting) {
	for i := range *all {
		if (*all)[i].sightingKey == key {
			(*all)[i].sighting = s
			return
		}
	}
	*all = append(*all, observed{key, s})
}

// drop forgets what is to go, and tells whether there was any.
func (all *sightings) drop(goes func(observed) bool) bool {
	before := len(*all)
	*all = slices.DeleteFunc(*all, goes)
	return len(*all) < before
}

func newRoster(self string, segments []string, timing Timing, v recordVerifier) *Roster {
	return &Roster{
		self: self, segments: segments, timing: timing, verifier: v, now: time.Now,
		hosts: map[string]*host{}, relays: map[string]*host{}, aging: map[string]*host{}, changed: make(chan struct{}), recent: list.New(),
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
	return r.those(func(*host) bool { return true })
}

// Since returns the members that changed after a version of the roster, and its
// version now, so that who follows ten thousand hosts looks only at those. With
// whole it is all of them: asked with 0, or because some were dropped since then.
// What changes with the clock alone, LastSeen of a host that is online, is no change.
func (r *Roster) Since(version uint64) (changed []Member, now uint64, whole bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	whole = version == 0 || version < r.dropped
	for e := r.recent.Back(); e != nil; e = e.Prev() {
		h := e.Value.(*host)
		if !whole && h.version <= version {
			break
		}
		changed = append(changed, r.member(h))
	}
	return changed, r.version, whole
}

// Touch has Since count a host as changed: of what else is known of it, something is
// another now. Whoever knows that tells those who wait for it; Changed does not.
func (r *Roster) Touch(hostID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if h, ok := r.hosts[hostID]; ok {
		r.mark(h)
	}
}

// mark notes that a host has changed.
func (r *Roster) mark(h *host) {
	r.version++
	h.version = r.version
	r.recent.MoveToBack(h.place)
}

// Servers returns the servers that are online, by host id.
func (r *Roster) Servers() []Member {
	return r.those(func(h *host) bool {
		return h.record.Role == string(identity.RoleServer) && h.liveness == Online
	})
}

// relayIDs returns the host ids of all relays, in order.
func (r *Roster) relayIDs() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.relays))
}

func (r *Roster) those(wanted func(*host) bool) []Member {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []Member
	for _, h := range r.hosts {
		if wanted(h) {
			all = append(all, r.member(h))
		}
	}
	slices.SortFunc(all, func(a, b Member) int { return cmp.Compare(a.HostID, b.HostID) })
	return all
}

func (r *Roster) member(h *host) Member {
	m := Member{
		Record: h.record.Record, Liveness: h.liveness, Sighted: h.sighted,
		Since: h.since, LastSeen: h.lastSeen, Verified: h.verified,
	}
	m.Segments, m.Holds = slices.Clone(m.Segments), slices.Clone(m.Holds)
	key, s, ok := h.best(r.now().Add(-r.timing.freshSighting()))
	if ok {
		m.SeenVia = key.observer
		if s.ip != nil {
			m.Addr = net.JoinHostPort(s.ip.String(), strconv.Itoa(int(m.PeerPort)))
		}
	}
	switch {
	case h.online && m.SeenVia == "":
		m.LastSeen = r.now()
	case h.online:
		m.LastSeen = s.at
	}
	return m
}

// best returns the sighting to reach the host by: alive before dead, an address
// before none, own before others', fresh before older.
func (h *host) best(fresh time.Time) (key sightingKey, best sighting, ok bool) {
	rank := func(k sightingKey, s sighting) (n int) {
		if s.alive {
			n += 8
		}
		if s.ip != nil {
			n += 4
		}
		if k.observer == "" {
			n += 2
		}
		if s.at.After(fresh) {
			n++
		}
		return n
	}
	for _, o := range h.sightings {
		k, s := o.sightingKey, o.sighting
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
	told := !rec.sameButSeq(h.record.Record)
	r.take(h, rec, true)
	h.sightings.put(sightingKey{}, sighting{alive: true, ip: ip})
	r.settle(h, told)
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
	key, err := r.verifier.check(rec, r.provenBy(rec))
	if err != nil {
		return false, err
	}
	verified := key != nil
	r.mu.Lock()
	defer r.mu.Unlock()
	h, known := r.hosts[rec.HostID]
	if !known {
		if !verified && len(r.hosts) >= maxRoster {
			return false, ErrUnverified
		}
		h = r.host(rec)
		r.take(h, rec, verified)
		h.key = key
		r.settle(h, true)
		return true, nil
	}
	if bytes.Equal(h.record.Raw, rec.Raw) {
		return false, nil
	}
	// A hint can be forged: one with the highest boot number there is must not
	// shut out for long what memberlist holds for the host's own word.
	if !rec.newer(h.record.Record) && (verified || how != fromPool || r.now().Sub(h.proved) < hintGrace) {
		return false, ErrStale
	}
	told := !rec.sameButSeq(h.record.Record)
	r.take(h, rec, verified)
	h.key = key
	r.settle(h, told)
	return true, nil
}

// has tells whether these bytes are the newest record of their host.
func (r *Roster) has(raw []byte) bool {
	rd := reader{b: raw}
	rd.take(recordIDAt)
	id := rd.take(rd.count(maxID))
	r.mu.Lock()
	defer r.mu.Unlock()
	h, ok := r.hosts[string(id)]
	return ok && bytes.Equal(h.record.Raw, raw)
}

// provenBy returns the key that is known to have signed exactly this record; nil:
// none is.
func (r *Roster) provenBy(rec SignedRecord) ed25519.PublicKey {
	r.mu.Lock()
	defer r.mu.Unlock()
	if h, ok := r.hosts[rec.HostID]; ok && bytes.Equal(h.record.Raw, rec.Raw) {
		return h.key
	}
	return nil
}

// take puts a host's newest record in place.
func (r *Roster) take(h *host, rec SignedRecord, verified bool) {
	h.record, h.verified, h.proved = rec, verified, r.now()
	delete(r.relays, rec.HostID)
	if rec.Relay() {
		r.relays[rec.HostID] = h
	}
}

func (r *Roster) host(rec SignedRecord) *host {
	h, ok := r.hosts[rec.HostID]
	if !ok {
		h = &host{liveness: Offline, since: r.now()}
		h.place = r.recent.PushBack(h)
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
	old, had := h.sightings.by(key)
	if !had && key.observer != "" && len(h.sightings) >= maxSightings {
		return false
	}
	if had && key.observer != "" && (s.boot < old.boot || s.boot == old.boot && s.version <= old.version) {
		return false
	}
	s.at, s.since = r.now(), r.now()
	if had && old.alive == s.alive {
		s.since = old.since
	}
	h.sightings.put(key, s)
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
	return h.sightings.by(key)
}

// forget drops an observer's word on a host.
func (r *Roster) forget(hostID string, key sightingKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h, ok := r.hosts[hostID]
	if !ok || hostID == r.self {
		return
	}
	if h.sightings.drop(func(o observed) bool { return o.sightingKey == key }) {
		r.settle(h, false)
	}
}

// signed returns a host's newest record as it was signed.
func (r *Roster) signed(hostID string) (SignedRecord, bool) {
	rec, _, ok := r.newest(hostID)
	return rec, ok
}

// newest returns a host's newest record and when it came.
func (r *Roster) newest(hostID string) (rec SignedRecord, came time.Time, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h, ok := r.hosts[hostID]
	if !ok {
		return SignedRecord{}, time.Time{}, false
	}
	return h.record, h.proved, true
}

// settle recomputes a host's liveness and wakes who waits for changes.
func (r *Roster) settle(h *host, changed bool) {
	now := r.now()
	was := h.online
	h.online = !h.record.Leaving && r.alive(h, now)
	if was || h.online {
		h.lastSeen = now
	}
	if h.ages() {
		r.aging[h.record.HostID] = h
	} else {
		delete(r.aging, h.record.HostID)
	}
	if r.label(h, now) {
		changed = true
	}
	if was != h.online && h.record.Relay() { // who sees a segment, and who does not, is another now
		for _, other := range r.hosts {
			if r.label(other, now) {
				r.mark(other)
				changed = true
			}
		}
	}
	if changed {
		r.mark(h)
		r.notify()
	}
}

// label names a host's state, and whether somebody told of it, and tells whether that
// is another now.
func (r *Roster) label(h *host, now time.Time) bool {
	liveness := Unreachable
	switch {
	case h.record.Leaving:
		liveness = Left
	case h.online:
		liveness = Online
	case len(h.sightings) > 0 || r.sees(h, now):
		liveness = Offline
	}
	was, sighted := h.sighted, len(h.sightings) > 0
	h.sighted = sighted
	if liveness == h.liveness {
		return was != sighted
	}
	h.liveness, h.since = liveness, now
	return true
}

// sees tells whether anybody looks into one of a host's segments, and has done
// so for long enough to have told of it.
func (r *Roster) sees(h *host, now time.Time) bool {
	for _, segment := range h.record.Segments {
		if slices.Contains(r.segments, segment) {
			return true
		}
		for _, relay := range r.relays {
			if relay.online && now.Sub(relay.since) > r.timing.sightingLife() && slices.Contains(relay.record.Segments, segment) {
				return true
			}
		}
	}
	return false
}

func (r *Roster) notify() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// ages tells whether time alone can make another of the host. Of one that is online,
// by what memberlist says here, it can't.
func (h *host) ages() bool {
	return !h.online || slices.ContainsFunc(h.sightings, func(o observed) bool { return o.observer != "" || !o.expires.IsZero() })
}

// seenByOthers tells whether observers other than this node had a word on the host.
func (h *host) seenByOthers() bool {
	return slices.ContainsFunc(h.sightings, func(o observed) bool { return o.observer != "" })
}

// expire forgets sightings that were not renewed in time, and hosts that are
// gone and no longer enrolled, or that were hints for too long. Members of
// the own pools that are online cost nothing here.
func (r *Roster) expire(hintLifetime time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	if r.verifier.denied != nil {
		for id := range r.hosts {
			if id != r.self && r.verifier.removed(id) {
				r.drop(id)
			}
		}
	}
	for id, h := range r.aging {
		if id == r.self {
			continue
		}
		expired := h.sightings.drop(func(o observed) bool { return !o.expires.IsZero() && now.After(o.expires) })
		if expired || h.seenByOthers() { // others' words count less as they age
			r.settle(h, expired)
		}
		if h.online {
			continue
		}
		if r.label(h, now) {
			r.mark(h)
			r.notify()
		}
		gone := h.verified && !r.verifier.enrolled(id) || !h.verified && now.Sub(h.since) > hintLifetime
		if gone {
			r.drop(id)
		}
	}
}

func (r *Roster) drop(id string) {
	r.recent.Remove(r.hosts[id].place)
	delete(r.hosts, id)
	delete(r.relays, id)
	delete(r.aging, id)
	r.version++
	r.dropped = r.version
	r.notify()
}
