package coordinator

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"moult/consensus/fleet"
)

// Gossip alone changes no intent, role or verdict (invariant 19): whatever the
// hosts show, as long as nobody has asked for an update nothing is proposed.
func TestObservationsAloneDecideNothing(t *testing.T) {
	for what, prepare := range map[string]func(s *site){
		"no fleet update": func(*site) {},
		"a paused one": func(s *site) {
			s.startUpdate("B", "agent-1", "agent-2")
			s.must(fleet.FleetUpdatePaused{ID: s.fleet})
		},
		"a cancelled one": func(s *site) {
			s.startUpdate("B", "agent-1", "agent-2")
			s.must(fleet.FleetUpdateCancelled{ID: s.fleet})
		},
		"one that a failure halted": func(s *site) {
			s.startUpdate("B", "agent-1", "agent-2")
			s.must(fleet.FleetUpdateHalted{ID: s.fleet, HostID: "agent-1", Reason: "host went offline: agent-1"})
			s.must(fleet.AlertAcknowledged{AlertID: s.state.View().OpenAlerts()[0].ID})
		},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, 3)
				prepare(s)
				before := s.state.Hash()
				s.start()
				boot := uint64(1)
				for _, phase := range []string{
					phaseIdle, phaseFetching, phaseVerifying, phasePreflight, phaseRestarting, phaseTrial, phaseFailed, phaseRolledBack, "new",
				} {
					for _, version := range []string{"A", "B", "C", ""} {
						for _, online := range []bool{true, false} {
							boot++
							s.observe(fmt.Sprintf("agent-%d", boot%4), func(o *Observation) { // agent-0 is nobody
								*o = Observation{
									Online: online, Left: !online, Boot: boot, Version: version, Phase: phase, JobID: fmt.Sprintf("j%d", boot%3),
									Error: "no space left on device", Done: 1, Total: 2,
								}
							})
							s.rest(20 * time.Second)
						}
					}
				}
				if s.proposed != 0 || len(s.sent) != 0 || s.state.Hash() != before {
					t.Errorf("%d changes were proposed, %d orders sent", s.proposed, len(s.sent))
				}
			})
		})
	}
}
