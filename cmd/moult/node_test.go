package main

import (
	"context"
	"crypto/ed25519"
	"slices"
	"testing"
	"time"

	"moult/consensus/fleet"
	"moult/mesh"
	"moult/mesh/identity"
)

// A server asks the other servers of its segment, and agents only where it is the
// only one.
func TestGossipSeeds(t *testing.T) {
	host := func(id string, role fleet.HostRole, segment, addr string) fleet.Host {
		return fleet.Host{ID: id, Role: role, Segment: segment, GossipAddr: addr}
	}
	self := host("s1", fleet.RoleServer, "default", "10.0.0.1:7946")
	other := host("s2", fleet.RoleServer, "default", "10.0.0.2:7946")
	agent := host("a1", fleet.RoleAgent, "default", "10.0.0.3:7946")
	elsewhere := host("a2", fleet.RoleAgent, "branch", "10.1.0.4:7946")
	for name, c := range map[string]struct {
		hosts   []fleet.Host
		joining []string
		beside  int
		want    []string
	}{
		"nothing read yet":      {nil, nil, 0, nil},
		"the only server":       {[]fleet.Host{self, agent, elsewhere}, nil, 0, []string{agent.GossipAddr}},
		"one of two":            {[]fleet.Host{self, other, agent}, nil, 0, []string{other.GossipAddr}},
		"agents beside it":      {[]fleet.Host{self, agent, other, elsewhere}, nil, 2, []string{other.GossipAddr, agent.GossipAddr}},
		"told whom to join":     {[]fleet.Host{self, agent}, []string{"10.0.0.9:7946"}, 0, []string{"10.0.0.9:7946"}},
		"told what it knows":    {[]fleet.Host{self, other}, []string{other.GossipAddr}, 0, []string{other.GossipAddr}},
		"nobody in its segment": {[]fleet.Host{self, elsewhere}, nil, 0, nil},
	} {
		if got := gossipSeeds(c.hosts, self.ID, "default", c.joining, c.beside); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// The log is read after the pools were opened: a server that knows nobody by then
// asks those whom the state names since, whatever else was found.
func TestServerThatIsAloneAsksWhomTheStateNames(t *testing.T) {
	raft := startLoneRaft(t)
	const stale, agent = "10.0.0.9:7946", "10.0.0.3:7946"
	find := seedsWhileAlone(raft, "s1", func(context.Context, string, []mesh.Contact) []string { return []string{stale} })
	expect := func(when string, neighbours []mesh.Contact, want ...string) {
		t.Helper()
		if got := find(t.Context(), "default", neighbours); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
	}
	expect("before the log is read", nil, stale)
	must(t, raft.Bootstrap(t.Context()))
	keyOf := func() ed25519.PublicKey {
		key, err := identity.NewKey()
		must(t, err)
		return publicKey(key)
	}
	for _, c := range []fleet.Change{
		fleet.ClusterInitialized{
			Cluster: fleet.Cluster{ID: "c1"},
			Server:  fleet.Host{ID: "s1", Name: "s1", OS: "linux", Arch: "amd64", PublicKey: keyOf(), GossipAddr: "10.0.0.1:7946", PeerAddr: "10.0.0.1:7947"},
			Admin:   fleet.User{ID: "u1", Name: "admin", Role: fleet.Admin, PasswordHash: "x"},
			Token:   fleet.APIToken{ID: "t1", Name: "t", Role: fleet.Admin, Hash: "h"},
		},
		fleet.JoinTokenCreated{Token: fleet.JoinToken{ID: "j1", Hash: "j1", Role: fleet.RoleAgent, Segment: "default", ExpiresAt: time.Now().Add(time.Hour)}},
		fleet.HostEnrolled{TokenHash: "j1", Host: fleet.Host{ID: "a1", Name: "a1", OS: "linux", Arch: "amd64", PublicKey: keyOf(), GossipAddr: agent, PeerAddr: "10.0.0.3:7947"}},
	} {
		_, err := raft.Propose(t.Context(), "system", c)
		must(t, err)
	}
	expect("afterwards", nil, agent, stale)
	expect("when it knows an agent", []mesh.Contact{{HostID: "s2"}, {HostID: "a1"}}, stale)
	expect("when it knows a server", []mesh.Contact{{HostID: "s1"}}, agent, stale)
}
