package fleet

import (
	"encoding/hex"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// The limits of the state. They are part of the replicated outcome: servers
// that disagree on one come to hold different states.
const (
	MaxInFlight     = 1       // jobs running at a time
	MaxJobLogLines  = 10_000  // lines kept per job; the first ones win, and one more says so
	MaxLogLineBytes = 4 << 10 // a longer line is cut
	MaxAuditEntries = 100_000 // the oldest are dropped
	MaxProposals    = 10_000  // proposal IDs remembered; the oldest are dropped
	MaxFleetHosts   = 20_000  // hosts of one fleet update: what one entry of 1 MiB can name
	MaxHosts        = 20_000  // hosts enrolled, servers too; no more are let in

	// Of these the oldest that are over are dropped; see prune.go.
	MaxJobs         = 20_000
	MaxLogBytes     = 128 << 20 // of all jobs' logs, with lineOverhead for each line
	MaxFleetUpdates = 500
	MaxTurns        = 200_000 // hosts of all fleet updates
	MaxAlerts       = 5_000
	MaxReleases     = 1_000 // a withdrawn one gives way; without one no more are taken
	MaxJoinTokens   = 10_000
	MaxUserSessions = 50 // of one user
	// Notifications that wait, of one webhook; the oldest are dropped.
	MaxNotifications = 1_000
	MaxLoginRows     = 10_000 // for which attempts to sign in are counted: names, networks, and names from networks

	// No more than these are taken.
	MaxUsers     = 1_000
	MaxAPITokens = 1_000
	MaxWebhooks  = 20

	MaxDenied = 7_000  // hosts on the deny-list; the one that ends next gives way
	MaxRings  = 10_000 // segments whose gossip keys were changed

	MaxKeyStatements = 256 // changes of the release keys
	MaxCASuccessions = 16  // changes of the CA that are kept; a host that missed more joins again

	MaxSources       = 64 // sources kept per job; the first ones win
	MaxKnownNetworks = 8  // of one user; the oldest is forgotten
)

// The limits of what a change may carry, in bytes where nothing else is said.
const (
	MaxIDBytes           = 64 // of IDs and of the hex of a sha256
	MaxNameBytes         = 64
	MaxVersionBytes      = 64
	MaxSegmentBytes      = 32
	MaxAddressBytes      = 255
	MaxActorBytes        = 128
	MaxPasswordHashBytes = 512
	MaxFromBytes         = 64 // of an IP address, or a network
	MaxLoginTries        = 64 // of one entry
	MaxLabels            = 32 // labels of a host
	MaxAlsoSegments      = 3  // segments of a host besides its home: with it, what mesh.MaxSegments allows
	MaxLabelValueBytes   = 64
	MaxReasonBytes       = 8 << 10 // of errors, reasons and alerts; longer ones are cut
	MaxDetailBytes       = 1 << 10 // of an audit entry's detail; longer ones are cut
	MaxMessageBytes      = 1 << 10 // of a refusal's message; longer ones are cut
	MaxArtifacts         = 64      // artifacts of a release
	MaxManifestBytes     = 256 << 10
	MaxSignatureBytes    = 4 << 10
	MaxURLBytes          = 2048 // of a webhook
	MaxBearerBytes       = 1024
	MinSecretBytes       = 16 // of what signs a webhook's requests
	MaxSecretBytes       = 256
	MaxReleaseKeys       = 8
	MaxRingKeys          = 8 // gossip keys of a segment at a time
	gossipKeyBytes       = 32
	MaxReleaseKeyBytes   = 128     // of a key's line
	MaxCABytes           = 8 << 10 // of a CA's certificate, of its key, and of what is signed about it
	MaxStatementBytes    = 4 << 10 // of an epoch, or of a change of the release keys
)

// maxYear is the last year that a time may lie in.
const maxYear = 9998

// validTime tells whether a time can be stored. Times are stored in UTC: JSON
// reads a zone of 24 hours, or a year that has four digits only in its zone, but
// does not write them, and one such row would make every snapshot fail.
func validTime(t time.Time) bool {
	year := t.UTC().Year()
	return year >= 1 && year <= maxYear
}

// timeFormat is how messages tell a time, in UTC.
const timeFormat = "2006-01-02 15:04:05 MST"

// expiredTokenRetention is how long an expired token is kept, so that its late
// use gets the right error.
const expiredTokenRetention = 30 * 24 * time.Hour

// bounds are the limits of tables, apart so that tests can reach them.
type bounds struct {
	audit, proposals, jobs, logBytes, fleetUpdates, turns, alerts int
	hosts, releases, joinTokens, apiTokens, users, userSessions   int
	webhooks, notifications                                       int // the latter of one webhook
	loginRows                                                     int
	denied, rings                                                 int
	jobLines                                                      uint64 // of one job
}

var defaultBounds = bounds{
	audit: MaxAuditEntries, proposals: MaxProposals, jobs: MaxJobs, logBytes: MaxLogBytes, jobLines: MaxJobLogLines,
	fleetUpdates: MaxFleetUpdates, turns: MaxTurns, alerts: MaxAlerts, hosts: MaxHosts, releases: MaxReleases,
	joinTokens: MaxJoinTokens, apiTokens: MaxAPITokens, users: MaxUsers, userSessions: MaxUserSessions,
	webhooks: MaxWebhooks, notifications: MaxNotifications,
	loginRows: MaxLoginRows, denied: MaxDenied, rings: MaxRings,
}

// What the validators below accept, told for people.
const (
	nameRule    = "give 1 to 64 of a-z A-Z 0-9 . _ -"
	segmentRule = "give 1 to 32 of a-z A-Z 0-9 . _ -"
	versionRule = "give 1 to 64 of a-z A-Z 0-9 . _ + -"
	roleRule    = "give admin, operator or viewer"
	networkRule = "give an IP address, or a network such as 2001:db8::/64"
)

// ValidName tells whether a name is one that a host, a user, a segment or an
// API token may bear: 1 to 64 of a-z A-Z 0-9 . _ -
func ValidName(s string) bool { return validWord(s, MaxNameBytes, "._-") }

// ValidVersion tells whether a version is one that a release may bear: 1 to 64
// of a-z A-Z 0-9 . _ + -
func ValidVersion(s string) bool { return validWord(s, MaxVersionBytes, "._+-") }

// validID keeps IDs to characters that no index, file name or address has to
// escape; a NUL in one would run into its neighbour in an index.
func validID(s string) bool { return validWord(s, MaxIDBytes, "._-") }

func validSegment(s string) bool { return validWord(s, MaxSegmentBytes, "._-") }

func validRole(r UserRole) bool { return r == Admin || r == Operator || r == Viewer }

func validWord(s string, limit int, also string) bool {
	if s == "" || len(s) > limit {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case strings.IndexByte(also, c) >= 0:
		default:
			return false
		}
	}
	return true
}

// validNetwork keeps networks to the characters that one is written with.
func validNetwork(s string) bool { return validWord(s, MaxFromBytes, ".:/") }

func validDigest(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 32 && s == strings.ToLower(s)
}

// checkAddresses refuses an address that is too long, naming its field.
func checkAddresses(gossip, peer, http string) *Error {
	for _, a := range []struct{ field, addr string }{{"gossip_addr", gossip}, {"peer_addr", peer}, {"http_addr", http}} {
		if len(a.addr) > MaxAddressBytes {
			return refuse(CodeBadRequest, "%s is %d bytes; give host:port of at most %d", a.field, len(a.addr), MaxAddressBytes)
		}
	}
	return nil
}

// checkAlso refuses further segments of a host that are too many, named twice or
// malformed.
func checkAlso(home string, also []HostSegment) *Error {
	if len(also) > MaxAlsoSegments {
		return refuse(CodeBadRequest, "also_segments has %d entries; give --also-segment at most %d times", len(also), MaxAlsoSegments)
	}
	seen := map[string]bool{home: true}
	for _, a := range also {
		switch {
		case !validSegment(a.Segment):
			return refuse(CodeBadRequest, "also_segments: segment %q: %s", clip(a.Segment, MaxNameBytes), segmentRule)
		case seen[a.Segment]:
			return refuse(CodeBadRequest, "also_segments: the host is in segment %s already; give --also-segment once for each further segment", a.Segment)
		case a.GossipAddr == "" || len(a.GossipAddr) > MaxAddressBytes:
			return refuse(CodeBadRequest, "also_segments: the gossip_addr in segment %s is %d bytes; give host:port of at most %d", a.Segment, len(a.GossipAddr), MaxAddressBytes)
		}
		seen[a.Segment] = true
	}
	return nil
}

// checkLabels refuses labels that are too many or too long, naming the first
// bad one in the order of keys, so that all servers name the same one.
func checkLabels(labels map[string]string) *Error {
	if len(labels) > MaxLabels {
		return refuse(CodeBadRequest, "labels has %d entries; give at most %d", len(labels), MaxLabels)
	}
	keys := make([]string, 0, len(labels))
	for k := range labels {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		if !ValidName(k) {
			return refuse(CodeBadRequest, "labels: key %q: %s", k, nameRule)
		}
		if v := labels[k]; v != "" && !validWord(v, MaxLabelValueBytes, "._-") {
			return refuse(CodeBadRequest, "labels: value %q of %s: give at most %d of a-z A-Z 0-9 . _ -", v, k, MaxLabelValueBytes)
		}
	}
	return nil
}

// ellipsis ends a text that was cut.
const ellipsis = "…"

// ClipLine cuts a line of a job's log to what is kept of it, at most
// MaxLogLineBytes. Who proposes lines does that before: an entry is stored as it
// comes.
func ClipLine(s string) string { return clip(s, MaxLogLineBytes) }

// clip cuts a text to at most limit bytes. It cuts between runes: half a rune
// would be stored as it is but come back from a snapshot as U+FFFD, and the
// restored server's state would differ from the others'.
func clip(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	end := limit - len(ellipsis)
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + ellipsis
}
