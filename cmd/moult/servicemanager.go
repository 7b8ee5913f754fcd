package main

import (
	"fmt"

	"moult/consensus"
	"moult/mesh"
)

// serverStatus is one line about a running server: what /readyz says, in short.
func serverStatus(raft *consensus.Node, node *mesh.Node) string {
	raft.State().View()
	if err := raft.Ready(); err != nil {
		p, _ := judgeReady(serverFacts{Ready: err})
		return fmt.Sprintf("version %s, not ready (%s): %s", version, p.Code, p.Message)
	}
	return fmt.Sprintf("version %s, ready, live peers: %d", version, node.LivePeers())
}
