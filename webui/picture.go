package webui

import (
	"time"

	"moult/consensus/fleet"
)

// picture joins what was decided with what is observed, at one moment.
type picture struct {
	fleet.View
	observed   map[string]Observation
	target     string          // the version that hosts are meant to run
	newest     fleet.Release   // of that version; the zero value where none is available
	inProgress map[string]bool // hosts with an unfinished job or a turn to come, by id
	looksInto  map[string]bool // segments that a server or a relay that is online is in
	unheard    map[string]bool // agents that this server was not up for long enough to have heard of, by id
	now        time.Time
	started    time.Time // this server
	version    string    // of this server
	hosts      *hostCache
	enrolled   map[string]*fleet.Host // servers too, by id
}

func (u *ui) picture() picture {
	p := picture{View: u.View(), observed: u.Observed(), target: u.Version, inProgress: map[string]bool{}, version: u.Version, hosts: &u.hosts, now: u.Now(), started: u.Started}
	if newest, exists := p.NewestRelease(); exists {
		p.target, p.newest = newest.Version, newest
	}
	p.enrolled = p.hosts.byID(p.View)
	p.looksInto = p.lookedInto()
	p.unheard = p.notHeardOf()
	for _, j := range p.OpenJobs() {
		p.inProgress[j.HostID] = true
	}
	if active, exists := p.ActiveFleetUpdate(); exists {
		for _, turn := range active.Hosts.All() {
			if turn.Status == fleet.TurnPending || turn.Status == fleet.TurnRunning {
				p.inProgress[turn.HostID] = true
			}
		}
	}
	return p
}

// hostJSON is a host as the API shows it.
type hostJSON struct {
	ID               string            `json:"id"`
	Name             string            `json:"name"`
	Segment          string            `json:"segment"`
	AlsoSegments     []string          `json:"also_segments"` // a relay's further ones
	OS               string            `json:"os"`
	Arch             string            `json:"arch"`
	AgentVersion     string            `json:"agent_version"` // "" until it was seen
	TargetVersion    string            `json:"target_version"`
	UpdateAvailable  bool              `json:"update_available"`
	Online           bool              `json:"online"`
	Status           string            `json:"status"` // online, offline, unreachable or left
	LastSeen         *time.Time        `json:"last_seen"`
	SeenVia          string            `json:"seen_via"`   // name of the relay that saw it then; "" when this server did
	RunsFrom         string            `json:"runs_from"`  // "" for the installed binary, and where it is not known
	KeptBytes        int64             `json:"kept_bytes"` // of releases; 0 where it has not said
	Phase            string            `json:"phase"`
	UpdateInProgress bool              `json:"update_in_progress"`
	Labels           map[string]string `json:"labels"`
	Quarantine       *fleet.Quarantine `json:"quarantine"` // set: it gets no orders
	Progress         *progressJSON     `json:"progress"`
	// Staged: it has the release of the target version, and does not run it. Staging is
	// how far it is with it.
	Staged  bool         `json:"staged"`
	Staging *stagingJSON `json:"staging,omitempty"`
}

// progressJSON is how far a download is, in bytes.
type progressJSON struct {
	Done  int64 `json:"done"`
	Total int64 `json:"total"`
}

func (p picture) host(h *fleet.Host) hostJSON {
	o := p.observed[h.ID]
	out := hostJSON{
		ID: h.ID, Name: h.Name, Segment: h.Segment, AlsoSegments: h.Segments()[1:], OS: h.OS, Arch: h.Arch,
		AgentVersion: o.Version, TargetVersion: p.target, UpdateAvailable: p.behind(h.ID, p.target),
		Online: o.Online, Status: p.status(h), Phase: o.Phase, RunsFrom: o.RunsFrom, KeptBytes: o.KeptBytes, UpdateInProgress: p.inProgress[h.ID], Labels: h.Labels, Quarantine: h.Quarantine,
	}
	if !o.LastSeen.IsZero() {
		seen := p.lastSeen(h.ID).UTC()
		out.LastSeen = &seen
	}
	if via := p.enrolled[o.SeenVia]; via != nil {
		out.SeenVia = via.Name
	}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	if a, fits := p.newest.Artifact(h.OS, h.Arch); fits && !o.runs(a.SHA256) {
		out.Staged, out.Staging = o.staged(a.SHA256)
	}
	if o.Total > 0 {
		out.Progress = &progressJSON{Done: o.Done, Total: o.Total}
	}
	return out
}

// lastSeen is when a host was seen last, which is now for one that this server sees
// itself.
func (p picture) lastSeen(hostID string) time.Time {
	o := p.observed[hostID]
	if o.Online && o.SeenVia == "" {
		return p.now
	}
	return o.LastSeen
}

// behind tells whether a host is known to run something else than target.
func (p picture) behind(hostID, target string) bool {
	o := p.observed[hostID]
	return o.Version != "" && o.Version != target
}

// agents returns the hosts that run agents, by name.
func (p picture) agents() []*fleet.Host {
	agents, _ := p.hosts.lists(p.View)
	return agents
}

// agent returns one of them.
func (p picture) agent(id string) (*fleet.Host, error) {
	h, exists := p.Host(id)
	if !exists || h.Role != fleet.RoleAgent {
		return nil, refuse(fleet.CodeHostNotFound, "no host has the id "+quoted(id)+"; GET /api/hosts lists them")
	}
	return &h, nil
}

// requireRelease refuses a version that is not an available release.
func (p picture) requireRelease(version string) error {
	if r, exists := p.Release(version); !exists || r.Withdrawn {
		return refuse(fleet.CodeReleaseNotFound, "there is no release "+quoted(version)+"; publish it first with: moult release publish")
	}
	return nil
}
