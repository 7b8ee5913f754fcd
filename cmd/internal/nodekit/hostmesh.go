package nodekit

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync"
	"time"

	"moult/mesh"
	"moult/updater"
)

// How a host's reports travel.
const (
	// reportSendTimeout bounds the sending of one report to one server.
	reportSendTimeout = 5 * time.Second
	// reportFollow is for how long a job's report also goes to servers that come to be
	// known, or start anew, after it.
	reportFollow = 2 * time.Minute
	// reportLook is how often they are looked for, at the most.
	reportLook = 50 * time.Millisecond
)

// HostMesh is the updater's view of the mesh.
type HostMesh struct {
	node    *mesh.Node
	logger  *slog.Logger
	reports reporter
}

// NewHostMesh makes the updater's view of a node.
func NewHostMesh(node *mesh.Node, logger *slog.Logger) *HostMesh {
	m := &HostMesh{node: node, logger: logger}
	m.reports = reporter{
		servers: node.Roster().Servers, changed: node.Roster().Changed,
		send: func(ctx context.Context, hostID string, payload []byte) {
			if err := node.Send(ctx, hostID, TopicReport, payload); err != nil {
				logger.Debug("send report", "server", hostID, "error", err)
			}
		},
	}
	return m
}

// Announce puts a phase and the job it is about into the host's record.
func (m *HostMesh) Announce(phase, jobID string) { m.node.Announce(mesh.Phase(phase), jobID) }

// Report sends a report, with the signed record in it, to every server that is
// known: the leader acts on it, the others show it. It does not wait.
func (m *HostMesh) Report(ctx context.Context, r updater.Report) {
	r.Record = m.node.Record().Raw
	payload, err := json.Marshal(r)
	if err != nil {
		m.logger.Error("encode report", "error", err)
		return
	}
	m.reports.report(ctx, payload, r.JobID != "")
}

// reporter sends the newest report to every server, to each on its own: one that lost
// its power takes seconds to be given up, and the leader must hear of the host meanwhile.
type reporter struct {
	servers func() []mesh.Member // that are online
	changed func() <-chan struct{}
	send    func(ctx context.Context, hostID string, payload []byte)

	mu        sync.Mutex
	newest    []byte
	number    uint64 // of newest
	until     time.Time
	following bool
	to        map[string]*reportedTo // by host id
}

// reportedTo is a server that reports go to.
type reportedTo struct {
	boot   uint64
	number uint64 // of the last report that was sent
	busy   bool   // one is on its way
}

// report sends a report. That of a job also goes to servers that come to be known
// later: a host that has just started knows none, and another server may come to lead.
func (r *reporter) report(ctx context.Context, payload []byte, ofJob bool) {
	r.mu.Lock()
	r.newest, r.until = payload, time.Time{}
	r.number++
	if ofJob {
		r.until = time.Now().Add(reportFollow)
	}
	follow := ofJob && !r.following
	r.following = r.following || ofJob
	r.mu.Unlock()
	if follow {
		go r.follow(ctx)
		return
	}
	r.spread(ctx)
}

// follow sends the newest report to servers as they come to be known, until it is old.
func (r *reporter) follow(ctx context.Context) {
	for {
		changed := r.changed()
		r.mu.Lock()
		left := time.Until(r.until)
		if left <= 0 || ctx.Err() != nil {
			r.following = false
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		r.spread(ctx)
		old := time.NewTimer(left)
		select {
		case <-ctx.Done():
		case <-old.C:
		case <-changed:
			Sleep(ctx, reportLook)
		}
		old.Stop()
	}
}

// spread sends the newest report to the servers that have not been sent it.
func (r *reporter) spread(ctx context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := map[string]*reportedTo{}
	for _, m := range r.servers() {
		to := r.to[m.HostID]
		if to == nil || to.boot != m.Boot {
			to = &reportedTo{boot: m.Boot}
		}
		known[m.HostID] = to
		if !to.busy && to.number != r.number {
			to.busy = true
			go r.deliver(ctx, m.HostID, to)
		}
	}
	r.to = known
}

// deliver sends the newest report to a server, and those that came meanwhile as one. What
// is on its way when ctx ends goes on: a host that restarts tells that it does.
func (r *reporter) deliver(ctx context.Context, hostID string, to *reportedTo) {
	for {
		r.mu.Lock()
		if to.number == r.number || ctx.Err() != nil {
			to.busy = false
			r.mu.Unlock()
			return
		}
		to.number = r.number
		payload := r.newest
		r.mu.Unlock()
		sending, cancel := context.WithTimeout(context.WithoutCancel(ctx), reportSendTimeout)
		r.send(sending, hostID, payload)
		cancel()
	}
}
