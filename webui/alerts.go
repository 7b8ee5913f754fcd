package webui

import (
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"

	"moult/consensus/fleet"
)

// alertJSON is an alert as the API shows it.
type alertJSON struct {
	ID             string            `json:"id"`
	Kind           string            `json:"kind"`
	HostID         string            `json:"host_id"`
	FleetUpdateID  string            `json:"fleet_update_id"`
	Message        string            `json:"message"`
	Status         fleet.AlertStatus `json:"status"`
	OpenedAt       time.Time         `json:"opened_at"`
	ResolvedAt     *time.Time        `json:"resolved_at"`
	AcknowledgedBy string            `json:"acknowledged_by"` // "" unless it was closed by hand
}

func showAlert(a fleet.Alert) alertJSON {
	return alertJSON{
		ID: a.ID, Kind: a.Kind, HostID: a.HostID, FleetUpdateID: a.FleetUpdateID, Message: a.Message,
		Status: a.Status, OpenedAt: a.OpenedAt, ResolvedAt: a.ResolvedAt, AcknowledgedBy: a.AcknowledgedBy,
	}
}

func (u *ui) listAlerts(w http.ResponseWriter, _ *http.Request) error {
	all := []alertJSON{}
	for _, a := range u.View().Alerts() {
		all = append(all, showAlert(a))
	}
	return ok(w, map[string]any{"alerts": all})
}

func (u *ui) acknowledgeAlert(w http.ResponseWriter, r *http.Request) error {
	if err := noBody(w, r); err != nil {
		return err
	}
	id := chi.URLParam(r, "id")
	if err := u.propose(r, fleet.AlertAcknowledged{AlertID: id}); err != nil {
		return err
	}
	a, _ := u.View().Alert(id)
	return ok(w, showAlert(a))
}
