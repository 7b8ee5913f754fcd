package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/consensus/coordinator"
	"moult/consensus/fleet"
	"moult/mesh"
	"moult/mesh/identity"
	"moult/mesh/meshtest"
	"moult/updater"
)

// A turn does not wait for gossip: while none gets through, the record in a host's
// report is what the coordinator judges by.
func TestTheCoordinatorSeesWhatIsReportedWithoutGossip(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	certs := startCertifier(t)
	server, agent := certs.mustCertify("s1", identity.RoleServer), certs.mustCertify("a1", identity.RoleAgent)
	raft, propose := startLoneCluster(ctx, t, "s1")
	propose(fleet.JoinTokenCreated{Token: fleet.JoinToken{ID: "a1", Hash: "a1", Role: fleet.RoleAgent, ExpiresAt: time.Now().Add(time.Hour)}})
	propose(fleet.HostEnrolled{TokenHash: "a1", Host: fleet.Host{ID: "a1", Name: "a1", OS: "linux", Arch: "amd64", PublicKey: publicKey(agent.Key)}})

	network := meshtest.New(1)
	start := func(creds identity.Credentials, cfg mesh.Config, seeds ...string) *mesh.Node {
		cfg.Identity, cfg.Key, cfg.CertDER, cfg.Verifier, cfg.Boot = creds.Identity, creds.Key, creds.CertDER(), creds.Verifier(), 1
		cfg.OS, cfg.Arch, cfg.Version, cfg.Digest, cfg.PeerAddr = "linux", "amd64", "1", strings.Repeat("ab", 32), "127.0.0.1:1"
		cfg.Pools = []mesh.PoolConfig{{Segment: "default", Bind: "127.0.0.1:0", Keys: creds.GossipKeys, Join: seeds}}
		cfg.Timing.PushPull = time.Hour // a full exchange would tell it as well
		cfg.Transport = network.Host(creds.HostID)
		node, err := mesh.Start(ctx, cfg)
		must(t, err)
		t.Cleanup(func() { must(t, node.Close()) })
		return node
	}
	s1 := start(server, mesh.Config{KeyOf: enrolledKey(raft), RoleOf: enrolledRole(raft)})
	a1 := start(agent, mesh.Config{}, s1.GossipAddrs()...)
	observer := newObserver(s1.Roster())
	inbox := &reportInbox{node: s1, raft: raft, observer: observer, logger: quiet}
	s1.Handle(nodekit.TopicReport, inbox.handle)
	seenNow := func() coordinator.Observation {
		all, _, _ := observer.Observations(0)
		return all["a1"]
	}
	awaitSeen := func(what string, seen func(coordinator.Observation) bool) {
		t.Helper()
		for {
			changed := s1.Roster().Changed()
			if seen(seenNow()) {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				t.Fatalf("the server does not see %s; it sees %+v", what, seenNow())
			}
		}
	}
	awaitSeen("the agent", func(o coordinator.Observation) bool { return o.Online })
	for len(a1.Roster().Servers()) == 0 {
		nodekit.Sleep(ctx, 10*time.Millisecond)
	}

	network.Drop(1)
	host := nodekit.NewHostMesh(a1, quiet)
	host.Announce(updater.PhaseTrial, "job-1")
	nodekit.Sleep(ctx, 4*mesh.DefaultTiming.Gossip)
	if o := seenNow(); o.JobID != "" {
		t.Fatalf("gossip still gets through: %+v", o)
	}
	host.Report(ctx, updater.Report{JobID: "job-1"})
	awaitSeen("what was reported", func(o coordinator.Observation) bool {
		return o.JobID == "job-1" && o.Phase == string(mesh.PhaseTrial) && o.Seq == a1.Record().Seq
	})
}
