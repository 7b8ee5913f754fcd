package fleet

import "strconv"

// openAlert opens an alert; its ID comes from the index that opened it.
func (t *tx) openAlert(kind, hostID, fleetUpdateID, target, message string) {
	id := strconv.FormatUint(t.index, 10) + "-" + kind
	t.added.alerts++
	r := alertRow{OpenedIndex: t.index, Alert: Alert{
		ID: id, Kind: kind, HostID: hostID, FleetUpdateID: fleetUpdateID, TargetVersion: target,
		Message: clip(message, MaxReasonBytes), Status: AlertStatusOpen, OpenedAt: t.at,
	}}
	t.put(tableAlerts, r)
	t.notify(r.Alert, AlertEventOpened)
	t.touch("alerts")
}

func (t *tx) closeAlert(r alertRow, by string) {
	at := t.at
	r.Status, r.ResolvedAt, r.AcknowledgedBy = AlertStatusResolved, &at, by
	t.put(tableAlerts, r)
	t.notify(r.Alert, r.lastEvent())
	t.touch("alerts")
}

// lastEvent is how the alert came to be as it is.
func (a Alert) lastEvent() AlertEvent {
	switch {
	case a.Status == AlertStatusOpen:
		return AlertEventOpened
	case a.AcknowledgedBy != "":
		return AlertEventAcknowledged
	default:
		return AlertEventResolved
	}
}

// resolveAlerts closes what a success of its host settles: every update_failed
// of the host, and whatever else was opened because it did not reach the target.
func (t *tx) resolveAlerts(hostID, target string) {
	for _, r := range all[alertRow](t.Txn, false, tableAlerts, "host", hostID) {
		if r.Status == AlertStatusOpen && (r.Kind == AlertUpdateFailed || r.TargetVersion == target) {
			t.closeAlert(r, "")
		}
	}
}

// settleHalts closes the halts of earlier fleet updates over hosts that this one,
// which is complete, brought to its target.
func (t *tx) settleHalts(u fleetUpdateRow) {
	for _, turn := range u.Hosts.All() {
		for _, r := range all[alertRow](t.Txn, false, tableAlerts, "host", turn.HostID) {
			if r.Status == AlertStatusOpen && r.Kind == AlertFleetUpdateHalted {
				t.closeAlert(r, "")
			}
		}
	}
}

func (t *tx) openAlertByID(id string) (alertRow, *Error) {
	r, ok := first[alertRow](t.Txn, tableAlerts, "id", id)
	if !ok {
		return r, refuse(CodeAlertNotFound, "no alert has the id %q; `moult alerts` lists them", id)
	}
	if r.Status != AlertStatusOpen {
		return r, refuse(CodeConflict, "the alert is resolved already; `moult alerts` shows what is open")
	}
	return r, nil
}

func applyAlertResolved(t *tx, c AlertResolved) *Error {
	r, refused := t.openAlertByID(c.AlertID)
	if refused == nil {
		t.closeAlert(r, "")
		t.audit("alert "+r.ID, r.Message)
	}
	return refused
}

func applyAlertAcknowledged(t *tx, c AlertAcknowledged) *Error {
	r, refused := t.openAlertByID(c.AlertID)
	if refused == nil {
		t.closeAlert(r, t.actor)
		t.audit("alert "+r.ID, r.Message)
	}
	return refused
}
