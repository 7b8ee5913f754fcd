package fleet

import (
	"encoding/json"
	"time"
)

// Entry is one entry of the replicated log. Kinds are append-only: a kind is
// never renamed, and its body only grows optional fields.
type Entry struct {
	Type    string `json:"type"`    // the change's Kind
	Version int    `json:"version"` // of the body; 1 today
	// ID names the proposal. An entry whose ID was applied before changes
	// nothing and returns the first one's result, so a retry is safe.
	ID    string    `json:"id"`
	Actor string    `json:"actor"` // "user:alice", "token:ci", "host:NAME", "coordinator", "system"
	At    time.Time `json:"at"`    // by the clock of the leader that appended it
	// From is the IP address of the client that asked for the change, as the
	// server that took the request saw it; "" where there was none.
	From string          `json:"from,omitempty"`
	Body json.RawMessage `json:"body"`
}

// Change is the body of an entry.
type Change interface{ Kind() string }

// Result is what applying an entry gave. Err is nil or an *Error; it is part of
// the replicated outcome, equal on every server.
type Result struct {
	Index uint64 `json:"index"`
	Err   *Error `json:"error,omitempty"`
}

// Error is a refusal that a person or a program can act on: Code is stable,
// Message is a sentence that names what to do next.
type Error struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Message }

// The codes of refusals. Those that DESIGN.md's HTTP API names keep their names there.
const (
	CodeUnknownChange       = "unknown_change"
	CodeBadRequest          = "bad_request"
	CodeClusterExists       = "cluster_exists"
	CodeHostNotFound        = "host_not_found"
	CodeNameTaken           = "name_taken"
	CodeTokenInvalid        = "token_invalid"
	CodeTokenExpired        = "token_expired"
	CodeTokenUsed           = "token_used"
	CodeReleaseNotFound     = "release_not_found"
	CodeReleaseExists       = "release_exists"
	CodeFleetUpdateRunning  = "fleet_update_running"
	CodeFleetUpdateNotFound = "fleet_update_not_found"
	CodeNothingToUpdate     = "nothing_to_update"
	CodeNotRunning          = "not_running"
	CodeUpdateInProgress    = "update_in_progress"
	CodeJobNotFound         = "job_not_found"
	CodeAlertNotFound       = "alert_not_found"
	CodeUserNotFound        = "user_not_found"
	CodeUserExists          = "user_exists"
	CodeLastAdmin           = "last_admin"
	CodeAPITokenNotFound    = "token_not_found"
	CodeWebhookNotFound     = "webhook_not_found"
	CodeWebhookExists       = "webhook_exists"
	CodeLimitReached        = "limit_reached"
	CodeLabelsChanged       = "labels_changed"
	CodeRotationRunning     = "rotation_running"
	CodeHostQuarantined     = "host_quarantined"
	CodeConflict            = "conflict" // the state moved on: e.g. the job is no longer running
)

// The changes. IDs (UUIDs) and secrets' hashes are made by the proposer.
type (
	// ClusterInitialized is the first entry of a cluster. Legal once.
	ClusterInitialized struct {
		Cluster Cluster  `json:"cluster"`
		Server  Host     `json:"server"` // the bootstrapping server
		Admin   User     `json:"admin"`
		Token   APIToken `json:"token"` // the first admin API token
	}

	// JoinTokenCreated makes a join token.
	JoinTokenCreated struct {
		Token JoinToken `json:"token"`
	}
	// HostEnrolled lets a host in and uses up the token. Repeating it with the
	// same token, host ID and key succeeds and changes nothing: the host did not
	// hear the first answer.
	HostEnrolled struct {
		TokenHash string `json:"token_hash"`
		Host      Host   `json:"host"` // Role and Segment are taken from the token
	}
	// HostRemoved deletes a host. Its pending turn is skipped when it comes.
	HostRemoved struct {
		HostID string `json:"host_id"`
	}
	// HostAddressesChanged records where a host now listens. Repeating it changes
	// nothing.
	HostAddressesChanged struct {
		HostID     string `json:"host_id"`
		GossipAddr string `json:"gossip_addr"`
		PeerAddr   string `json:"peer_addr"`
		HTTPAddr   string `json:"http_addr"`
	}
	// ServerTLSChanged records whether a server's UI speaks TLS: it was started so.
	// Repeating it changes nothing.
	ServerTLSChanged struct {
		HostID string `json:"host_id"`
		TLS    bool   `json:"tls"`
	}
	// HostSegmentsChanged records which segments a host is in besides its home: it
	// was started with others. Repeating it changes nothing.
	HostSegmentsChanged struct {
		HostID string        `json:"host_id"`
		Also   []HostSegment `json:"also_segments"`
	}
	// HostLabelsSet gives a host these labels in place of those that it has. Where
	// Was is there, the host must have exactly those, else somebody changed them
	// meanwhile (CodeLabelsChanged). Setting what it has already changes nothing.
	HostLabelsSet struct {
		HostID string            `json:"host_id"`
		Labels map[string]string `json:"labels"`
		Was    map[string]string `json:"was"` // null: whatever it has; {}: none
	}

	// ReleasePublished makes a release available. Its bytes are on a majority of
	// servers by then. Version and Number must be new.
	ReleasePublished struct {
		Release Release `json:"release"`
	}
	// ReleaseWithdrawn takes a release out of choice. Refused while an active
	// fleet update or job targets it (CodeConflict).
	ReleaseWithdrawn struct {
		Version string `json:"version"`
	}

	// ReleaseStaged has hosts fetch a release ahead of their turn: those of an active
	// fleet update to it (CodeConflict when it is none), or all of them. Of the latter
	// kind there is one release at a time. Saying it again renews the fencing token.
	ReleaseStaged struct {
		Version       string `json:"version"`
		FleetUpdateID string `json:"fleet_update_id,omitempty"` // "": all hosts
	}

	// ReleaseKeysChanged replaces the release keys by those of a signed key
	// statement, whose number is one more than the last one's (CodeConflict). The
	// proposer has verified the signature; hosts do so again, each for itself.
	ReleaseKeysChanged struct {
		Number    uint64       `json:"number"`
		Threshold int          `json:"threshold"`
		Keys      []string     `json:"keys"`
		Signed    KeyStatement `json:"signed"`
	}

	// JobCreated queues an update of a single host. Refused with
	// CodeUpdateInProgress when the host has a job that is not done or stands
	// pending or running in the active fleet update.
	JobCreated struct {
		JobID         string `json:"job_id"`
		HostID        string `json:"host_id"`
		TargetVersion string `json:"target_version"`
	}
	// JobDispatched is the intent behind an order. For a turn of a fleet update
	// it creates the job (the turn must be pending, the fleet update running, the
	// host without another unfinished job) and marks the turn running; for a
	// queued job (FleetUpdateID empty) it marks it running. Never legal while
	// another job is running (the in-flight limit is MaxInFlight), nor after a
	// failure halted the fleet update.
	JobDispatched struct {
		JobID         string `json:"job_id"`
		HostID        string `json:"host_id"`
		FleetUpdateID string `json:"fleet_update_id,omitempty"`
		FromVersion   string `json:"from_version"`
		Boot          uint64 `json:"boot"`
	}
	// JobFinished is the verdict. Status is succeeded (running jobs only), failed
	// or (queued jobs only) cancelled. A success resolves the host's open
	// update_failed alerts, and the others that this target opened. A failure within a fleet update marks the turn failed,
	// halts the fleet update and opens alerts, all in the same entry. The last
	// turn's success does not complete the fleet update: FleetUpdateCompleted does.
	JobFinished struct {
		JobID   string    `json:"job_id"`
		Status  JobStatus `json:"status"`
		Error   string    `json:"error,omitempty"`
		Sources []Source  `json:"sources,omitempty"`
	}
	// JobLogAppended adds lines to a job's log. First is the number that the host
	// gave the first of them (it counts its own lines from 1): lines up to the
	// highest number stored are dropped, so a resend is harmless. First is 0 for
	// the coordinator's own lines. Seq is given by Apply. See MaxJobLogLines.
	JobLogAppended struct {
		JobID string    `json:"job_id"`
		First uint64    `json:"first"`
		Lines []LogLine `json:"lines"`
	}

	// FleetUpdateStarted starts a fleet update. The proposer chose the hosts, in
	// order; the target must be a release that is not withdrawn.
	FleetUpdateStarted struct {
		ID            string   `json:"id"`
		TargetVersion string   `json:"target_version"`
		HostIDs       []string `json:"host_ids"`
	}
	// FleetUpdateWithServersStarted is FleetUpdateStarted for hosts among which are
	// servers. It is a kind of its own because older servers refuse those.
	FleetUpdateWithServersStarted FleetUpdateStarted
	// FleetUpdateHostSkipped passes a pending host over.
	FleetUpdateHostSkipped struct {
		ID     string `json:"id"`
		HostID string `json:"host_id"`
		Reason string `json:"reason"`
	}
	// FleetUpdateHalted fails a pending host's turn without a job, and halts:
	// "host went offline: NAME".
	FleetUpdateHalted struct {
		ID     string `json:"id"`
		HostID string `json:"host_id"`
		Reason string `json:"reason"`
	}
	// FleetUpdateCompleted ends a running fleet update none of whose turns is
	// pending or running.
	FleetUpdateCompleted struct {
		ID string `json:"id"`
	}
	// FleetUpdatePaused stops dispatching; the current job runs on.
	FleetUpdatePaused struct {
		ID string `json:"id"`
	}
	// FleetUpdateResumed ends a pause.
	FleetUpdateResumed struct {
		ID string `json:"id"`
	}
	// FleetUpdateCancelled ends a fleet update: no further dispatch, the current
	// job runs on and is judged normally (its turn's status still follows it).
	// Pending turns become skipped ("cancelled").
	FleetUpdateCancelled struct {
		ID string `json:"id"`
	}

	// AlertResolved closes an alert by itself: the host came back at the target.
	AlertResolved struct {
		AlertID string `json:"alert_id"`
	}
	// AlertAcknowledged closes an alert by hand.
	AlertAcknowledged struct {
		AlertID string `json:"alert_id"`
	}

	// UserCreated adds a user. Names are unique.
	UserCreated struct {
		User User `json:"user"`
	}
	// UserChanged sets the role or the password hash, whichever is not empty;
	// a change of either ends the user's sessions. MustChange goes with a password
	// that somebody else chose: the user has to choose another one. Only a password
	// that the user sets takes that back.
	UserChanged struct {
		UserID       string   `json:"user_id"`
		Role         UserRole `json:"role,omitempty"`
		PasswordHash string   `json:"password_hash,omitempty"`
		MustChange   bool     `json:"must_change,omitempty"`
	}
	// UserDeleted deletes a user and its sessions. The last admin stays (CodeLastAdmin).
	UserDeleted struct {
		UserID string `json:"user_id"`
	}
	// APITokenCreated adds an API token.
	APITokenCreated struct {
		Token APIToken `json:"token"`
	}
	// APITokenRevoked deletes an API token.
	APITokenRevoked struct {
		TokenID string `json:"token_id"`
	}
	// SessionCreated signs a browser in; sessions that have expired by the
	// entry's time are dropped in passing, and the user's oldest above
	// MaxUserSessions. Network is where the client is, as its attempts are counted
	// (LoginsTried): the user's own from there are forgotten. It may be empty.
	SessionCreated struct {
		Session Session `json:"session"`
		Network string  `json:"network,omitempty"`
	}
	// SessionEnded signs a browser out.
	SessionEnded struct {
		Hash string `json:"hash"`
	}

	// WebhookCreated adds a webhook. Names are unique. It is told of what happens
	// from then on.
	WebhookCreated struct {
		Webhook Webhook `json:"webhook"`
	}
	// WebhookChanged sets the fields that are given. Another url takes the bearer
	// token anew. What waits is tried at once, by the new settings; a webhook that
	// is disabled forgets what waits.
	WebhookChanged struct {
		WebhookID     string         `json:"webhook_id"`
		Name          *string        `json:"name,omitempty"`
		Format        *WebhookFormat `json:"format,omitempty"`
		URL           *string        `json:"url,omitempty"`
		BearerToken   *string        `json:"bearer_token,omitempty"`   // "": none
		SigningSecret *string        `json:"signing_secret,omitempty"` // "": none
		Enabled       *bool          `json:"enabled,omitempty"`
		Kinds         *[]string      `json:"kinds,omitempty"` // []: all
	}
	// WebhookDeleted deletes a webhook and what waits for it.
	WebhookDeleted struct {
		WebhookID string `json:"webhook_id"`
	}
	// WebhookTested is the intent behind a test: it changes nothing, and is audited.
	WebhookTested struct {
		WebhookID string `json:"webhook_id"`
	}
	// AlertNotifying is the intent behind one attempt to deliver a webhook's next
	// notification. Legal while it is the next one and the settings are those of
	// Revision.
	AlertNotifying struct {
		WebhookID string `json:"webhook_id"`
		Seq       uint64 `json:"seq"`
		Revision  uint64 `json:"revision"`
	}
	// AlertNotified is how an attempt ended. Sending is the index of its
	// AlertNotifying; without an Error the notification was delivered, else it is
	// tried again, unless it is GivenUp. Error holds no secret.
	AlertNotified struct {
		WebhookID string `json:"webhook_id"`
		Sending   uint64 `json:"sending"`
		Status    int    `json:"status,omitempty"` // HTTP; 0: no answer
		Error     string `json:"error,omitempty"`
		GivenUp   bool   `json:"given_up,omitempty"`
	}
	// WebhookRefreshed tells that the repetition of open alerts to an Alertmanager
	// began to fail, or succeeded again.
	WebhookRefreshed struct {
		WebhookID string `json:"webhook_id"`
		Revision  uint64 `json:"revision"`
		Status    int    `json:"status,omitempty"`
		Error     string `json:"error,omitempty"`
	}

	// SessionsEnded signs a user out everywhere.
	SessionsEnded struct {
		UserID string `json:"user_id"`
	}
	// LoginsTried counts attempts to sign in before the passwords are looked at, and
	// admits those that need not wait; see logins.go and View.LoginAdmitted. It is
	// audited when from then on somebody has to wait, at most once in loginAuditEvery.
	LoginsTried struct {
		Tries []LoginTry `json:"tries"`
	}
	// EpochBegun is the first change of a cluster that was restored from a backup,
	// or recovered without a majority. It is applied before any server runs on the
	// state, so nothing happens in between. Server is the only server from then on.
	// Jobs that run are failed, those queued are cancelled, and an active fleet
	// update is halted: nothing is dispatched until somebody wants it. Join tokens
	// that were not used, and all sessions, are dropped.
	EpochBegun struct {
		Epoch     uint64 `json:"epoch"`     // above the present one
		Statement []byte `json:"statement"` // the CA's, for hosts
		Reason    string `json:"reason"`    // what happened, for people
		Server    Host   `json:"server"`
	}
	// BackupTaken notes that somebody got a backup, which holds the CA's key. It
	// changes nothing.
	BackupTaken struct {
		Releases  bool   `json:"releases"`  // with their bytes
		Recipient string `json:"recipient"` // whose key it is encrypted to
	}
	// ServerStandbyChanged says whether a server shall vote. Raft's configuration
	// follows. Repeating it changes nothing.
	ServerStandbyChanged struct {
		HostID  string `json:"host_id"`
		Standby bool   `json:"standby"`
	}

	// HostDenied removes a host as HostRemoved does, puts it on the deny-list, and
	// begins to change the gossip keys of its segments, for which GossipKeys has a
	// new one each. Until is when its last certificate, with the grace, has ended.
	HostDenied struct {
		HostID     string       `json:"host_id"`
		Until      time.Time    `json:"until"`
		GossipKeys []SegmentKey `json:"gossip_keys"`
	}
	// GossipRotationBegun adds a new gossip key to each of these segments. Refused
	// with CodeRotationRunning while the keys of one are being changed.
	GossipRotationBegun struct {
		Keys   []SegmentKey `json:"keys"`
		Reason string       `json:"reason,omitempty"`
	}
	// GossipRotationAdvanced goes on to the next stage of a rotation: the hosts have
	// confirmed the keys of Revision, or, Forced, all but those of Missing, by name.
	GossipRotationAdvanced struct {
		Segment  string   `json:"segment"`
		Revision uint64   `json:"revision"`
		Forced   bool     `json:"forced,omitempty"`
		Missing  []string `json:"missing,omitempty"`
	}
	// HostQuarantined keeps orders from a host as which two machines answer, and
	// opens an alert. Repeating it changes nothing.
	HostQuarantined struct {
		HostID string `json:"host_id"`
		Why    string `json:"why"`
	}
	// HostQuarantineLifted lets a host have orders again.
	HostQuarantineLifted struct {
		HostID string `json:"host_id"`
	}
	// CARotationBegun makes a new CA, which hosts get to trust beside the present one.
	// Succession is the signed statement that they believe. Refused with
	// CodeRotationRunning while the CA is being changed.
	CARotationBegun struct {
		Number     uint64 `json:"number"`
		Cert       []byte `json:"cert"` // PEM
		Key        []byte `json:"key"`  // PEM, PKCS #8
		Succession []byte `json:"succession"`
		Reason     string `json:"reason,omitempty"`
	}
	// CASwitched has the new CA sign: the hosts trust it, or, Forced, all but those of
	// Missing, by name. EpochStatement is the new CA's on the epoch of the cluster.
	CASwitched struct {
		Number         uint64   `json:"number"`
		EpochStatement []byte   `json:"epoch_statement,omitempty"`
		Forced         bool     `json:"forced,omitempty"`
		Missing        []string `json:"missing,omitempty"`
	}
	// CARetired ends the trust in the old CA, for which Retirement is the signed word.
	// GossipKey replaces the secret of which the gossip keys of new segments are derived.
	CARetired struct {
		Number     uint64   `json:"number"`
		Retirement []byte   `json:"retirement"`
		GossipKey  []byte   `json:"gossip_key"`
		Forced     bool     `json:"forced,omitempty"`
		Missing    []string `json:"missing,omitempty"`
	}
	// AlertRaised opens an alert over what a server observes, unless one of this kind
	// is open about the host. HostID may be empty.
	AlertRaised struct {
		AlertKind string `json:"alert_kind"`
		HostID    string `json:"host_id,omitempty"`
		Message   string `json:"message"`
	}
)

// LoginTry is an attempt to sign in.
type LoginTry struct {
	ID      string `json:"id"`      // names the attempt
	Name    string `json:"name"`    // a user's, or what LoginName made of one that nobody has
	Network string `json:"network"` // an IPv4 address, or an IPv6 network
}

// Kind returns the entry type of each change.
func (ClusterInitialized) Kind() string     { return "cluster_initialized" }
func (JoinTokenCreated) Kind() string       { return "join_token_created" }
func (HostEnrolled) Kind() string           { return "host_enrolled" }
func (HostRemoved) Kind() string            { return "host_removed" }
func (HostAddressesChanged) Kind() string   { return "host_addresses_changed" }
func (HostSegmentsChanged) Kind() string    { return "host_segments_changed" }
func (HostLabelsSet) Kind() string          { return "host_labels_set" }
func (ServerTLSChanged) Kind() string       { return "server_tls_changed" }
func (ReleasePublished) Kind() string       { return "release_published" }
func (ReleaseWithdrawn) Kind() string       { return "release_withdrawn" }
func (ReleaseStaged) Kind() string          { return "release_staged" }
func (ReleaseKeysChanged) Kind() string     { return "release_keys_changed" }
func (JobCreated) Kind() string             { return "job_created" }
func (JobDispatched) Kind() string          { return "job_dispatched" }
func (JobFinished) Kind() string            { return "job_finished" }
func (JobLogAppended) Kind() string         { return "job_log_appended" }
func (FleetUpdateStarted) Kind() string     { return "fleet_update_started" }
func (FleetUpdateHostSkipped) Kind() string { return "fleet_update_host_skipped" }
func (FleetUpdateHalted) Kind() string      { return "fleet_update_halted" }
func (FleetUpdateCompleted) Kind() string   { return "fleet_update_completed" }
func (FleetUpdatePaused) Kind() string      { return "fleet_update_paused" }
func (FleetUpdateResumed) Kind() string     { return "fleet_update_resumed" }
func (FleetUpdateCancelled) Kind() string   { return "fleet_update_cancelled" }
func (AlertResolved) Kind() string          { return "alert_resolved" }
func (AlertAcknowledged) Kind() string      { return "alert_acknowledged" }
func (UserCreated) Kind() string            { return "user_created" }
func (UserChanged) Kind() string            { return "user_changed" }
func (UserDeleted) Kind() string            { return "user_deleted" }
func (APITokenCreated) Kind() string        { return "api_token_created" }
func (APITokenRevoked) Kind() string        { return "api_token_revoked" }
func (SessionCreated) Kind() string         { return "session_created" }
func (SessionEnded) Kind() string           { return "session_ended" }
func (WebhookCreated) Kind() string         { return "webhook_created" }
func (WebhookChanged) Kind() string         { return "webhook_changed" }
func (WebhookDeleted) Kind() string         { return "webhook_deleted" }
func (WebhookTested) Kind() string          { return "webhook_tested" }
func (AlertNotifying) Kind() string         { return "alert_notifying" }
func (AlertNotified) Kind() string          { return "alert_notified" }
func (WebhookRefreshed) Kind() string       { return "webhook_refreshed" }
func (SessionsEnded) Kind() string          { return "sessions_ended" }
func (LoginsTried) Kind() string            { return "logins_tried" }
func (EpochBegun) Kind() string             { return "epoch_begun" }
func (BackupTaken) Kind() string            { return "backup_taken" }
func (ServerStandbyChanged) Kind() string   { return "server_standby_changed" }
func (HostDenied) Kind() string             { return "host_denied" }
func (GossipRotationBegun) Kind() string    { return "gossip_rotation_begun" }
func (GossipRotationAdvanced) Kind() string { return "gossip_rotation_advanced" }
func (HostQuarantined) Kind() string        { return "host_quarantined" }
func (HostQuarantineLifted) Kind() string   { return "host_quarantine_lifted" }
func (AlertRaised) Kind() string            { return "alert_raised" }
func (CARotationBegun) Kind() string        { return "ca_rotation_begun" }
func (CASwitched) Kind() string             { return "ca_switched" }
func (CARetired) Kind() string              { return "ca_retired" }

// Kind implements Change.
func (FleetUpdateWithServersStarted) Kind() string { return "fleet_update_with_servers_started" }
