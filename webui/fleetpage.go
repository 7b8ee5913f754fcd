package webui

import (
	"net/http"
	"net/url"

	"moult/consensus/fleet"
)

var fleetPage = pageKind{name: "fleet", title: "Fleet update", topics: "hosts jobs fleet-updates releases"}

// Rows of the fleet update page.
const (
	turnsPerPage   = 100
	maxPlanRows    = 100 // hosts to update, and hosts that are left out
	maxHistoryRows = 20
)

// fleetView is what the fleet update page shows: one fleet update, what a new one
// would do, and those of the past.
type fleetView struct {
	shell
	Shown        *updateView
	Turns        []turnRow // of the page that is shown
	Pages        paging
	Failed       *fleet.FleetUpdateHost // whose failure halted it
	FailedNow    hostJSON               // how that host is now
	FailedServer bool                   // it is a server
	Left         int                    // hosts that a retry would have
	LeftNot      int                    // hosts that did not get there and that a retry leaves out
	Asked        bool                   // for this one, by its id
	Plan         *planView              // nil while one is active, or where another is shown
	History      []historyRow
	Older        int
}

// turnRow is one host's turn with what is observed of it.
type turnRow struct {
	fleet.FleetUpdateHost
	Known   bool // it still belongs to the fleet
	Phase   string
	Staged  bool         // its turn is to come, and it has the artifact
	Staging *stagingJSON // or how far it is with it
	Fetched *progressJSON
}

// planView is what a fleet update that starts now would do.
type planView struct {
	Target    string
	NoRelease bool // none is available, so none can start
	Total     int
	Hosts     []hostJSON // the first ones, in order
	LeftOut   []leftOut  // the first ones
	More      int        // hosts left out that are not listed
	UpToDate  int
	Warnings  []string
	Servers   bool            // they take part
	IsServer  map[string]bool // by host id
	Behind    int             // servers that are behind, whether they take part or not
	Staging   *releaseStagingJSON
}

// historyRow is a fleet update of the past.
type historyRow struct {
	fleet.FleetUpdate
	Done, Failed, Total int // turns
}

func (u *ui) fleetPage(w http.ResponseWriter, r *http.Request) error {
	p := u.picture()
	v := &fleetView{}
	updates := p.FleetUpdates()
	shown, err := v.choose(p, r.URL.Query().Get("id"), updates)
	if err != nil {
		return err
	}
	if shown != nil {
		if err := v.show(u, p, *shown, r); err != nil {
			return err
		}
	}
	if _, active := p.ActiveFleetUpdate(); !active && !v.Asked {
		with, err := queryBool(r, "servers")
		if err != nil {
			return err
		}
		v.Plan = p.planView(u.serversIf(r.Context(), with))
	}
	for i, f := range updates {
		if i == maxHistoryRows {
			v.Older = len(updates) - i
			break
		}
		if !f.Status.Active() {
			u := p.updateView(f)
			v.History = append(v.History, historyRow{f, u.Done, u.Failed, f.Hosts.Len()})
		}
	}
	return u.show(w, r, fleetPage, v)
}

// choose picks the fleet update to show: the one asked for, else the active one,
// else the newest if something went wrong with it.
func (v *fleetView) choose(p picture, id string, updates []fleet.FleetUpdate) (*fleet.FleetUpdate, error) {
	if id != "" {
		f, exists := p.FleetUpdate(id)
		if !exists {
			return nil, refuse(fleet.CodeFleetUpdateNotFound, "no fleet update has the id "+quoted(id))
		}
		v.Asked = true
		return &f, nil
	}
	if f, active := p.ActiveFleetUpdate(); active {
		return &f, nil
	}
	if len(updates) > 0 && updates[0].Status == fleet.FleetHalted {
		return &updates[0], nil
	}
	return nil, nil
}

func (v *fleetView) show(u *ui, p picture, f fleet.FleetUpdate, r *http.Request) error {
	v.Shown = p.updateView(f)
	v.Shown.WaitingFor = u.waitingFor(r.Context(), p, f)
	first := 0 // the first turn that has not ended
	for first < f.Hosts.Len() && f.Hosts.At(first).Status != fleet.TurnPending && f.Hosts.At(first).Status != fleet.TurnRunning {
		first++
	}
	fallback := 1
	if f.Status.Active() {
		fallback = min(first, f.Hosts.Len()-1)/turnsPerPage + 1
	}
	page, err := readPage(r, fallback)
	if err != nil {
		return err
	}
	query := url.Values{}
	if v.Asked {
		query.Set("id", f.ID)
	}
	v.Pages = paginate(f.Hosts.Len(), turnsPerPage, page, "/settings/fleet-update", query)
	for i := v.Pages.fromIndex; i < v.Pages.toIndex; i++ {
		t, shown := f.Hosts.At(i), v.Shown.Hosts[i]
		row := turnRow{FleetUpdateHost: t, Staged: shown.Staged, Staging: shown.Staging}
		_, row.Known = p.Host(t.HostID)
		if o := p.observed[t.HostID]; t.Status == fleet.TurnRunning {
			row.Phase, row.Fetched = o.Phase, v.Shown.Fetched
		}
		v.Turns = append(v.Turns, row)
	}
	for _, t := range f.Hosts.All() {
		if t.Status == fleet.TurnFailed {
			v.Failed = &t
			if h := p.enrolled[t.HostID]; h != nil {
				v.FailedServer = h.Role == fleet.RoleServer
				v.FailedNow = p.host(h)
			}
		}
	}
	if !f.Status.Active() && f.TargetVersion == p.target {
		left, behind := p.leftOf(f)
		v.Left, v.LeftNot = len(left), behind-len(left)
	}
	return nil
}

func (p picture) planView(servers []ServerStatus) *planView {
	chosen, left, upToDate := p.planWith(p.target, servers)
	v := &planView{Target: p.target, Total: len(chosen), UpToDate: upToDate, Servers: len(servers) > 0}
	_, hosts := p.hosts.lists(p.View)
	behind, _, _ := p.sift(hosts, p.target)
	v.Behind, v.IsServer = len(behind), map[string]bool{}
	for _, h := range hosts {
		v.IsServer[h.ID] = true
	}
	if p.requireRelease(p.target) != nil {
		v.NoRelease = true
		return v
	}
	v.Staging = p.releaseStaging(p.newest)
	v.Hosts = p.rows(chosen[:min(len(chosen), maxPlanRows)])
	v.LeftOut = left[:min(len(left), maxPlanRows)]
	v.More = len(left) - len(v.LeftOut)
	v.Warnings = append(p.warnings(chosen), p.serverWarnings(chosen, servers)...)
	return v
}
