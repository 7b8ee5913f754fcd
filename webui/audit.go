package webui

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"moult/consensus/fleet"
)

// Entries of the audit in one answer; ask again with before set to the last index.
const (
	defaultAuditEntries = 100
	maxAuditEntries     = 1000
	auditRows           = 50 // on a page
)

// auditFilter is the query of the audit.
type auditFilter struct {
	Actor        string // part of it, whatever the case
	Action       string
	Q            string // part of the subject or the detail, whatever the case
	From         string // part of where it came from, or a network that holds it
	network      netip.Prefix
	Since, Until string // as they were given
	since, until time.Time
}

func readAuditFilter(r *http.Request) (f auditFilter, err error) {
	q := r.URL.Query()
	f = auditFilter{Actor: q.Get("actor"), Action: q.Get("action"), Q: q.Get("q"), From: q.Get("from"), Since: q.Get("since"), Until: q.Get("until")}
	if strings.Contains(f.From, "/") {
		if f.network, err = netip.ParsePrefix(f.From); err != nil {
			return f, badRequest("from: %s is not a network such as 10.0.0.0/8; give one, or part of an address", quoted(f.From))
		}
	}
	if f.since, err = readMoment("since", f.Since, 0); err != nil {
		return f, err
	}
	f.until, err = readMoment("until", f.Until, 24*time.Hour)
	return f, err
}

// readMoment reads a time, or a day in UTC, of which it returns the begin and
// day after it.
func readMoment(field, text string, day time.Duration) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.DateOnly, text); err == nil {
		return t.Add(day), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, badRequest("%s: %s is neither a day such as 2026-03-01 nor a time such as 2026-03-01T12:00:00Z", field, quoted(text))
	}
	return t, nil
}

// query is the filter as the query of a link.
func (f auditFilter) query() url.Values {
	q := url.Values{}
	for name, value := range map[string]string{"actor": f.Actor, "action": f.Action, "q": f.Q, "from": f.From, "since": f.Since, "until": f.Until} {
		if value != "" {
			q.Set(name, value)
		}
	}
	return q
}

func (f auditFilter) matches(e fleet.AuditEntry) bool {
	switch {
	case f.Action != "" && e.Action != f.Action,
		!f.since.IsZero() && e.At.Before(f.since),
		!f.until.IsZero() && !e.At.Before(f.until),
		!f.matchesFrom(cameFrom(e)),
		f.Actor != "" && !strings.Contains(strings.ToLower(e.Actor), strings.ToLower(f.Actor)):
		return false
	}
	q := strings.ToLower(f.Q)
	return q == "" || strings.Contains(strings.ToLower(e.Subject), q) || strings.Contains(strings.ToLower(e.Detail), q)
}

// matchesFrom tells whether something came from where the filter says. Of attempts to
// sign in a network may be known and no address.
func (f auditFilter) matchesFrom(from string) bool {
	if !f.network.IsValid() {
		return strings.Contains(from, strings.ToLower(f.From))
	}
	within, err := netip.ParsePrefix(from)
	if err != nil {
		address, _ := netip.ParseAddr(from) // the zero Addr is in no network
		return f.network.Contains(address)
	}
	return f.network.Bits() <= within.Bits() && f.network.Contains(within.Addr())
}

// cameFrom tells where a change came from: the address of whoever asked for it,
// or for what a part of the cluster did by itself which one. It is "" for what
// was recorded before addresses were.
func cameFrom(e fleet.AuditEntry) string {
	if e.From != "" {
		return e.From
	}
	switch kind, _, _ := strings.Cut(e.Actor, ":"); kind {
	case "user", "token":
		return ""
	default: // a host, or a part of the servers
		return kind
	}
}

// auditJSON is an entry as the API and the page show it.
type auditJSON struct {
	fleet.AuditEntry
	From string `json:"from"` // in place of the embedded one
}

func showEntry(e fleet.AuditEntry) auditJSON { return auditJSON{e, cameFrom(e)} }

// scan calls yield with the entries below an index (0: from the newest) that a
// filter lets through, the newest first, until it returns false.
func (f auditFilter) scan(v fleet.View, before uint64, yield func(auditJSON) bool) {
	for {
		entries := v.Audit(before, maxAuditEntries)
		for _, e := range entries {
			if f.matches(e) && !yield(showEntry(e)) {
				return
			}
		}
		if len(entries) < maxAuditEntries {
			return
		}
		before = entries[len(entries)-1].Index
	}
}

func (f auditFilter) first(v fleet.View, before uint64, limit int) []auditJSON {
	found := []auditJSON{}
	f.scan(v, before, func(e auditJSON) bool {
		found = append(found, e)
		return len(found) < limit
	})
	return found
}

func (u *ui) listAudit(w http.ResponseWriter, r *http.Request) error {
	before, err := queryUint(r, "before", 0)
	if err != nil {
		return err
	}
	limit, err := queryUint(r, "limit", defaultAuditEntries)
	if err != nil {
		return err
	}
	if limit == 0 || limit > maxAuditEntries {
		return badRequest("limit: give 1 to %d", maxAuditEntries)
	}
	f, err := readAuditFilter(r)
	if err != nil {
		return err
	}
	return ok(w, map[string]any{"entries": f.first(u.View(), before, int(limit))})
}

// exportAudit serves all entries that a filter lets through as a file.
func (u *ui) exportAudit(w http.ResponseWriter, r *http.Request) error {
	format, err := queryChoice(r, "format", "csv", "json")
	if err != nil {
		return err
	}
	f, err := readAuditFilter(r)
	if err != nil {
		return err
	}
	if format == "" {
		format = "json"
	}
	kind := map[string]string{"csv": "text/csv; charset=utf-8", "json": "application/json"}[format]
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Disposition", fmt.Sprintf(`attachment; filename="moult-audit-%s.%s"`, u.Now().UTC().Format("20060102-150405"), format))
	if format == "csv" {
		writeAuditCSV(w, u.View(), f)
	} else {
		writeAuditJSON(w, u.View(), f)
	}
	return nil
}

// The writers of exports stop at the first error: it means that the client is gone.

func writeAuditJSON(w io.Writer, v fleet.View, f auditFilter) {
	before := `{"entries":[`
	f.scan(v, 0, func(e auditJSON) bool {
		text, err := json.Marshal(e)
		if err == nil {
			_, err = io.WriteString(w, before+string(text))
		}
		before = ",\n"
		return err == nil
	})
	if before[0] == '{' {
		_, _ = io.WriteString(w, before)
	}
	_, _ = io.WriteString(w, "]}\n")
}

func writeAuditCSV(w io.Writer, v fleet.View, f auditFilter) {
	out := csv.NewWriter(w)
	_ = out.Write([]string{"index", "at", "actor", "action", "subject", "detail", "from"})
	f.scan(v, 0, func(e auditJSON) bool {
		return out.Write([]string{
			strconv.FormatUint(e.Index, 10), e.At.UTC().Format(time.RFC3339Nano),
			cell(e.Actor), cell(e.Action), cell(e.Subject), cell(e.Detail), cell(e.From),
		}) == nil
	})
	out.Flush()
}

// cell keeps spreadsheets from taking a text for a formula.
func cell(s string) string {
	if s != "" && strings.ContainsRune("=+-@\t\r", rune(s[0])) {
		return "'" + s
	}
	return s
}

var auditPageKind = pageKind{name: "audit", title: "Audit", topics: "audit"}

// auditView is what the audit page shows.
type auditView struct {
	shell
	Filter    auditFilter
	Actions   []string
	Entries   []auditJSON
	Older     string // where older entries are; "" if there are none
	Newest    string // where the newest are; "" on their page
	CSV, JSON string
}

// auditActions are the kinds of changes that leave an entry.
var auditActions = actionsOf(
	fleet.AlertAcknowledged{}, fleet.AlertNotified{}, fleet.AlertResolved{}, fleet.APITokenCreated{}, fleet.APITokenRevoked{}, fleet.ClusterInitialized{},
	fleet.FleetUpdateCancelled{}, fleet.FleetUpdateCompleted{}, fleet.FleetUpdateHalted{}, fleet.FleetUpdateHostSkipped{}, fleet.FleetUpdatePaused{},
	fleet.FleetUpdateResumed{}, fleet.FleetUpdateStarted{}, fleet.FleetUpdateWithServersStarted{}, fleet.HostAddressesChanged{}, fleet.HostEnrolled{}, fleet.HostLabelsSet{}, fleet.HostRemoved{}, fleet.HostSegmentsChanged{}, fleet.ServerTLSChanged{},
	fleet.JobCreated{}, fleet.JobDispatched{}, fleet.JobFinished{}, fleet.JoinTokenCreated{}, fleet.LoginsTried{}, fleet.ReleaseKeysChanged{}, fleet.ReleasePublished{}, fleet.ReleaseStaged{}, fleet.ReleaseWithdrawn{},
	fleet.SessionCreated{}, fleet.SessionEnded{}, fleet.SessionsEnded{}, fleet.UserChanged{}, fleet.UserCreated{}, fleet.UserDeleted{},
	fleet.WebhookChanged{}, fleet.WebhookCreated{}, fleet.WebhookDeleted{}, fleet.WebhookTested{},
	fleet.EpochBegun{}, fleet.BackupTaken{}, fleet.ServerStandbyChanged{},
	fleet.HostDenied{}, fleet.GossipRotationBegun{}, fleet.GossipRotationAdvanced{}, fleet.HostQuarantined{}, fleet.HostQuarantineLifted{}, fleet.AlertRaised{},
	fleet.CARotationBegun{}, fleet.CASwitched{}, fleet.CARetired{},
)

func actionsOf(changes ...fleet.Change) (actions []string) {
	for _, c := range changes {
		actions = append(actions, c.Kind())
	}
	return actions
}

func (u *ui) auditPage(w http.ResponseWriter, r *http.Request) error {
	before, err := queryUint(r, "before", 0)
	if err != nil {
		return err
	}
	f, err := readAuditFilter(r)
	if err != nil {
		return err
	}
	v := &auditView{Filter: f, Actions: auditActions, Entries: f.first(u.View(), before, auditRows+1)}
	q := f.query()
	if before != 0 {
		v.Newest = "/audit?" + q.Encode()
	}
	q.Set("format", "csv")
	v.CSV = "/api/audit/export?" + q.Encode()
	q.Set("format", "json")
	v.JSON = "/api/audit/export?" + q.Encode()
	if len(v.Entries) > auditRows {
		v.Entries = v.Entries[:auditRows]
		q.Del("format")
		q.Set("before", strconv.FormatUint(v.Entries[auditRows-1].Index, 10))
		v.Older = "/audit?" + q.Encode()
	}
	return u.show(w, r, auditPageKind, v)
}
