package webui

import (
	"net/http"
	"time"

	"moult/consensus/fleet"
)

// dashboardView is what the dashboard shows. The live part of it is rendered
// alone, too, for the script that keeps the page up to date.
type dashboardView struct {
	Now      time.Time
	Version  string
	Caller   caller
	Filter   hostFilter
	Segments []string
	Counts   hostCounts
	Total    int
	Target   string
	Hosts    []hostJSON
	Update   *updateView // active, or the last one
	Alerts   []fleet.Alert
	CanStart bool // an admin, nothing active, and something to do
	Startup  int  // how many hosts a fleet update would have
}

// updateView is a fleet update on the dashboard.
type updateView struct {
	fleetUpdateJSON
	Active, CanCancel, CanPause bool
	Done                        int
	Progress                    map[string]*progressJSON // by host id
	Phases                      map[string]string        // by host id
}

func (u *ui) dashboard(w http.ResponseWriter, r *http.Request) error {
	v, err := u.dashboardView(r)
	if err != nil {
		return err
	}
	return u.pages.page(w, http.StatusOK, "dashboard.html", v)
}

func (u *ui) liveFragment(w http.ResponseWriter, r *http.Request) error {
	v, err := u.dashboardView(r)
	if err != nil {
		return err
	}
	return u.pages.page(w, http.StatusOK, "live", v)
}

func (u *ui) dashboardView(r *http.Request) (dashboardView, error) {
	f, err := readHostFilter(r)
	if err != nil {
		return dashboardView{}, err
	}
	p, who := u.picture(), callerOf(r)
	v := dashboardView{
		Now: u.Now(), Version: u.Version, Caller: who, Filter: f, Target: p.target,
		Counts: p.counts(), Hosts: p.filtered(f), Alerts: p.OpenAlerts(),
	}
	seen := map[string]bool{}
	for _, h := range p.agents() {
		v.Total++
		if !seen[h.Segment] {
			seen[h.Segment] = true
			v.Segments = append(v.Segments, h.Segment)
		}
	}
	if updates := p.FleetUpdates(); len(updates) > 0 {
		v.Update = p.updateView(updates[0], who)
	}
	if who.Role.Includes(fleet.Admin) && (v.Update == nil || !v.Update.Active) && p.requireRelease(p.target) == nil {
		if hosts, err := p.chooseHosts(p.target, nil); err == nil {
			v.CanStart, v.Startup = true, len(hosts)
		}
	}
	return v, nil
}

func (p picture) updateView(f fleet.FleetUpdate, who caller) *updateView {
	active := f.Status.Active()
	v := &updateView{
		fleetUpdateJSON: showFleetUpdate(f), Active: active,
		CanCancel: active && who.Role.Includes(fleet.Admin),
		CanPause:  active && who.Role.Includes(fleet.Operator),
		Progress:  map[string]*progressJSON{}, Phases: map[string]string{},
	}
	for _, t := range f.Hosts {
		switch t.Status {
		case fleet.TurnPending:
		case fleet.TurnRunning:
			o := p.observed[t.HostID]
			v.Phases[t.HostID] = o.Phase
			if o.Total > 0 {
				v.Progress[t.HostID] = &progressJSON{Done: o.Done, Total: o.Total}
			}
		default:
			v.Done++
		}
	}
	return v
}
