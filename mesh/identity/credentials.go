package identity

import (
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// gossipKeyBytes is the length of each gossip key: AES-256.
const gossipKeyBytes = 32

// Enrolment is what a host gets when it joins: a server's answer, and what Save
// keeps.
type Enrolment struct {
	Identity
	CertPEM    []byte   `json:"cert"`
	CAPEM      []byte   `json:"ca"`
	Segment    string   `json:"segment"`     // the home segment
	GossipKeys [][]byte `json:"gossip_keys"` // of the home segment; 32 bytes each, the first one encrypts
	// GossipRevision counts the changes of GossipKeys; 0: they never changed.
	GossipRevision uint64   `json:"gossip_revision,omitempty"`
	ReleaseKeys    []string `json:"release_keys"` // minisign public keys, base64 line each
	KeyPolicy
	Servers    []string  `json:"servers"`        // node ports of servers, HOST:PORT
	GossipJoin []string  `json:"gossip_join"`    // gossip addresses to join the home segment's pool by
	Also       []Segment `json:"also,omitempty"` // further segments
	// Relays are node ports of relays of the host's segments, HOST:PORT: by them it
	// finds back to a server when it knows nobody else any more.
	Relays []string `json:"relays,omitempty"`
	// Denied is the newest deny-list, as it was signed, for a host that takes it;
	// nil: there never was one.
	Denied []byte `json:"denied,omitempty"`
}

// KeyPolicy is what belongs to the release keys beside the keys.
type KeyPolicy struct {
	ReleaseThreshold int    `json:"release_threshold,omitempty"` // how many of them have to sign; 0 counts as 1
	KeysNumber       uint64 `json:"keys_number,omitempty"`       // of the key statement that they are from; 0: none
}

// GoString keeps the gossip keys out of %#v, as the Identity's String does out
// of %v.
func (e Enrolment) GoString() string { return "identity.Enrolment{" + e.String() + "}" }

// check tells whether a host can live by the enrolment from now on.
func (e Enrolment) check(hostID string, key ed25519.PrivateKey, now time.Time) error {
	id, err := certified(e.Cluster, e.CAPEM, e.CertPEM, hostID, key, now)
	switch {
	case err != nil:
		return err
	case id != e.Identity:
		return fmt.Errorf("the certificate says %s, beside it stands %s", id, e.Identity)
	case len(e.Relays) > maxRelays:
		return fmt.Errorf("relays: it names %d, at most %d", len(e.Relays), maxRelays)
	case len(e.Also) > maxAlso:
		return fmt.Errorf("also: it has %d segments, at most %d", len(e.Also), maxAlso)
	}
	seen := map[string]bool{}
	for _, s := range append([]Segment{{Name: e.Segment, GossipKeys: e.GossipKeys}}, e.Also...) {
		if err := s.check(); err != nil {
			return err
		}
		if seen[s.Name] {
			return fmt.Errorf("also: segment %s stands there twice", s.Name)
		}
		seen[s.Name] = true
	}
	return nil
}

// certified returns whom a certificate makes of a host: it must be this host's,
// for this key, of this cluster, by this CA, and valid at now.
func certified(cluster string, caPEM, certPEM []byte, hostID string, key ed25519.PrivateKey, now time.Time) (Identity, error) {
	verifier, err := NewVerifier(cluster, caPEM)
	if err != nil {
		return Identity{}, err
	}
	block, _ := pem.Decode(certPEM)
	if block == nil {
		return Identity{}, errors.New("no PEM certificate found")
	}
	id, public, err := verifier.Verify(block.Bytes, now)
	switch {
	case err != nil:
		return Identity{}, err
	case id.HostID != hostID:
		return Identity{}, fmt.Errorf("the certificate is of host %s, this host is %s", id.HostID, hostID)
	case !publicOf(key).Equal(public):
		return Identity{}, errors.New("the certificate is not for this host's key")
	}
	return id, nil
}

// Credentials are what a host is and knows once it has joined. Printing or
// logging them shows the identity only. They are values: copy them freely, and
// treat what they point at as read-only.
type Credentials struct {
	Identity
	Key            ed25519.PrivateKey `json:"-"`
	CertPEM        []byte
	CAPEM          []byte
	Segment        string    // the home segment
	GossipKeys     [][]byte  `json:"-"` // of the home segment; 32 bytes each, the first one encrypts
	GossipRevision uint64    // of GossipKeys
	ReleaseKeys    []string  // minisign public keys, as of the enrolment
	KeyPolicy                // of ReleaseKeys
	Servers        []string  // node ports of servers, HOST:PORT, as of the last answer of one
	GossipJoin     []string  // gossip addresses to join the home segment's pool by, as of then
	Also           []Segment `json:"-"` // further segments
	Relays         []string  // node ports of relays of the host's segments, as of then
	Denials        *Denials  `json:"-"` // who is denied, as of now; nil: nobody
}

// In returns what the host knows of one of its segments.
func (c Credentials) In(segment string) (Segment, bool) {
	if segment == c.Segment {
		return Segment{Name: segment, GossipKeys: c.GossipKeys, GossipRevision: c.GossipRevision, GossipJoin: c.GossipJoin}, true
	}
	for _, s := range c.Also {
		if s.Name == segment {
			return s, true
		}
	}
	return Segment{}, false
}

// GoString keeps the keys out of %#v, as the Identity's String does out of %v.
func (c Credentials) GoString() string { return "identity.Credentials{" + c.String() + "}" }

// Verifier returns what believes this cluster's certificates. When the CA does
// not parse it believes nobody.
func (c Credentials) Verifier() *Verifier {
	v, err := NewVerifier(c.Cluster, c.CAPEM)
	if err != nil {
		return &Verifier{refusal: err}
	}
	v.denials = c.Denials
	return v
}
