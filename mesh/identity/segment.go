package identity

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"
)

// DefaultSegment is the segment whose gossip keys are the cluster's gossip
// secrets as they are: it had them before segments had keys of their own.
const DefaultSegment = "default"

// gossipKeyContext begins what a segment's key is derived by, so that it is no
// other key.
const gossipKeyContext = "moult gossip key 1"

// What a request or an enrolment names at most.
const (
	maxAlso   = 3 // further segments
	maxRelays = 16
)

// NewGossipKey makes a key for a segment whose keys are changed.
func NewGossipKey() ([]byte, error) {
	key := make([]byte, gossipKeyBytes)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("make a gossip key: %w", err)
	}
	return key, nil
}

// GossipKeys returns a segment's gossip keys, one for each of the cluster's
// gossip secrets and in their order: the first one encrypts. caKey is the CA's
// private key as the servers keep it, PEM: with it only servers can derive keys,
// and who has those of one segment, DefaultSegment included, learns nothing of
// another segment's.
func GossipKeys(secrets [][]byte, caKey []byte, cluster, segment string) ([][]byte, error) {
	if segment == DefaultSegment {
		return secrets, nil
	}
	if len(caKey) == 0 {
		return nil, errors.New("derive gossip keys: the CA's key is missing; only servers have it")
	}
	keys := make([][]byte, len(secrets))
	for i, secret := range secrets {
		info := fmt.Sprintf("%s\n%s\n%s", gossipKeyContext, cluster, segment) // neither contains a newline
		key, err := hkdf.Key(sha256.New, slices.Concat(caKey, secret), nil, info, gossipKeyBytes)
		if err != nil {
			return nil, fmt.Errorf("derive the gossip key of segment %s: %w", segment, err)
		}
		keys[i] = key
	}
	return keys, nil
}

// Segment is what a host needs to be a member of one segment's pool. Printing or
// logging it does not show the keys.
type Segment struct {
	Name       string   `json:"name"`
	GossipKeys [][]byte `json:"gossip_keys"` // 32 bytes each, the first one encrypts
	// GossipRevision counts the changes of GossipKeys; 0: they never changed.
	GossipRevision uint64   `json:"gossip_revision,omitempty"`
	GossipJoin     []string `json:"gossip_join"` // gossip addresses of members
}

// String names the segment.
func (s Segment) String() string { return "segment " + s.Name }

// GoString is String, for %#v.
func (s Segment) GoString() string { return s.String() }

// Format keeps the keys out of every verb: String alone does not cover all.
func (s Segment) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.String()) }

// LogValue keeps the keys out of logs.
func (s Segment) LogValue() slog.Value { return slog.StringValue(s.String()) }

func (s Segment) check() error {
	if s.Name == "" {
		return errors.New("segment: it names none")
	}
	if len(s.GossipKeys) == 0 {
		return fmt.Errorf("gossip_keys: there are none of segment %s", s.Name)
	}
	for _, k := range s.GossipKeys {
		if len(k) != gossipKeyBytes {
			return fmt.Errorf("gossip_keys: one of segment %s has %d bytes, not %d", s.Name, len(k), gossipKeyBytes)
		}
	}
	return nil
}

// SegmentAddr says that a host is in a segment, and where it gossips there.
type SegmentAddr struct {
	Segment    string `json:"segment"`
	GossipAddr string `json:"gossip_addr"` // HOST:PORT as the members of that segment reach it
}
