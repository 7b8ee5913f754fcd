package nodekit

// The topics of mesh messages.
const (
	TopicOrder     = "order"      // server to agent: a sealed order
	TopicReport    = "report"     // agent to servers: updater.Report as JSON
	TopicReportAck = "report-ack" // server to agent: reportAck as JSON

	TopicReleaseKeys  = "release-keys"  // server to agent: keysMessage as JSON
	TopicKeysFollowed = "keys-followed" // agent to server: keysFollowed as JSON

	TopicDenied        = "denied"         // server to host: the deny-list, as the CA signed it
	TopicCAs           = "cas"            // server to host: casNotice as JSON
	TopicRings         = "rings"          // server to host: ringsNotice as JSON
	TopicTrustFollowed = "trust-followed" // host to server: trustFollowed as JSON
)

// ReportAck tells an agent which lines of a job's log are committed.
type ReportAck struct {
	JobID  string `json:"job_id"`
	Stored uint64 `json:"stored"` // the highest number of the host's own count
}
