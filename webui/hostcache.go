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
	all             map[string]*fleet.Host
}

func (c *hostCache) lists(v fleet.View) (agents, servers []*fleet.Host) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.update(v)
	return c.agents, c.servers
}

// byID returns all of them by their ID, for who looks up many.
func (c *hostCache) byID(v fleet.View) map[string]*fleet.Host {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.update(v)
	return c.all
}

// update reads the hosts when they have changed. Under the lock.
func (c *hostCache) update(v fleet.View) {
	version := v.HostsVersion()
	if c.version == version {
		return
	}
	hosts := v.Hosts()
	c.version, c.agents, c.servers, c.all = version, nil, nil, make(map[string]*fleet.Host, len(hosts))
	for i := range hosts {
		h := &hosts[i]
		if c.all[h.ID] = h; h.Role == fleet.RoleServer {
			c.servers = append(c.servers, h)
		} else {
			c.agents = append(c.agents, h)
		}
	}
}
