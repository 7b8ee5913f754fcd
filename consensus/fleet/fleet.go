// Package fleet is the replicated state of a moult cluster: what was decided.
//
// Every server holds one State and applies the same log entries to it in the
// same order, so at equal index all servers hold equal states. Apply is a plain
// function of the state and the entry: no clock, no randomness, no I/O. Times
// and identifiers arrive in the entry. The package knows neither raft nor
// memberlist; package consensus feeds it, the coordinator and the web UI read it.
//
// A change that is not legal in the present state is refused by Apply with a
// coded *Error and changes nothing but the index; every accepted change leaves
// an AuditEntry, derived in Apply so that no write can escape it. Only a job's
// log lines, attempts to deliver a notification, attempts to sign in that make
// nobody wait, and repetitions that change nothing leave none. Apply remembers the
// results of the newest MaxProposals proposals, so a retry changes nothing.
//
// Readers take a View, a picture of the state that does not change while Apply
// goes on, and learn of changes by Subscribe. Snapshot and Restore carry the
// state as lines of JSON with a checksum. Entries are JSON too:
//
//	{"type":"host_removed","version":1,"id":"…","actor":"user:ann","at":"…","from":"192.0.2.7","body":{"host_id":"…"}}
//
// Kinds are append-only. One that a server does not know is refused with
// CodeUnknownChange and counted (View.Unknown), never a panic. Bodies may hold
// more fields than this server knows. DESIGN.md says why.
package fleet

import (
	"net"
	"strings"
	"time"
)

// HostRole tells what a host runs; it is part of its certificate.
type HostRole string

// The roles of a host.
const (
	RoleAgent  HostRole = "agent"
	RoleServer HostRole = "server"
)

// DefaultSegment is the segment of a host that names none.
const DefaultSegment = "default"

// Host is the decided half of a host: who it is and what it may do. What it is
// observed to run is the mesh's Record.
type Host struct {
	ID         string            `json:"id"` // a UUID the host made itself at enrolment
	Name       string            `json:"name"`
	Role       HostRole          `json:"role"`
	Segment    string            `json:"segment"` // the home segment
	Also       []HostSegment     `json:"also_segments,omitempty"`
	OS         string            `json:"os"`
	Arch       string            `json:"arch"`
	Labels     map[string]string `json:"labels,omitempty"`
	PublicKey  []byte            `json:"public_key"` // ed25519, 32 bytes: verifies its records
	GossipAddr string            `json:"gossip_addr,omitempty"`
	PeerAddr   string            `json:"peer_addr,omitempty"` // the node port, as others reach it
	HTTPAddr   string            `json:"http_addr,omitempty"` // servers only
	HTTPTLS    bool              `json:"http_tls,omitempty"`  // servers only: the UI speaks TLS
	Standby    bool              `json:"standby,omitempty"`   // servers only: it shall not vote
	Quarantine *Quarantine       `json:"quarantine,omitempty"`
	EnrolledAt time.Time         `json:"enrolled_at"`
}

// HostSegment is a further segment that a host is in. Who is in several is a relay.
type HostSegment struct {
	Segment    string `json:"segment"`
	GossipAddr string `json:"gossip_addr"` // as the members of that segment reach it
}

// Unreachable says of a host that no relay of its segment is online, and names the
// relays that would have to be. The planner's reasons and the pages say the same.
func Unreachable(segment string, relays []string) string {
	why := "unreachable: no relay of segment " + segment + " is online"
	if len(relays) > 0 {
		why += " (" + strings.Join(relays, ", ") + ")"
	}
	return why
}

// Segments returns all segments of a host, the home segment first.
func (h Host) Segments() []string {
	names := []string{h.Segment}
	for _, a := range h.Also {
		names = append(names, a.Segment)
	}
	return names
}

// GossipAddrIn returns where a host gossips in one of its segments; "" when it
// is not in it.
func (h Host) GossipAddrIn(segment string) string {
	if h.Segment == segment {
		return h.GossipAddr
	}
	for _, a := range h.Also {
		if a.Segment == segment {
			return a.GossipAddr
		}
	}
	return ""
}

// PeerAddrIn returns the node port as the members of one of the host's segments
// reach it: it is at the address of the host's gossip there. "" when the host is
// not in that segment, or told no such address.
func (h Host) PeerAddrIn(segment string) string {
	if segment == h.Segment {
		return h.PeerAddr
	}
	ip, _, err := net.SplitHostPort(h.GossipAddrIn(segment))
	if err != nil {
		return ""
	}
	_, port, err := net.SplitHostPort(h.PeerAddr)
	if err != nil {
		return ""
	}
	return net.JoinHostPort(ip, port)
}

// Artifact is one platform's binary of a release.
type Artifact struct {
	OS     string `json:"os"`
	Arch   string `json:"arch"`
	Size   int64  `json:"size"`   // bytes
	SHA256 string `json:"sha256"` // 64 lower-case hex digits
}

// Release is a published release. Manifest and Signature are the bytes that the
// publisher signed offline; the other fields were read from the manifest.
type Release struct {
	Version     string     `json:"version"`
	Number      uint64     `json:"number"` // rises with each release; "newest" goes by it
	Manifest    []byte     `json:"manifest"`
	Signature   []byte     `json:"signature"`
	Artifacts   []Artifact `json:"artifacts"`
	PublishedAt time.Time  `json:"published_at"`
	PublishedBy string     `json:"published_by"`
	Withdrawn   bool       `json:"withdrawn"`

	// StageIndex is the index of the ReleaseStaged entry by which hosts fetch the
	// release ahead of their turn, and the staging orders' fencing token; 0: they do
	// not. StageFor is the fleet update whose hosts do; "": all.
	StageIndex uint64 `json:"stage_index,omitempty"`
	StageFor   string `json:"stage_for,omitempty"`
}

// Artifact returns the release's binary for a platform.
func (r Release) Artifact(os, arch string) (Artifact, bool) {
	for _, a := range r.Artifacts {
		if a.OS == os && a.Arch == arch {
			return a, true
		}
	}
	return Artifact{}, false
}

// FleetUpdateStatus is the state of a fleet update.
type FleetUpdateStatus string

// The states of a fleet update. At most one is running or paused at a time.
const (
	FleetRunning   FleetUpdateStatus = "running"
	FleetPaused    FleetUpdateStatus = "paused"
	FleetCompleted FleetUpdateStatus = "completed"
	FleetHalted    FleetUpdateStatus = "halted"
	FleetCancelled FleetUpdateStatus = "cancelled"
)

// Active tells whether further hosts may still be dispatched under s.
func (s FleetUpdateStatus) Active() bool {
	return s == FleetRunning || s == FleetPaused
}

// FleetUpdateHostStatus is the state of one host's turn in a fleet update.
type FleetUpdateHostStatus string

// The states of a host's turn.
const (
	TurnPending   FleetUpdateHostStatus = "pending"
	TurnRunning   FleetUpdateHostStatus = "running"
	TurnSucceeded FleetUpdateHostStatus = "succeeded"
	TurnFailed    FleetUpdateHostStatus = "failed"
	TurnSkipped   FleetUpdateHostStatus = "skipped"
)

// ReasonCancelled is the reason of turns that were skipped because the fleet
// update was cancelled before they came.
const ReasonCancelled = "cancelled"

// FleetUpdateHost is one host's turn in a fleet update.
type FleetUpdateHost struct {
	HostID       string                `json:"host_id"`
	Name         string                `json:"name"`
	Position     int                   `json:"position"` // from 1
	Status       FleetUpdateHostStatus `json:"status"`
	JobID        string                `json:"job_id,omitempty"`
	FailedReason string                `json:"failed_reason,omitempty"` // also why it was skipped
}

// FleetUpdate brings hosts to one release, one after the other.
type FleetUpdate struct {
	ID            string            `json:"id"`
	TargetVersion string            `json:"target_version"`
	Status        FleetUpdateStatus `json:"status"`
	CurrentHostID string            `json:"current_host_id,omitempty"`
	HaltedReason  string            `json:"halted_reason,omitempty"`
	StartedAt     time.Time         `json:"started_at"`
	StartedBy     string            `json:"started_by"`
	CompletedAt   *time.Time        `json:"completed_at,omitempty"` // when it ended, however it ended
	Hosts         Turns             `json:"hosts"`
	Servers       bool              `json:"servers,omitempty"` // servers may be among Hosts
}

// JobStatus is the state of a job.
type JobStatus string

// The states of a job.
const (
	JobQueued    JobStatus = "queued"
	JobRunning   JobStatus = "running"
	JobSucceeded JobStatus = "succeeded"
	JobFailed    JobStatus = "failed"
	JobCancelled JobStatus = "cancelled"
)

// Done tells whether s is final.
func (s JobStatus) Done() bool { return s != JobQueued && s != JobRunning }

// KindUpdate is the only kind of job.
const KindUpdate = "update"

// Source tells how many bytes of an artifact a host got from another host.
type Source struct {
	HostID string `json:"host_id"`
	Name   string `json:"name"`
	Role   string `json:"role"` // "agent" or "server"
	Bytes  int64  `json:"bytes"`
}

// Job is one attempt to bring one host to one release.
type Job struct {
	ID            string    `json:"id"`
	HostID        string    `json:"host_id"`
	HostName      string    `json:"host_name"`
	FleetUpdateID string    `json:"fleet_update_id,omitempty"`
	Kind          string    `json:"kind"`
	Status        JobStatus `json:"status"`
	TargetVersion string    `json:"target_version"`
	FromVersion   string    `json:"from_version,omitempty"` // what the host ran when it was dispatched
	// Attempt counts the jobs of this host for this target, from 1.
	Attempt    int        `json:"attempt"`
	Actor      string     `json:"actor"`
	CreatedAt  time.Time  `json:"created_at"`
	StartedAt  *time.Time `json:"started_at,omitempty"`
	FinishedAt *time.Time `json:"finished_at,omitempty"`
	Error      string     `json:"error,omitempty"`
	Sources    []Source   `json:"sources,omitempty"`
	// DispatchIndex is the index of the JobDispatched entry: the order's fencing
	// token. 0 while queued.
	DispatchIndex uint64 `json:"dispatch_index,omitempty"`
	// BootAtDispatch is the host's boot number that the leader saw when it
	// dispatched: a record with a higher one proves a restart since.
	BootAtDispatch uint64 `json:"boot_at_dispatch,omitempty"`
}

// LogLine is one line of a job's log.
type LogLine struct {
	Seq    uint64    `json:"seq"` // from 1, without gaps, given by Apply
	At     time.Time `json:"at"`  // by the clock of the host that wrote it
	Stream string    `json:"stream"`
	Line   string    `json:"line"`
}

// The streams of a job's log.
const (
	StreamAgent       = "agent"       // what the updater did
	StreamOutput      = "output"      // what the new binary printed
	StreamCoordinator = "coordinator" // what the leader decided
)

// AlertStatus is the state of an alert.
type AlertStatus string

// The states of an alert.
const (
	AlertStatusOpen     AlertStatus = "open"
	AlertStatusResolved AlertStatus = "resolved"
)

// The kinds of alerts.
const (
	AlertUpdateFailed      = "update_failed"
	AlertFleetUpdateHalted = "fleet_update_halted"
	AlertClonedHost        = "cloned_host"         // two machines answer as one host
	AlertForgedRecords     = "forged_records"      // gossip that nobody of the cluster signed
	AlertHostSilent        = "host_silent"         // a host looks online and answers no server
	AlertForkedReleaseKeys = "forked_release_keys" // a host was offered two key statements with one number
)

// Alert asks for a human.
type Alert struct {
	ID             string      `json:"id"` // derived from the index that opened it
	Kind           string      `json:"kind"`
	HostID         string      `json:"host_id,omitempty"`
	FleetUpdateID  string      `json:"fleet_update_id,omitempty"`
	TargetVersion  string      `json:"target_version,omitempty"` // what the host failed to reach
	Message        string      `json:"message"`
	Status         AlertStatus `json:"status"`
	OpenedAt       time.Time   `json:"opened_at"`
	ResolvedAt     *time.Time  `json:"resolved_at,omitempty"`
	AcknowledgedBy string      `json:"acknowledged_by,omitempty"`
}

// AuditEntry is one accepted change, told for people.
type AuditEntry struct {
	Index   uint64    `json:"index"`
	At      time.Time `json:"at"`
	Actor   string    `json:"actor"`
	Action  string    `json:"action"`  // the change's kind
	Subject string    `json:"subject"` // "host agent-1", "release 1.2.0", …
	Detail  string    `json:"detail,omitempty"`
	From    string    `json:"from,omitempty"` // the entry's, or the network of attempts to sign in
}

// UserRole is what a person, or an API token, may do.
type UserRole string

// The roles of people; each includes those after it.
const (
	Admin    UserRole = "admin"
	Operator UserRole = "operator"
	Viewer   UserRole = "viewer"
)

// Includes tells whether r may do what o may do.
func (r UserRole) Includes(o UserRole) bool {
	rank := map[UserRole]int{Viewer: 1, Operator: 2, Admin: 3}
	return rank[r] != 0 && rank[o] != 0 && rank[r] >= rank[o]
}

// User is a person who signs in with a password.
type User struct {
	ID           string    `json:"id"`
	Name         string    `json:"name"`
	Role         UserRole  `json:"role"`
	PasswordHash string    `json:"password_hash"` // argon2id, PHC string format
	CreatedAt    time.Time `json:"created_at"`
	// MustChangePassword: somebody else chose the password. Until the user has
	// chosen another one, a session is good for nothing else.
	MustChangePassword bool `json:"must_change_password,omitempty"`
	// KnownFrom are the networks that the user signed in from, the newest first,
	// at most MaxKnownNetworks. Others' wrong passwords do not hold the user up there.
	KnownFrom []string `json:"known_from,omitempty"`
}

// APIToken signs a program in. Only the hash of the secret is kept.
type APIToken struct {
	ID        string     `json:"id"`
	Name      string     `json:"name"`
	Role      UserRole   `json:"role"`
	Hash      string     `json:"hash"` // sha256 of the secret, hex
	CreatedAt time.Time  `json:"created_at"`
	CreatedBy string     `json:"created_by"`
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
}

// Session is a browser's sign-in. Only the hash of its cookie is kept.
type Session struct {
	Hash      string    `json:"hash"` // sha256 of the cookie's value, hex
	UserID    string    `json:"user_id"`
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at"`
}

// JoinToken lets one host in, once. Only the hash of the secret is kept.
type JoinToken struct {
	ID        string     `json:"id"`
	Hash      string     `json:"hash"` // sha256 of the secret, hex
	Role      HostRole   `json:"role"`
	Segment   string     `json:"segment"`
	CreatedAt time.Time  `json:"created_at"`
	CreatedBy string     `json:"created_by"`
	ExpiresAt time.Time  `json:"expires_at"`
	UsedAt    *time.Time `json:"used_at,omitempty"`
	UsedBy    string     `json:"used_by,omitempty"`   // host id
	CANumber  uint64     `json:"ca_number,omitempty"` // of the CA when it was made
}

// Cluster is what the cluster as a whole holds. It carries secrets: it never
// leaves the servers' data directories and the node port between servers.
type Cluster struct {
	ID          string    `json:"id"`
	CACert      []byte    `json:"ca_cert"`      // PEM
	CAKey       []byte    `json:"ca_key"`       // PEM, PKCS #8
	GossipKeys  [][]byte  `json:"gossip_keys"`  // 32 bytes each, the first one encrypts
	ReleaseKeys []string  `json:"release_keys"` // minisign public keys, base64 line each
	CreatedAt   time.Time `json:"created_at"`

	// Epoch is 0 until the cluster is restored or recovered (see EpochBegun), and is
	// compared before the index wherever orders are. EpochStatement is the CA's
	// signature on it, which hosts ask for.
	Epoch          uint64 `json:"epoch,omitempty"`
	EpochStatement []byte `json:"epoch_statement,omitempty"`

	ReleaseThreshold int            `json:"release_threshold,omitempty"` // how many of ReleaseKeys have to sign; 0 counts as 1
	KeysNumber       uint64         `json:"keys_number,omitempty"`       // of the newest of KeyStatements; 0: there is none
	KeyStatements    []KeyStatement `json:"key_statements,omitempty"`    // all there ever were, by their number from 1

	// CANumber is that of CACert: it counts the changes of the CA. CASuccessions and
	// CARetirement prove them to hosts, which believe those and never this state.
	CANumber      uint64      `json:"ca_number,omitempty"`
	CARotation    *CARotation `json:"ca_rotation,omitempty"` // the last change; nil: there never was one
	CASuccessions [][]byte    `json:"ca_successions,omitempty"`
	CARetirement  []byte      `json:"ca_retirement,omitempty"`
	GossipCAKey   []byte      `json:"gossip_ca_key,omitempty"` // see GossipRoot
}

// KeyStatement is the signed text that changed the release keys. Hosts believe
// the text, never this state; it is kept for those that were off meanwhile.
type KeyStatement struct {
	Statement []byte `json:"statement"`
	Signature []byte `json:"signature"`
}
