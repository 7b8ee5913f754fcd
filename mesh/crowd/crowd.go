// Package crowd bounds how many connections a listener holds at a time, in all and
// of one address, so that no flood keeps others out: where there is no room, a new
// connection pushes out an old one. It is first the oldest of its own address, if
// that has as many as it may, else the oldest of the address that has the most.
//
// A slot that is waited for can be held, and a flood is always there first; so
// nobody waits, and the newest is not refused. What is done in earnest takes
// milliseconds, and those who only hold on are pushed out long before it. Where a
// connection's owner has shown that it is used in earnest, Keep says so: it is
// pushed out later than those that have shown nothing, or never.
package crowd

import (
	"net"
	"net/netip"
	"slices"
	"sync"
)

// Worth is how much speaks for a connection.
type Worth int

// From what is pushed out first to what stays.
const (
	Silent  Worth = iota // nothing is known of it
	Working              // it is being served, for anybody
	Known                // it is being served, for somebody who is known: never pushed out
)

// Limits bound connections at once.
type Limits struct {
	Total     int
	PerSource int // of one address; see Source
}

// Crowd is the connections of one listener. Its methods are safe for concurrent
// use.
type Crowd struct {
	limits Limits

	mu      sync.Mutex
	all     []*Member      // the oldest first; at most limits.Total
	sources map[string]int // how many each has
}

// New returns an empty crowd.
func New(l Limits) *Crowd { return &Crowd{limits: l, sources: map[string]int{}} }

// Member is one connection of a crowd.
type Member struct {
	crowd  *Crowd
	conn   interface{ Close() error }
	source string
	worth  Worth // under the crowd's lock
}

// Admit counts a connection in until End is called. Whoever is pushed out for it is
// closed; its owner finds out by that. It returns false when there is no room, as
// all are Known; the connection is the caller's to close.
func (c *Crowd) Admit(conn interface{ Close() error }, source string) (*Member, bool) {
	m := &Member{crowd: c, conn: conn, source: source}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sources[source] >= c.limits.PerSource {
		if !c.pushOut(source) {
			return nil, false
		}
	} else if len(c.all) >= c.limits.Total && !c.pushOutOfCrowd() {
		return nil, false
	}
	c.all = append(c.all, m)
	c.sources[source]++
	return m, true
}

// pushOutOfCrowd makes room at the cost of the address that has the most; where
// those are all worth keeping, of the next. The caller holds mu.
func (c *Crowd) pushOutOfCrowd() bool {
	crowded := make([]string, 0, len(c.sources))
	for s := range c.sources {
		crowded = append(crowded, s)
	}
	slices.SortFunc(crowded, func(a, b string) int {
		if n := c.sources[b] - c.sources[a]; n != 0 {
			return n
		}
		if a < b {
			return -1
		}
		return 1
	})
	return slices.ContainsFunc(crowded, c.pushOut)
}

// pushOut closes the oldest connection of an address, of those that are worth the
// least. The caller holds mu.
func (c *Crowd) pushOut(source string) bool {
	for worth := Silent; worth < Known; worth++ {
		i := slices.IndexFunc(c.all, func(m *Member) bool { return m.source == source && m.worth == worth })
		if i >= 0 {
			m := c.all[i]
			c.drop(i)
			_ = m.conn.Close() // its owner finds out
			return true
		}
	}
	return false
}

func (c *Crowd) drop(i int) {
	source := c.all[i].source
	c.all = slices.Delete(c.all, i, i+1)
	if c.sources[source]--; c.sources[source] == 0 {
		delete(c.sources, source)
	}
}

// Len is how many there are.
func (c *Crowd) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.all)
}

// Keep says what speaks for a connection from now on.
func (m *Member) Keep(w Worth) {
	m.crowd.mu.Lock()
	defer m.crowd.mu.Unlock()
	m.worth = w
}

// End counts a connection out. Ending again, or what was pushed out, does nothing.
func (m *Member) End() {
	m.crowd.mu.Lock()
	defer m.crowd.mu.Unlock()
	if i := slices.Index(m.crowd.all, m); i >= 0 {
		m.crowd.drop(i)
	}
}

// Source is where a connection comes from, as far as limits are concerned: an
// IPv4 address, or the 64 bits of an IPv6 address that one host has to itself.
func Source(addr net.Addr) string {
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return addr.String()
	}
	ip := ap.Addr().Unmap().WithZone("")
	if ip.Is6() {
		const hostNetwork = 64
		return netip.PrefixFrom(ip, hostNetwork).Masked().String()
	}
	return ip.String()
}
