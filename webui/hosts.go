package webui

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/google/uuid"

	"moult/consensus/fleet"
)

// quoted quotes what a person typed, cut to a length that fits into a message.
func quoted(s string) string {
	const limit = 80
	if len(s) > limit {
		s = s[:limit] + "…"
	}
	return strconv.Quote(s)
}

func (u *ui) getHost(w http.ResponseWriter, r *http.Request) error {
	p := u.picture()
	h, err := p.agent(chi.URLParam(r, "id"))
	if err != nil {
		return err
	}
	return ok(w, p.host(h))
}

func (u *ui) removeHost(w http.ResponseWriter, r *http.Request) error {
	if err := noBody(w, r); err != nil {
		return err
	}
	h, err := u.picture().agent(chi.URLParam(r, "id"))
	if err != nil {
		return err
	}
	change, err := u.denial(*h)
	if err != nil {
		return err
	}
	out := removalJSON{Denied: true, Until: &change.Until, Rotating: h.Segments(), HostsBehind: []string{}}
	err = u.propose(r, change)
	if tooNew(err) {
		out = removalJSON{Rotating: []string{}, HostsBehind: []string{}}
		err = u.propose(r, fleet.HostRemoved{HostID: h.ID})
	}
	if err != nil {
		return err
	}
	if out.Denied {
		out.HostsBehind = list(u.Trust.DeniedBehind())
	}
	return ok(w, out)
}

// removalJSON is what a removal has brought about, and what is pending.
type removalJSON struct {
	// Denied: its certificate is on the deny-list, until then. Not so while a server
	// of an older version is in the group; servers refuse the host all the same.
	Denied      bool       `json:"denied"`
	Until       *time.Time `json:"until"`
	Rotating    []string   `json:"rotating"`     // segments whose gossip keys change
	HostsBehind []string   `json:"hosts_behind"` // online hosts that have not said that they know
}

// denial is the change that shuts a host out.
func (u *ui) denial(h fleet.Host) (fleet.HostDenied, error) {
	keys, err := u.Trust.NewKeys(h.Segments())
	return fleet.HostDenied{HostID: h.ID, Until: u.Trust.Until(), GossipKeys: keys}, err
}

// tooNew tells whether an older server does not know a change.
func tooNew(err error) bool {
	var refused *fleet.Error
	return errors.As(err, &refused) && refused.Code == fleet.CodeUnknownChange
}

// refuseUpdate tells why a host cannot be updated now; nil if it can. The order
// of the checks is part of the contract: a host that is offline and up to date is
// reported as offline.
func (p picture) refuseUpdate(h *fleet.Host, target string) error {
	switch {
	case h.Quarantine != nil:
		return refuse(fleet.CodeHostQuarantined, h.Name+" is in quarantine: "+h.Quarantine.Why)
	case p.inProgress[h.ID]:
		return refuse(fleet.CodeUpdateInProgress, h.Name+" is being updated, or waits for its turn in the running fleet update; wait for the end of that")
	case p.status(h) == statusUnreachable:
		return refuse(codeHostOffline, h.Name+" is "+p.whyUnreachable(h, p.relays())+"; start one, or look at the way there")
	case !p.observed[h.ID].Online:
		return refuse(codeHostOffline, h.Name+" is offline; start it, or look at its agent's log")
	case !p.behind(h.ID, target):
		return refuse(codeUpToDate, h.Name+" runs "+target+" already")
	}
	return p.requireRelease(target)
}

// updateHost queues a job for one host.
func (u *ui) updateHost(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		TargetVersion string `json:"target_version"`
	}
	if err := decode(w, r, &in); err != nil {
		return err
	}
	p, err := u.awaitHeard(r, chi.URLParam(r, "id"))
	if err != nil {
		return err
	}
	h, err := p.agent(chi.URLParam(r, "id"))
	if err != nil {
		return err
	}
	target := p.target
	if in.TargetVersion != "" {
		target = in.TargetVersion
	}
	if err := p.refuseUpdate(h, target); err != nil {
		return err
	}
	job := fleet.JobCreated{JobID: uuid.NewString(), HostID: h.ID, TargetVersion: target}
	if err := u.propose(r, job); err != nil {
		return err
	}
	return ok(w, map[string]string{"job_id": job.JobID})
}
