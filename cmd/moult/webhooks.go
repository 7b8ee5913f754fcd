package main

import (
	"context"

	"moult/consensus"
	"moult/consensus/fleet"
	"moult/consensus/notifier"
)

// webhookTester tries webhooks from this server, whether it leads or not: a test
// changes nothing, and what it finds out is as true here.
type webhookTester struct {
	raft   *consensus.Node
	client *notifier.Client
}

// Test sends a test and returns the status that the receiver answered, 0 for none.
func (t *webhookTester) Test(ctx context.Context, w fleet.Webhook) (int, error) {
	cluster, _ := t.raft.State().View().Cluster()
	return t.client.Test(ctx, cluster.ID, w)
}
