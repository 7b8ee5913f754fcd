package nodekit

import (
	"time"

	"moult/mesh/identity"
)

const (
	// TrustTimeout bounds one message.
	TrustTimeout = 5 * time.Second // one message
)

// RingsNotice is the body of topicRings: the revision of the keys that a host
// should have, by segment.
type RingsNotice struct {
	Rings map[string]uint64 `json:"rings"`
}

// TrustFollowed is the body of topicTrustFollowed: what a host has.
type TrustFollowed struct {
	Epoch  uint64            `json:"epoch"`  // of the deny-list
	Denied uint64            `json:"denied"` // its number
	Rings  map[string]uint64 `json:"rings"`  // revision of the gossip keys, by segment
	CAs    []string          `json:"cas"`    // sha256 of the CAs that it trusts, by number
	Signer string            `json:"signer"` // sha256 of the CA that signed its certificate
}

// FollowedBy tells what credentials say of their host.
func FollowedBy(creds identity.Credentials) TrustFollowed {
	f := TrustFollowed{Rings: map[string]uint64{creds.Segment: creds.GossipRevision}}
	f.Epoch, f.Denied = creds.Denials.Followed()
	f.CAs = creds.Trusted.Hashes()
	f.Signer, _ = identity.CAHash(creds.CAPEM) // Load has parsed it
	for _, s := range creds.Also {
		f.Rings[s.Name] = s.GossipRevision
	}
	return f
}

// Lacks tells whether a host says that it has all that it should.
func (f TrustFollowed) Lacks(rings map[string]uint64) bool {
	for segment, revision := range rings {
		if f.Rings[segment] != revision {
			return true
		}
	}
	return false
}

// Behind tells whether a host says that it follows an older deny-list than this
// one. It may follow a newer one, where this server is not caught up.
func (f TrustFollowed) Behind(epoch, number uint64) bool {
	return identity.DenyListNumber{Epoch: f.Epoch, Number: f.Denied}.Before(identity.DenyListNumber{Epoch: epoch, Number: number})
}
