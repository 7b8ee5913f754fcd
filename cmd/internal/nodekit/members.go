package nodekit

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"moult/consensus"
)

// Members asks a server for the Raft configuration that it knows. The certificate
// says whether it is that server: another one may have its address by now.
func (c *ServerClient) Members(ctx context.Context, id, addr string) (m consensus.Membership, err error) {
	answer, from, err := c.exchange(ctx, http.MethodGet, addr, PathMembers, nil)
	if err != nil {
		return m, err
	}
	if from.HostID != id {
		return m, fmt.Errorf("at %s is server %s, not %s", addr, from.HostID, id)
	}
	return m, json.Unmarshal(answer, &m)
}
