package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/consensus"
	"moult/consensus/fleet"
	"moult/mesh"
	"moult/mesh/identity"
	"moult/updater"
)

// reportTimeout bounds the commit of a report's log lines.
const reportTimeout = 10 * time.Second

// reportInbox takes the agents' reports on a server. Each server keeps what it
// observes; only the leader commits log lines, and tells the agent so.
type reportInbox struct {
	node     *mesh.Node
	raft     *consensus.Node
	observer *observer
	logger   *slog.Logger
}

// handle takes one report; from is who signed it.
func (in *reportInbox) handle(from identity.Identity, payload []byte) {
	var r updater.Report
	if err := json.Unmarshal(payload, &r); err != nil {
		in.logger.Warn("report does not parse", "host", from.HostID, "error", err)
		return
	}
	v := in.raft.State().View()
	lines, first := r.Lines, r.First
	ours := in.keep(v, from.HostID, r)
	if len(r.Record) > 0 { // now that it is known what the record is judged by
		if err := in.node.Offer(r.Record); err != nil {
			in.logger.Debug("reported record refused", "host", from.HostID, "error", err)
		}
	}
	if alert, raise := forkAlert(v, from.HostID, r.KeyFork); raise && in.raft.IsLeader() {
		in.raise(alert)
	}
	if ours && len(lines) > 0 && in.raft.IsLeader() {
		in.commit(from, r.JobID, first, lines)
	}
}

// keep keeps what is observed; it tells whether the job is the host's to report about.
func (in *reportInbox) keep(v fleet.View, hostID string, r updater.Report) (ours bool) {
	if r.Staging != nil {
		r.Staging.Error = fleet.ClipLine(r.Staging.Error)
	}
	in.observer.storeKept(hostID, r, v)
	job, ok := v.Job(r.JobID)
	if r.JobID == "" || !ok || job.HostID != hostID {
		return false
	}
	r.Sources = namedSources(v, r.Sources)
	r.RunsFrom = fleet.ClipLine(r.RunsFrom)
	in.observer.store(hostID, r, v)
	return true
}

// commit adds the lines that are new and acknowledges all that are stored.
func (in *reportInbox) commit(from identity.Identity, jobID string, first uint64, lines []fleet.LogLine) {
	ctx, cancel := context.WithTimeout(context.Background(), reportTimeout)
	defer cancel()
	last := first + uint64(len(lines)) - 1
	for i := range lines {
		lines[i].Line = fleet.ClipLine(lines[i].Line)
	}
	v := in.raft.State().View()
	stored := v.JobLogHostSeq(jobID)
	if last > stored && !v.JobLogFull(jobID) {
		_, err := in.raft.Propose(ctx, "host:"+from.Name, fleet.JobLogAppended{JobID: jobID, First: first, Lines: lines})
		if err != nil {
			in.logger.Warn("commit job log", "host", from.HostID, "job", jobID, "error", err)
			return
		}
		stored = in.raft.State().View().JobLogHostSeq(jobID)
	}
	ack, err := json.Marshal(nodekit.ReportAck{JobID: jobID, Stored: max(stored, last)})
	if err != nil {
		return
	}
	if err := in.node.Send(ctx, from.HostID, nodekit.TopicReportAck, ack); err != nil {
		in.logger.Debug("acknowledge report", "host", from.HostID, "error", err)
	}
}
