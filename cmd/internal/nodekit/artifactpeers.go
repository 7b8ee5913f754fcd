package nodekit

import (
	"maps"
	"slices"
	"sync"

	"moult/mesh"
	"moult/mesh/identity"
	"moult/updater/artifact"
)

// artifactPeers tells where this host gets artifacts, by what its roster says at
// the moment. Safe for concurrent use.
type artifactPeers struct {
	node   *mesh.Node
	selfID string
}

func (p artifactPeers) view() PeerView {
	return PeerView{Self: p.selfID, Own: p.node.Record().Record, Members: p.node.Roster().Members()}
}

// Holders lists who may have an artifact.
func (p artifactPeers) Holders(digest string) []artifact.Peer { return p.view().Holders(digest) }

// relays lists who may get an artifact for this host, and those who wait for it.
func (p artifactPeers) relays(via []string) []artifact.Peer { return p.view().Relays(via) }

// named returns those of these hosts that this one reaches, in their order.
func (p artifactPeers) named(ids []string) (peers []artifact.Peer) {
	v := p.view()
	for _, id := range ids {
		for _, m := range v.Members {
			if m.HostID == id && v.usable(m) {
				peers = append(peers, artifact.Peer{HostID: m.HostID, Role: m.Role, Addr: m.Addr, Class: classHome})
			}
		}
	}
	return peers
}

// active tells whether this host gets artifacts for others.
func (p artifactPeers) active() bool {
	own := p.node.Record()
	return own.Relay() || isServer(own.Record)
}

// announceHolds keeps the record's list of what this host can serve, besides what
// it runs, as the store is.
func announceHolds(node *mesh.Node, store *artifact.Store, running string) {
	var mu sync.Mutex
	var announced []string
	store.Watch(func(digests []string) {
		digests = slices.DeleteFunc(digests, func(d string) bool { return d == running })
		mu.Lock()
		defer mu.Unlock()
		if !slices.Equal(digests, announced) {
			announced = digests
			node.SetHolds(digests)
		}
	})
}

// PeerView is what peers are chosen from.
type PeerView struct {
	Self    string
	Own     mesh.Record
	Members []mesh.Member
}

// The classes of holders, nearest first. Servers are spared: everybody else asks
// them, too.
const (
	classHome   = iota // in this host's home segment
	classShared        // in another segment that this host is in
	classServer
)

// Holders are the members whose node port this host reaches, because they share a
// segment with it, and who run or hold the artifact, or are servers, which hold
// every release. Servers reach each other in any case.
func (v PeerView) Holders(digest string) (peers []artifact.Peer) {
	for _, m := range v.Members {
		server := isServer(m.Record)
		if !v.usable(m) || !server && !m.HasArtifact(digest) {
			continue
		}
		class := classShared
		switch {
		case server:
			class = classServer
		case slices.Contains(m.Segments, v.Own.Segments[0]):
			class = classHome
		}
		peers = append(peers, artifact.Peer{HostID: m.HostID, Role: m.Role, Addr: m.Addr, Class: class})
	}
	return peers
}

// Relays are the members that this host reaches and that are in another segment,
// too, or are servers, without those who wait already. Their class is how many
// segments lie between them and a server; those that see no way to any come last.
func (v PeerView) Relays(via []string) (peers []artifact.Peer) {
	far := v.distances()
	for _, m := range v.Members {
		if !v.usable(m) || !m.Relay() && !isServer(m.Record) || slices.Contains(via, m.HostID) {
			continue
		}
		class := len(far) + 1
		for _, s := range m.Segments {
			if d, ok := far[s]; ok {
				class = min(class, d+1)
			}
		}
		if isServer(m.Record) {
			class = 0
		}
		peers = append(peers, artifact.Peer{HostID: m.HostID, Role: m.Role, Addr: m.Addr, Class: class})
	}
	return peers
}

// usable tells whether this host may ask a member: it is online, another host,
// and the two share a segment.
func (v PeerView) usable(m mesh.Member) bool {
	if m.HostID == v.Self || m.Liveness != mesh.Online || m.Addr == "" || len(v.Own.Segments) == 0 {
		return false
	}
	if isServer(v.Own) && isServer(m.Record) {
		return true
	}
	return slices.ContainsFunc(m.Segments, func(s string) bool { return slices.Contains(v.Own.Segments, s) })
}

// distances returns how many relays lie between each segment and the nearest
// server that is online; segments that no way leads to are left out.
func (v PeerView) distances() map[string]int {
	far := map[string]int{}
	var relays []mesh.Member
	for _, m := range v.Members {
		switch {
		case m.Liveness != mesh.Online || m.HostID == v.Self:
		case isServer(m.Record):
			for _, s := range m.Segments {
				far[s] = 0
			}
		case m.Relay():
			relays = append(relays, m)
		}
	}
	for step := 1; ; step++ {
		next := maps.Clone(far)
		for _, m := range relays {
			if !slices.ContainsFunc(m.Segments, func(s string) bool { _, ok := far[s]; return ok }) {
				continue
			}
			for _, s := range m.Segments {
				if _, ok := next[s]; !ok {
					next[s] = step
				}
			}
		}
		if len(next) == len(far) {
			return far
		}
		far = next
	}
}

func isServer(r mesh.Record) bool { return r.Role == string(identity.RoleServer) }
