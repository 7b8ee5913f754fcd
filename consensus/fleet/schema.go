package fleet

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/hashicorp/go-memdb"
)

// The tables of the state. Each noun has one; rows are values that are never
// changed in place, so a View is a consistent picture for as long as it is held.
const (
	tableMeta          = "meta" // one row: metaRow
	tableHosts         = "hosts"
	tableReleases      = "releases"
	tableFleetUpdates  = "fleet_updates"
	tableJobs          = "jobs"
	tableJobLines      = "job_lines"
	tableAlerts        = "alerts"
	tableAudit         = "audit"
	tableUsers         = "users"
	tableAPITokens     = "api_tokens"
	tableJoinTokens    = "join_tokens"
	tableSessions      = "sessions"
	tableProposals     = "proposals"
	tableWebhooks      = "webhooks"
	tableNotifications = "notifications"
	tableLogins        = "logins"
	tableDenied        = "denied"
	tableGossipRings   = "gossip_rings"
)

// tables lists all of them in the order that snapshots are written.
var tables = []string{
	tableMeta, tableHosts, tableReleases, tableFleetUpdates, tableJobs, tableJobLines, tableAlerts,
	tableAudit, tableUsers, tableAPITokens, tableJoinTokens, tableSessions, tableProposals,
	tableWebhooks, tableNotifications, tableLogins, tableDenied, tableGossipRings,
}

// metaRow is what the state knows of itself.
type metaRow struct {
	Key     string  `json:"key"` // always metaKey
	Index   uint64  `json:"index"`
	Cluster Cluster `json:"cluster"`
	Unknown uint64  `json:"unknown"` // entries of unknown kinds seen

	DeniedNumber uint64 `json:"denied_number,omitempty"` // index of the last change of the deny-list

	LoginsToldAt time.Time `json:"logins_told_at,omitzero"` // when attempts to sign in were audited last
	LoginsUntold int       `json:"logins_untold,omitempty"` // limits that were reached since

	size sizes // derived: a snapshot does not carry it
}

const metaKey = "meta"

// jobRow is a job with what only the state machine needs to know of it.
type jobRow struct {
	Job
	CreatedIndex uint64 `json:"created_index"`
	LineCount    uint64 `json:"line_count"`
	LogBytes     int    `json:"log_bytes"` // of its lines, by lineCost
	HostSeq      uint64 `json:"host_seq"`  // the highest host-given line number stored
	Truncated    bool   `json:"truncated,omitempty"`
}

// lineRow is a job's log line.
type lineRow struct {
	JobID string `json:"job_id"`
	LogLine
}

// fleetUpdateRow is a fleet update with its place in history.
type fleetUpdateRow struct {
	FleetUpdate
	CreatedIndex uint64 `json:"created_index"`
}

// alertRow is an alert with its place in history.
type alertRow struct {
	Alert
	OpenedIndex uint64 `json:"opened_index"`
}

// proposalRow remembers the result of a proposal.
type proposalRow struct {
	ID     string `json:"id"`
	Index  uint64 `json:"index"`
	Result Result `json:"result"`
}

// expiryIndex orders join tokens by when they expire, and those of one moment by
// their ID.
type expiryIndex struct{}

// FromObject returns a key whose bytes are in the order of time.
func (expiryIndex) FromObject(raw any) (bool, []byte, error) {
	k, ok := raw.(JoinToken)
	if !ok {
		return false, nil, fmt.Errorf("%T is no join token", raw)
	}
	return true, timeKey(k.ExpiresAt), nil
}

// FromArgs takes a time.
func (expiryIndex) FromArgs(args ...any) ([]byte, error) {
	if len(args) == 1 {
		if at, ok := args[0].(time.Time); ok {
			return timeKey(at), nil
		}
	}
	return nil, fmt.Errorf("%v is no time", args)
}

func timeKey(at time.Time) []byte {
	const beforeUnix = 1 << 63 // so that what is before 1970 comes first
	b := binary.BigEndian.AppendUint64(nil, uint64(at.Unix())^beforeUnix)
	return binary.BigEndian.AppendUint32(b, uint32(at.Nanosecond()))
}

func schema() *memdb.DBSchema {
	str := func(name, field string, unique bool) *memdb.IndexSchema {
		return &memdb.IndexSchema{Name: name, Unique: unique, Indexer: &memdb.StringFieldIndex{Field: field}}
	}
	num := func(name, field string, unique bool) *memdb.IndexSchema {
		return &memdb.IndexSchema{Name: name, Unique: unique, Indexer: &memdb.UintFieldIndex{Field: field}}
	}
	table := func(name string, indexes ...*memdb.IndexSchema) *memdb.TableSchema {
		t := &memdb.TableSchema{Name: name, Indexes: map[string]*memdb.IndexSchema{}}
		for _, i := range indexes {
			t.Indexes[i.Name] = i
		}
		return t
	}
	optional := func(i *memdb.IndexSchema) *memdb.IndexSchema {
		i.AllowMissing = true
		return i
	}
	s := &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{}}
	for _, t := range []*memdb.TableSchema{
		table(tableMeta, str("id", "Key", true)),
		table(tableHosts, str("id", "ID", true), str("name", "Name", true)),
		table(tableReleases, str("id", "Version", true), num("number", "Number", true)),
		table(tableFleetUpdates, str("id", "ID", true), num("index", "CreatedIndex", true), str("status", "Status", false)),
		table(tableJobs, str("id", "ID", true), num("index", "CreatedIndex", true), str("host", "HostID", false), str("status", "Status", false)),
		table(tableJobLines, &memdb.IndexSchema{Name: "id", Unique: true, Indexer: &memdb.CompoundIndex{
			Indexes: []memdb.Indexer{&memdb.StringFieldIndex{Field: "JobID"}, &memdb.UintFieldIndex{Field: "Seq"}},
		}}),
		table(tableAlerts, str("id", "ID", true), num("index", "OpenedIndex", false), str("status", "Status", false), optional(str("host", "HostID", false))),
		table(tableAudit, num("id", "Index", true)),
		table(tableUsers, str("id", "ID", true), str("name", "Name", true)),
		table(tableAPITokens, str("id", "ID", true), str("hash", "Hash", true)),
		table(tableJoinTokens, str("id", "ID", true), str("hash", "Hash", true), &memdb.IndexSchema{Name: "expires", Indexer: expiryIndex{}}),
		table(tableSessions, str("id", "Hash", true), str("user", "UserID", false)),
		table(tableProposals, str("id", "ID", true), num("index", "Index", true)),
		table(tableWebhooks, str("id", "ID", true), str("name", "Name", true)),
		table(tableNotifications, &memdb.IndexSchema{Name: "id", Unique: true, Indexer: &memdb.CompoundIndex{
			Indexes: []memdb.Indexer{&memdb.StringFieldIndex{Field: "WebhookID"}, &memdb.UintFieldIndex{Field: "Seq"}},
		}}, str("webhook", "WebhookID", false), str("alert", "AlertID", false)),
		table(tableLogins, str("id", "Key", true), num("index", "Index", false)),
		table(tableDenied, str("id", "HostID", true)),
		table(tableGossipRings, str("id", "Segment", true)),
	} {
		s.Tables[t.Name] = t
	}
	return s
}
