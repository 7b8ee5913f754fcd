package webui

import (
	"fmt"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"

	"moult/consensus/fleet"
)

// fleetUpdateJSON is a fleet update as the API shows it.
type fleetUpdateJSON struct {
	ID            string                  `json:"id"`
	TargetVersion string                  `json:"target_version"`
	Status        fleet.FleetUpdateStatus `json:"status"`
	CurrentHostID string                  `json:"current_host_id"` // "" between hosts
	HaltedReason  string                  `json:"halted_reason"`
	StartedAt     time.Time               `json:"started_at"`
	StartedBy     string                  `json:"started_by"`
	CompletedAt   *time.Time              `json:"completed_at"`
	Hosts         []turnJSON              `json:"hosts"`
}

// turnJSON is one host's turn. FailedReason also tells why it was skipped.
type turnJSON struct {
	HostID       string                      `json:"host_id"`
	Name         string                      `json:"name"`
	Position     int                         `json:"position"`
	Status       fleet.FleetUpdateHostStatus `json:"status"`
	JobID        string                      `json:"job_id"`
	FailedReason string                      `json:"failed_reason"`
}

func showFleetUpdate(f fleet.FleetUpdate) fleetUpdateJSON {
	out := fleetUpdateJSON{
		ID: f.ID, TargetVersion: f.TargetVersion, Status: f.Status, CurrentHostID: f.CurrentHostID,
		HaltedReason: f.HaltedReason, StartedAt: f.StartedAt, StartedBy: f.StartedBy, CompletedAt: f.CompletedAt,
		Hosts: make([]turnJSON, 0, len(f.Hosts)),
	}
	for _, t := range f.Hosts {
		out.Hosts = append(out.Hosts, turnJSON(t))
	}
	return out
}

func (u *ui) listFleetUpdates(w http.ResponseWriter, _ *http.Request) error {
	all := []fleetUpdateJSON{}
	for _, f := range u.View().FleetUpdates() {
		all = append(all, showFleetUpdate(f))
	}
	return ok(w, map[string]any{"fleet_updates": all})
}

func (u *ui) getFleetUpdate(w http.ResponseWriter, r *http.Request) error {
	id := chi.URLParam(r, "id")
	f, exists := u.View().FleetUpdate(id)
	if !exists {
		return refuse(fleet.CodeFleetUpdateNotFound, "no fleet update has the id "+quoted(id)+"; GET /api/fleet-updates lists them")
	}
	return ok(w, showFleetUpdate(f))
}

// startFleetUpdate chooses the hosts, in order, and starts. Without host_ids
// they are those of the plan; with host_ids those, as they are named. With
// expect_hosts it starts only if they are as many as somebody confirmed.
func (u *ui) startFleetUpdate(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		TargetVersion string    `json:"target_version"`
		HostIDs       *[]string `json:"host_ids"`
		ExpectHosts   *int      `json:"expect_hosts"`
	}
	if err := decode(w, r, &in); err != nil {
		return err
	}
	p := u.picture()
	if err := p.refuseSecond(); err != nil {
		return err
	}
	if in.HostIDs == nil { // a host that was named gets its turn, heard of or not
		var err error
		if p, err = u.awaitHeard(r, ""); err != nil {
			return err
		}
	}
	target := p.target
	if in.TargetVersion != "" {
		if err := p.requireRelease(in.TargetVersion); err != nil {
			return err
		}
		target = in.TargetVersion
	}
	hosts, err := p.chooseHosts(target, in.HostIDs)
	if err != nil {
		return err
	}
	if err := p.requireRelease(target); err != nil {
		return err
	}
	if in.ExpectHosts != nil && *in.ExpectHosts != len(hosts) {
		return refuse(codeHostsChanged, fmt.Sprintf("%d was confirmed, and %s would be updated now; look at the list again", *in.ExpectHosts, count(len(hosts), "host")))
	}
	return u.start(w, r, target, hosts)
}

// changeFleetUpdate proposes a change of one fleet update, and answers with it.
func (u *ui) changeFleetUpdate(w http.ResponseWriter, r *http.Request, change func(id string) fleet.Change) error {
	if err := noBody(w, r); err != nil {
		return err
	}
	if err := u.propose(r, change(chi.URLParam(r, "id"))); err != nil {
		return err
	}
	return u.getFleetUpdate(w, r)
}

func (u *ui) cancelFleetUpdate(w http.ResponseWriter, r *http.Request) error {
	return u.changeFleetUpdate(w, r, func(id string) fleet.Change { return fleet.FleetUpdateCancelled{ID: id} })
}

func (u *ui) pauseFleetUpdate(w http.ResponseWriter, r *http.Request) error {
	return u.changeFleetUpdate(w, r, func(id string) fleet.Change { return fleet.FleetUpdatePaused{ID: id} })
}

func (u *ui) resumeFleetUpdate(w http.ResponseWriter, r *http.Request) error {
	return u.changeFleetUpdate(w, r, func(id string) fleet.Change { return fleet.FleetUpdateResumed{ID: id} })
}
