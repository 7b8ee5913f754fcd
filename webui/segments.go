package webui

import (
	"cmp"
	"maps"
	"net/http"
	"slices"

	"moult/consensus/fleet"
)

// The states of a host, as the API names them.
const (
	statusOnline      = "online"
	statusOffline     = "offline"
	statusUnreachable = "unreachable"
	statusLeft        = "left"
)

// segmentJSON is a segment as the API shows it.
type segmentJSON struct {
	Name     string          `json:"name"`
	Reached  bool            `json:"reached"`  // servers are in it, or relays that are online lead there
	Distance *int            `json:"distance"` // relays on the way from a server, of all that are enrolled; null: there is none
	Servers  []string        `json:"servers"`  // names
	Relays   []relayJSON     `json:"relays"`
	Hosts    segmentHosts    `json:"hosts"`
	Behind   int             `json:"behind"`
	OnlyWay  []string        `json:"only_way"` // names of relays without each of which nobody reaches it
	Served   []segmentSource `json:"served"`   // who served its hosts in the active or last fleet update
}

// relayJSON is a host in two or more segments.
type relayJSON struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"`
	Role     string   `json:"role"`
	Status   string   `json:"status"`
	Segments []string `json:"segments"`
}

// segmentHosts counts the agents whose home a segment is.
type segmentHosts struct {
	Total       int `json:"total"`
	Online      int `json:"online"`
	Offline     int `json:"offline"`
	Unreachable int `json:"unreachable"`
	Left        int `json:"left"`
}

// segmentSource is who served the hosts of a segment.
type segmentSource struct {
	HostID  string `json:"host_id"`
	Name    string `json:"name"`
	Role    string `json:"role"`
	Segment string `json:"segment"` // the home of who served; "" when it was removed
	Hosts   int    `json:"hosts"`   // that it served
	Bytes   int64  `json:"bytes"`
}

// status is a host's state. One that was never seen goes by whether anybody looks
// into the segment that it was enrolled in.
func (p picture) status(h *fleet.Host) string {
	o, seen := p.observed[h.ID]
	switch {
	case o.Online:
		return statusOnline
	case o.Left:
		return statusLeft
	case o.Unreachable, !seen && !slices.ContainsFunc(h.Segments(), func(s string) bool { return p.looksInto[s] }):
		return statusUnreachable
	default:
		return statusOffline
	}
}

// segmentsOf are those that a host says it is in; those of its enrolment, if it
// was not seen yet.
func (p picture) segmentsOf(h *fleet.Host) []string {
	if o := p.observed[h.ID]; len(o.Segments) > 0 {
		return o.Segments
	}
	return h.Segments()
}

// lookedInto returns the segments that servers, and relays that are online, are in.
func (p picture) lookedInto() map[string]bool {
	in := map[string]bool{}
	_, servers := p.hosts.lists(p.View)
	for _, s := range servers {
		in[s.Segment] = true
	}
	for _, o := range p.observed {
		if o.Online && len(o.Segments) > 1 {
			for _, segment := range o.Segments {
				in[segment] = true
			}
		}
	}
	return in
}

// relays lists the hosts in two or more segments, by name.
func (p picture) relays() (relays []relayJSON) {
	agents, servers := p.hosts.lists(p.View)
	for _, h := range slices.Concat(agents, servers) {
		if in := p.segmentsOf(h); len(in) > 1 {
			relays = append(relays, relayJSON{h.ID, h.Name, string(h.Role), p.status(h), in})
		}
	}
	slices.SortFunc(relays, func(a, b relayJSON) int { return cmp.Compare(a.Name, b.Name) })
	return relays
}

// distances counts the relays on the way from the nearest server to each segment.
func (p picture) distances(relays []relayJSON) map[string]int {
	distance := map[string]int{}
	_, servers := p.hosts.lists(p.View)
	for _, s := range servers {
		distance[s.Segment] = 0
		for _, segment := range p.observed[s.ID].Segments {
			distance[segment] = 0
		}
	}
	for d := 0; ; d++ {
		before := len(distance)
		for _, r := range relays {
			if !slices.ContainsFunc(r.Segments, func(s string) bool { at, ok := distance[s]; return ok && at == d }) {
				continue
			}
			for _, s := range r.Segments {
				if _, known := distance[s]; !known {
					distance[s] = d + 1
				}
			}
		}
		if len(distance) == before {
			return distance
		}
	}
}

// segmentMap is all segments, nearest to the servers first.
func (p picture) segmentMap() []segmentJSON {
	agents, servers := p.hosts.lists(p.View)
	relays := p.relays()
	all := p.distances(relays)
	live := p.distances(slices.DeleteFunc(slices.Clone(relays), func(r relayJSON) bool { return r.Status != statusOnline }))
	segments := map[string]*segmentJSON{}
	segment := func(name string) *segmentJSON {
		if segments[name] == nil {
			s := &segmentJSON{Name: name, Servers: []string{}, Relays: []relayJSON{}, OnlyWay: []string{}, Served: []segmentSource{}}
			if d, known := all[name]; known {
				s.Distance = &d
			}
			_, s.Reached = live[name]
			segments[name] = s
		}
		return segments[name]
	}
	for _, h := range servers {
		s := segment(h.Segment)
		s.Servers = append(s.Servers, h.Name)
	}
	for _, h := range agents {
		s := segment(h.Segment)
		s.Hosts.count(p.status(h))
		if p.behind(h.ID, p.target) {
			s.Behind++
		}
	}
	for i, r := range relays {
		without := p.distances(slices.Concat(relays[:i], relays[i+1:]))
		for _, name := range r.Segments {
			s := segment(name)
			s.Relays = append(s.Relays, r)
		}
		for name := range all {
			if _, reached := without[name]; !reached {
				s := segment(name)
				s.OnlyWay = append(s.OnlyWay, r.Name)
			}
		}
	}
	p.addServed(segments)
	return slices.SortedFunc(func(yield func(segmentJSON) bool) {
		for _, s := range segments {
			if !yield(*s) {
				return
			}
		}
	}, func(a, b segmentJSON) int {
		return cmp.Or(cmp.Compare(a.Row(), b.Row()), cmp.Compare(a.Name, b.Name))
	})
}

// Row is a segment's distance, those without a way last.
func (s segmentJSON) Row() int {
	if s.Distance == nil {
		return 1 << 30
	}
	return *s.Distance
}

// Away is how many are offline or were shut down.
func (c segmentHosts) Away() int { return c.Offline + c.Left }

func (c *segmentHosts) count(status string) {
	c.Total++
	switch status {
	case statusOnline:
		c.Online++
	case statusLeft:
		c.Left++
	case statusUnreachable:
		c.Unreachable++
	default:
		c.Offline++
	}
}

// shownUpdate is the fleet update that is active, else the newest one.
func (p picture) shownUpdate() (fleet.FleetUpdate, bool) {
	if f, active := p.ActiveFleetUpdate(); active {
		return f, true
	}
	if all := p.FleetUpdates(); len(all) > 0 {
		return all[0], true
	}
	return fleet.FleetUpdate{}, false
}

// addServed tells for each segment who served its hosts: by what the jobs say, and
// for the host whose turn it is by what it reported.
func (p picture) addServed(segments map[string]*segmentJSON) {
	f, exists := p.shownUpdate()
	if !exists {
		return
	}
	served := map[string]map[string]*segmentSource{}
	for _, t := range f.Hosts.All() {
		h := p.enrolled[t.HostID]
		j, begun := p.Job(t.JobID)
		if h == nil || !begun || segments[h.Segment] == nil {
			continue
		}
		sources := j.Sources
		if o := p.observed[h.ID]; !j.Status.Done() && o.JobID == j.ID {
			sources = o.Sources
		}
		for _, src := range sources {
			if served[h.Segment] == nil {
				served[h.Segment] = map[string]*segmentSource{}
			}
			s := served[h.Segment][src.HostID]
			if s == nil {
				s = &segmentSource{HostID: src.HostID, Name: src.Name, Role: src.Role}
				if from := p.enrolled[src.HostID]; from != nil {
					s.Name, s.Role, s.Segment = from.Name, string(from.Role), from.Segment
				}
				served[h.Segment][src.HostID] = s
			}
			s.Hosts++
			s.Bytes += src.Bytes
		}
	}
	for name, sources := range served {
		for _, id := range slices.Sorted(maps.Keys(sources)) {
			segments[name].Served = append(segments[name].Served, *sources[id])
		}
		slices.SortStableFunc(segments[name].Served, func(a, b segmentSource) int {
			return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Name, b.Name))
		})
	}
}

func (u *ui) listSegments(w http.ResponseWriter, _ *http.Request) error {
	p := u.picture()
	f, _ := p.shownUpdate()
	return ok(w, map[string]any{"segments": p.segmentMap(), "fleet_update_id": f.ID})
}

// whyUnreachable says which relays would have to be online for a host to be seen.
func (p picture) whyUnreachable(h *fleet.Host, relays []relayJSON) string {
	segment := p.segmentsOf(h)[0]
	var names []string
	for _, r := range relays {
		if slices.Contains(r.Segments, segment) && r.ID != h.ID {
			names = append(names, r.Name)
		}
	}
	return fleet.Unreachable(segment, names)
}
