package coordinator

import (
	"fmt"
	"slices"
	"time"

	"moult/consensus/fleet"
)

// turnsInOrder returns the pending turns in the order in which they are to go:
// agents, then servers, and the one that plans last, for it hands leadership over
// first. Hosts that were deleted are among the agents.
func turnsInOrder(in input, u fleet.FleetUpdate) []fleet.FleetUpdateHost {
	var agents, followers, self []fleet.FleetUpdateHost
	for _, turn := range u.Hosts {
		switch {
		case turn.Status != fleet.TurnPending:
		case in.Hosts[turn.HostID].Role != fleet.RoleServer:
			agents = append(agents, turn)
		case turn.HostID != in.Self:
			followers = append(followers, turn)
		default:
			self = append(self, turn)
		}
	}
	return slices.Concat(agents, followers, self)
}

// serversNext tells whether the next turn of a fleet update is a server's.
func serversNext(hosts map[string]fleet.Host, u fleet.FleetUpdate) bool {
	next := false
	for _, turn := range u.Hosts {
		if turn.Status != fleet.TurnPending {
			continue
		}
		if hosts[turn.HostID].Role != fleet.RoleServer {
			return false
		}
		next = true
	}
	return next
}

// handsOver tells whether a server has to hand leadership over before its update:
// it leads, and there is somebody else who could.
func handsOver(in input, h fleet.Host) bool {
	return h.ID == in.Self && slices.ContainsFunc(in.Group, func(m fleet.GroupMember) bool { return m.Voter && m.ID != in.Self })
}

// planHandover has another server lead, which goes on with the fleet update. Where
// none takes over within QuorumWait it halts.
func planHandover(in input, u fleet.FleetUpdate, h fleet.Host, w *waits) ([]step, time.Time) {
	if due := w.until(h.ID, in.Now, QuorumWait); !in.Now.Before(due) {
		why := fmt.Sprintf("%s leads, and no other server took over within %v: %s", h.Name, QuorumWait, orElse(in.Memory.handover, "look at the servers' logs"))
		return []step{{Change: fleet.FleetUpdateHalted{ID: u.ID, HostID: h.ID, Reason: why}}}, time.Time{}
	}
	return []step{{HandOver: true}}, time.Time{}
}
