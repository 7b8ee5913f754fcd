package webui

import (
	"net/http"

	"github.com/go-chi/chi/v5"

	"moult/consensus/fleet"
)

var hostPage = pageKind{name: "host", topics: "hosts jobs fleet-updates releases"}

// maxHostJobs is how many of its jobs a host's page lists.
const maxHostJobs = 50

// hostView is what a host's page shows.
type hostView struct {
	shell
	Host    hostJSON
	Decided fleet.Host
	Digest  string // of the running binary; "" until it was seen
	Left    bool

	Unreachable string    // why it is, if it is
	Open        *jobJSON  // the job under way
	Jobs        []jobJSON // the newest first
	Older       int       // jobs that are not listed
	Binary      *jobJSON  // the job that brought the running binary
	Refused     string    // why the host cannot be updated now
}

func (u *ui) hostPage(w http.ResponseWriter, r *http.Request) error {
	p := u.picture()
	if s, exists := p.Host(chi.URLParam(r, "id")); exists && s.Role == fleet.RoleServer {
		http.Redirect(w, r, "/settings/servers", http.StatusSeeOther) // servers have one page together
		return nil
	}
	h, err := p.agent(chi.URLParam(r, "id"))
	if err != nil {
		return refuse(fleet.CodeHostNotFound, "no host of the fleet is at this address; it may have been removed since")
	}
	o := p.observed[h.ID]
	v := &hostView{Host: p.host(h), Decided: *h, Digest: o.Digest, Left: o.Left}
	v.Title = h.Name
	if v.Host.Status == statusUnreachable {
		v.Unreachable = p.whyUnreachable(h, p.relays())
	}
	for i, j := range p.Jobs(h.ID) {
		job := showJob(j)
		if v.Open == nil && !j.Status.Done() {
			v.Open = &job
		}
		if v.Binary == nil && j.Status == fleet.JobSucceeded && j.TargetVersion == o.Version {
			v.Binary = &job
		}
		if i < maxHostJobs {
			v.Jobs = append(v.Jobs, job)
		} else {
			v.Older++
		}
	}
	if err := p.refuseUpdate(h, p.target); err != nil {
		v.Refused = err.Error()
	}
	return u.show(w, r, hostPage, v)
}
