package coordinator

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"moult/consensus/fleet"
)

// relay is an enrolled host in two or more segments.
type relay struct {
	id, name string
	segments []string
	seen     Observation
}

// segmentsOf are those that a host says it is in; those of its enrolment, if this
// leader has not heard of it.
func segmentsOf(h fleet.Host, seen Observation) []string {
	if len(seen.Segments) > 0 {
		return seen.Segments
	}
	return h.Segments()
}

// live tells whether it can be relied on: it is here, and not about to restart.
func (r relay) live() bool {
	return r.seen.Online && r.seen.Phase != phaseRestarting && r.seen.Phase != phaseTrial
}

func (r relay) state() string {
	switch {
	case r.seen.Online:
		return r.name + " is restarting"
	case r.seen.Left:
		return r.name + " was stopped"
	case r.seen.Boot == 0:
		return r.name + " was not seen yet"
	case r.seen.Unreachable:
		return r.name + " is unreachable"
	default:
		return r.name + " is offline"
	}
}

// relays lists the relays by name.
func (in input) relays() (all []relay) {
	for id, h := range in.Relays {
		all = append(all, relay{id, h.Name, segmentsOf(h, in.Seen[id]), in.Seen[id]})
	}
	slices.SortFunc(all, func(a, b relay) int { return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.id, b.id)) })
	return all
}

// reach returns the segments that the servers reach through some relays.
func (in input) reach(through []relay) map[string]bool {
	reached := map[string]bool{}
	for _, o := range in.Seen {
		if o.Server && o.Online {
			for _, s := range o.Segments {
				reached[s] = true
			}
		}
	}
	for grown := true; grown; {
		grown = false
		for _, r := range through {
			if !slices.ContainsFunc(r.segments, func(s string) bool { return reached[s] }) {
				continue
			}
			for _, s := range r.segments {
				if !reached[s] {
					reached[s], grown = true, true
				}
			}
		}
	}
	return reached
}

// strands says which segment nobody would reach while a host restarts, though
// another relay that is away now could stand in for it; "" when there is none.
// A relay that nobody can stand in for is not held back: it could never be updated.
func strands(in input, h fleet.Host) string {
	me := relay{h.ID, h.Name, segmentsOf(h, in.Seen[h.ID]), in.Seen[h.ID]}
	if len(me.segments) < 2 {
		return ""
	}
	var live, away, others []relay
	for _, r := range in.relays() {
		switch {
		case r.id == h.ID:
			continue
		case r.live():
			live = append(live, r)
		default:
			away = append(away, r)
		}
		others = append(others, r)
	}
	with, without, possible := in.reach(append(slices.Clone(live), me)), in.reach(live), in.reach(others)
	for _, segment := range slices.Sorted(maps.Keys(with)) {
		if without[segment] || !possible[segment] {
			continue
		}
		var states []string
		for _, r := range away {
			if slices.Contains(r.segments, segment) {
				states = append(states, r.state())
			}
		}
		if len(states) == 0 { // it is one on the way there that is away
			for _, r := range away {
				states = append(states, r.state())
			}
		}
		return fmt.Sprintf("updating %s would cut off segment %s: %s", h.Name, segment, strings.Join(states, ", "))
	}
	return ""
}

// cutOff says why nobody can know how a host is; "" when somebody does. A host
// that this leader has never seen is judged by the segment that it was enrolled in.
func cutOff(in input, h fleet.Host) string {
	seen, known := in.Seen[h.ID]
	segment := h.Segment
	if known {
		if !seen.Unreachable {
			return ""
		}
		if len(seen.Segments) > 0 {
			segment = seen.Segments[0]
		}
	} else {
		for _, o := range in.Seen {
			looks := o.Online && (o.Server || len(o.Segments) > 1)
			if looks && slices.ContainsFunc(h.Segments(), func(s string) bool { return slices.Contains(o.Segments, s) }) {
				return ""
			}
		}
	}
	var names []string
	for _, r := range in.relays() {
		if slices.Contains(r.segments, segment) && r.id != h.ID {
			names = append(names, r.name)
		}
	}
	return fleet.Unreachable(segment, names)
}

// offline says that a host is away, and why if it is only cut off.
func offline(in input, h fleet.Host) string {
	return strings.TrimSuffix("host went offline: "+h.Name+": "+cutOff(in, h), ": ")
}
