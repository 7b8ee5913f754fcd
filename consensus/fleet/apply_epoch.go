package fleet

import "fmt"

// applyEpochBegun puts the cluster onto a new timeline: what was under way on the
// lost one has an end that is not known here, so it is stopped, and what was good
// for one use may have been used.
func applyEpochBegun(t *tx, c EpochBegun) *Error {
	m := t.view().meta()
	s := c.Server
	switch {
	case m.Cluster.ID == "":
		return refuse(CodeConflict, "there is no cluster yet that could go on in another epoch; make one with: moult server --bootstrap")
	case c.Epoch <= m.Cluster.Epoch:
		return refuse(CodeConflict, "epoch %d is not above %d, in which the cluster is; take a higher one", c.Epoch, m.Cluster.Epoch)
	case len(c.Statement) == 0 || len(c.Statement) > MaxStatementBytes:
		return refuse(CodeBadRequest, "statement is %d bytes; give the CA's statement, of at most %d", len(c.Statement), MaxStatementBytes)
	case !validSegment(s.Segment):
		return refuse(CodeBadRequest, "server.segment %q: %s", s.Segment, segmentRule)
	}
	if refused := checkNewHost(s); refused != nil {
		return refused
	}
	if other, taken := t.view().HostByName(s.Name); taken && other.Role != RoleServer {
		return refuse(CodeNameTaken, "an agent is called %q; give the server another --name", s.Name)
	}
	m.Cluster.Epoch, m.Cluster.EpochStatement = c.Epoch, c.Statement
	t.put(tableMeta, m)
	t.onlyServer(s)
	if refused := t.stopAll(c.Reason); refused != nil {
		return refused
	}
	for _, k := range t.view().JoinTokens() {
		if k.UsedAt == nil {
			t.dropJoinToken(k)
		}
	}
	for _, session := range all[Session](t.Txn, false, tableSessions, "id") {
		t.remove(tableSessions, session)
	}
	t.touch("*")
	t.audit(fmt.Sprintf("epoch %d", c.Epoch), c.Reason+"; the only server is "+s.Name)
	return nil
}

// onlyServer removes the servers of the lost timeline.
func (t *tx) onlyServer(s Host) {
	if known, ok := t.view().Host(s.ID); ok {
		s.EnrolledAt, s.Labels = known.EnrolledAt, known.Labels
	} else {
		s.EnrolledAt = t.at
	}
	for _, h := range t.view().Hosts() {
		if h.Role == RoleServer {
			t.dropHost(h)
		}
	}
	s.Role, s.Standby = RoleServer, false
	t.addHost(s)
}

// stopAll ends the open jobs and the active fleet update.
func (t *tx) stopAll(reason string) *Error {
	for _, j := range t.view().OpenJobs() {
		end := JobFinished{JobID: j.ID, Status: JobCancelled, Error: reason}
		if j.Status == JobRunning {
			end.Status = JobFailed
			end.Error = reason + " while this job ran; how it ended is not known: look at the host's version"
		}
		if refused := applyJobFinished(t, end); refused != nil {
			return refused
		}
	}
	if u, active := t.view().ActiveFleetUpdate(); active { // else a job's failure has halted it
		row, _ := first[fleetUpdateRow](t.Txn, tableFleetUpdates, "id", u.ID)
		t.halt(&row, "", reason+"; hosts may be further than is known here: start the fleet update again for those that are behind")
		t.put(tableFleetUpdates, row)
	}
	return nil
}

func applyBackupTaken(t *tx, c BackupTaken) *Error {
	m := t.view().meta()
	what := "without release bytes"
	if c.Releases {
		what = "with release bytes"
	}
	t.audit("cluster "+m.Cluster.ID, what+", readable with the key of "+clip(c.Recipient, MaxNameBytes))
	return nil
}

func applyServerStandbyChanged(t *tx, c ServerStandbyChanged) *Error {
	h, refused := t.host(c.HostID)
	if refused != nil {
		return refused
	}
	if h.Role != RoleServer {
		return refuse(CodeBadRequest, "host_id: %s is an agent; only servers vote", h.Name)
	}
	if h.Standby == c.Standby {
		t.unaudited()
		return nil
	}
	h.Standby = c.Standby
	t.put(tableHosts, h)
	t.touch("hosts", "host:"+h.ID)
	told := "votes when it has caught up"
	if c.Standby {
		told = "does not vote"
	}
	t.audit("host "+h.Name, told)
	return nil
}
