package webui

import (
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/go-chi/chi/v5"

	"moult/consensus/fleet"
)

// rotationJSON is a segment's gossip keys as the API shows them: never a key.
type rotationJSON struct {
	Segment     string         `json:"segment"`
	Stage       string         `json:"stage"`    // "": they are not being changed; installing, using
	Revision    uint64         `json:"revision"` // rises with each stage; 0: they never changed
	Done        int            `json:"done"`     // rotations that came to their end
	Reason      string         `json:"reason"`
	StartedAt   *time.Time     `json:"started_at"`
	StartedBy   string         `json:"started_by"`
	CompletedAt *time.Time     `json:"completed_at"`
	Hosts       int            `json:"hosts"`
	Confirmed   int            `json:"confirmed"` // online, and have the keys of this stage
	Pending     []RotationHost `json:"pending"`   // the next stage waits for them
	Offline     []string       `json:"offline"`   // get the keys when they come back
}

func showRotation(r Rotation) rotationJSON {
	out := rotationJSON{
		Segment: r.Ring.Segment, Stage: string(r.Ring.Stage), Revision: r.Ring.Revision, Done: r.Ring.Done, Reason: r.Ring.Reason,
		StartedBy: r.Ring.StartedBy, CompletedAt: r.Ring.CompletedAt,
		Hosts: r.Hosts, Confirmed: r.Confirmed, Pending: list(r.Pending), Offline: list(r.Offline),
	}
	if !r.Ring.StartedAt.IsZero() {
		out.StartedAt = &r.Ring.StartedAt
	}
	return out
}

type gossipJSON struct {
	Segments []rotationJSON `json:"segments"`
}

func (u *ui) gossip() gossipJSON {
	out := gossipJSON{Segments: []rotationJSON{}}
	for _, r := range u.Trust.Rotations() {
		out.Segments = append(out.Segments, showRotation(r))
	}
	return out
}

func (u *ui) listGossip(w http.ResponseWriter, _ *http.Request) error { return ok(w, u.gossip()) }

// rotateGossip begins to change the gossip keys of segments, of all when it names
// none. Where fewer than half of a segment's hosts are online it wants force: those
// that are off have to reach a server to get back in.
func (u *ui) rotateGossip(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Segments []string `json:"segments"`
		Reason   string   `json:"reason"`
		Force    bool     `json:"force"`
	}
	if err := decode(w, r, &in); err != nil {
		return err
	}
	if len(in.Reason) > fleet.MaxDetailBytes {
		return badRequest("reason: it is %d bytes; give at most %d", len(in.Reason), fleet.MaxDetailBytes)
	}
	states := u.Trust.Rotations()
	var names []string
	for _, s := range states {
		if len(in.Segments) == 0 && s.Ring.Stage == fleet.RotationNone {
			names = append(names, s.Ring.Segment)
		}
	}
	for _, name := range in.Segments {
		if !slices.ContainsFunc(states, func(s Rotation) bool { return s.Ring.Segment == name }) {
			return badRequest("segments: no host is in segment %s; GET /api/gossip lists them", quoted(name))
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return refuse(fleet.CodeRotationRunning, "the gossip keys of all segments are being changed already; watch it with: moult gossip status")
	}
	for _, s := range states {
		if slices.Contains(names, s.Ring.Segment) && 2*s.Online < s.Hosts && !in.Force {
			return refuse(codeHostOffline, fmt.Sprintf("only %d of the %d hosts in segment %s are online; the others get back in by asking a server or a relay; wait for them, or force it", s.Online, s.Hosts, s.Ring.Segment))
		}
	}
	keys, err := u.Trust.NewKeys(names)
	if err != nil {
		return err
	}
	if err := u.propose(r, fleet.GossipRotationBegun{Keys: keys, Reason: in.Reason}); err != nil {
		return err
	}
	return ok(w, u.gossip())
}

// forceGossip goes on to the next stage without the hosts that it waits for, whose
// number the caller must know.
func (u *ui) forceGossip(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		ExpectPending *int `json:"expect_pending"`
	}
	if err := decode(w, r, &in); err != nil {
		return err
	}
	if in.ExpectPending == nil {
		return badRequest("expect_pending: it is missing; give how many hosts are pending, as GET /api/gossip says")
	}
	segment := chi.URLParam(r, "segment")
	for _, s := range u.Trust.Rotations() {
		if s.Ring.Segment != segment {
			continue
		}
		if s.Ring.Stage == fleet.RotationNone {
			break
		}
		if len(s.Pending) != *in.ExpectPending {
			return refuse(codeHostsChanged, fmt.Sprintf("%d hosts are pending by now, not %d; look at them with: moult gossip status", len(s.Pending), *in.ExpectPending))
		}
		c := fleet.GossipRotationAdvanced{Segment: segment, Revision: s.Ring.Revision, Forced: true}
		for _, h := range s.Pending {
			c.Missing = append(c.Missing, h.Name)
		}
		if err := u.propose(r, c); err != nil {
			return err
		}
		return ok(w, u.gossip())
	}
	return refuse(fleet.CodeNotRunning, "the gossip keys of segment "+quoted(segment)+" are not being changed; GET /api/gossip lists the segments")
}

// deniedJSON is a line of the deny-list.
type deniedJSON struct {
	HostID string    `json:"host_id"`
	Name   string    `json:"name"`
	Role   string    `json:"role"`
	At     time.Time `json:"at"`
	By     string    `json:"by"`
	Until  time.Time `json:"until"`
}

type deniedListJSON struct {
	Number      uint64       `json:"number"` // of the list; 0: there never was one
	Hosts       []deniedJSON `json:"hosts"`
	HostsBehind []string     `json:"hosts_behind"` // online hosts that have not said that they follow it
}

func (u *ui) denied() deniedListJSON {
	number, lines := u.View().DenyList()
	out := deniedListJSON{Number: number, Hosts: []deniedJSON{}, HostsBehind: list(u.Trust.DeniedBehind())}
	for _, d := range lines {
		out.Hosts = append(out.Hosts, deniedJSON{HostID: d.HostID, Name: d.Name, Role: string(d.Role), At: d.At, By: d.By, Until: d.Until})
	}
	slices.SortStableFunc(out.Hosts, func(a, b deniedJSON) int { return b.At.Compare(a.At) })
	return out
}

func (u *ui) listDenied(w http.ResponseWriter, _ *http.Request) error { return ok(w, u.denied()) }

// liftQuarantine lets a host have orders again, after one of its two machines has
// got an identity of its own.
func (u *ui) liftQuarantine(w http.ResponseWriter, r *http.Request) error {
	if err := noBody(w, r); err != nil {
		return err
	}
	h, err := u.picture().agent(chi.URLParam(r, "id"))
	if err != nil {
		return err
	}
	if err := u.propose(r, fleet.HostQuarantineLifted{HostID: h.ID}); err != nil {
		return err
	}
	return done(w)
}
