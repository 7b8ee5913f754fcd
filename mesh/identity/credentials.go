package identity

import (
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// Enrolment is what a host gets when it joins: a server's answer, and what Save
// keeps.
type Enrolment struct {
	Identity
	CertPEM     []byte   `json:"cert"`
	CAPEM       []byte   `json:"ca"`
	Segment     string   `json:"segment"`
	GossipKeys  [][]byte `json:"gossip_keys"`  // 32 bytes each, the first one encrypts
	ReleaseKeys []string `json:"release_keys"` // minisign public keys, base64 line each
	Servers     []string `json:"servers"`      // node ports of servers, HOST:PORT
	GossipJoin  []string `json:"gossip_join"`  // gossip addresses to join the pool by
}

// check tells whether the certificate is this host's, for this key, by the CA
// beside it, for the identity beside it, and valid at now.
func (e Enrolment) check(hostID string, key ed25519.PrivateKey, now time.Time) error {
	verifier, err := NewVerifier(e.Cluster, e.CAPEM)
	if err != nil {
		return err
	}
	block, _ := pem.Decode(e.CertPEM)
	if block == nil {
		return errors.New("no PEM certificate found")
	}
	id, public, err := verifier.Verify(block.Bytes, now)
	if err != nil {
		return err
	}
	switch {
	case id.HostID != hostID:
		return fmt.Errorf("the certificate is of host %s, this host is %s", id.HostID, hostID)
	case !publicOf(key).Equal(public):
		return errors.New("the certificate is not for this host's key")
	case id != e.Identity:
		return fmt.Errorf("the certificate says %s, beside it stands %s", id, e.Identity)
	}
	return nil
}

// Credentials are what a host is and knows once it has joined. Printing or
// logging them shows the identity only. They are values: copy them freely, and
// treat what they point at as read-only.
type Credentials struct {
	Identity
	Key         ed25519.PrivateKey `json:"-"`
	CertPEM     []byte
	CAPEM       []byte
	Segment     string   // the home segment
	GossipKeys  [][]byte `json:"-"` // 32 bytes each, the first one encrypts
	ReleaseKeys []string // minisign public keys
	Servers     []string // node ports of servers, HOST:PORT, as of the enrolment
	GossipJoin  []string // gossip addresses to join the pool by, as of the enrolment
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
	return v
}
