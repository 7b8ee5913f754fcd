package fleet

import (
	"slices"
	"strings"
	"time"
)

// Quarantine says why a host gets no orders: two machines answer as it.
type Quarantine struct {
	Since time.Time `json:"since"`
	Why   string    `json:"why"`
}

func applyHostQuarantined(t *tx, c HostQuarantined) *Error {
	h, refused := t.host(c.HostID)
	switch {
	case refused != nil:
		return refused
	case c.Why == "":
		return refuse(CodeBadRequest, "why is empty; say what was seen")
	case h.Quarantine != nil:
		t.unaudited() // it is known
		return nil
	}
	h.Quarantine = &Quarantine{Since: t.at, Why: clip(c.Why, MaxDetailBytes)}
	t.put(tableHosts, h)
	t.openAlert(AlertClonedHost, h.ID, "", "", h.Quarantine.Why)
	t.touch("hosts", "host:"+h.ID)
	t.audit("host "+h.Name, h.Quarantine.Why)
	return nil
}

func applyHostQuarantineLifted(t *tx, c HostQuarantineLifted) *Error {
	h, refused := t.host(c.HostID)
	if refused != nil {
		return refused
	}
	if h.Quarantine == nil {
		return refuse(CodeConflict, "%s is not in quarantine; `moult host show %s` shows how it is", h.Name, h.Name)
	}
	h.Quarantine = nil
	t.put(tableHosts, h)
	for _, r := range all[alertRow](t.Txn, false, tableAlerts, "host", h.ID) {
		if r.Status == AlertStatusOpen && r.Kind == AlertClonedHost {
			t.closeAlert(r, "")
		}
	}
	t.touch("hosts", "host:"+h.ID)
	t.audit("host "+h.Name, "gets orders again")
	return nil
}

// refuseQuarantined refuses what would send an order to a host in quarantine.
func refuseQuarantined(h Host) *Error {
	if h.Quarantine == nil {
		return nil
	}
	return refuse(CodeHostQuarantined, "%s is in quarantine: %s", h.Name, h.Quarantine.Why)
}

// raisedKinds are the alerts that a server raises over what it observes.
var raisedKinds = []string{AlertClonedHost, AlertForgedRecords, AlertHostSilent, AlertForkedReleaseKeys}

func applyAlertRaised(t *tx, c AlertRaised) *Error {
	switch {
	case !slices.Contains(raisedKinds, c.AlertKind) || c.AlertKind == AlertClonedHost:
		return refuse(CodeBadRequest, "alert_kind %q: give one of %s", clip(c.AlertKind, MaxNameBytes), strings.Join(raisedKinds[1:], ", "))
	case c.Message == "":
		return refuse(CodeBadRequest, "message is empty; say what was seen, and what to do")
	}
	subject := "alert " + c.AlertKind
	if c.HostID != "" {
		h, refused := t.host(c.HostID)
		if refused != nil {
			return refused
		}
		subject = "host " + h.Name
	}
	for _, a := range t.view().OpenAlerts() {
		if a.Kind == c.AlertKind && a.HostID == c.HostID {
			t.unaudited() // it is known
			return nil
		}
	}
	t.openAlert(c.AlertKind, c.HostID, "", "", c.Message)
	t.audit(subject, c.Message)
	return nil
}
