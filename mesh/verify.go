package mesh

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"net"
	"strconv"
	"sync/atomic"

	"moult/mesh/identity"
)

// recordVerifier holds records against the enrolment, where it is known.
type recordVerifier struct {
	cluster string
	keyOf   func(hostID string) (ed25519.PublicKey, bool)
	roleOf  func(hostID string) (identity.Role, bool)
	denied  func(hostID string) bool // may be nil
}

// removed tells whether the host is known to have been removed.
func (v recordVerifier) removed(hostID string) bool { return v.denied != nil && v.denied(hostID) }

// check returns the key by which the record is proven to be its host's. proven is
// one that is known to have signed it; nil: none is. Without the enrolment at hand a
// record is a hint: no key, and no error.
func (v recordVerifier) check(rec SignedRecord, proven ed25519.PublicKey) (key ed25519.PublicKey, err error) {
	if v.removed(rec.HostID) {
		return nil, fmt.Errorf("%w: host %s was removed", ErrUnverified, rec.HostID)
	}
	if v.roleOf != nil {
		if role, ok := v.roleOf(rec.HostID); ok && string(role) != rec.Role {
			return nil, fmt.Errorf("%w: host %s claims role %s, enrolled as %s", ErrUnverified, rec.HostID, rec.Role, role)
		}
	}
	if v.keyOf == nil {
		return nil, nil
	}
	key, ok := v.keyOf(rec.HostID)
	if !ok {
		return nil, fmt.Errorf("%w: host %s is not enrolled", ErrUnverified, rec.HostID)
	}
	if (len(proven) == 0 || !bytes.Equal(key, proven)) && !rec.Verify(v.cluster, key) {
		return nil, fmt.Errorf("%w: host %s did not sign it", ErrUnverified, rec.HostID)
	}
	return key, nil
}

// enrolled tells whether the host may still be in the roster as verified.
func (v recordVerifier) enrolled(hostID string) bool {
	if v.removed(hostID) {
		return false
	}
	if v.keyOf == nil {
		return true
	}
	_, ok := v.keyOf(hostID)
	return ok
}

// strict tells whether hints count for nothing here: on servers.
func (v recordVerifier) strict() bool { return v.keyOf != nil }

// Counters counts what a node refused since it started.
type Counters struct {
	UnverifiedRecords  uint64 // not signed by the enrolled key, or the wrong role
	StaleRecords       uint64 // (boot, sequence) did not rise
	MalformedRecords   uint64 // do not decode, or name another host than their member
	UnverifiedMessages uint64 // envelope or its certificate does not verify
	ReplayedMessages   uint64 // seen before
	MalformedMessages  uint64 // do not decode
	DroppedMessages    uint64 // a queue was full, or nobody handles the topic
	ForwardedMessages  uint64 // passed on as a relay
	RemovedHosts       uint64 // records and messages of hosts that are known to be removed; not in the above

	LastForged string // the last record that was not its host's: which host it names, and from which address
}

// counters is Counters in the making.
type counters struct {
	unverifiedRecords, staleRecords, malformedRecords      atomic.Uint64
	unverifiedMessages, replayedMessages, malformedMessage atomic.Uint64
	dropped, forwarded, removed                            atomic.Uint64
	lastForged                                             atomic.Pointer[string]
}

// forged notes from where something came that a host did not sign. The address is
// the one that gossip gives for it; nil: it came in a message of another member.
func (c *counters) forged(hostID string, ip net.IP) {
	from := "host id " + strconv.Quote(hostID[:min(len(hostID), maxID)])
	if ip != nil {
		from += " at " + ip.String()
	}
	c.lastForged.Store(&from)
}

func (c *counters) snapshot() Counters {
	return Counters{
		UnverifiedRecords: c.unverifiedRecords.Load(), StaleRecords: c.staleRecords.Load(),
		MalformedRecords: c.malformedRecords.Load(), UnverifiedMessages: c.unverifiedMessages.Load(),
		ReplayedMessages: c.replayedMessages.Load(), MalformedMessages: c.malformedMessage.Load(),
		DroppedMessages: c.dropped.Load(), ForwardedMessages: c.forwarded.Load(),
		RemovedHosts: c.removed.Load(), LastForged: c.last(),
	}
}

func (c *counters) last() string {
	if s := c.lastForged.Load(); s != nil {
		return *s
	}
	return ""
}
