package webui

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"

	"github.com/go-chi/chi/v5"
	"github.com/google/uuid"

	"moult/consensus/fleet"
)

// leftOut is a host that a fleet update passes over, and why.
type leftOut struct {
	Host *fleet.Host
	Why  string
}

// plan tells what a fleet update to a version would do now: the agents that are
// online, behind, and for whose platform there is a binary, by name. It also
// tells who else is not at that version and why, and how many are.
func (p picture) plan(target string) (chosen []*fleet.Host, left []leftOut, upToDate int) {
	chosen, left, upToDate = p.sift(p.agents(), target)
	return p.spread(chosen), left, upToDate
}

// planWith is plan, with servers if there are any: they come after the agents, by
// name, and the leader last.
func (p picture) planWith(target string, servers []ServerStatus) (chosen []*fleet.Host, left []leftOut, upToDate int) {
	chosen, left, upToDate = p.plan(target)
	if len(servers) == 0 {
		return chosen, left, upToDate
	}
	_, hosts := p.hosts.lists(p.View)
	more, out, done := p.sift(hosts, target)
	slices.SortStableFunc(more, func(a, b *fleet.Host) int {
		return cmp.Compare(rankOf(servers, a.ID), rankOf(servers, b.ID))
	})
	return append(slices.Clone(chosen), more...), append(left, out...), upToDate + done
}

// rankOf orders servers: who leads comes last.
func rankOf(servers []ServerStatus, id string) int {
	if slices.ContainsFunc(servers, func(s ServerStatus) bool { return s.ID == id && s.Leader }) {
		return 1
	}
	return 0
}

// sift tells which of some hosts a fleet update to a version would have now, who is
// left out and why, and how many are there already.
func (p picture) sift(hosts []*fleet.Host, target string) (chosen []*fleet.Host, left []leftOut, upToDate int) {
	release, known := p.Release(target)
	relays := p.relays()
	for _, h := range hosts {
		o := p.observed[h.ID]
		_, built := release.Artifact(h.OS, h.Arch)
		switch {
		case o.Version == target:
			upToDate++
		case h.Quarantine != nil:
			left = append(left, leftOut{h, "in quarantine: " + h.Quarantine.Why})
		case p.status(h) == statusUnreachable && !p.unheard[h.ID]:
			left = append(left, leftOut{h, p.whyUnreachable(h, relays)})
		case p.unheard[h.ID]:
			left = append(left, leftOut{h, "this server was just started and has not heard of it yet"})
		case !o.Online && o.Version == "":
			left = append(left, leftOut{h, "it was never seen"})
		case !o.Online:
			left = append(left, leftOut{h, "it is offline"})
		case o.Version == "":
			left = append(left, leftOut{h, "what it runs is not known yet"})
		case known && !built:
			left = append(left, leftOut{h, "the release has no binary for " + h.OS + "/" + h.Arch})
		default:
			chosen = append(chosen, h)
		}
	}
	return chosen, left, upToDate
}

// spread puts relays evenly between the other hosts, so that those of one segment
// do not restart right after each other and no relay comes first where there is
// somebody else. Each kind stays by name.
func (p picture) spread(hosts []*fleet.Host) []*fleet.Host {
	var relays, others []*fleet.Host
	for _, h := range hosts {
		if len(p.segmentsOf(h)) > 1 {
			relays = append(relays, h)
		} else {
			others = append(others, h)
		}
	}
	if len(relays) == 0 {
		return hosts
	}
	out := make([]*fleet.Host, 0, len(hosts))
	placed := 0
	for i, r := range relays {
		before := min(len(others), max(placed+1, (i+1)*len(others)/(len(relays)+1)))
		out = append(append(out, others[placed:before]...), r)
		placed = before
	}
	return append(out, others[placed:]...)
}

// warnings tells which segments are out of reach while one of the hosts restarts,
// because nobody can stand in for it, and that hosts may be missing.
func (p picture) warnings(hosts []*fleet.Host) []string {
	names := map[string]bool{}
	for _, h := range hosts {
		names[h.Name] = true
	}
	warnings := []string{}
	if len(p.unheard) > 0 {
		warnings = append(warnings, p.whyUnheard())
	}
	for _, s := range p.segmentMap() {
		for _, relay := range s.OnlyWay {
			if names[relay] {
				warnings = append(warnings, fmt.Sprintf("%s is the only relay on the way to segment %s: while it restarts nobody sees or reaches %s there", relay, s.Name, count(s.Hosts.Total, "host")))
			}
		}
	}
	return warnings
}

// serverWarnings tells what the restart of the servers among some hosts costs.
func (p picture) serverWarnings(hosts []*fleet.Host, servers []ServerStatus) []string {
	voters := 0
	for _, s := range servers {
		if s.Voter {
			voters++
		}
	}
	votes := slices.ContainsFunc(hosts, func(h *fleet.Host) bool {
		return slices.ContainsFunc(servers, func(s ServerStatus) bool { return s.ID == h.ID && s.Voter })
	})
	switch {
	case !votes || voters > 2:
		return nil
	case voters == 1:
		return []string{"there is one server: while it restarts nobody can sign in and nothing can be changed; the fleet update goes on when it is back"}
	default:
		return []string{"of two servers each is needed for a majority: while one restarts nothing can be changed; the fleet update goes on when it is back"}
	}
}

// updatable returns a host that a fleet update may have.
func (p picture) updatable(id string, servers bool) (*fleet.Host, error) {
	h, exists := p.Host(id)
	switch {
	case exists && h.Role == fleet.RoleServer && servers:
		return &h, nil
	case exists && h.Role == fleet.RoleServer:
		return nil, refuse(fleet.CodeHostNotFound, h.Name+" is a server; those take part where \"servers\" is true: moult fleet update --servers")
	}
	return p.agent(id)
}

// chooseHosts returns the ids of the hosts to update, in order. Without servers
// there are none among them.
func (p picture) chooseHosts(target string, named *[]string, servers []ServerStatus) ([]string, error) {
	var chosen, last []string
	work := false // whether any of them has something to do
	if named == nil {
		hosts, _, _ := p.planWith(target, servers)
		for _, h := range hosts {
			chosen, work = append(chosen, h.ID), true
		}
	} else {
		seen := map[string]bool{}
		for _, id := range *named {
			h, err := p.updatable(id, len(servers) > 0)
			if err != nil {
				return nil, err
			}
			if seen[id] {
				return nil, badRequest("host_ids: %s is named twice", h.Name)
			}
			seen[id] = true
			// A host never seen may run anything: its turn will tell.
			work = work || p.observed[id].Version != target
			if h.Role == fleet.RoleServer {
				last = append(last, id)
			} else {
				chosen = append(chosen, id)
			}
		}
		chosen = append(chosen, last...)
	}
	if !work {
		return nil, refuse(fleet.CodeNothingToUpdate, "there is nothing to update to "+target+"; the list of hosts shows what they run")
	}
	return chosen, nil
}

// leftOf returns the hosts of a fleet update that another one would still have,
// in its order, and how many did not get to its target.
func (p picture) leftOf(f fleet.FleetUpdate) (left []string, behind int) {
	could := map[string]bool{}
	agents, servers := p.hosts.lists(p.View)
	for _, hosts := range [][]*fleet.Host{agents, servers} {
		chosen, _, _ := p.sift(hosts, f.TargetVersion)
		for _, h := range chosen {
			could[h.ID] = true
		}
	}
	for _, t := range f.Hosts.All() {
		h := p.enrolled[t.HostID]
		if t.Status == fleet.TurnSucceeded || h == nil || p.observed[h.ID].Version == f.TargetVersion {
			continue
		}
		behind++
		if could[h.ID] {
			left = append(left, h.ID)
		}
	}
	return left, behind
}

// refuseSecond refuses to start a fleet update beside an active one.
func (p picture) refuseSecond() error {
	active, exists := p.ActiveFleetUpdate()
	if !exists {
		return nil
	}
	return refuse(fleet.CodeFleetUpdateRunning, "a fleet update to "+active.TargetVersion+" is "+string(active.Status)+
		", started by "+active.StartedBy+" at "+active.StartedAt.UTC().Format("15:04:05 MST")+"; wait for its end or cancel it")
}

// retryFleetUpdate starts a fleet update of what an ended one did not get to its
// target and what can be updated now.
func (u *ui) retryFleetUpdate(w http.ResponseWriter, r *http.Request) error {
	if err := noBody(w, r); err != nil {
		return err
	}
	p, id := u.picture(), chi.URLParam(r, "id")
	f, exists := p.FleetUpdate(id)
	if !exists {
		return refuse(fleet.CodeFleetUpdateNotFound, "no fleet update has the id "+quoted(id)+"; GET /api/fleet-updates lists them")
	}
	if err := p.refuseSecond(); err != nil {
		return err
	}
	p, err := u.awaitHeard(r, "")
	if err != nil {
		return err
	}
	left, _ := p.leftOf(f)
	if len(left) == 0 {
		return refuse(fleet.CodeNothingToUpdate, "of this fleet update no host is left that is online and behind "+f.TargetVersion)
	}
	if err := p.requireRelease(f.TargetVersion); err != nil {
		return err
	}
	return u.start(w, r, f.TargetVersion, left)
}

func (u *ui) start(w http.ResponseWriter, r *http.Request, target string, hosts []string) error {
	start := fleet.FleetUpdateStarted{ID: uuid.NewString(), TargetVersion: target, HostIDs: hosts}
	v := u.View()
	var change fleet.Change = start
	if slices.ContainsFunc(hosts, func(id string) bool { h, _ := v.Host(id); return h.Role == fleet.RoleServer }) {
		change = fleet.FleetUpdateWithServersStarted(start)
	}
	if err := u.propose(r, change); err != nil {
		return err
	}
	return ok(w, map[string]string{"fleet_update_id": start.ID})
}

// serversIf asks the servers how they are, if they are to take part.
func (u *ui) serversIf(ctx context.Context, take bool) []ServerStatus {
	if !take {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, serversPageTimeout)
	defer cancel()
	return u.Servers.Servers(ctx)
}

// planJSON is what a fleet update that starts now would do, as the API shows it.
type planJSON struct {
	TargetVersion string        `json:"target_version"`
	Hosts         []planHost    `json:"hosts"` // in order
	LeftOut       []leftOutJSON `json:"left_out"`
	UpToDate      int           `json:"up_to_date"`
	Warnings      []string      `json:"warnings"`
}

type planHost struct {
	HostID string         `json:"host_id"`
	Name   string         `json:"name"`
	Role   fleet.HostRole `json:"role"`
}

type leftOutJSON struct {
	HostID string `json:"host_id"`
	Name   string `json:"name"`
	Why    string `json:"why"`
}

// getPlan tells what POST /api/fleet/update would do without host_ids.
func (u *ui) getPlan(w http.ResponseWriter, r *http.Request) error {
	p := u.picture()
	target := p.target
	if named := r.URL.Query().Get("target_version"); named != "" {
		target = named
	}
	if err := p.requireRelease(target); err != nil {
		return err
	}
	with, err := queryBool(r, "servers")
	if err != nil {
		return err
	}
	servers := u.serversIf(r.Context(), with)
	chosen, left, upToDate := p.planWith(target, servers)
	out := planJSON{
		TargetVersion: target, Hosts: []planHost{}, LeftOut: []leftOutJSON{}, UpToDate: upToDate,
		Warnings: append(p.warnings(chosen), p.serverWarnings(chosen, servers)...),
	}
	for _, h := range chosen {
		out.Hosts = append(out.Hosts, planHost{h.ID, h.Name, h.Role})
	}
	for _, l := range left {
		out.LeftOut = append(out.LeftOut, leftOutJSON{l.Host.ID, l.Host.Name, l.Why})
	}
	return ok(w, out)
}
