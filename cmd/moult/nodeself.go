package main

import (
	"context"

	"moult/cmd/internal/nodekit"
	"moult/mesh/identity"
)

// askSelf asks the node that runs on this host.
func askSelf(ctx context.Context, creds identity.Credentials, addr string) (nodekit.NodeSelf, error) {
	client := nodekit.ClientOfSelf(creds)
	defer client.CloseIdleConnections()
	var self nodekit.NodeSelf
	err := (&serverClient{http: client}).GetJSON(ctx, addr, nodekit.PathSelf, &self)
	return self, err
}
