package main

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/consensus"
	"moult/consensus/fleet"
	"moult/mesh"
	"moult/mesh/identity"
)

// caState is a state with a real CA, a server and two agents.
type caState struct {
	t     *testing.T
	state *fleet.State
	index uint64
}

func newCAState(t *testing.T) *caState {
	ca, err := identity.NewCA("cluster-1", time.Now())
	must(t, err)
	s := &caState{t: t, state: fleet.New()}
	key := make([]byte, 32)
	s.apply(fleet.ClusterInitialized{
		Cluster: fleet.Cluster{ID: "cluster-1", CACert: ca.CertPEM(), CAKey: ca.KeyPEM(), GossipKeys: [][]byte{key}},
		Server:  fleet.Host{ID: "s1", Name: "server-1", OS: "linux", Arch: "amd64", PublicKey: key},
		Admin:   fleet.User{ID: "u1", Name: "admin", PasswordHash: "x"}, Token: fleet.APIToken{ID: "t1", Name: "t", Hash: "h"},
	})
	for i := range 2 {
		token := fmt.Sprint("token", i)
		s.apply(fleet.JoinTokenCreated{Token: fleet.JoinToken{ID: token, Hash: token, Role: fleet.RoleAgent, ExpiresAt: time.Now().Add(time.Hour)}})
		s.apply(fleet.HostEnrolled{TokenHash: token, Host: fleet.Host{ID: fmt.Sprint("a", i), Name: fmt.Sprint("agent-", i), OS: "linux", Arch: "amd64", PublicKey: append(key[:31:31], byte(i+1))}})
	}
	return s
}

func (s *caState) apply(c fleet.Change) {
	s.t.Helper()
	s.index++
	e, err := fleet.NewEntry(fmt.Sprint("p", s.index), "user:ann", time.Now(), c)
	must(s.t, err)
	if r := s.state.Apply(s.index, e); r.Err != nil {
		s.t.Fatal(r.Err)
	}
}

func (s *caState) cluster() fleet.Cluster {
	c, _ := s.state.View().Cluster()
	return c
}

// What each step signs is what a host follows; who has not followed is told why.
func TestStepsOfAChangeOfTheCA(t *testing.T) {
	s := newCAState(t)
	live := map[string]mesh.Liveness{"s1": mesh.Online, "a0": mesh.Online}
	first, err := wantedCAs(s.cluster())
	must(t, err)
	pending := func(follows map[string]nodekit.TrustFollowed) (out []string) {
		t.Helper()
		w, err := wantedCAs(s.cluster())
		must(t, err)
		for _, h := range caHosts(s.state.View(), w, live, follows) {
			if !h.Done {
				out = append(out, h.Name)
				if h.Why == "" {
					t.Errorf("of %s it is not told why", h.Name)
				}
			}
		}
		return out
	}
	is := func(got []string, want ...string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("not followed have %v, want %v", got, want)
		}
	}
	is(pending(nil)) // nothing to follow
	if trustedBy(s.cluster()) != nil {
		t.Error("a host that joins is told of CAs though the first one was never changed")
	}

	// A host with the first CA follows step by step.
	store, err := identity.OpenStore(t.TempDir())
	must(t, err)
	hostID, key, err := store.HostKey()
	must(t, err)
	id := identity.Identity{Cluster: "cluster-1", HostID: hostID, Name: "h", Role: identity.RoleAgent}
	enrolled := func() identity.Enrolment {
		ca, err := identity.LoadCA(s.cluster().CACert, s.cluster().CAKey)
		must(t, err)
		cert, err := ca.Issue(id, publicKey(key), time.Now(), time.Hour)
		must(t, err)
		return identity.Enrolment{Identity: id, CertPEM: cert, CAPEM: s.cluster().CACert, Segment: "default", GossipKeys: s.cluster().GossipKeys, CAs: trustedBy(s.cluster()), Chain: chainOf(s.cluster())}
	}
	must(t, store.Save(enrolled()))
	creds, err := store.Load()
	must(t, err)
	current := identity.NewCurrent(store, creds)
	follows := func() map[string]nodekit.TrustFollowed {
		f := nodekit.FollowedBy(current.Get())
		return map[string]nodekit.TrustFollowed{"s1": f, "a0": f}
	}
	follow := func() {
		t.Helper()
		_, err := current.Get().Trusted.Follow("cluster-1", chainOf(s.cluster()))
		must(t, err)
	}

	begun, err := beginCARotation(s.cluster(), time.Now())
	must(t, err)
	s.apply(begun)
	is(pending(follows()), "agent-0", "agent-1", "server-1")
	follow()
	is(pending(follows()), "agent-1")
	foreign := follows()
	foreign["a0"] = nodekit.TrustFollowed{CAs: []string{first.signer, "ff"}, Signer: first.signer}
	w, err := wantedCAs(s.cluster())
	must(t, err)
	for _, h := range caHosts(s.state.View(), w, live, foreign) {
		if h.Name == "agent-0" && (h.Done || !slices.Contains([]string{"trusts a CA that is not this cluster's, sha256 ff: somebody besides the servers may have a CA's key; remove it, and join it with a new token"}, h.Why)) {
			t.Errorf("a host that trusts another CA is told of as %q", h.Why)
		}
	}

	switched, err := switchCA(s.cluster())
	must(t, err)
	s.apply(switched)
	is(pending(follows()), "agent-0", "agent-1", "server-1") // their certificates are by the old one
	_, err = current.Take(enrolled())
	must(t, err)
	is(pending(follows()), "agent-1")
	old, err := identity.LoadCA(s.cluster().CARotation.Old, s.cluster().GossipRoot())
	if err != nil || old.String() == "" {
		t.Errorf("gossip keys are derived of another key than before: %v", err)
	}

	s.apply(fleet.GossipRotationBegun{Keys: []fleet.SegmentKey{{Segment: "default", Key: append(make([]byte, 31), 9), Base: s.cluster().GossipKeys}}})
	for range 2 {
		r, _ := s.state.View().GossipRing("default")
		s.apply(fleet.GossipRotationAdvanced{Segment: "default", Revision: r.Revision})
	}
	retired, err := retireCA(s.cluster())
	must(t, err)
	s.apply(retired)
	is(pending(follows()), "agent-0", "agent-1", "server-1")
	follow()
	is(pending(follows()), "agent-1")
	if got := current.Get().Trusted.Hashes(); len(got) != 1 || got[0] == first.signer {
		t.Errorf("at the end it trusts %v", got)
	}
	if !(casWanted{}).followedBy(nodekit.TrustFollowed{}) {
		t.Error("before any change a host has something to follow")
	}
}

// A restored cluster states its epoch by the CA that signs, and the next CA does so
// again.
func TestSwitchStatesTheEpochAnew(t *testing.T) {
	s := newCAState(t)
	server, _ := s.state.View().Host("s1")
	server.GossipAddr, server.PeerAddr, server.HTTPAddr = "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"
	begin, err := beginEpoch(s.cluster(), 7, server, "restored", time.Now())
	must(t, err)
	s.index++
	if r := s.state.Apply(s.index, begin); r.Err != nil {
		t.Fatal(r.Err)
	}
	begun, err := beginCARotation(s.cluster(), time.Now())
	must(t, err)
	s.apply(begun)
	switched, err := switchCA(s.cluster())
	must(t, err)
	s.apply(switched)
	v, err := identity.NewVerifier("cluster-1", begun.Cert)
	must(t, err)
	if epoch, err := v.VerifyEpoch(s.cluster().EpochStatement); err != nil || epoch != 7 {
		t.Errorf("the epoch is %d, %v", epoch, err)
	}
}

// Entries go to members of the group alone: with the present CA's key anybody could
// certify a server.
func TestEntriesGoToMembersOnly(t *testing.T) {
	group := []consensus.ServerStatus{{ID: "s1"}, {ID: "s2"}}
	member := onlyMembers(func() []consensus.ServerStatus { return group })
	for id, want := range map[identity.Identity]bool{
		{HostID: "s2", Role: identity.RoleServer}: true,
		{HostID: "s2", Role: identity.RoleAgent}:  false,
		{HostID: "s3", Role: identity.RoleServer}: false,
	} {
		if err := member(id); (err == nil) != want {
			t.Errorf("%s: %v", id, err)
		}
	}
	group = nil
	if member(identity.Identity{HostID: "s2", Role: identity.RoleServer}) == nil {
		t.Error("while the group is not known anybody is in it")
	}
}
