package mesh

import (
	"net"
)

// FedRoster is a server's roster without a node: who made it feeds it with what
// relays would tell. It is how a fleet too large for nodes of its own is simulated;
// records are verified, ordered and kept as a server does.
type FedRoster struct {
	*Roster
	seq uint64 // of the sightings that it was fed
}

// NewFedRoster returns the roster of the server that cfg is of. It uses Identity,
// Pools, Timing, KeyOf, RoleOf and Denied.
func NewFedRoster(cfg Config) *FedRoster {
	return &FedRoster{Roster: newRoster(cfg.Identity.HostID, cfg.segments(), cfg.Timing.withDefaults(), cfg.recordVerifier())}
}

// Sighting is a relay's word on a host in a segment, and the host's record.
type Sighting struct {
	Relay   string // its host id
	Segment string
	Alive   bool
	IP      net.IP
	Record  SignedRecord
}

// Feed takes a sighting as if it had just come. It returns ErrUnverified (wrapped)
// for a record that is not its host's. Not safe for concurrent use.
func (r *FedRoster) Feed(s Sighting) error {
	r.seq++
	_, err := r.report(report{observer: s.Relay, version: r.seq, segment: s.Segment, alive: s.Alive, ip: s.IP, record: s.Record})
	return err
}

// Set puts the server's own record in place.
func (r *FedRoster) Set(own SignedRecord) { r.set(own, nil) }

func (c Config) recordVerifier() recordVerifier {
	return recordVerifier{cluster: c.Identity.Cluster, keyOf: c.KeyOf, roleOf: c.RoleOf, denied: c.Denied}
}
