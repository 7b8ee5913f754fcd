package nodekit

import (
	"context"
	"encoding/json"
	"log/slog"
	"path/filepath"

	"moult/mesh"
	"moult/mesh/identity"
	"moult/updater"
	"moult/updater/install"
	"moult/updater/order"
	"moult/updater/release"
)

// UpdaterSide is what a node of either role has to carry out orders.
type UpdaterSide struct {
	Data       string        // the data directory
	Installed  string        // the binary that updates replace
	Place      install.Place // or where they go instead
	Me         Self
	Creds      identity.Credentials
	Node       *mesh.Node
	Held       *artifactSide
	Link       *updater.SupervisorLink // nil: this process has no supervisor
	Spare      int                     // as updater.Config.Spare
	MayRestart func(context.Context) error
}

// KeysGiven are the release keys that a host got when it joined.
func KeysGiven(creds identity.Credentials) release.KeySet {
	return release.KeySet{Number: creds.KeysNumber, Threshold: creds.ReleaseThreshold, Keys: creds.ReleaseKeys}
}

// OpenUpdater makes the updater, announces how its last job stands and lets it have
// the orders, acknowledgements and key statements that come through the mesh.
func OpenUpdater(s UpdaterSide, logger *slog.Logger) (*updater.Updater, error) {
	phase, jobID := updater.StartPhase(s.Data, s.Link)
	s.Node.Announce(mesh.Phase(phase), jobID)
	fence, err := order.OpenFence(filepath.Join(s.Data, "fence.json"))
	if err != nil {
		logger.Error("this host takes no orders", "error", err) // and runs on: the fence refuses them all
	}
	up, err := updater.New(updater.Config{
		HostID: s.Creds.HostID, Cluster: s.Creds.Cluster, Verifier: s.Creds.Verifier(), Fence: fence,
		ReleaseKeys: KeysGiven(s.Creds),
		DataDir:     s.Data, Installed: s.Installed, Place: s.Place, Version: s.Me.Build.Version, Digest: s.Me.Digest,
		Store: s.Held.Store, Candidates: s.Held.Peers.Holders, Relays: s.Held.Peers.relays, Named: s.Held.Peers.named, HTTP: s.Held.Client, Limiter: s.Held.Limiter, Patches: s.Held.Patches,
		Spare: s.Spare, MayRestart: s.MayRestart,
		Mesh: NewHostMesh(s.Node, logger.With("component", "reports")),
		Link: s.Link, Logger: logger,
	})
	if err != nil {
		return nil, err
	}
	s.Node.Handle(TopicOrder, up.HandleOrder)
	s.Node.Handle(TopicReleaseKeys, keyFollower(up, s.Node, logger.With("component", "release-keys")))
	s.Node.Handle(TopicReportAck, func(from identity.Identity, payload []byte) {
		var ack ReportAck
		if from.Role == identity.RoleServer && json.Unmarshal(payload, &ack) == nil {
			up.HandleAck(ack.JobID, ack.Stored)
		}
	})
	return up, nil
}

// HeedSupervisor stops this process when its supervisor is gone.
func HeedSupervisor(ctx context.Context, link *updater.SupervisorLink, stop func(), logger *slog.Logger) {
	select {
	case <-link.ParentGone():
		if !link.StopAsked() {
			logger.Error("the supervisor is gone; stopping")
		}
		stop()
	case <-ctx.Done():
	}
}

// ProveHealth tells the supervisor once this host is well. With "no" well returns a
// channel that says when to ask again.
func ProveHealth(ctx context.Context, link *updater.SupervisorLink, me Self, logger *slog.Logger, well func() (bool, <-chan struct{})) {
	for {
		yes, again := well()
		if yes {
			if err := link.Joined(me.Build.Version, me.Digest); err != nil {
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
