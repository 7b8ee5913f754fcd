package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"moult/mesh"
	"moult/mesh/identity"
	"moult/mesh/nodeport"
	"moult/updater"
	"moult/updater/artifact"
	"moult/updater/order"
	"moult/updater/release"
)

// leaveTimeout bounds telling the mesh that this host goes.
const leaveTimeout = 2 * time.Second

// runAgent is the supervisor, or in its child the agent itself.
func runAgent(ctx context.Context, o agentOptions, stdout, stderr io.Writer) error {
	if link, ok := updater.Supervised(); ok {
		return runSupervisedAgent(ctx, o, link, stderr)
	}
	logger := newLogger(o.nodeOptions, stderr).With("host", o.name)
	if err := os.MkdirAll(o.data, 0o700); err != nil {
		return fmt.Errorf("make --data: %w", err)
	}
	unlock, err := lockDataDir(o.data)
	if err != nil {
		return err
	}
	defer unlock()
	// Joining needs no trial, and its errors are for the person who typed the
	// command: done here, not in a child that would be restarted over them.
	ids, err := identity.OpenStore(filepath.Join(o.data, "identity"))
	if err != nil {
		return err
	}
	if err := o.findAddresses(ids); err != nil {
		return err
	}
	creds, err := enrol(ctx, ids, o.nodeOptions, "", nil)
	if err != nil {
		return err
	}
	if creds.Role != identity.RoleAgent {
		return fmt.Errorf("%s belongs to a server; run `moult server` on it, or give another --data", o.data)
	}
	current := identity.NewCurrent(ids, creds)
	if err := awaitSegmentKeys(ctx, o.nodeOptions, current, agentAsk(o.nodeOptions, current), logger); err != nil {
		return err
	}
	return updater.RunSupervisor(ctx, updater.SupervisorConfig{
		Installed: o.binary, DataDir: o.data, Args: os.Args[1:], Env: os.Environ(),
		TrialTimeout: o.trialTimeout, MaxStarts: o.trialStarts, Soak: o.soak,
		Output: stderr, Logger: logger,
	})
}

// runSupervisedAgent is the agent process:
//
//	orders ──▶ mesh (--gossip) ──▶ updater ── fetch ──▶ peers' node ports
//	             ▲    │               │
//	   records, reports ◀─────────────┘ stage, trial marker, exit 75
//	                                        │
//	node port (--peer) ── /artifact ──▶ artifact store ◀── puller, on a relay
//	             └─ on a relay: joining hosts' bytes ──▶ a server, or a further relay
//
// It ends with updater.ErrRestart when a trial is staged: the supervisor takes
// it from there.
func runSupervisedAgent(ctx context.Context, o agentOptions, link *updater.SupervisorLink, stderr io.Writer) error {
	logger := newLogger(o.nodeOptions, stderr).With("host", o.name)
	ids, err := identity.OpenStore(filepath.Join(o.data, "identity"))
	if err != nil {
		return err
	}
	if err := o.findAddresses(ids); err != nil {
		return err
	}
	creds, err := ids.Load()
	if err != nil {
		return err
	}
	current := identity.NewCurrent(ids, creds)
	me, err := describeSelf(o.data)
	if err != nil {
		return err
	}
	relays := len(o.also) > 0
	port, err := nodeport.Listen(o.peer, func() (identity.Credentials, bool) { return current.Get(), true }, agentGate(relays), logger.With("component", "nodeport"))
	if err != nil {
		return err
	}
	defer closeWithin(port.Close, logger, "node port")
	pools, err := o.pools(creds)
	if err != nil {
		return err
	}
	seeds := newSeedFinder(current, o.join, logger.With("component", "seeds"))
	node, err := mesh.Start(ctx, mesh.Config{
		Identity: creds.Identity, Key: creds.Key, CertDER: creds.CertDER(), Verifier: creds.Verifier(), Boot: me.boot,
		OS: runtime.GOOS, Arch: runtime.GOARCH, Version: version, Digest: me.digest, PeerAddr: o.peerAdv,
		Pools: pools, FindSeeds: seeds.find, Logger: logger.With("component", "mesh"),
	})
	if err != nil {
		return err
	}
	defer leaveAndClose(node, logger)
	ways := waysToServers(node, current, o.join)
	if relays {
		port.Relay(ways)
	}
	held, err := openArtifacts(o.nodeOptions, me, node, current)
	if err != nil {
		return err
	}
	announceHolds(node, held.store, me.digest)
	given := release.KeySet{Number: creds.KeysNumber, Threshold: creds.ReleaseThreshold, Keys: creds.ReleaseKeys}
	pinned := func() release.KeySet { return updater.PinnedKeys(o.data, creds.Cluster, given) }
	puller, err := held.puller(pinned, true, logger)
	if err != nil {
		return err
	}
	defer puller.Close()
	port.ServeHTTP(nodeport.Handlers{Peer: nodeAPI(node, held, puller)})
	phase, jobID := updater.StartPhase(o.data, link)
	node.Announce(mesh.Phase(phase), jobID)

	fence, err := order.OpenFence(filepath.Join(o.data, "fence.json"))
	if err != nil {
		logger.Error("this host takes no orders", "error", err) // and runs on: the fence refuses them all
	}
	up, err := updater.New(updater.Config{
		HostID: creds.HostID, Cluster: creds.Cluster, Verifier: creds.Verifier(), Fence: fence,
		ReleaseKeys: given,
		DataDir:     o.data, Installed: o.binary, Version: version, Digest: me.digest,
		Store: held.store, Candidates: held.peers.holders, Relays: held.peers.relays, HTTP: held.client, Limiter: held.limiter, Spare: spareOf(o),
		Mesh: &agentMesh{node: node, logger: logger.With("component", "reports")},
		Link: link, Logger: logger,
	})
	if err != nil {
		return err
	}
	node.Handle(topicOrder, up.HandleOrder)
	node.Handle(topicReleaseKeys, keyFollower(up, node, logger.With("component", "release-keys")))
	node.Handle(topicReportAck, func(from identity.Identity, payload []byte) {
		var ack reportAck
		if from.Role == identity.RoleServer && json.Unmarshal(payload, &ack) == nil {
			up.HandleAck(ack.JobID, ack.Stored)
		}
	})

	var tasks sync.WaitGroup
	ctx, stop := context.WithCancel(ctx)
	defer tasks.Wait()
	defer stop()
	tasks.Go(func() { agentRenewal(o, node, current, ways, logger).run(ctx) })
	tasks.Go(func() { proveHealth(ctx, node, link, me.digest, logger) })
	tasks.Go(func() {
		select {
		case <-link.ParentGone():
			logger.Error("the supervisor is gone; stopping")
			stop()
		case <-ctx.Done():
		}
	})
	running := runningNode{Role: creds.Role, Peer: o.peerAdv, Gossip: o.gossipAdv, Binary: o.binary}
	if err := running.write(o.data); err != nil {
		logger.Warn("say where this agent listens, for moult doctor", "error", err)
	}
	logger.Info("agent is up", "peer", o.peerAdv, "gossip", o.gossipAdv, "version", version, "trial", link.OnTrial())
	err = up.Run(ctx)
	if errors.Is(err, updater.ErrRestart) {
		return &exitError{code: updater.ExitRestart}
	}
	return err
}

// proveHealth tells the supervisor once a live peer has answered: the agent
// works as a member of the mesh. Not reaching a server is no reason to go back.
func proveHealth(ctx context.Context, node *mesh.Node, link *updater.SupervisorLink, digest string, logger *slog.Logger) {
	for {
		changed := node.Roster().Changed()
		if node.LivePeers() > 0 {
			if err := link.Joined(version, digest); err != nil {
				logger.Error("tell the supervisor", "error", err)
			}
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// spareOf is how many artifacts an agent keeps for others: a relay keeps as many
// of its own fetches as of those for others, lest one drop the other's.
func spareOf(o agentOptions) int {
	if len(o.also) > 0 {
		return artifact.KeptByRelay
	}
	return 0 // the updater's own number
}

// agentRenewal asks servers, where they are reached, and else relays.
func agentRenewal(o agentOptions, node *mesh.Node, current *identity.Current, ways func([]string) []nodeport.Way, logger *slog.Logger) *renewal {
	return &renewal{
		current: current, renewed: useCertificate(node, logger), logger: logger.With("component", "renewal"),
		ask: func(ctx context.Context) (identity.Enrolment, error) {
			var addrs []string
			for _, w := range ways(nil) {
				addrs = append(addrs, w.Addr)
			}
			return renewAt(ctx, addrs, current.Get(), identity.RenewRequest{Also: o.segmentAddrs()})
		},
	}
}

// useCertificate gives the mesh a renewed certificate.
func useCertificate(node *mesh.Node, logger *slog.Logger) func(identity.Credentials) {
	return func(creds identity.Credentials) {
		if err := node.SetCertificate(creds.CertDER()); err != nil {
			logger.Error("use the renewed certificate", "error", err)
		}
	}
}

// agentGate is what an agent's node port takes from members: artifacts and
// questions, and on a relay connections to pass on.
func agentGate(relays bool) func(alpn string, id identity.Identity) error {
	return func(alpn string, _ identity.Identity) error {
		if alpn == identity.ALPNHTTP || alpn == identity.ALPNRelay && relays {
			return nil
		}
		return fmt.Errorf("this host does not speak %s", alpn)
	}
}

// reportSendTimeout bounds the sending of one report.
const reportSendTimeout = 5 * time.Second

// agentMesh is the updater's view of the mesh.
type agentMesh struct {
	node   *mesh.Node
	logger *slog.Logger
}

func (m *agentMesh) Announce(phase, jobID string) { m.node.Announce(mesh.Phase(phase), jobID) }

// Report sends a report, with the signed record in it, to every server that is
// known: the leader acts on it, the others show it.
func (m *agentMesh) Report(r updater.Report) {
	r.Record = m.node.Record().Raw
	payload, err := json.Marshal(r)
	if err != nil {
		m.logger.Error("encode report", "error", err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), reportSendTimeout)
	defer cancel()
	var sends sync.WaitGroup
	for _, s := range m.node.Roster().Servers() {
		sends.Go(func() {
			if err := m.node.Send(ctx, s.HostID, topicReport, payload); err != nil {
				m.logger.Debug("send report", "server", s.HostID, "error", err)
			}
		})
	}
	sends.Wait()
}
