package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"moult/mesh"
	"moult/mesh/identity"
	"moult/updater"
	"moult/updater/install"
	"moult/updater/order"
	"moult/updater/release"
)

// updaterSide is what a node of either role has to carry out orders.
type updaterSide struct {
	data       string        // the data directory
	installed  string        // the binary that updates replace
	place      install.Place // or where they go instead
	me         self
	creds      identity.Credentials
	node       *mesh.Node
	held       *artifactSide
	link       *updater.SupervisorLink // nil: this process has no supervisor
	spare      int                     // as updater.Config.Spare
	mayRestart func(context.Context) error
}

// keysGiven are the release keys that a host got when it joined.
func keysGiven(creds identity.Credentials) release.KeySet {
	return release.KeySet{Number: creds.KeysNumber, Threshold: creds.ReleaseThreshold, Keys: creds.ReleaseKeys}
}

// openUpdater makes the updater, announces how its last job stands and lets it have
// the orders, acknowledgements and key statements that come through the mesh.
func openUpdater(s updaterSide, logger *slog.Logger) (*updater.Updater, error) {
	phase, jobID := updater.StartPhase(s.data, s.link)
	s.node.Announce(mesh.Phase(phase), jobID)
	fence, err := order.OpenFence(filepath.Join(s.data, "fence.json"))
	if err != nil {
		logger.Error("this host takes no orders", "error", err) // and runs on: the fence refuses them all
	}
	up, err := updater.New(updater.Config{
		HostID: s.creds.HostID, Cluster: s.creds.Cluster, Verifier: s.creds.Verifier(), Fence: fence,
		ReleaseKeys: keysGiven(s.creds),
		DataDir:     s.data, Installed: s.installed, Place: s.place, Version: s.me.build.version, Digest: s.me.digest,
		Store: s.held.store, Candidates: s.held.peers.holders, Relays: s.held.peers.relays, Named: s.held.peers.named, HTTP: s.held.client, Limiter: s.held.limiter, Patches: s.held.patches,
		Spare: s.spare, MayRestart: s.mayRestart,
		Mesh: &hostMesh{node: s.node, logger: logger.With("component", "reports")},
		Link: s.link, Logger: logger,
	})
	if err != nil {
		return nil, err
	}
	s.node.Handle(topicOrder, up.HandleOrder)
	s.node.Handle(topicReleaseKeys, keyFollower(up, s.node, logger.With("component", "release-keys")))
	s.node.Handle(topicReportAck, func(from identity.Identity, payload []byte) {
		var ack reportAck
		if from.Role == identity.RoleServer && json.Unmarshal(payload, &ack) == nil {
			up.HandleAck(ack.JobID, ack.Stored)
		}
	})
	return up, nil
}

// heedSupervisor stops this process when its supervisor is gone.
func heedSupervisor(ctx context.Context, link *updater.SupervisorLink, stop func(), logger *slog.Logger) {
	select {
	case <-link.ParentGone():
		if !link.StopAsked() {
			logger.Error("the supervisor is gone; stopping")
		}
		stop()
	case <-ctx.Done():
	}
}

// proveHealth tells the supervisor once this host is well. With "no" well returns a
// channel that says when to ask again.
func proveHealth(ctx context.Context, link *updater.SupervisorLink, me self, logger *slog.Logger, well func() (bool, <-chan struct{})) {
	for {
		yes, again := well()
		if yes {
			if err := link.Joined(me.build.version, me.digest); err != nil {
				logger.Error("tell the supervisor", "error", err)
			}
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-again:
		}
	}
}

// hasPeers is when an agent is well: a live peer has answered, so it works as a
// member of the mesh. Not reaching a server is no reason to go back.
func hasPeers(node *mesh.Node) func() (bool, <-chan struct{}) {
	return func() (bool, <-chan struct{}) {
		changed := node.Roster().Changed()
		return node.LivePeers() > 0, changed
	}
}

// reportSendTimeout bounds the sending of one report.
const reportSendTimeout = 5 * time.Second

// hostMesh is the updater's view of the mesh.
type hostMesh struct {
	node   *mesh.Node
	logger *slog.Logger
}

func (m *hostMesh) Announce(phase, jobID string) { m.node.Announce(mesh.Phase(phase), jobID) }

// Report sends a report, with the signed record in it, to every server that is
// known: the leader acts on it, the others show it.
func (m *hostMesh) Report(r updater.Report) {
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
