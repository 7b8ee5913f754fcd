package webui

import (
	"net/http"

	"github.com/go-chi/chi/v5"

	"moult/consensus/fleet"
)

// jobView is what a job's page shows.
type jobView struct {
	shell
	Job     jobJSON
	Host    bool // whether the host still belongs to the fleet
	Phase   string
	Fetched *progressJSON
	Log     logPart
}

// logPart is a stretch of a job's log and where it goes on.
type logPart struct {
	JobID string
	Lines []fleet.LogLine
	After uint64 // the seq of the last line that is shown
	More  bool   // there are further lines already
}

func (p picture) logPart(jobID string, after uint64) logPart {
	part := logPart{JobID: jobID, After: after, Lines: p.JobLog(jobID, after, maxLogLines)}
	if n := len(part.Lines); n > 0 {
		part.After, part.More = part.Lines[n-1].Seq, n == maxLogLines
	}
	return part
}

func (u *ui) jobPage(w http.ResponseWriter, r *http.Request) error {
	p := u.picture()
	j, err := findJob(p.View, chi.URLParam(r, "id"))
	if err != nil {
		return err
	}
	v := &jobView{Job: showJob(j)}
	v.Title = "Update of " + j.HostName + " to " + j.TargetVersion
	_, v.Host = p.Host(j.HostID)
	if o := p.observed[j.HostID]; j.Status == fleet.JobRunning && o.JobID == j.ID {
		v.Phase = o.Phase
		if o.Total > 0 {
			v.Fetched = &progressJSON{Done: o.Done, Total: o.Total}
		}
	}
	if !wantsFragment(r) {
		v.Log = p.logPart(j.ID, 0)
	}
	return u.show(w, r, pageKind{name: "job", topics: "hosts job:" + j.ID}, v)
}

// jobLogLines serves the lines of a log behind those that a page shows.
func (u *ui) jobLogLines(w http.ResponseWriter, r *http.Request) error {
	after, err := queryUint(r, "after", 0)
	if err != nil {
		return err
	}
	p := u.picture()
	j, err := findJob(p.View, chi.URLParam(r, "id"))
	if err != nil {
		return err
	}
	return u.pages.write(w, http.StatusOK, "job", "lines", p.logPart(j.ID, after))
}
