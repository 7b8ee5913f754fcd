package main

import (
	"context"
	"maps"
	"sync"
	"time"

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
	reports  map[string]updater.Report // the newest about a job, by host id
	keeps    map[string]kept           // by host id
	prunedAt any                       // version of the hosts when both were last held against them
	// progress is when a change of keeps was told of last.
	progress time.Time
	changed  chan struct{} // closed at the next change, then replaced

	shown shownHosts
}

// shownHosts is what the UI was shown last. To make it anew for each page and list would
// be most of their work where there are ten thousand hosts.
type shownHosts struct {
	mu      sync.Mutex
	all     map[string]webui.Observation // by host id; those who have it share it, so it never changes
	version uint64                       // of the roster that it was made of
	whole   time.Time                    // when all of it was made
}

// shownFor is how old what the clock alone changes may be: when a host that is online
// was seen last, and who saw it.
const shownFor = 5 * time.Second

// kept is what a host said last of what it keeps of releases, and stages.
type kept struct {
	staging updater.Staging
	bytes   int64
}

func newObserver(roster *mesh.Roster) *observer {
	return &observer{roster: roster, reports: map[string]updater.Report{}, keeps: map[string]kept{}, changed: make(chan struct{})}
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

// store keeps a host's newest report about a job.
func (o *observer) store(hostID string, r updater.Report, v fleet.View) {
	r.Record, r.Lines = nil, nil
	o.mu.Lock()
	o.reports[hostID] = r
	o.prune(v)
	o.mu.Unlock()
	o.roster.Touch(hostID)
	o.notify()
}

// storeKept keeps what a host says of what it keeps.
func (o *observer) storeKept(hostID string, r updater.Report, v fleet.View) {
	now := kept{bytes: r.Stored}
	if r.Staging != nil {
		now.staging = *r.Staging
	}
	o.mu.Lock()
	before, known := o.keeps[hostID]
	if known && now == before || !known && now == (kept{}) {
		o.mu.Unlock()
		return
	}
	o.keeps[hostID] = now
	o.prune(v)
	before.staging.Done, before.bytes = now.staging.Done, now.bytes
	news := now != before || time.Since(o.progress) >= progressPause
	if news {
		o.progress = time.Now()
	}
	o.mu.Unlock()
	o.roster.Touch(hostID)
	if news {
		o.notify()
	}
}

// progressPause is between two times that nothing but the progress of staging is news:
// a whole fleet stages at once.
const progressPause = time.Second

// prune drops what hosts said that were removed, when the hosts have changed.
func (o *observer) prune(v fleet.View) {
	version := v.HostsVersion()
	if o.prunedAt == version {
		return
	}
	o.prunedAt = version
	dropRemoved(o.reports, v)
	dropRemoved(o.keeps, v)
}

func dropRemoved[T any](of map[string]T, v fleet.View) {
	maps.DeleteFunc(of, func(id string, _ T) bool {
		_, enrolled := v.Host(id)
		return !enrolled
	})
}

// Observations returns what the coordinator judges by, of the hosts that changed
// since a version of the roster.
func (o *observer) Observations(since uint64) (changed map[string]coordinator.Observation, now uint64, whole bool) {
	members, now, whole := o.roster.Since(since) // before the reports: they are touched after these are stored
	o.mu.Lock()
	defer o.mu.Unlock()
	changed = make(map[string]coordinator.Observation, len(members))
	for _, m := range members {
		changed[m.HostID] = observation(m, o.reports[m.HostID], o.keeps[m.HostID].staging)
	}
	return changed, now, whole
}

// staging returns what hosts are getting ahead of their turn, as a digest by host id.
func (o *observer) staging() map[string]string {
	o.mu.Lock()
	defer o.mu.Unlock()
	getting := map[string]string{}
	for id, k := range o.keeps {
		if k.staging.State == updater.StageFetching || k.staging.State == updater.StageAwaitsPatch {
			getting[id] = k.staging.Digest
		}
	}
	return getting
}

// observation joins a host's record with what it stages and with its last report, if
// that is about the same job.
func observation(m mesh.Member, r updater.Report, s updater.Staging) coordinator.Observation {
	ob := coordinator.Observation{
		Online: m.Liveness == mesh.Online, Left: m.Liveness == mesh.Left, Unreachable: m.Liveness == mesh.Unreachable,
		Unsighted: (m.Liveness == mesh.Offline || m.Liveness == mesh.Unreachable) && !m.Sighted,
		Server:    m.Role == string(identity.RoleServer), Segments: m.Segments,
		Boot: m.Boot, Seq: m.Seq, Version: m.Version, Digest: m.Digest,
		Phase: string(m.Phase), JobID: m.JobID, Since: m.Since, LastSeen: m.LastSeen, Holds: m.Holds,
	}
	if s.Digest != "" {
		ob.Stage = coordinator.StageObservation{
			Digest: s.Digest, Awaits: s.State == updater.StageAwaitsPatch, Failed: s.State == updater.StageFailed, Done: s.Done,
		}
	}
	if r.JobID == m.JobID {
		ob.Done, ob.Total, ob.Pulled = r.Done, r.Total, r.Pulled
		ob.Error, ob.LastOutput = r.Error, r.LastOutput
		ob.Sources = r.Sources
	}
	return ob
}

// observed returns what the UI shows, by host id. It is shared and must not be changed.
func (o *observer) observed() map[string]webui.Observation {
	s := &o.shown
	s.mu.Lock()
	defer s.mu.Unlock()
	since, now := s.version, time.Now()
	if now.Sub(s.whole) >= shownFor {
		since = 0
	}
	members, version, whole := o.roster.Since(since) // before the reports, as in Observations
	s.version = version
	switch {
	case whole:
		s.all, s.whole = make(map[string]webui.Observation, len(members)), now
	case len(members) > 0:
		s.all = maps.Clone(s.all)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, m := range members {
		s.all[m.HostID] = displayed(m, o.reports[m.HostID], o.keeps[m.HostID])
	}
	return s.all
}

// displayed joins a host's record with what it keeps and with its last report, if that is
// about the same job.
func displayed(m mesh.Member, r updater.Report, k kept) webui.Observation {
	ob := webui.Observation{
		Online: m.Liveness == mesh.Online, Left: m.Liveness == mesh.Left, Unreachable: m.Liveness == mesh.Unreachable,
		Version: m.Version, Digest: m.Digest, Phase: string(m.Phase), JobID: m.JobID,
		LastSeen: m.LastSeen, SeenVia: m.SeenVia, Segments: m.Segments, OS: m.OS, Arch: m.Arch, Holds: m.Holds,
		KeptBytes: k.bytes,
	}
	if s := k.staging; s.Digest != "" {
		ob.Staging = webui.Staging{Digest: s.Digest, State: string(s.State), Done: s.Done, Total: s.Total, Error: s.Error}
	}
	if r.JobID == m.JobID {
		ob.Done, ob.Total, ob.Sources = r.Done, r.Total, r.Sources
		ob.RunsFrom = r.RunsFrom
	}
	return ob
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
