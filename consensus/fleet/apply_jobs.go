package fleet

import (
	"fmt"
	"slices"
)

func (t *tx) agent(id string) (Host, *Error) {
	h, ok := t.view().Host(id)
	if !ok || h.Role != RoleAgent {
		return h, refuse(CodeHostNotFound, "no agent has the id %q; `moult hosts` lists them", id)
	}
	return h, nil
}

// updatable is agent for a host of a fleet update: one with servers takes those too.
func (t *tx) updatable(id string, u FleetUpdate) (Host, *Error) {
	if h, ok := t.view().Host(id); ok && h.Role == RoleServer && u.Servers {
		return h, nil
	}
	return t.agent(id)
}

// newID refuses the ID of a new row that is malformed or taken.
func (t *tx) newID(field, id, table string) *Error {
	if !validID(id) {
		return refuse(CodeBadRequest, "%s %q: %s", field, id, nameRule)
	}
	if taken, err := t.First(table, "id", id); err != nil || taken != nil {
		return refuse(CodeConflict, "%s %s is taken; make another one", field, id)
	}
	return nil
}

func (t *tx) newJob(id string, h Host, target, fleetUpdateID, actor string) jobRow {
	attempt := 1
	for _, j := range t.view().Jobs(h.ID) { // not their number: old ones are dropped
		if j.TargetVersion == target {
			attempt = max(attempt, j.Attempt+1)
		}
	}
	t.added.jobs++
	return jobRow{CreatedIndex: t.index, Job: Job{
		ID: id, HostID: h.ID, HostName: h.Name, FleetUpdateID: fleetUpdateID, Kind: KindUpdate,
		Status: JobQueued, TargetVersion: target, Attempt: attempt, Actor: actor, CreatedAt: t.at,
	}}
}

func applyJobCreated(t *tx, c JobCreated) *Error {
	h, refused := t.agent(c.HostID)
	if refused != nil {
		return refused
	}
	if refused := refuseQuarantined(h); refused != nil {
		return refused
	}
	if _, refused := t.availableRelease(c.TargetVersion); refused != nil {
		return refused
	}
	v := t.view()
	if refused := t.newID("job_id", c.JobID, tableJobs); refused != nil {
		return refused
	}
	if j, open := v.OpenJob(h.ID); open {
		return refuse(CodeUpdateInProgress, "%s is being updated to %s already; watch it with: moult job log --follow %s", h.Name, j.TargetVersion, j.ID)
	}
	if u, active := v.ActiveFleetUpdate(); active {
		for _, turn := range u.Hosts.All() {
			if turn.HostID == h.ID && (turn.Status == TurnPending || turn.Status == TurnRunning) {
				return refuse(CodeUpdateInProgress, "%s has its turn in the fleet update to %s that is %s; wait for its end or cancel it with: moult fleet cancel", h.Name, u.TargetVersion, u.Status)
			}
		}
	}
	t.put(tableJobs, t.newJob(c.JobID, h, c.TargetVersion, "", t.actor))
	t.touch("jobs", "job:"+c.JobID, "hosts", "host:"+h.ID)
	t.audit("host "+h.Name, "update to "+c.TargetVersion)
	return nil
}

func applyJobDispatched(t *tx, c JobDispatched) *Error {
	v := t.view()
	if running := all[jobRow](t.Txn, false, tableJobs, "status", string(JobRunning)); len(running) >= MaxInFlight {
		return refuse(CodeConflict, "job %s is running and one host is updated at a time; wait for its end", running[0].ID)
	}
	var u fleetUpdateRow
	if c.FleetUpdateID != "" {
		// Before the host: which may be one depends on it.
		u, _ = t.fleetUpdate(c.FleetUpdateID)
	}
	h, refused := t.updatable(c.HostID, u.FleetUpdate)
	if refused != nil {
		return refused
	}
	if refused := refuseQuarantined(h); refused != nil {
		return refused
	}
	var row jobRow
	if c.FleetUpdateID == "" {
		var ok bool
		if row, ok = first[jobRow](t.Txn, tableJobs, "id", c.JobID); !ok {
			return refuse(CodeJobNotFound, "no job has the id %q; `moult host show` lists a host's jobs", c.JobID)
		}
		if row.HostID != c.HostID {
			return refuse(CodeConflict, "job %s is for host %s; dispatch it there", c.JobID, row.HostName)
		}
		if row.Status != JobQueued {
			return refuse(CodeConflict, "job %s is %s; only a queued one is dispatched", c.JobID, row.Status)
		}
	} else {
		u, refused = t.runningFleetUpdate(c.FleetUpdateID)
		if refused != nil {
			return refused
		}
		if refused := t.newID("job_id", c.JobID, tableJobs); refused != nil {
			return refused
		}
		if j, open := v.OpenJob(h.ID); open {
			return refuse(CodeUpdateInProgress, "%s has the unfinished job %s; wait for its end", h.Name, j.ID)
		}
		row = t.newJob(c.JobID, h, u.TargetVersion, u.ID, u.StartedBy)
		if refused := t.setTurn(&u, c.HostID, TurnPending, func(turn *FleetUpdateHost) {
			turn.Status, turn.JobID = TurnRunning, c.JobID
		}); refused != nil {
			return refused
		}
		u.CurrentHostID = h.ID
		t.put(tableFleetUpdates, u)
		t.touch("fleet-updates", "fleet-update:"+u.ID)
	}
	if _, refused := t.availableRelease(row.TargetVersion); refused != nil {
		return refused
	}
	at := t.at
	row.Status, row.StartedAt, row.DispatchIndex = JobRunning, &at, t.index
	row.FromVersion, row.BootAtDispatch = clip(c.FromVersion, MaxVersionBytes), c.Boot
	t.put(tableJobs, row)
	t.touch("jobs", "job:"+row.ID, "hosts", "host:"+h.ID)
	t.audit("host "+h.Name, fmt.Sprintf("from %s to %s, job %s", row.FromVersion, row.TargetVersion, row.ID))
	return nil
}

func applyJobFinished(t *tx, c JobFinished) *Error {
	row, ok := first[jobRow](t.Txn, tableJobs, "id", c.JobID)
	if !ok {
		return refuse(CodeJobNotFound, "no job has the id %q; `moult host show` lists a host's jobs", c.JobID)
	}
	if c.Status != JobSucceeded && c.Status != JobFailed && c.Status != JobCancelled {
		return refuse(CodeBadRequest, "status %q: give succeeded, failed or cancelled", c.Status)
	}
	legal := row.Status == JobRunning && (c.Status == JobSucceeded || c.Status == JobFailed) ||
		row.Status == JobQueued && (c.Status == JobCancelled || c.Status == JobFailed)
	if !legal {
		return refuse(CodeConflict, "job %s is %s and cannot become %s; read it again", row.ID, row.Status, c.Status)
	}
	at := t.at
	row.Status, row.FinishedAt, row.Error, row.Sources = c.Status, &at, clip(c.Error, MaxReasonBytes), keptSources(c.Sources)
	t.put(tableJobs, row)
	t.touch("jobs", "job:"+row.ID, "hosts", "host:"+row.HostID)
	t.audit("host "+row.HostName, row.told())
	switch c.Status {
	case JobSucceeded:
		t.resolveAlerts(row.HostID, row.TargetVersion)
	case JobFailed:
		t.openAlert(AlertUpdateFailed, row.HostID, row.FleetUpdateID, row.TargetVersion, fmt.Sprintf("update of %s to %s failed: %s", row.HostName, row.TargetVersion, row.Error))
	}
	if row.FleetUpdateID != "" {
		t.finishTurn(row)
	}
	return nil
}

// told is a job's verdict for people.
func (r jobRow) told() string {
	verdict := fmt.Sprintf("%s: to %s, job %s", r.Status, r.TargetVersion, r.ID)
	if r.Error != "" {
		verdict += ": " + r.Error
	}
	return verdict
}

// keptSources bounds what a host told about where its bytes came from. They are
// cut, not refused: a verdict must not fail over them.
func keptSources(sources []Source) []Source {
	kept := slices.Clone(sources[:min(len(sources), MaxSources)])
	for i := range kept {
		s := &kept[i]
		s.HostID, s.Name, s.Role = clip(s.HostID, MaxIDBytes), clip(s.Name, MaxNameBytes), clip(s.Role, MaxNameBytes)
	}
	return kept
}
