package webui

import (
	"sync"

	"moult/consensus/fleet"
)

// hostCache keeps the lists of hosts from one request to the next: reading ten
// thousand of them out of the state takes longer than all else on a page. Safe
// for concurrent use; what it returns is shared and must not be changed.
type hostCache struct {
	mu              sync.Mutex
	version         any           // of the hosts that it holds; nil before the first
	agents, servers []*fleet.Host // by name
}

func (c *hostCache) lists(v fleet.View) (agents, servers []*fleet.Host) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if version := v.HostsVersion(); c.version != version {
		c.version, c.agents, c.servers = version, nil, nil
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
