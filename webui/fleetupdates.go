package webui

import (
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/google/uuid"

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
// they are the agents that are online and behind, by name; with host_ids those,
// as they are named.
func (u *ui) startFleetUpdate(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		TargetVersion string    `json:"target_version"`
		HostIDs       *[]string `json:"host_ids"`
	}
	if err := decode(w, r, &in); err != nil {
		return err
	}
	p := u.picture()
	if active, exists := p.ActiveFleetUpdate(); exists {
		return refuse(fleet.CodeFleetUpdateRunning, "a fleet update to "+active.TargetVersion+" is "+string(active.Status)+
			", started by "+active.StartedBy+" at "+active.StartedAt.UTC().Format("15:04:05 MST")+"; wait for its end or cancel it")
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
	start := fleet.FleetUpdateStarted{ID: uuid.NewString(), TargetVersion: target, HostIDs: hosts}
	if err := u.propose(r, start); err != nil {
		return err
	}
	return ok(w, map[string]string{"fleet_update_id": start.ID})
}

// chooseHosts returns the ids of the hosts to update, in order.
func (p picture) chooseHosts(target string, named *[]string) ([]string, error) {
	var chosen []string
	work := false // whether any of them has something to do
	if named == nil {
		for _, h := range p.agents() {
			if p.observed[h.ID].Online && p.behind(h.ID, target) {
				chosen, work = append(chosen, h.ID), true
			}
		}
	} else {
		seen := map[string]bool{}
		for _, id := range *named {
			h, err := p.agent(id)
			if err != nil {
				return nil, err
			}
			if seen[id] {
				return nil, badRequest("host_ids: %s is named twice", h.Name)
			}
			seen[id] = true
			// A host never seen may run anything: its turn will tell.
			work = work || p.observed[id].Version != target
			chosen = append(chosen, id)
		}
	}
	if !work {
		return nil, refuse(fleet.CodeNothingToUpdate, "there is nothing to update to "+target+"; GET /api/hosts shows what the hosts run")
	}
	return chosen, nil
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
