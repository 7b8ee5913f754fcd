package webui

import (
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"

	"moult/consensus/fleet"
)

// maxLogLines is how many lines of a job's log one answer holds; ask again with
// after set to the last seq until there are none.
const maxLogLines = 1000

// jobJSON is a job as the API shows it.
type jobJSON struct {
	ID            string          `json:"id"`
	HostID        string          `json:"host_id"`
	HostName      string          `json:"host_name"`
	FleetUpdateID string          `json:"fleet_update_id"` // "" when it is not part of one
	Kind          string          `json:"kind"`
	Status        fleet.JobStatus `json:"status"`
	TargetVersion string          `json:"target_version"`
	FromVersion   string          `json:"from_version"`
	Attempt       int             `json:"attempt"`
	Actor         string          `json:"actor"`
	CreatedAt     time.Time       `json:"created_at"`
	StartedAt     *time.Time      `json:"started_at"`
	FinishedAt    *time.Time      `json:"finished_at"`
	Error         string          `json:"error"`
	Sources       []fleet.Source  `json:"sources"`
}

func showJob(j fleet.Job) jobJSON {
	return jobJSON{
		ID: j.ID, HostID: j.HostID, HostName: j.HostName, FleetUpdateID: j.FleetUpdateID, Kind: j.Kind, Status: j.Status,
		TargetVersion: j.TargetVersion, FromVersion: j.FromVersion, Attempt: j.Attempt, Actor: j.Actor,
		CreatedAt: j.CreatedAt, StartedAt: j.StartedAt, FinishedAt: j.FinishedAt, Error: j.Error, Sources: list(j.Sources),
	}
}

// list makes a missing list an empty one, which JSON tells from null.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func findJob(v fleet.View, id string) (fleet.Job, error) {
	j, exists := v.Job(id)
	if !exists {
		return j, refuse(fleet.CodeJobNotFound, "no job has the id "+quoted(id)+"; the fleet update or the host that it belongs to names it")
	}
	return j, nil
}

func (u *ui) getJob(w http.ResponseWriter, r *http.Request) error {
	j, err := findJob(u.View(), chi.URLParam(r, "id"))
	if err != nil {
		return err
	}
	return ok(w, showJob(j))
}

func (u *ui) getJobLog(w http.ResponseWriter, r *http.Request) error {
	after, err := queryUint(r, "after", 0)
	if err != nil {
		return err
	}
	v := u.View()
	j, err := findJob(v, chi.URLParam(r, "id"))
	if err != nil {
		return err
	}
	lines := []fleet.LogLine{}
	if after < ^uint64(0) {
		lines = list(v.JobLog(j.ID, after, maxLogLines))
	}
	return ok(w, map[string]any{"lines": lines})
}
