package fleet

import (
	"cmp"
	"slices"

	"github.com/hashicorp/go-memdb"
)

// Whatever grows with time has a limit (limits.go), and what goes beyond it is
// dropped here, the oldest first, in the entry that makes the state too large.
// So the state of a cluster that runs for years fits into memory, and all
// servers drop the same rows at the same index.
//
// What is at work is never dropped: an open job, an active fleet update, a
// release that can be chosen.

// sizes counts what has a limit. It is derived from the tables: a snapshot does
// not carry it. To count by walking a table on every entry would cost
// milliseconds.
type sizes struct {
	audit, proposals, jobs, alerts int
	fleetUpdates, turns            int
	logBytes                       int // of all jobs' lines, by lineCost
	loginRows                      int
	hosts, joinTokens              int
}

func (s sizes) plus(o sizes) sizes {
	return sizes{
		audit: s.audit + o.audit, proposals: s.proposals + o.proposals, jobs: s.jobs + o.jobs, alerts: s.alerts + o.alerts,
		fleetUpdates: s.fleetUpdates + o.fleetUpdates, turns: s.turns + o.turns, logBytes: s.logBytes + o.logBytes,
		loginRows: s.loginRows + o.loginRows, hosts: s.hosts + o.hosts, joinTokens: s.joinTokens + o.joinTokens,
	}
}

// lineOverhead is what a line of a job's log costs beside its text, in bytes.
const lineOverhead = 256

func lineCost(l LogLine) int { return lineOverhead + len(l.Line) }

// measured counts a state that was read from a snapshot; rows has the length of
// each table.
func measured(v View, rows map[string]int) sizes {
	size := sizes{
		audit: rows[tableAudit], proposals: rows[tableProposals], jobs: rows[tableJobs], alerts: rows[tableAlerts],
		fleetUpdates: rows[tableFleetUpdates], loginRows: rows[tableLogins], hosts: rows[tableHosts], joinTokens: rows[tableJoinTokens],
	}
	for _, u := range all[fleetUpdateRow](v.txn, false, tableFleetUpdates, "id") {
		size.turns += u.Hosts.Len()
	}
	for row := range each[lineRow](v.txn, tableJobLines, "id") {
		size.logBytes += lineCost(row.LogLine)
	}
	return size
}

// prune drops what is too much, and tells what is left.
func (t *tx) prune(size sizes) sizes {
	size.audit = t.keepNewest(tableAudit, "id", size.audit, t.bounds.audit)
	size.proposals = t.keepNewest(tableProposals, "index", size.proposals, t.bounds.proposals)
	size.loginRows = t.keepNewest(tableLogins, "index", size.loginRows, t.bounds.loginRows)
	if size.jobs > t.bounds.jobs || size.logBytes > t.bounds.logBytes {
		t.dropJobs(&size)
	}
	if size.fleetUpdates > t.bounds.fleetUpdates || size.turns > t.bounds.turns {
		t.dropFleetUpdates(&size)
	}
	if size.alerts > t.bounds.alerts {
		t.dropAlerts(&size)
	}
	return size
}

// keepNewest drops a table's first rows by an index while there are more than
// limit, and returns how many are left.
func (t *tx) keepNewest(table, index string, rows, limit int) int {
	for ; rows > limit; rows-- {
		oldest, err := t.First(table, index)
		must(err)
		t.remove(table, oldest)
	}
	return rows
}

// dropJobs drops jobs that are done, with their logs.
func (t *tx) dropJobs(size *sizes) {
	var old []jobRow
	for row := range each[jobRow](t.Txn, tableJobs, "index") {
		if size.jobs <= t.bounds.jobs && size.logBytes <= t.bounds.logBytes {
			break
		}
		if row.Status.Done() {
			old = append(old, row)
			size.jobs--
			size.logBytes -= row.LogBytes
		}
	}
	for _, row := range old {
		for _, line := range t.lines(row.ID) {
			t.remove(tableJobLines, line)
		}
		t.remove(tableJobs, row)
		t.touch("job:"+row.ID, "job-log:"+row.ID)
	}
}

// lines returns a job's whole log.
func (t *tx) lines(jobID string) (rows []lineRow) {
	it, err := t.LowerBound(tableJobLines, "id", jobID, uint64(0))
	must(err)
	for raw := it.Next(); raw != nil; raw = it.Next() {
		row := raw.(lineRow)
		if row.JobID != jobID {
			break
		}
		rows = append(rows, row)
	}
	return rows
}

// dropFleetUpdates drops those that are over.
func (t *tx) dropFleetUpdates(size *sizes) {
	var old []fleetUpdateRow
	for row := range each[fleetUpdateRow](t.Txn, tableFleetUpdates, "index") {
		if size.fleetUpdates <= t.bounds.fleetUpdates && size.turns <= t.bounds.turns {
			break
		}
		if !row.Status.Active() {
			old = append(old, row)
			size.fleetUpdates--
			size.turns -= row.Hosts.Len()
		}
	}
	for _, row := range old {
		t.remove(tableFleetUpdates, row)
		t.touch("fleet-updates", "fleet-update:"+row.ID)
	}
}

// dropAlerts drops alerts that are resolved, and only then open ones.
func (t *tx) dropAlerts(size *sizes) {
	var old []alertRow
	for _, status := range []AlertStatus{AlertStatusResolved, AlertStatusOpen} {
		for row := range each[alertRow](t.Txn, tableAlerts, "index") {
			if size.alerts <= t.bounds.alerts {
				break
			}
			if row.Status == status {
				old = append(old, row)
				size.alerts--
			}
		}
	}
	for _, row := range old {
		t.remove(tableAlerts, row)
		t.forgetAlert(row.ID)
	}
	t.touch("alerts")
}

// each walks a table in an index's order. The table must not be changed
// meanwhile.
func each[T any](txn *memdb.Txn, table, index string) func(yield func(T) bool) {
	return func(yield func(T) bool) {
		it, err := txn.Get(table, index)
		must(err)
		for raw := it.Next(); raw != nil; raw = it.Next() {
			if !yield(raw.(T)) {
				return
			}
		}
	}
}

// roomForRelease drops the lowest of the withdrawn releases if a further one
// would be too many. It refuses when there is none.
func (t *tx) roomForRelease() *Error {
	releases := t.view().Releases() // the highest number first
	if len(releases) < t.bounds.releases {
		return nil
	}
	slices.Reverse(releases)
	i := slices.IndexFunc(releases, func(r Release) bool { return r.Withdrawn })
	if i < 0 {
		return refuse(CodeLimitReached, "there are %d releases, and no more fit; withdraw one that no host needs", len(releases))
	}
	t.remove(tableReleases, releases[i])
	return nil
}

// roomForJoinToken drops the join tokens that expired long ago, which are of no
// use to anybody, and, if a further one would still be too many, the earliest
// of those that let nobody in any more. It refuses when all of them do.
func (t *tx) roomForJoinToken() *Error {
	var old []JoinToken
	for k := range each[JoinToken](t.Txn, tableJoinTokens, "expires") {
		if !k.ExpiresAt.Add(expiredTokenRetention).Before(t.at) {
			break
		}
		old = append(old, k)
	}
	for _, k := range old {
		t.dropJoinToken(k)
	}
	rows := t.view().meta().size.joinTokens + t.added.joinTokens
	if rows < t.bounds.joinTokens {
		return nil
	}
	for k := range each[JoinToken](t.Txn, tableJoinTokens, "expires") {
		if k.UsedAt != nil || k.ExpiresAt.Before(t.at) {
			t.dropJoinToken(k)
			return nil
		}
	}
	return refuse(CodeLimitReached, "%d join tokens wait to be used, and no more fit; use them, or wait until they expire", rows)
}

func (t *tx) dropJoinToken(k JoinToken) {
	t.remove(tableJoinTokens, k)
	t.added.joinTokens--
}

// roomForAPIToken drops the API tokens that expired long ago, and refuses if a
// further one would still be too many.
func (t *tx) roomForAPIToken() *Error {
	rows := 0
	for _, k := range t.view().APITokens() {
		if k.ExpiresAt != nil && k.ExpiresAt.Add(expiredTokenRetention).Before(t.at) {
			t.remove(tableAPITokens, k)
			continue
		}
		rows++
	}
	if rows >= t.bounds.apiTokens {
		return refuse(CodeLimitReached, "there are %d API tokens, and no more fit; revoke one", rows)
	}
	return nil
}

// roomForSession drops the sessions that have expired, and the earliest of the
// user's own if a further one would be too many.
func (t *tx) roomForSession(userID string) {
	var own []Session
	for _, s := range all[Session](t.Txn, false, tableSessions, "id") {
		switch {
		case s.ExpiresAt.Before(t.at):
			t.remove(tableSessions, s)
		case s.UserID == userID:
			own = append(own, s)
		}
	}
	slices.SortFunc(own, func(a, b Session) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.Hash, b.Hash))
	})
	for i := 0; i <= len(own)-t.bounds.userSessions; i++ {
		t.remove(tableSessions, own[i])
	}
}
