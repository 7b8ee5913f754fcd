package fleet

import (
	"fmt"
	"slices"
)

// finishTurn carries a job's verdict to its turn; a failure halts.
func (t *tx) finishTurn(row jobRow) {
	u, ok := first[fleetUpdateRow](t.Txn, tableFleetUpdates, "id", row.FleetUpdateID)
	if !ok {
		return
	}
	if refused := t.setTurn(&u, row.HostID, TurnRunning, func(turn *FleetUpdateHost) {
		turn.Status = TurnSucceeded
		if row.Status != JobSucceeded {
			turn.Status, turn.FailedReason = TurnFailed, row.Error
		}
	}); refused != nil {
		return
	}
	u.CurrentHostID = ""
	if row.Status == JobFailed && u.Status.Active() {
		t.halt(&u, row.HostID, fmt.Sprintf("%s: %s", row.HostName, row.Error))
	}
	t.put(tableFleetUpdates, u)
	t.touch("fleet-updates", "fleet-update:"+u.ID)
}

func (t *tx) halt(u *fleetUpdateRow, hostID, reason string) {
	at := t.at
	u.Status, u.HaltedReason, u.CompletedAt, u.CurrentHostID = FleetHalted, clip(reason, MaxReasonBytes), &at, ""
	t.openAlert(AlertFleetUpdateHalted, hostID, u.ID, u.TargetVersion, fmt.Sprintf("fleet update to %s halted: %s", u.TargetVersion, u.HaltedReason))
}

// setTurn changes a host's turn that is in the state wanted.
func (t *tx) setTurn(u *fleetUpdateRow, hostID string, want FleetUpdateHostStatus, change func(*FleetUpdateHost)) *Error {
	i := u.Hosts.of(hostID)
	if i < 0 {
		return refuse(CodeHostNotFound, "host %q is not part of fleet update %s; `moult fleet status` shows its hosts", hostID, u.ID)
	}
	turn := u.Hosts.At(i)
	if turn.Status != want {
		return refuse(CodeConflict, "the turn of %s is %s, not %s; read the fleet update again", turn.Name, turn.Status, want)
	}
	change(&turn)
	u.Hosts = u.Hosts.with(i, turn)
	return nil
}

func (t *tx) fleetUpdate(id string) (fleetUpdateRow, *Error) {
	u, ok := first[fleetUpdateRow](t.Txn, tableFleetUpdates, "id", id)
	if !ok {
		return u, refuse(CodeFleetUpdateNotFound, "no fleet update has the id %q; `moult fleet status` shows the newest", id)
	}
	return u, nil
}

func (t *tx) runningFleetUpdate(id string) (fleetUpdateRow, *Error) {
	u, refused := t.fleetUpdate(id)
	if refused == nil && u.Status != FleetRunning {
		refused = refuse(CodeNotRunning, "the fleet update is %s, not running; `moult fleet status` shows the newest", u.Status)
	}
	return u, refused
}

func applyFleetUpdateStarted(t *tx, c FleetUpdateStarted) *Error {
	return t.startFleetUpdate(c, false)
}

func applyFleetUpdateWithServersStarted(t *tx, c FleetUpdateWithServersStarted) *Error {
	return t.startFleetUpdate(FleetUpdateStarted(c), true)
}

func (t *tx) startFleetUpdate(c FleetUpdateStarted, servers bool) *Error {
	v := t.view()
	if u, active := v.ActiveFleetUpdate(); active {
		return refuse(CodeFleetUpdateRunning, "a fleet update to %s is %s already, started by %s at %s; wait for its end or cancel it with: moult fleet cancel",
			u.TargetVersion, u.Status, u.StartedBy, u.StartedAt.UTC().Format(timeFormat))
	}
	if _, refused := t.availableRelease(c.TargetVersion); refused != nil {
		return refused
	}
	if len(c.HostIDs) == 0 {
		return refuse(CodeNothingToUpdate, "no host is online and behind %s; `moult hosts` shows what they run", c.TargetVersion)
	}
	if len(c.HostIDs) > MaxFleetHosts {
		return refuse(CodeBadRequest, "host_ids has %d entries; at most %d go into one fleet update", len(c.HostIDs), MaxFleetHosts)
	}
	if refused := t.newID("id", c.ID, tableFleetUpdates); refused != nil {
		return refused
	}
	u := fleetUpdateRow{CreatedIndex: t.index, FleetUpdate: FleetUpdate{
		ID: c.ID, TargetVersion: c.TargetVersion, Status: FleetRunning, StartedAt: t.at, StartedBy: t.actor, Servers: servers,
	}}
	seen := map[string]bool{}
	turns := make([]FleetUpdateHost, 0, len(c.HostIDs))
	for i, id := range c.HostIDs {
		h, refused := t.updatable(id, u.FleetUpdate)
		if refused != nil {
			return refused
		}
		if seen[id] {
			return refuse(CodeBadRequest, "host_ids names %s twice; give each host once", h.Name)
		}
		seen[id] = true
		turns = append(turns, FleetUpdateHost{HostID: id, Name: h.Name, Position: i + 1, Status: TurnPending})
	}
	u.Hosts = NewTurns(turns...)
	t.added.fleetUpdates++
	t.added.turns += u.Hosts.Len()
	t.put(tableFleetUpdates, u)
	t.touch("fleet-updates", "fleet-update:"+u.ID, "hosts")
	detail := fmt.Sprintf("to %s, %d hosts", u.TargetVersion, u.Hosts.Len())
	if servers {
		detail += ", servers among them"
	}
	t.audit("fleet update "+u.ID, detail)
	return nil
}

func applyFleetUpdateHostSkipped(t *tx, c FleetUpdateHostSkipped) *Error {
	u, refused := t.runningFleetUpdate(c.ID)
	if refused != nil {
		return refused
	}
	var name string
	if refused := t.setTurn(&u, c.HostID, TurnPending, func(turn *FleetUpdateHost) {
		turn.Status, turn.FailedReason, name = TurnSkipped, clip(c.Reason, MaxReasonBytes), turn.Name
	}); refused != nil {
		return refused
	}
	t.put(tableFleetUpdates, u)
	t.touch("fleet-updates", "fleet-update:"+u.ID)
	t.audit("host "+name, "skipped: "+c.Reason)
	return nil
}

func applyFleetUpdateHalted(t *tx, c FleetUpdateHalted) *Error {
	u, refused := t.runningFleetUpdate(c.ID)
	if refused != nil {
		return refused
	}
	if refused := t.setTurn(&u, c.HostID, TurnPending, func(turn *FleetUpdateHost) {
		turn.Status, turn.FailedReason = TurnFailed, clip(c.Reason, MaxReasonBytes)
	}); refused != nil {
		return refused
	}
	t.halt(&u, c.HostID, c.Reason)
	t.put(tableFleetUpdates, u)
	t.touch("fleet-updates", "fleet-update:"+u.ID)
	t.audit("fleet update "+u.ID, c.Reason)
	return nil
}

// end gives a fleet update a final or paused state.
func (t *tx) end(u fleetUpdateRow, status FleetUpdateStatus) {
	u.Status = status
	if !status.Active() {
		at := t.at
		u.CompletedAt = &at
	}
	t.put(tableFleetUpdates, u)
	t.touch("fleet-updates", "fleet-update:"+u.ID, "hosts")
	t.audit("fleet update "+u.ID, "to "+u.TargetVersion)
}

func applyFleetUpdateCompleted(t *tx, c FleetUpdateCompleted) *Error {
	u, refused := t.runningFleetUpdate(c.ID)
	if refused != nil {
		return refused
	}
	for _, turn := range u.Hosts.All() {
		if turn.Status == TurnPending || turn.Status == TurnRunning {
			return refuse(CodeConflict, "the turn of %s is %s; the fleet update ends after the last one", turn.Name, turn.Status)
		}
	}
	u.CurrentHostID = ""
	t.settleHalts(u)
	t.end(u, FleetCompleted)
	return nil
}

func applyFleetUpdatePaused(t *tx, c FleetUpdatePaused) *Error {
	u, refused := t.runningFleetUpdate(c.ID)
	if refused == nil {
		t.end(u, FleetPaused)
	}
	return refused
}

func applyFleetUpdateResumed(t *tx, c FleetUpdateResumed) *Error {
	u, refused := t.fleetUpdate(c.ID)
	if refused == nil && u.Status != FleetPaused {
		refused = refuse(CodeNotRunning, "the fleet update is %s, not paused; `moult fleet status` shows the newest", u.Status)
	}
	if refused == nil {
		t.end(u, FleetRunning)
	}
	return refused
}

func applyFleetUpdateCancelled(t *tx, c FleetUpdateCancelled) *Error {
	u, refused := t.fleetUpdate(c.ID)
	if refused == nil && !u.Status.Active() {
		refused = refuse(CodeNotRunning, "the fleet update is %s already; `moult fleet status` shows the newest", u.Status)
	}
	if refused != nil {
		return refused
	}
	turns := slices.Concat(u.Hosts.parts...)
	for i := range turns {
		if turns[i].Status == TurnPending {
			turns[i].Status, turns[i].FailedReason = TurnSkipped, ReasonCancelled
		}
	}
	u.Hosts = NewTurns(turns...)
	t.end(u, FleetCancelled)
	return nil
}
