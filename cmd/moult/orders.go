package main

import (
	"context"
	"fmt"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/consensus"
	"moult/consensus/fleet"
	"moult/mesh"
	"moult/mesh/identity"
	"moult/updater/order"
	"moult/updater/release"
)

// orderLifetime is how long a sealed order may be acted upon. It is sealed anew
// at each resend, so this only has to cover the way, and the hosts' clocks.
const orderLifetime = 10 * time.Minute

// orderSender seals the coordinator's orders and sends them through the mesh.
type orderSender struct {
	node  *mesh.Node
	raft  *consensus.Node
	creds func() identity.Credentials
}

// Send seals and sends the order behind a committed dispatch.
func (s *orderSender) Send(ctx context.Context, job fleet.Job, rel fleet.Release, host fleet.Host) error {
	if job.DispatchIndex == 0 {
		return fmt.Errorf("job %s has no committed dispatch", job.ID)
	}
	creds := s.creds()
	v := s.raft.State().View()
	cluster, _ := v.Cluster()
	o := order.Order{
		Cluster: creds.Cluster, HostID: host.ID, JobID: job.ID, Attempt: job.Attempt,
		Action: order.ActionUpdate, Version: rel.Version,
		Manifest: rel.Manifest, Signature: rel.Signature,
		Epoch: cluster.Epoch, Statement: cluster.EpochStatement,
		Index: job.DispatchIndex, Expires: time.Now().Add(orderLifetime),
		KeyStatements: statementsAfter(cluster, newest(cluster, order.MaxKeyStatements), order.MaxKeyStatements),
	}
	// Only a manifest that asks what it replaces makes the order longer.
	if m, err := release.Parse(rel.Manifest); err == nil && m.MinFrom > 0 {
		if from, ok := v.Release(job.FromVersion); ok {
			o.FromManifest, o.FromSignature = from.Manifest, from.Signature
		}
	}
	sealed, err := order.Seal(o, creds.Key, creds.CertDER())
	if err != nil {
		return fmt.Errorf("seal order: %w", err)
	}
	return s.node.Send(ctx, host.ID, nodekit.TopicOrder, sealed)
}

// Next tells a host that holds a release's artifact that its turn comes next.
func (s *orderSender) Next(ctx context.Context, rel fleet.Release, host fleet.Host) error {
	return s.stage(ctx, stageOrder{host: host, rel: rel, action: order.ActionStage, index: s.raft.State().View().Index(), next: true})
}
