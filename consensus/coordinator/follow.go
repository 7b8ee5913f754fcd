package coordinator

import (
	"maps"

	"moult/consensus/fleet"
)

// sight is what this server sees of the hosts, kept from plan to plan and brought
// up to date with what changed.
type sight struct {
	seen    map[string]Observation
	relays  map[string]bool // those of seen that are in two or more segments
	version uint64          // of the roster
}

// look returns what is seen now. The map is the same from call to call.
func (s *sight) look(r Roster) map[string]Observation {
	changed, now, whole := r.Observations(s.version)
	if s.version = now; whole || s.seen == nil {
		s.seen, s.relays = map[string]Observation{}, map[string]bool{}
	}
	maps.Copy(s.seen, changed)
	for id, o := range changed {
		if delete(s.relays, id); len(o.Segments) > 1 {
			s.relays[id] = true
		}
	}
	return s.seen
}

// hosts are the enrolled ones, read anew only when one of them has changed.
type hosts struct {
	byID    map[string]fleet.Host
	relays  []string // ids of those that are enrolled in two or more segments
	version any
}

func (h *hosts) of(v fleet.View) map[string]fleet.Host {
	if version := v.HostsVersion(); h.version != version {
		all := v.Hosts()
		h.version, h.relays, h.byID = version, nil, make(map[string]fleet.Host, len(all))
		for _, host := range all {
			h.byID[host.ID] = host
			if len(host.Also) > 0 {
				h.relays = append(h.relays, host.ID)
			}
		}
	}
	return h.byID
}

// relaysSeen returns the relays: those enrolled as such, and the hosts that say that
// they are.
func (h *hosts) relaysSeen(s sight) map[string]fleet.Host {
	relays := make(map[string]fleet.Host, len(h.relays))
	for _, id := range h.relays {
		relays[id] = h.byID[id]
	}
	for id := range s.relays {
		if host, enrolled := h.byID[id]; enrolled {
			relays[id] = host
		}
	}
	return relays
}
