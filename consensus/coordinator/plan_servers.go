package coordinator

import (
	"fmt"
	"iter"
	"slices"
	"time"

	"moult/consensus/fleet"
)

// turnsInOrder goes through the pending turns in the order in which they are to go:
// agents, then servers, and the one that plans last, for it hands leadership over
// first. Hosts that were deleted are among the agents.
func turnsInOrder(in input, u fleet.FleetUpdate) iter.Seq[fleet.FleetUpdateHost] {
	return func(yield func(fleet.FleetUpdateHost) bool) {
		for group := range 3 {
			for _, turn := range u.Hosts.All() {
				if turn.Status == fleet.TurnPending && turnGroup(in, turn.HostID) == group && !yield(turn) {
					return
				}
			}
		}
	}
}

func turnGroup(in input, hostID string) int {
	switch {
	case in.Hosts[hostID].Role != fleet.RoleServer:
		return 0
	case hostID != in.Self:
		return 1
	default:
		return 2
	}
}

// serversNext tells whether the next turn of a fleet update is a server's.
func serversNext(hosts map[string]fleet.Host, u fleet.FleetUpdate) bool {
	next := false
	for _, turn := range u.Hosts.All() {
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
