package fleet

import (
	"cmp"
	"slices"
	"sync"

	"github.com/hashicorp/go-memdb"
)

// State is the replicated state. Apply and Restore are called by one goroutine
// (Raft's); everything else is safe for concurrent use.
type State struct {
	mu sync.RWMutex // guards db against Restore, which replaces it
	db *memdb.MemDB

	bounds      bounds
	subscribers subscribers
}

// New returns an empty state.
func New() *State {
	return &State{db: newDB(), bounds: defaultBounds}
}

func newDB() *memdb.MemDB {
	db, err := memdb.NewMemDB(schema())
	if err != nil {
		panic("fleet: schema: " + err.Error()) // a constant: wrong only by a mistake in this package
	}
	txn := db.Txn(true)
	must(txn.Insert(tableMeta, metaRow{Key: metaKey}))
	txn.Commit()
	return db
}

// must panics on an error that only a row that does not fit the schema gives,
// which is a mistake in this package and never depends on input.
func must(err error) {
	if err != nil {
		panic("fleet: " + err.Error())
	}
}

// View returns a consistent picture of the state that does not change.
func (s *State) View() View {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return View{txn: s.db.Txn(false)}
}

// View is a consistent picture of the state. What its methods return is shared:
// callers must not change slices or maps in it. Safe for concurrent use.
type View struct{ txn *memdb.Txn }

func first[T any](txn *memdb.Txn, table, index string, args ...any) (T, bool) {
	raw, err := txn.First(table, index, args...)
	must(err)
	if raw == nil {
		var zero T
		return zero, false
	}
	return raw.(T), true
}

// all returns a table's rows in an index's order, or in the reverse of it.
func all[T any](txn *memdb.Txn, reverse bool, table, index string, args ...any) []T {
	get := txn.Get
	if reverse {
		get = txn.GetReverse
	}
	it, err := get(table, index, args...)
	must(err)
	var rows []T
	for raw := it.Next(); raw != nil; raw = it.Next() {
		rows = append(rows, raw.(T))
	}
	return rows
}

func (v View) meta() metaRow {
	m, _ := first[metaRow](v.txn, tableMeta, "id", metaKey)
	return m
}

// Index returns the index of the last entry applied.
func (v View) Index() uint64 { return v.meta().Index }

// Unknown returns how many entries of unknown kinds were passed over.
func (v View) Unknown() uint64 { return v.meta().Unknown }

// Cluster returns the cluster; false before ClusterInitialized.
func (v View) Cluster() (Cluster, bool) {
	c := v.meta().Cluster
	return c, c.ID != ""
}

// Host returns a host by its ID.
func (v View) Host(id string) (Host, bool) { return first[Host](v.txn, tableHosts, "id", id) }

// HostByName returns a host by its name.
func (v View) HostByName(name string) (Host, bool) {
	return first[Host](v.txn, tableHosts, "name", name)
}

// Hosts returns all hosts, servers too, by name.
func (v View) Hosts() []Host { return all[Host](v.txn, false, tableHosts, "name") }

// HostsVersion returns a value that is equal for views of one state that have the
// same hosts: it tells whether what was made of Hosts still holds.
func (v View) HostsVersion() any {
	it, err := v.txn.Get(tableHosts, "id")
	must(err)
	return it.WatchCh() // of the index's root, which each write to the table replaces
}

// Release returns a release by its version.
func (v View) Release(version string) (Release, bool) {
	return first[Release](v.txn, tableReleases, "id", version)
}

// Releases returns all releases, the highest number first.
func (v View) Releases() []Release { return all[Release](v.txn, true, tableReleases, "number") }

// NewestRelease returns the available release with the highest number.
func (v View) NewestRelease() (Release, bool) {
	for _, r := range v.Releases() {
		if !r.Withdrawn {
			return r, true
		}
	}
	return Release{}, false
}

// FleetUpdate returns a fleet update by its ID.
func (v View) FleetUpdate(id string) (FleetUpdate, bool) {
	r, ok := first[fleetUpdateRow](v.txn, tableFleetUpdates, "id", id)
	return r.FleetUpdate, ok
}

// FleetUpdates returns all fleet updates, the newest first.
func (v View) FleetUpdates() []FleetUpdate {
	var out []FleetUpdate
	for _, r := range all[fleetUpdateRow](v.txn, true, tableFleetUpdates, "index") {
		out = append(out, r.FleetUpdate)
	}
	return out
}

// ActiveFleetUpdate returns the one that is running or paused.
func (v View) ActiveFleetUpdate() (FleetUpdate, bool) {
	for _, s := range []FleetUpdateStatus{FleetRunning, FleetPaused} {
		if r, ok := first[fleetUpdateRow](v.txn, tableFleetUpdates, "status", string(s)); ok {
			return r.FleetUpdate, true
		}
	}
	return FleetUpdate{}, false
}

// Job returns a job by its ID.
func (v View) Job(id string) (Job, bool) {
	r, ok := first[jobRow](v.txn, tableJobs, "id", id)
	return r.Job, ok
}

// Jobs returns a host's jobs, the newest first.
func (v View) Jobs(hostID string) []Job {
	return newestFirst(all[jobRow](v.txn, false, tableJobs, "host", hostID))
}

// OpenJobs returns the jobs that are queued or running, the oldest first.
func (v View) OpenJobs() []Job {
	rows := all[jobRow](v.txn, false, tableJobs, "status", string(JobRunning))
	rows = append(rows, all[jobRow](v.txn, false, tableJobs, "status", string(JobQueued))...)
	jobs := newestFirst(rows)
	slices.Reverse(jobs)
	return jobs
}

// OpenJob returns a host's job that is queued or running.
func (v View) OpenJob(hostID string) (Job, bool) {
	for _, j := range v.OpenJobs() {
		if j.HostID == hostID {
			return j, true
		}
	}
	return Job{}, false
}

// JobLog returns up to limit lines of a job's log whose Seq is above after.
func (v View) JobLog(id string, after uint64, limit int) []LogLine {
	if after == ^uint64(0) {
		return nil
	}
	it, err := v.txn.LowerBound(tableJobLines, "id", id, after+1)
	must(err)
	var lines []LogLine
	for raw := it.Next(); raw != nil && len(lines) < limit; raw = it.Next() {
		row := raw.(lineRow)
		if row.JobID != id {
			break
		}
		lines = append(lines, row.LogLine)
	}
	return lines
}

// JobLogHostSeq returns the highest number that the host gave to a line that
// is stored.
func (v View) JobLogHostSeq(id string) uint64 {
	r, _ := first[jobRow](v.txn, tableJobs, "id", id)
	return r.HostSeq
}

// JobLogFull tells whether a job's log takes no more lines, or there is no such
// job: to propose some would only fill the log of entries.
func (v View) JobLogFull(id string) bool {
	r, ok := first[jobRow](v.txn, tableJobs, "id", id)
	return !ok || r.Truncated
}

// Alert returns an alert by its ID.
func (v View) Alert(id string) (Alert, bool) {
	r, ok := first[alertRow](v.txn, tableAlerts, "id", id)
	return r.Alert, ok
}

// Alerts returns all alerts, the newest first.
func (v View) Alerts() []Alert {
	var out []Alert
	for _, r := range all[alertRow](v.txn, true, tableAlerts, "index") {
		out = append(out, r.Alert)
	}
	return out
}

// OpenAlerts returns the alerts that are open.
func (v View) OpenAlerts() []Alert {
	var out []Alert
	for _, r := range all[alertRow](v.txn, false, tableAlerts, "status", string(AlertStatusOpen)) {
		out = append(out, r.Alert)
	}
	return out
}

// Audit returns up to limit entries below an index (0: from the newest), the
// newest first.
func (v View) Audit(before uint64, limit int) []AuditEntry {
	if before == 0 {
		before = ^uint64(0)
	}
	it, err := v.txn.ReverseLowerBound(tableAudit, "id", before-1)
	must(err)
	var out []AuditEntry
	for raw := it.Next(); raw != nil && len(out) < limit; raw = it.Next() {
		out = append(out, raw.(AuditEntry))
	}
	return out
}

// Users returns all users by name.
func (v View) Users() []User { return all[User](v.txn, false, tableUsers, "name") }

// User returns a user by its ID.
func (v View) User(id string) (User, bool) { return first[User](v.txn, tableUsers, "id", id) }

// UserByName returns a user by name.
func (v View) UserByName(name string) (User, bool) {
	return first[User](v.txn, tableUsers, "name", name)
}

// APITokens returns all API tokens.
func (v View) APITokens() []APIToken { return all[APIToken](v.txn, false, tableAPITokens, "id") }

// APITokenByHash returns the API token whose secret has this sha256, in hex.
func (v View) APITokenByHash(hash string) (APIToken, bool) {
	return first[APIToken](v.txn, tableAPITokens, "hash", hash)
}

// JoinTokens returns all join tokens.
func (v View) JoinTokens() []JoinToken { return all[JoinToken](v.txn, false, tableJoinTokens, "id") }

// JoinTokenByHash returns the join token whose secret has this sha256, in hex.
func (v View) JoinTokenByHash(hash string) (JoinToken, bool) {
	return first[JoinToken](v.txn, tableJoinTokens, "hash", hash)
}

// Session returns the session whose cookie has this sha256, in hex. Whether it
// has expired is for the caller to see: the state has no clock.
func (v View) Session(hash string) (Session, bool) {
	return first[Session](v.txn, tableSessions, "id", hash)
}

func newestFirst(rows []jobRow) []Job {
	slices.SortFunc(rows, func(a, b jobRow) int { return cmp.Compare(b.CreatedIndex, a.CreatedIndex) })
	jobs := make([]Job, 0, len(rows))
	for _, r := range rows {
		jobs = append(jobs, r.Job)
	}
	return jobs
}
