package coordinator

import (
	"context"
	"fmt"
	"maps"
	"testing"
	"time"

	"moult/consensus/fleet"
)

// A round copies what has changed and walks over the turns of the fleet update, and
// makes nothing for each host: so a fleet that is ten times as large costs no more
// allocations, with a job in flight and when the next turn is planned.
func TestRoundOfALargeFleetAllocatesNoMore(t *testing.T) {
	for _, busy := range []bool{false, true} {
		small, large := roundAllocations(t, 100, busy), roundAllocations(t, 1000, busy)
		t.Logf("a job in flight: %t: %.0f allocations with 100 hosts, %.0f with 1000", busy, small, large)
		if large > 1.2*small+10 {
			t.Errorf("a job in flight: %t: a round makes %.0f allocations with 100 hosts and %.0f with 1000", busy, small, large)
		}
	}
}

func roundAllocations(t *testing.T, hosts int, busy bool) float64 {
	t.Helper()
	s := newSite(t, hosts)
	names := make([]string, 0, hosts)
	for i := range hosts {
		names = append(names, fmt.Sprintf("agent-%d", i+1))
	}
	s.startUpdate("B", names...)
	c := &coordinator{
		Config: Config{Log: s, Roster: followedSite{s}, Timeouts: DefaultTimeouts, Unreachable: UnreachableIsOffline},
		memory: memory{since: time.Now().Add(-time.Hour)},
	}
	round := func() []step {
		steps, mem, _ := plan(c.gather(context.Background(), time.Now()))
		c.memory = mem
		return steps
	}
	steps := round()
	if d, ok := steps[0].Change.(fleet.JobDispatched); !ok {
		t.Fatalf("planned is %+v", steps)
	} else if busy {
		s.must(d)
		round() // sends the order
	}
	return testing.AllocsPerRun(50, func() { round() })
}

// followedSite tells of what has changed only, and nothing has.
type followedSite struct{ *site }

func (s followedSite) Observations(since uint64) (map[string]Observation, uint64, bool) {
	if since == 0 {
		return maps.Clone(s.seen), 1, true
	}
	return nil, since, false
}
