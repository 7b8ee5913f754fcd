// Package webui is what people and programs see of a server: the HTTP API under
// /api, the pages in the browser, the event stream that keeps them live, and the
// public download of the current agent.
//
// The server's wiring calls New once and serves the handler. The package decides
// nothing that lasts: it reads the replicated state (fleet.View), joins it with
// what the mesh observes (Observation), and turns a request into a fleet.Change
// that the Proposer has committed. Any server answers any request.
//
// # Who may do what
//
// Each route names the least role that may call it, in one table (routes.go).
// A program signs in with "Authorization: Bearer TOKEN"; a browser with a
// password and then a session cookie. Sessions are part of the replicated state,
// so a browser stays signed in whichever server it talks to. A request that
// carries no bearer token and would change something must come from the same
// origin.
//
// # Pages
//
// A page is served whole, or, where the request says HX-Request, as its live part
// alone: the script on the page fetches that again when an event names one of the
// page's topics, and morphs it into place. Pages only read; their buttons and
// forms call the API. Each embeds shell (shell.go) and has a template of its name
// under templates/pages.
//
// # Errors
//
// A handler returns an error; render (errors.go) turns it into
//
//	{"error":{"code":"host_offline","message":"…"}}
//
// with the right status under /api, and into a page elsewhere. Codes are stable,
// messages are sentences for people that say what to do next. A change that
// could not be committed is 503 "unavailable".
//
// # Events
//
// GET /api/events is a stream of server-sent events, each
//
//	event: change
//	data: {"index":17,"topics":["hosts","host:ID"]}
//
// It says what changed, never how: the reader fetches that again. The topics are
// those of fleet.Event; "hosts" stands for observed changes too, and "*", which
// is also the first event of each stream, for anything. Events of the type "ping"
// tell that the stream is alive.
//
// The API is described by the OpenAPI document at /api/openapi.json, which is
// written by hand; a test holds the routes and the answers to it.
package webui

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"moult/consensus/fleet"
)

// Config is what New needs. All fields are required but Metrics, HSTS and Now.
type Config struct {
	Version, Commit string // of the running program

	View      func() fleet.View
	Subscribe func() (events <-chan fleet.Event, end func())
	Proposer  Proposer

	Started  time.Time                     // when this server began to hear of hosts
	Observed func() map[string]Observation // by host id
	Changed  func() <-chan struct{}        // closed at the next change of what Observed returns

	Servers   Servers
	Publisher Publisher
	Trust     Trust
	CAs       CAs
	// FollowedKeys tells which key statement each host says it follows, by host id.
	// nil: nobody says.
	FollowedKeys func() map[string]uint64
	Binaries     Binaries
	Webhooks     WebhookTester
	Backups      Backups
	// Problems tells what is wrong with this server. It asks nobody and does not block.
	Problems func() []Problem
	// ProblemCodes says of each code that Problems may return whether it is failing.
	ProblemCodes map[string]bool
	// CatchUp returns once View shows everything that was acknowledged before, by
	// any server.
	CatchUp func(ctx context.Context) error

	Metrics []prometheus.Collector // of the server's other parts, for /metrics; may be empty

	// HSTS tells browsers to come to this host name by TLS alone from then on: for a
	// certificate that its owner got for the name, which is used for nothing else.
	HSTS bool

	Logger *slog.Logger
	Now    func() time.Time // time.Now if nil
}

// Proposer has changes committed. When Propose returns nil, View shows the
// change; a refusal by the state is an *fleet.Error.
type Proposer interface {
	Propose(ctx context.Context, actor string, c fleet.Change) (fleet.Result, error)
}

// Observation is what the mesh saw of a host last.
type Observation struct {
	Online, Left bool
	Unreachable  bool // not online, and nobody looks into its segments, so that nobody knows
	Version      string
	Digest       string // sha256 of the running binary, at least its first 16 hex digits
	Phase, JobID string
	Done, Total  int64 // bytes of the download under way; Total is 0 when there is none
	LastSeen     time.Time
	SeenVia      string         // id of the relay that saw it then; "" when this server sees it itself
	Sources      []fleet.Source // of the download under way
	Segments     []string       // that it is in, the home segment first; two or more: it is a relay
	OS, Arch     string
	RunsFrom     string   // path of the binary that runs instead of the installed one, if one does
	Holds        []string // 16 hex digits each: artifacts besides the running binary that it can serve
	KeptBytes    int64    // that it keeps of releases; 0: it has not said
	Staging      Staging  // of an artifact that it is to have before its turn; the zero value: none
}

// Staging is how far a host is with an artifact that it is to have before its turn.
type Staging struct {
	Digest      string
	State       string // awaits_patch, fetching, staged or failed
	Done, Total int64  // bytes
	Error       string // why it failed
}

// holds tells whether a host says that it runs or holds an artifact.
func (o Observation) holds(sha256 string) bool {
	return o.runs(sha256) ||
		slices.ContainsFunc(o.Holds, func(prefix string) bool { return prefix != "" && strings.HasPrefix(sha256, prefix) })
}

// runs tells whether a host says that it runs an artifact.
func (o Observation) runs(sha256 string) bool {
	return o.Digest != "" && strings.HasPrefix(sha256, o.Digest)
}

// Trust knows what removals and new gossip keys need, and how far they are.
type Trust interface {
	// Rotations tells how the gossip keys of each segment are, by its name.
	Rotations() []Rotation
	// NewKeys makes a new gossip key for each of these segments.
	NewKeys(segments []string) ([]fleet.SegmentKey, error)
	// Until is when no certificate that was issued up to now can be valid, or be
	// renewed, any more.
	Until() time.Time
	// DeniedBehind names the hosts that are online and have not said that they
	// follow the newest deny-list.
	DeniedBehind() []string
}

// Rotation is a segment's gossip keys, joined with who has them.
type Rotation struct {
	Ring      fleet.GossipRing // only its Segment is there when the keys never changed
	Hosts     int              // that are in the segment
	Online    int
	Confirmed int            // online, and have the keys of Ring
	Pending   []RotationHost // the next stage waits for them
	Offline   []string       // names of those that get the keys when they come back
}

// RotationHost is a host that a rotation waits for.
type RotationHost struct {
	Name   string `json:"name"`
	Why    string `json:"why"`
	Unseen bool   `json:"-"` // nobody has heard of it; a leader that has led for a while waits no more
}

// Waits returns how many hosts the rotation waits for.
func (r Rotation) Waits(unseenIsGone bool) (n int) {
	for _, h := range r.Pending {
		if !h.Unseen || !unseenIsGone {
			n++
		}
	}
	return n
}

// Servers knows the Raft group. A refusal is an *fleet.Error.
type Servers interface {
	Servers(ctx context.Context) []ServerStatus
	RemoveServer(ctx context.Context, id string) error
	DemoteServer(ctx context.Context, id string) error
	TransferLeadership(ctx context.Context) error
	// States returns a digest of each server's state, at the same index where
	// that can be had.
	States(ctx context.Context) []ServerState
}

// ServerStatus is how one server is.
type ServerStatus struct {
	ID           string `json:"id"`
	Name         string `json:"name"`
	Address      string `json:"address"`
	Version      string `json:"version"`
	Leader       bool   `json:"leader"`
	Voter        bool   `json:"voter"`
	Standby      bool   `json:"standby"` // it shall not vote
	AppliedIndex uint64 `json:"applied_index"`
	Healthy      bool   `json:"healthy"` // it answers, and none of its problems is failing
	// Problems are in its own words, those that keep it from working first.
	Problems []Problem `json:"problems"`
	// CaughtUp: it is healthy and has the entries of the server that was asked.
	CaughtUp bool `json:"-"`
}

// GroupOf is what a server's restart is judged by (fleet.HoldsUpRestart).
func GroupOf(servers []ServerStatus) []fleet.GroupMember {
	group := make([]fleet.GroupMember, 0, len(servers))
	for _, s := range servers {
		group = append(group, fleet.GroupMember{ID: s.ID, Name: s.Name, Voter: s.Voter, Healthy: s.CaughtUp})
	}
	return group
}

// Problem is one thing that is wrong with a server.
type Problem struct {
	Code    string `json:"code"`
	Message string `json:"message"` // what is wrong
	Next    string `json:"next"`    // what to do about it
	// Failing: it keeps the server from serving. Else it will, or something else.
	Failing bool `json:"failing"`
}

// String is the problem as a sentence.
func (p Problem) String() string { return p.Message + "; " + p.Next }

// WebhookTester tries webhooks.
type WebhookTester interface {
	// Test sends a test and returns the status that the receiver answered, 0 for
	// none. The error says for people why it was not taken, and holds no secret.
	Test(ctx context.Context, w fleet.Webhook) (status int, err error)
}

// Publisher takes release uploads. Begin checks the manifest's signature before
// any artifact is read. Refusals are *fleet.Error with the codes CodeBadSignature,
// CodeDigestMismatch, fleet.CodeReleaseExists and fleet.CodeBadRequest.
type Publisher interface {
	Begin(ctx context.Context, manifest, signature []byte) (Upload, error)
}

// Upload is one release on its way in. It ends with Commit or Abort.
type Upload interface {
	// Artifact reads one artifact to its end. Name is the uploader's file name, for
	// messages only: the digest of what was read tells which artifact it is.
	Artifact(ctx context.Context, name string, r io.Reader) error
	// Commit publishes once a majority of the servers hold the bytes.
	Commit(ctx context.Context, actor string) error
	Abort()
}

// Binaries opens binaries of the current release; before any release exists, of
// the running program itself.
type Binaries interface {
	// Open returns ErrNoSuchBuild when there is none for the platform.
	Open(os, arch string) (Binary, error)
}

// Binary is an agent binary; whoever opened it closes Content.
type Binary struct {
	Content io.ReadSeekCloser
	Size    int64
	SHA256  string // 64 hex digits
	Version string
}

// ErrNoSuchBuild is returned by Binaries for a platform without a binary.
var ErrNoSuchBuild = errors.New("no such build")

func (c *Config) validate() error {
	for name, missing := range map[string]bool{
		"Version": c.Version == "", "View": c.View == nil, "Subscribe": c.Subscribe == nil,
		"Proposer": c.Proposer == nil, "Observed": c.Observed == nil, "Changed": c.Changed == nil,
		"Servers": c.Servers == nil, "Publisher": c.Publisher == nil, "Trust": c.Trust == nil, "CAs": c.CAs == nil, "Binaries": c.Binaries == nil,
		"Webhooks": c.Webhooks == nil, "Backups": c.Backups == nil, "Problems": c.Problems == nil, "CatchUp": c.CatchUp == nil, "Logger": c.Logger == nil,
	} {
		if missing {
			return fmt.Errorf("webui: Config.%s is not set", name)
		}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return nil
}

// ui is the parts that the handlers share.
type ui struct {
	Config
	pages    *pages
	registry *prometheus.Registry
	hosts    hostCache
	logins   *throttle
	tries    *tries
	streams  streamSlots
	binaries slots // open downloads of /agent/binary
	tests    slots // tests of webhooks under way
	backups  slots // being written
}

// New returns the handler of all routes. It starts no goroutines; streams end
// with their requests' contexts.
func New(c Config) (http.Handler, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	pages, err := loadPages()
	if err != nil {
		return nil, err
	}
	u := &ui{
		Config: c, pages: pages, logins: newThrottle(c.Now),
		streams: streamSlots{total: maxStreams, perCaller: maxStreamsPerCaller}, binaries: make(slots, maxDownloads), tests: make(slots, maxTests), backups: make(slots, maxBackups),
	}
	if u.registry, err = u.newRegistry(); err != nil {
		return nil, err
	}
	u.tries = newTries(c.View, func(ctx context.Context, c fleet.Change) error { return u.proposeAs(ctx, "system", c) })
	return u.router(), nil
}

// slots bounds how many of something are open at a time.
type slots chan struct{}

// take returns false when all are taken; otherwise the caller must give it back.
func (s slots) take() bool {
	select {
	case s <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s slots) give() { <-s }
