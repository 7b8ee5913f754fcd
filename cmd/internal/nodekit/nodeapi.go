package nodekit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"moult/mesh/identity"
	"moult/webui"
)

// What servers ask of each other on the node port, and how much they read of it.
const (
	PathStatus  = "/node/status"  // GET: NodeStatus
	PathState   = "/node/state"   // GET: NodeState
	PathMembers = "/node/members" // GET: the Raft configuration as known here; POST: as the sender knows it
	MaxNodeBody = 4 << 20         // bytes
)

// NodeStatus is what a server tells the others about itself.
type NodeStatus struct {
	Version      string `json:"version"`
	AppliedIndex uint64 `json:"applied_index"`
	Ready        bool   `json:"ready"`
	// Now is what its clock says; missing: it does not tell.
	Now time.Time `json:"now,omitzero"`
	// Problems are missing where an older server answers.
	Problems []webui.Problem `json:"problems,omitempty"`
	// Kinds are what of fleet.Known it knows; missing: fleet.FirstKinds.
	Kinds []string `json:"kinds,omitempty"`
	// ForgeryCalm is for how long it has refused no more forged gossip than happens in a
	// healthy mesh; missing: it does, or does not tell.
	ForgeryCalm time.Duration `json:"forgery_calm,omitempty"`
}

// ServerClient calls the other servers' node ports.
type ServerClient struct {
	Http          *http.Client
	StatusTimeout time.Duration
}

// Post sends body to a server's node port and returns the answer.
func (c *ServerClient) Post(ctx context.Context, addr, path string, body []byte) ([]byte, error) {
	return c.Send(ctx, http.MethodPost, addr, path, body)
}

// Send asks a server's node port with any method and returns the answer.
func (c *ServerClient) Send(ctx context.Context, method, addr, path string, body []byte) ([]byte, error) {
	out, _, err := c.exchange(ctx, method, addr, path, body)
	return out, err
}

// exchange is send that tells who answered.
func (c *ServerClient) exchange(ctx context.Context, method, addr, path string, body []byte) (out []byte, from identity.Identity, err error) {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+addr+path, bytes.NewReader(body))
	if err != nil {
		return nil, from, err
	}
	resp, err := c.Http.Do(req)
	if err != nil {
		return nil, from, err
	}
	defer resp.Body.Close()
	if resp.TLS == nil {
		return nil, from, fmt.Errorf("%s%s answers without TLS", addr, path)
	}
	if from, err = identity.PeerIdentity(*resp.TLS); err != nil {
		return nil, from, err
	}
	out, err = io.ReadAll(io.LimitReader(resp.Body, MaxNodeBody))
	if err != nil {
		return nil, from, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, from, fmt.Errorf("%s%s answers %s: %s", addr, path, resp.Status, bytes.TrimSpace(out))
	}
	return out, from, nil
}

// PostJSON is post with JSON on both sides; out may be nil.
func (c *ServerClient) PostJSON(ctx context.Context, addr, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	answer, err := c.Post(ctx, addr, path, body)
	if err != nil || out == nil {
		return err
	}
	return json.Unmarshal(answer, out)
}

// GetJSON asks for a path and decodes the answer.
func (c *ServerClient) GetJSON(ctx context.Context, addr, path string, out any) error {
	answer, err := c.Send(ctx, http.MethodGet, addr, path, nil)
	if err != nil {
		return err
	}
	return json.Unmarshal(answer, out)
}

// Status asks a server how it is.
func (c *ServerClient) Status(ctx context.Context, addr string) (NodeStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, c.StatusTimeout)
	defer cancel()
	var st NodeStatus
	err := c.GetJSON(ctx, addr, PathStatus, &st)
	return st, err
}
