package webui

import (
	"net/http"
	"slices"

	"moult/consensus/fleet"
)

var dashboardPage = pageKind{name: "dashboard", title: "Dashboard", topics: "hosts jobs fleet-updates releases alerts"}

// dashboardView is what the dashboard shows.
type dashboardView struct {
	shell
	Filter   hostFilter
	Segments []string
	Counts   hostCounts
	Total    int
	Target   string
	Hosts    []hostJSON
	Pages    paging
	Update   *updateView // active, or the last one
	Alerts   int         // open
	Startup  int         // how many hosts a fleet update would have, when one can be started
}

func (u *ui) dashboard(w http.ResponseWriter, r *http.Request) error {
	f, err := readHostFilter(r)
	if err != nil {
		return err
	}
	page, err := readPage(r, 1)
	if err != nil {
		return err
	}
	p := u.picture()
	hosts := p.filtered(f)
	v := &dashboardView{
		Filter: f, Target: p.target, Counts: p.counts(), Alerts: len(p.OpenAlerts()), Total: len(p.agents()),
		Segments: p.segments(), Pages: paginate(len(hosts), hostsPerPage, page, "/", f.query()),
	}
	v.Hosts = p.rows(hosts[v.Pages.fromIndex:v.Pages.toIndex])
	if updates := p.FleetUpdates(); len(updates) > 0 {
		v.Update = p.updateView(updates[0])
	}
	if (v.Update == nil || !v.Update.Active) && p.requireRelease(p.target) == nil {
		if chosen, err := p.chooseHosts(p.target, nil, nil); err == nil {
			v.Startup = len(chosen)
		}
	}
	return u.show(w, r, dashboardPage, v)
}

// segments returns the names of all segments that agents are in.
func (p picture) segments() []string {
	var names []string
	for _, h := range p.agents() {
		if !slices.Contains(names, h.Segment) {
			names = append(names, h.Segment)
		}
	}
	slices.Sort(names)
	return names
}

// updateView is a fleet update as pages show it.
type updateView struct {
	fleetUpdateJSON
	Active  bool
	Done    int                    // turns that ended well, or needed nothing
	Failed  int                    // turns that failed
	Pending int                    // turns to come
	Staged  int                    // of them those whose host has the artifact
	Running *fleet.FleetUpdateHost // whose turn it is
	Phase   string                 // of that host
	Fetched *progressJSON          // that host's download, if one is under way
}

func (p picture) updateView(f fleet.FleetUpdate) *updateView {
	v := &updateView{fleetUpdateJSON: p.fleetUpdate(f), Active: f.Status.Active()}
	for _, t := range v.Hosts {
		if t.Status == fleet.TurnPending {
			v.Pending++
		}
		if t.Staged {
			v.Staged++
		}
	}
	for _, t := range f.Hosts.All() {
		switch t.Status {
		case fleet.TurnPending:
		case fleet.TurnRunning:
			o := p.observed[t.HostID]
			v.Running, v.Phase = &t, o.Phase
			if o.Total > 0 {
				v.Fetched = &progressJSON{Done: o.Done, Total: o.Total}
			}
		case fleet.TurnFailed:
			v.Failed++
		default:
			if t.FailedReason != fleet.ReasonCancelled { // that one never had its turn
				v.Done++
			}
		}
	}
	return v
}
