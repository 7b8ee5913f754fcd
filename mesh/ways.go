package mesh

import (
	mathrand "math/rand/v2"
	"net"
	"slices"
	"strconv"

	"moult/mesh/identity"
)

// Contact is a host of a shared pool through which a server can be reached: a server,
// or a relay.
type Contact struct {
	HostID string
	Addr   string // ip:port of its node port, as this node reaches it
}

// WaysToServers lists them: servers first, then relays by how many segments they
// are away from the nearest server, in random order among equals. The hosts
// visited are left out. On an agent it rests on hints: whoever dials must look at
// the certificate.
func (n *Node) WaysToServers(visited []string) []Contact {
	var segments []string
	var servers, relays []Contact
	for _, m := range n.roster.Servers() {
		segments = append(segments, m.Segments...)
		if slices.Contains(visited, m.HostID) {
			continue
		}
		for _, p := range n.pools {
			if w, ok := n.way(p, m.HostID); ok {
				servers = append(servers, w)
				break
			}
		}
	}
	mathrand.Shuffle(len(servers), func(i, j int) { servers[i], servers[j] = servers[j], servers[i] })
	for _, h := range n.relayHops(segments, visited) {
		w, ok := n.way(h.pool, h.relay)
		if ok && !slices.ContainsFunc(servers, func(s Contact) bool { return s.HostID == w.HostID }) {
			relays = append(relays, w)
		}
	}
	return append(servers, relays...)
}

// way is a live member of a pool as something to dial.
func (n *Node) way(p *pool, hostID string) (Contact, bool) {
	q, ok := p.livePeer(hostID)
	m, known := n.roster.Member(hostID)
	if !ok || !known {
		return Contact{}, false
	}
	return Contact{HostID: hostID, Addr: net.JoinHostPort(q.Addr.String(), strconv.Itoa(int(m.PeerPort)))}, true
}

// whoKnows lists hosts that may know the members of a segment, as something to
// dial: relays that are in it, then servers and other relays, in random order
// within each class. All share a pool with this node.
func (n *Node) whoKnows(segment string) []Contact {
	classes := make([][]Contact, 2)
	for _, m := range n.roster.Members() {
		class := 1
		switch {
		case m.HostID == n.cfg.Identity.HostID || m.Liveness != Online:
			continue
		case slices.Contains(m.Segments, segment):
			class = 0
		case !m.Relay() && m.Role != string(identity.RoleServer):
			continue
		}
		for _, p := range n.pools {
			if w, ok := n.way(p, m.HostID); ok {
				classes[class] = append(classes[class], w)
				break
			}
		}
	}
	for _, c := range classes {
		mathrand.Shuffle(len(c), func(i, j int) { c[i], c[j] = c[j], c[i] })
	}
	return slices.Concat(classes...)
}

// MaxSeeds bounds the answer of Members.
const MaxSeeds = 16

// Members returns gossip addresses by which the pool of a segment can be joined:
// this node's own and those of members that it sees alive, at random, at most
// MaxSeeds. None when this node is not in that segment.
func (n *Node) Members(segment string) []string {
	for _, p := range n.pools {
		if p.segment == segment {
			return p.seedsForOthers()
		}
	}
	return nil
}

func (p *pool) seedsForOthers() []string {
	addrs := []string{p.ownAddr}
	for _, node := range p.anyPeers(MaxSeeds-1, "") {
		addrs = append(addrs, node.Address())
	}
	return addrs
}
