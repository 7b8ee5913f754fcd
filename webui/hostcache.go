package webui

import (
	"sync"

	"moult/consensus/fleet"
)

// hostCache keeps the lists of hosts from one request to the next: reading ten
// thousand of them out of the state takes longer than all else on a page. Equal
// indexes mean equal states, so it is right for as long as the index stays. Safe
// for concurrent use; what it returns is shared and must not be changed.
type hostCache struct {
	mu              sync.Mutex
	filled          bool
	index           uint64
	agents, servers []*fleet.Host // by name
}

func (c *hostCache) lists(v fleet.View) (agents, servers []*fleet.Host) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if index := v.Index(); !c.filled || c.index != index {
		c.filled, c.index, c.agents, c.servers = true, index, nil, nil
		hosts := v.Hosts()
		for i := range hosts {
			if h := &hosts[i]; h.Role == fleet.RoleServer {
				c.servers = append(c.servers, h)
			} else {
				c.agents = append(c.agents, h)
			}
		}
	}
	return c.agents, c.servers
}
