package artifact

import (
	"context"
	"encoding/json"
	"slices"
)

// askToPull has a relay get the artifact, or makes sure that it does still, so that its
// chunks can be asked for while they come in there.
func (c *chunkFetch) askToPull(ctx context.Context, p *chunkPeer) error {
	body, err := json.Marshal(pullAsk{Manifest: c.Pull.Manifest, Signature: c.Pull.Signature, Via: c.Pull.via(), Now: true})
	if err != nil {
		return err
	}
	a, err := c.askRelay(ctx, &p.Peer, body, c.learn)
	switch {
	case err != nil:
		return err
	case slices.Contains(a.Through, c.Pull.HostID):
		return errLoop
	case a.Whole:
		return errLacks // until it has all of it
	case !a.Held:
		c.mu.Lock()
		defer c.mu.Unlock()
		c.pulledBy(p.Peer, a)
	}
	return nil
}
