package fleet

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"time"
)

// DeniedHost is a host that was removed while its certificate may still be valid:
// a line of the deny-list, which servers sign and hosts follow.
type DeniedHost struct {
	HostID    string    `json:"host_id"`
	Name      string    `json:"name"`
	Role      HostRole  `json:"role"`
	PublicKey []byte    `json:"public_key"`
	At        time.Time `json:"at"`
	By        string    `json:"by"`
	// Until is when no certificate of the host can be valid, or be renewed, any
	// more. The first removal after that drops the line.
	Until time.Time `json:"until"`
}

// DenyList returns who is denied, by host id, and the number of the list: it
// rises with each change, within an epoch. 0: there never was one.
func (v View) DenyList() (number uint64, hosts []DeniedHost) {
	return v.meta().DeniedNumber, all[DeniedHost](v.txn, false, tableDenied, "id")
}

// deniedBefore returns the line of a host that has this id or this key.
func (v View) deniedBefore(id string, key []byte) (DeniedHost, bool) {
	if d, ok := first[DeniedHost](v.txn, tableDenied, "id", id); ok {
		return d, true
	}
	for d := range each[DeniedHost](v.txn, tableDenied, "id") {
		if bytes.Equal(d.PublicKey, key) {
			return d, true
		}
	}
	return DeniedHost{}, false
}

func applyHostDenied(t *tx, c HostDenied) *Error {
	h, refused := t.host(c.HostID)
	if refused != nil {
		return refused
	}
	if !c.Until.After(t.at) || !validTime(c.Until) {
		return refuse(CodeBadRequest, "until: %s is not in the future; give when the host's last certificate ends", c.Until.UTC().Format(timeFormat))
	}
	for _, segment := range h.Segments() {
		if !slices.ContainsFunc(c.GossipKeys, func(k SegmentKey) bool { return k.Segment == segment }) {
			return refuse(CodeConflict, "gossip_keys: there is none for segment %s, in which %s is by now; try again", segment, h.Name)
		}
	}
	dropped := t.makeRoomToDeny()
	t.dropHost(h)
	t.put(tableDenied, DeniedHost{
		HostID: h.ID, Name: h.Name, Role: h.Role, PublicKey: h.PublicKey, At: t.at, By: t.actor, Until: c.Until.UTC(),
	})
	m := t.view().meta()
	m.DeniedNumber = t.index
	t.put(tableMeta, m)
	for _, k := range c.GossipKeys {
		if slices.Contains(h.Segments(), k.Segment) {
			if refused := t.beginRotation(k, "removal of "+h.Name); refused != nil {
				return refused
			}
		}
	}
	for _, r := range all[alertRow](t.Txn, false, tableAlerts, "host", h.ID) {
		if r.Status == AlertStatusOpen && slices.Contains(raisedKinds, r.Kind) {
			t.closeAlert(r, "")
		}
	}
	t.touch("hosts", "host:"+h.ID, "denied")
	t.audit("host "+h.Name, fmt.Sprintf("its certificate is denied until %s; new gossip keys for %s%s", c.Until.UTC().Format(timeFormat), segmentsText(h), dropped))
	return nil
}

// makeRoomToDeny drops the lines that have ended and, at the limit, the one that
// ends next, of which the audit tells.
func (t *tx) makeRoomToDeny() (told string) {
	lines := all[DeniedHost](t.Txn, false, tableDenied, "id")
	slices.SortStableFunc(lines, func(a, b DeniedHost) int { return cmp.Or(a.Until.Compare(b.Until), cmp.Compare(a.HostID, b.HostID)) })
	for i, d := range lines {
		full := len(lines)-i >= t.bounds.denied
		if !full && d.Until.After(t.at) {
			break
		}
		if d.Until.After(t.at) {
			told += "; the deny-list is full, and forgets " + d.Name
		}
		t.remove(tableDenied, d)
	}
	return told
}
