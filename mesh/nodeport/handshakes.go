package nodeport

import (
	"net"
	"net/netip"
	"slices"
	"sync"
)

// handshakes are the connections of which nobody knows yet who is at the other
// end. They are bounded in number, and what is beyond pushes out the oldest:
// first of its own address, else of the address that has the most. A handshake
// in earnest takes milliseconds, so those who hold on to slots are pushed out
// long before a server's or an agent's is, and no flood keeps a host from
// connecting.
type handshakes struct {
	mu  sync.Mutex
	all []*handshake // the oldest first; at most maxHandshakes
}

type handshake struct {
	conn   net.Conn
	source string
}

// begin counts a connection in until end is called.
func (h *handshakes) begin(conn net.Conn) (end func()) {
	own := &handshake{conn, origin(conn)}
	h.mu.Lock()
	defer h.mu.Unlock()
	count := map[string]int{}
	for _, other := range h.all {
		count[other.source]++
	}
	crowded := own.source
	if count[own.source] < maxSourceHandshakes {
		for s, n := range count {
			if n > count[crowded] || n == count[crowded] && s < crowded {
				crowded = s
			}
		}
	}
	if count[own.source] >= maxSourceHandshakes || len(h.all) >= maxHandshakes {
		i := slices.IndexFunc(h.all, func(other *handshake) bool { return other.source == crowded })
		h.all[i].conn.Close() // its goroutine finds out
		h.all = slices.Delete(h.all, i, i+1)
	}
	h.all = append(h.all, own)
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.all = slices.DeleteFunc(h.all, func(other *handshake) bool { return other == own })
	}
}

// source is where a connection comes from, as far as limits are concerned: an
// IPv4 address, or the 64 bits of an IPv6 address that one host has to itself.
func source(addr net.Addr) string {
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
