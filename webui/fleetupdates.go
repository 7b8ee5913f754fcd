package webui

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
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
	// WaitingFor is why the next turn does not begin; "" where none waits.
	WaitingFor string `json:"waiting_for"`
}

// turnJSON is one host's turn. FailedReason also tells why it was skipped.
type turnJSON struct {
	HostID       string                      `json:"host_id"`
	Name         string                      `json:"name"`
	Position     int                         `json:"position"`
	Status       fleet.FleetUpdateHostStatus `json:"status"`
	JobID        string                      `json:"job_id"`
	FailedReason string                      `json:"failed_reason"`
	Role         fleet.HostRole              `json:"role"`   // "" of a host that was removed
	Phase        string                      `json:"phase"`  // of a host whose turn it is
	Staged       bool                        `json:"staged"` // it waits for its turn, and has the artifact
	// Staging is how far a host is that waits for its turn and does not have it yet.
	Staging *stagingJSON `json:"staging,omitempty"`
}

func (p picture) fleetUpdate(f fleet.FleetUpdate) fleetUpdateJSON {
	out := fleetUpdateJSON{
		ID: f.ID, TargetVersion: f.TargetVersion, Status: f.Status, CurrentHostID: f.CurrentHostID,
		HaltedReason: f.HaltedReason, StartedAt: f.StartedAt, StartedBy: f.StartedBy, CompletedAt: f.CompletedAt,
		Hosts: make([]turnJSON, 0, f.Hosts.Len()),
	}
	rel, _ := p.Release(f.TargetVersion)
	for _, t := range f.Hosts.All() {
		turn := turnJSON{
			HostID: t.HostID, Name: t.Name, Position: t.Position, Status: t.Status, JobID: t.JobID, FailedReason: t.FailedReason,
		}
		if h := p.enrolled[t.HostID]; h != nil {
			turn.Role = h.Role
			a, fits := rel.Artifact(h.OS, h.Arch)
			if fits && t.Status == fleet.TurnPending {
				turn.Staged, turn.Staging = p.observed[t.HostID].staged(a.SHA256)
			}
		}
		if t.Status == fleet.TurnRunning {
			turn.Phase = p.observed[t.HostID].Phase
		}
		out.Hosts = append(out.Hosts, turn)
	}
	return out
}

// waitingFor tells why the next turn of a fleet update does not begin: the same reason
// that the leader has.
func (u *ui) waitingFor(ctx context.Context, p picture, f fleet.FleetUpdate) string {
	if f.Status != fleet.FleetRunning || f.CurrentHostID != "" {
		return ""
	}
	if why := p.stagesFirst(f); why != "" || !f.Servers {
		return why
	}
	var next []fleet.Host
	for _, t := range f.Hosts.All() {
		if t.Status != fleet.TurnPending {
			continue
		}
		h, exists := p.Host(t.HostID)
		if exists && h.Role != fleet.RoleServer {
			return "" // agents come first
		}
		if exists {
			next = append(next, h)
		}
	}
	if len(next) == 0 {
		return ""
	}
	servers := u.serversIf(ctx, true)
	h := slices.MinFunc(next, func(a, b fleet.Host) int { return cmp.Compare(rankOf(servers, a.ID), rankOf(servers, b.ID)) })
	return fleet.HoldsUpRestart(GroupOf(servers), h.ID, h.Name)
}

// stagesFirst tells that the first turn of a fleet update waits for its host to have
// the release; "" when it does not.
func (p picture) stagesFirst(f fleet.FleetUpdate) string {
	for _, t := range f.Hosts.All() {
		if t.Status == fleet.TurnSkipped {
			continue
		}
		h, exists := p.Host(t.HostID)
		rel, _ := p.Release(f.TargetVersion)
		a, fits := rel.Artifact(h.OS, h.Arch)
		o := p.observed[t.HostID]
		if t.Status != fleet.TurnPending || !exists || !fits || !o.Online || h.Role == fleet.RoleServer {
			return ""
		}
		if _, s := o.staged(a.SHA256); s != nil && s.State != "failed" {
			return fmt.Sprintf("%s is to have the release first: %s", t.Name, s)
		}
		return ""
	}
	return ""
}

// fullFleetUpdate is fleetUpdate with what the servers have to be asked for.
func (u *ui) fullFleetUpdate(ctx context.Context, p picture, f fleet.FleetUpdate) fleetUpdateJSON {
	out := p.fleetUpdate(f)
	out.WaitingFor = u.waitingFor(ctx, p, f)
	return out
}

func (u *ui) listFleetUpdates(w http.ResponseWriter, r *http.Request) error {
	all := []fleetUpdateJSON{}
	p := u.picture()
	for _, f := range p.FleetUpdates() {
		all = append(all, u.fullFleetUpdate(r.Context(), p, f))
	}
	return ok(w, map[string]any{"fleet_updates": all})
}

func (u *ui) getFleetUpdate(w http.ResponseWriter, r *http.Request) error {
	id := chi.URLParam(r, "id")
	p := u.picture()
	f, exists := p.FleetUpdate(id)
	if !exists {
		return refuse(fleet.CodeFleetUpdateNotFound, "no fleet update has the id "+quoted(id)+"; GET /api/fleet-updates lists them")
	}
	return ok(w, u.fullFleetUpdate(r.Context(), p, f))
}

// startFleetUpdate chooses the hosts, in order, and starts. Without host_ids
// they are those of the plan; with host_ids those, as they are named. Servers are
// among them only with servers, and come last. With expect_hosts it starts only if they are as many as somebody confirmed.
func (u *ui) startFleetUpdate(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		TargetVersion string    `json:"target_version"`
		HostIDs       *[]string `json:"host_ids"`
		ExpectHosts   *int      `json:"expect_hosts"`
		Servers       bool      `json:"servers"`
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
	hosts, err := p.chooseHosts(target, in.HostIDs, u.serversIf(r.Context(), in.Servers))
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
