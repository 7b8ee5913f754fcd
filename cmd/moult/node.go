package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"math/rand/v2"
	"slices"
	"sync/atomic"

	"moult/consensus"
	"moult/consensus/fleet"
	"moult/mesh"
	"moult/mesh/identity"
)

func publicKey(key ed25519.PrivateKey) ed25519.PublicKey { return key.Public().(ed25519.PublicKey) }

// enrolledKey looks a host's key up in the replicated state.
func enrolledKey(raft *consensus.Node) func(hostID string) (ed25519.PublicKey, bool) {
	return func(hostID string) (ed25519.PublicKey, bool) {
		h, ok := raft.State().View().Host(hostID)
		return ed25519.PublicKey(h.PublicKey), ok
	}
}

// How many agents a server asks that knows no other server, and one that knows
// servers alone.
const (
	maxAgentSeeds       = 16
	agentsBesideServers = 4
)

// gossipSeeds adds the gossip addresses of other servers in a segment, as the state
// knows them by now, to those of joining: the first server knows none by that. Behind
// them come at most so many agents. A server that was restored from a backup is the only
// one, and where the agents knew the others to be there is nobody: it looks for the agents.
func gossipSeeds(hosts []fleet.Host, self, segment string, joining []string, beside int) []string {
	seeds := slices.Clone(joining)
	var agents []string
	for _, h := range hosts {
		addr := h.GossipAddrIn(segment)
		switch {
		case h.ID == self || addr == "" || slices.Contains(seeds, addr):
		case h.Role == fleet.RoleServer:
			seeds = append(seeds, addr)
		default:
			agents = append(agents, addr)
		}
	}
	if len(seeds) == 0 {
		beside = maxAgentSeeds
	}
	rand.Shuffle(len(agents), func(i, j int) { agents[i], agents[j] = agents[j], agents[i] })
	return append(seeds, agents[:min(len(agents), beside)]...)
}

// seedsWhileAlone adds what the state knows by now to what find has found, as long as
// this server knows no agent. When the pools open, right after a start, the log may not
// have been read, so the state names nobody; and a server that is the only one, or that
// knows servers alone because all of them have just started, would have to wait until an
// agent happens to pick it for an exchange.
func seedsWhileAlone(raft *consensus.Node, self string, find findSeeds) findSeeds {
	role := enrolledRole(raft)
	isAgent := func(c mesh.Contact) bool {
		r, _ := role(c.HostID)
		return r != identity.RoleServer
	}
	return func(ctx context.Context, segment string, neighbours []mesh.Contact) []string {
		found := find(ctx, segment, neighbours)
		if slices.ContainsFunc(neighbours, isAgent) {
			return found
		}
		return append(gossipSeeds(raft.State().View().Hosts(), self, segment, nil, agentsBesideServers), found...)
	}
}

type findSeeds = func(ctx context.Context, segment string, neighbours []mesh.Contact) []string

// enrolledRole looks a host's role up in the replicated state: gossip makes no
// server of an agent.
func enrolledRole(raft *consensus.Node) func(hostID string) (identity.Role, bool) {
	return func(hostID string) (identity.Role, bool) {
		h, ok := raft.State().View().Host(hostID)
		return roleOf(h.Role), ok
	}
}

// memberGate decides who may speak on a server's node port. It lets nobody in
// before Raft is open.
type memberGate struct {
	raft   atomic.Pointer[consensus.Node]
	denied func(hostID string) bool // by the deny-list; nil: nobody
}

func (g *memberGate) open(raft *consensus.Node) { g.raft.Store(raft) }

// allow holds a certificate against the replicated state. A server that has no
// state yet, because it is just being added, believes other servers' certificates.
func (g *memberGate) allow(alpn string, id identity.Identity) error {
	raft := g.raft.Load()
	if raft == nil {
		return errors.New("this server is starting")
	}
	if g.denied != nil && g.denied(id.HostID) {
		return identity.ErrDenied
	}
	fresh := !raft.Configured()
	if alpn == identity.ALPNRaft {
		if id.Role != identity.RoleServer {
			return errors.New("only servers speak Raft")
		}
		if !fresh && !raft.IsMember(id.HostID) {
			return errors.New("this server is not in the Raft configuration")
		}
		return nil
	}
	if alpn == identity.ALPNHTTP && id.Role == identity.RoleServer {
		return nil // onlyHosts looks at the request
	}
	return g.knows(id)
}

// knows tells whether a host is one by the state. A server that has no state yet
// believes other servers' certificates.
func (g *memberGate) knows(id identity.Identity) error {
	raft := g.raft.Load()
	if raft == nil {
		return errors.New("this server is starting")
	}
	v := raft.State().View()
	if _, initialized := v.Cluster(); !initialized {
		if id.Role == identity.RoleServer {
			return nil
		}
		return errors.New("this server is starting")
	}
	if _, known := v.Host(id.HostID); !known {
		return errors.New("this host was removed; join it again with a new token")
	}
	return nil
}

// roleOf converts between the two packages' names of the same thing.
func roleOf(r fleet.HostRole) identity.Role {
	if r == fleet.RoleServer {
		return identity.RoleServer
	}
	return identity.RoleAgent
}
