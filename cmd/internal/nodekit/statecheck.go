package nodekit

import (
	"context"
	"fmt"
	"time"
)

const (
	stateTimeout = 5 * time.Second // one server's answer: it writes all of its state
)

// NodeState is what a server tells the others of its state.
type NodeState struct {
	Index  uint64 `json:"index"`
	SHA256 string `json:"sha256"`
}

// State asks a server for a digest of its state.
func (c *ServerClient) State(ctx context.Context, addr string) (NodeState, error) {
	ctx, cancel := context.WithTimeout(ctx, stateTimeout)
	defer cancel()
	var st NodeState
	if err := c.GetJSON(ctx, addr, PathState, &st); err != nil {
		return NodeState{}, fmt.Errorf("ask %s for its state: %w", addr, err)
	}
	return st, nil
}
