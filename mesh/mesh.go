// Package mesh tells who is here and what they run, and carries bytes between
// hosts. Command moult starts one Node per process; nobody else imports this
// package, and this package is the only importer of memberlist.
//
// # Pools and segments
//
// A Node holds one memberlist pool for each network segment it is connected to.
// The first is its home segment. A host in two or more segments is a relay. A
// pool believes memberlist about its own members; about other segments a node
// believes what relays observed (see DESIGN.md, "Sightings").
//
// # Records
//
// Each host signs a Record of itself: version, digest, phase, job. It travels
// as the memberlist node's metadata, at most 512 bytes. On servers, where
// Config.KeyOf is set, a record counts only if the enrolled key signed it, and
// only if (boot, sequence) rises. On agents records are hints.
//
// # Messages
//
// Send carries up to 256 KiB to one host under a topic, in an envelope that the
// sender's host key signed and that holds the sender's certificate. It goes
// straight to the host when a pool is shared, else through relays, at most
// eight of them. Delivery is at most once per Send and may fail silently after
// Send returned nil, when the receiver dies or drops it: whoever needs certainty
// repeats the message until an answer shows. A message cannot be replayed to a
// running receiver; a receiver that restarts has forgotten what it saw, so
// messages that must not take effect twice carry their own fence.
//
// # Concurrency
//
// All methods of Node and Roster are safe for concurrent use. Handlers run on
// the node's goroutines, in order per sender, never in memberlist's.
package mesh

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/hashicorp/memberlist"

	"moult/mesh/identity"
)

// What a caller may test for with errors.Is.
var (
	// ErrUnreachable: the host is not known, not online, or no relay got through.
	ErrUnreachable = errors.New("host is unreachable")
	// ErrTooLarge: the payload is larger than MaxPayload.
	ErrTooLarge = errors.New("payload is too large")
	// ErrClosed: the node has left or was closed.
	ErrClosed = errors.New("mesh is closed")
	// ErrMalformed: a record that does not decode or breaks a bound.
	ErrMalformed = errors.New("malformed record")
	// ErrUnverified: a record that the enrolled key did not sign, or of a host
	// that is not enrolled.
	ErrUnverified = errors.New("record is not verified")
	// ErrStale: a record whose (boot, sequence) did not rise.
	ErrStale = errors.New("record is stale")
)

// Limits of the mesh.
const (
	MaxPayload  = 256 << 10 // bytes of one message
	MaxSegments = 4         // segments one host may be in
	MaxHops     = 8         // relays one message may pass
)

// Config says who this node is and where it listens.
type Config struct {
	Identity identity.Identity
	Key      ed25519.PrivateKey // the host key
	CertDER  []byte             // the host's certificate, DER, until SetCertificate
	Verifier *identity.Verifier
	Boot     uint64 // number of this start; must rise from start to start
	OS, Arch string
	Version  string // at most 64 bytes of printable ASCII
	Digest   string // sha256 of the running executable, 64 hex digits
	PeerAddr string // host:port of the node port, as advertised; only the port travels
	Pools    []PoolConfig

	// KeyOf returns a host's enrolled key. Servers set it: records and messages
	// that do not verify by it are ignored and counted. Nil on agents. It is
	// called often and from several goroutines, and must not block.
	KeyOf func(hostID string) (ed25519.PublicKey, bool)
	// RoleOf returns a host's enrolled role: records and messages that claim
	// another one are ignored and counted, for a key signs what its host likes.
	// Set, and called, as KeyOf is.
	RoleOf func(hostID string) (identity.Role, bool)

	// Denied tells whether a host was removed from the cluster: it is no member for
	// this node, whatever gossip says. Nil: nobody was. Called as KeyOf is.
	Denied func(hostID string) bool

	// FindSeeds asks others for gossip addresses of a segment's members, within ctx;
	// nil: nobody is asked. neighbours are those who may know, the best first. A pool
	// that is alone calls it in each round in which it looks for members, any other
	// now and then, in case there are two of it.
	FindSeeds func(ctx context.Context, segment string, neighbours []Contact) []string

	// HostsPerAddress is how many hosts share one address, as behind NAT: what an
	// address may open to a gossip port is that many times as much. 0 counts as 1.
	HostsPerAddress int

	Logger *slog.Logger // nil: no log
	Timing Timing       // zero fields: DefaultTiming

	// Transport, when not nil, replaces the network; mesh/meshtest has one.
	Transport TransportFactory
}

// TransportFactory makes the transport of one pool, listening on bind.
type TransportFactory func(segment, bind string) (memberlist.NodeAwareTransport, error)

// PoolConfig is one segment that the host is connected to.
type PoolConfig struct {
	Segment   string
	Bind      string   // host:port, UDP and TCP; port 0 takes a free one
	Advertise string   // host:port as others reach it; "": as bound
	Keys      [][]byte // gossip keys of 16, 24 or 32 bytes; the first one encrypts
	Join      []string // host:port of members to join by
	// Allow lists networks in CIDR notation whose addresses may be members;
	// empty: all.
	Allow []string
}

// Timing holds the intervals of a node. Zero fields take DefaultTiming's value.
type Timing struct {
	Gossip   time.Duration // between rounds of gossip
	PushPull time.Duration // between full exchanges inside a pool
	Probe    time.Duration // between probes of one member
	Reclaim  time.Duration // after which a dead member's name may take a new address
	Rejoin   time.Duration // between attempts to reach known peers that are missing
	Exchange time.Duration // between full exchanges of relays' observations
	Reach    time.Duration // a host stays online this long on its own word alone
	Renew    time.Duration // between renewals of the record that relays carry
	Stream   time.Duration // bounds one stream to another member
}

// DefaultTiming is what production runs with.
var DefaultTiming = Timing{
	Gossip: 50 * time.Millisecond, PushPull: 10 * time.Second, Probe: time.Second,
	Reclaim: 30 * time.Second, Rejoin: 10 * time.Second, Exchange: 10 * time.Second,
	Reach: 10 * time.Second, Renew: 15 * time.Second, Stream: 5 * time.Second,
}

func (t Timing) withDefaults() Timing {
	for _, f := range []struct{ value, standard *time.Duration }{
		{&t.Gossip, &DefaultTiming.Gossip},
		{&t.PushPull, &DefaultTiming.PushPull},
		{&t.Probe, &DefaultTiming.Probe},
		{&t.Reclaim, &DefaultTiming.Reclaim},
		{&t.Rejoin, &DefaultTiming.Rejoin},
		{&t.Exchange, &DefaultTiming.Exchange},
		{&t.Reach, &DefaultTiming.Reach},
		{&t.Renew, &DefaultTiming.Renew},
		{&t.Stream, &DefaultTiming.Stream},
	} {
		if *f.value <= 0 {
			*f.value = *f.standard
		}
	}
	return t
}

func (c Config) validate() error {
	switch {
	case !validID(c.Identity.HostID):
		return fmt.Errorf("host id %q: want 1 to %d letters, digits, '-', '_' or '.'", c.Identity.HostID, maxID)
	case c.Identity.Cluster == "":
		return errors.New("the identity names no cluster; join this host first with: moult agent --join ADDR --token TOKEN")
	case len(c.Key) != ed25519.PrivateKeySize:
		return errors.New("the host key is missing")
	case c.Verifier == nil:
		return errors.New("the verifier of certificates is missing")
	case len(c.CertDER) == 0 || len(c.CertDER) > maxCert:
		return fmt.Errorf("the certificate has %d bytes; want 1 to %d", len(c.CertDER), maxCert)
	case len(c.Pools) == 0 || len(c.Pools) > MaxSegments:
		return fmt.Errorf("a host is in 1 to %d segments, not %d", MaxSegments, len(c.Pools))
	case (c.KeyOf == nil) != (c.RoleOf == nil):
		return errors.New("KeyOf and RoleOf go together: an enrolled key proves whose a record is, not the role it claims")
	case len(c.Digest) != 64:
		return fmt.Errorf("digest %q: want 64 hex digits", c.Digest)
	}
	seen := map[string]bool{}
	for _, p := range c.Pools {
		if seen[p.Segment] {
			return fmt.Errorf("segment %q is configured twice", p.Segment)
		}
		seen[p.Segment] = true
		if len(p.Keys) == 0 {
			return fmt.Errorf("segment %q has no gossip key", p.Segment)
		}
	}
	return nil
}

// segments names the segments of the pools, the home segment first.
func (c Config) segments() (names []string) {
	for _, p := range c.Pools {
		names = append(names, p.Segment)
	}
	return names
}

// peerPort reads the port out of PeerAddr.
func (c Config) peerPort() (uint16, error) {
	_, port, err := net.SplitHostPort(c.PeerAddr)
	if err != nil {
		return 0, fmt.Errorf("peer address %q: %w; give it as host:port with --peer", c.PeerAddr, err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("peer address %q: the port must be a number; give it as host:port with --peer", c.PeerAddr)
	}
	return uint16(n), nil
}
