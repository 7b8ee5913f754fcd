package main

import (
	"context"
	"maps"
	"sync"

	"moult/consensus/coordinator"
	"moult/consensus/fleet"
	"moult/mesh"
	"moult/mesh/identity"
	"moult/updater"
	"moult/webui"
)

// observer joins the two halves of what a server sees of a host: its record in
// the roster, and the last report that it sent (progress, errors, sources).
type observer struct {
	roster *mesh.Roster

	mu       sync.Mutex
	reports  map[string]updater.Report // by host id
	prunedAt any                       // version of the hosts when reports were last held against them
	changed  chan struct{}             // closed at the next change, then replaced
}

func newObserver(roster *mesh.Roster) *observer {
	return &observer{roster: roster, reports: map[string]updater.Report{}, changed: make(chan struct{})}
}

// run passes the roster's changes on until ctx ends.
func (o *observer) run(ctx context.Context) {
	for {
		changed := o.roster.Changed()
		o.notify()
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

func (o *observer) notify() {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.changed)
	o.changed = make(chan struct{})
}

// Changed returns a channel that is closed at the next change.
func (o *observer) Changed() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.changed
}

// store keeps a host's newest report. When the hosts have changed it drops the
// reports of those that were removed.
func (o *observer) store(hostID string, r updater.Report, v fleet.View) {
	r.Record, r.Lines = nil, nil
	o.mu.Lock()
	o.reports[hostID] = r
	if version := v.HostsVersion(); o.prunedAt != version {
		o.prunedAt = version
		for id := range o.reports {
			if _, enrolled := v.Host(id); !enrolled {
				delete(o.reports, id)
			}
		}
	}
	o.mu.Unlock()
	o.roster.Touch(hostID)
	o.notify()
}

func (o *observer) snapshot() map[string]updater.Report {
	o.mu.Lock()
	defer o.mu.Unlock()
	return maps.Clone(o.reports)
}

// Observations returns what the coordinator judges by, of the hosts that changed
// since a version of the roster.
func (o *observer) Observations(since uint64) (changed map[string]coordinator.Observation, now uint64, whole bool) {
	members, now, whole := o.roster.Since(since) // before the reports: they are touched after these are stored
	o.mu.Lock()
	defer o.mu.Unlock()
	changed = make(map[string]coordinator.Observation, len(members))
	for _, m := range members {
		changed[m.HostID] = observation(m, o.reports[m.HostID])
	}
	return changed, now, whole
}

// observation joins a host's record with its last report, if that is about the same
// job.
func observation(m mesh.Member, r updater.Report) coordinator.Observation {
	ob := coordinator.Observation{
		Online: m.Liveness == mesh.Online, Left: m.Liveness == mesh.Left, Unreachable: m.Liveness == mesh.Unreachable,
		Server: m.Role == string(identity.RoleServer), Segments: m.Segments,
		Boot: m.Boot, Seq: m.Seq, Version: m.Version, Digest: m.Digest,
		Phase: string(m.Phase), JobID: m.JobID, LastSeen: m.LastSeen,
	}
	if r.JobID == m.JobID {
		ob.Done, ob.Total, ob.Pulled = r.Done, r.Total, r.Pulled
		ob.Error, ob.LastOutput = r.Error, r.LastOutput
		ob.Sources = r.Sources
	}
	return ob
}

// observed returns what the UI shows.
func (o *observer) observed() map[string]webui.Observation {
	reports := o.snapshot()
	out := map[string]webui.Observation{}
	for _, m := range o.roster.Members() {
		ob := webui.Observation{
			Online: m.Liveness == mesh.Online, Left: m.Liveness == mesh.Left, Unreachable: m.Liveness == mesh.Unreachable,
			Version: m.Version, Digest: m.Digest, Phase: string(m.Phase), JobID: m.JobID,
			LastSeen: m.LastSeen, SeenVia: m.SeenVia, Segments: m.Segments, OS: m.OS, Arch: m.Arch, Holds: m.Holds,
		}
		if r, ok := reports[m.HostID]; ok && r.JobID == m.JobID {
			ob.Done, ob.Total, ob.Sources = r.Done, r.Total, r.Sources
			ob.RunsFrom = r.RunsFrom
		}
		out[m.HostID] = ob
	}
	return out
}

// namedSources fills in the names that only servers know.
func namedSources(v fleet.View, sources []fleet.Source) []fleet.Source {
	for i, s := range sources {
		if h, ok := v.Host(s.HostID); ok {
			sources[i].Name, sources[i].Role = h.Name, string(h.Role)
		}
	}
	return sources
}
