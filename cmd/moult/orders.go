package main

import (
	"context"
	"fmt"
	"time"

	"moult/consensus/fleet"
	"moult/mesh"
	"moult/mesh/identity"
	"moult/updater/order"
)

// orderLifetime is how long a sealed order may be acted upon. It is sealed anew
// at each resend, so this only has to cover the way, and the hosts' clocks.
const orderLifetime = 10 * time.Minute

// orderSender seals the coordinator's orders and sends them through the mesh.
type orderSender struct {
	node  *mesh.Node
	creds func() identity.Credentials
	state func() fleet.View // for the epoch
}

// Send seals and sends the order behind a committed dispatch.
func (s *orderSender) Send(ctx context.Context, job fleet.Job, rel fleet.Release, host fleet.Host) error {
	if job.DispatchIndex == 0 {
		return fmt.Errorf("job %s has no committed dispatch", job.ID)
	}
	creds := s.creds()
	cluster, _ := s.state().Cluster()
	sealed, err := order.Seal(order.Order{
		Cluster: creds.Cluster, HostID: host.ID, JobID: job.ID, Attempt: job.Attempt,
		Action: order.ActionUpdate, Version: rel.Version,
		Manifest: rel.Manifest, Signature: rel.Signature,
		Epoch: cluster.Epoch, Statement: cluster.EpochStatement,
		Index: job.DispatchIndex, Expires: time.Now().Add(orderLifetime),
	}, creds.Key, creds.CertDER())
	if err != nil {
		return fmt.Errorf("seal order: %w", err)
	}
	return s.node.Send(ctx, host.ID, topicOrder, sealed)
}
