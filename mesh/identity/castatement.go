package identity

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
)

// The CA of a cluster is changed by two signed texts, each in the form of an epoch
// statement (see epoch.go), which every host verifies for itself:
//
//   - a succession: CA number n comes after n-1. Both keys sign it: the old one
//     because hosts believe it, the new one so that nobody names a CA that is not
//     theirs. Whoever follows it trusts both.
//   - a retirement: of all CAs only number n is trusted from now on. Key n signs it;
//     the old one is what is no longer believed.
//
// Numbers begin at 0, the CA of the bootstrap.

// The domains keep each signature from meaning anything else.
const (
	successionDomain = "moult ca succession 1\n"
	retirementDomain = "moult ca retirement 1\n"
)

// maxCAStatement is more bytes than a signed text about a CA ever has.
const maxCAStatement = 8 << 10

// MaxCAStatements is how many successions a host follows at once, and servers keep.
const MaxCAStatements = 16

// CAChain is how a host gets from a CA that it trusts to those that are trusted
// now. It carries its own proof, so it may come from anybody.
type CAChain struct {
	Successions [][]byte `json:"successions"`          // by number, without gaps
	Retirement  []byte   `json:"retirement,omitempty"` // the newest; nil: there never was one
}

// succession is what both keys sign.
type succession struct {
	Cluster  string `json:"cluster"`
	Number   uint64 `json:"number"`   // of CA; Previous has one less
	Previous []byte `json:"previous"` // certificates, DER
	CA       []byte `json:"ca"`
}

// retirement is what the CA's key signs.
type retirement struct {
	Cluster string `json:"cluster"`
	Number  uint64 `json:"number"`
	CA      string `json:"ca_sha256"`
}

type signedSuccession struct {
	Statement []byte `json:"statement"` // the succession's JSON
	Signature []byte `json:"sig"`       // by the previous CA's key
	New       []byte `json:"new_sig"`   // by the new one's
}

// SignSuccession states that next is the cluster's CA number n, after this one.
func (ca *CA) SignSuccession(cluster string, n uint64, next *CA) ([]byte, error) {
	if !validID(cluster) || n == 0 {
		return nil, fmt.Errorf("sign the succession to CA %d of cluster %q: give a cluster id, and a number of at least 1", n, cluster)
	}
	text, err := json.Marshal(succession{Cluster: cluster, Number: n, Previous: ca.cert.Raw, CA: next.cert.Raw})
	if err != nil {
		return nil, err
	}
	signed := append([]byte(successionDomain), text...)
	return json.Marshal(signedSuccession{Statement: text, Signature: ed25519.Sign(ca.key, signed), New: ed25519.Sign(next.key, signed)})
}

// SignRetirement states that this CA, number n, is the only one of the cluster that
// is trusted.
func (ca *CA) SignRetirement(cluster string, n uint64) ([]byte, error) {
	if !validID(cluster) || n == 0 {
		return nil, fmt.Errorf("sign the retirement before CA %d of cluster %q: give a cluster id, and a number of at least 1", n, cluster)
	}
	text, err := json.Marshal(retirement{Cluster: cluster, Number: n, CA: certHash(ca.cert)})
	if err != nil {
		return nil, err
	}
	return json.Marshal(signedStatement{Statement: text, Signature: ed25519.Sign(ca.key, append([]byte(retirementDomain), text...))})
}

// openedSuccession is a succession that was signed by the two CAs in it. Whether the
// previous one is trusted is for the caller to say.
type openedSuccession struct {
	cluster      string
	previous, ca trustedCA
}

func openSuccession(raw []byte) (o openedSuccession, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("read the succession of a CA: %w", err)
		}
	}()
	if len(raw) > maxCAStatement {
		return o, fmt.Errorf("it is %d bytes; at most %d are read", len(raw), maxCAStatement)
	}
	var signed signedSuccession
	if err := decodeOne(raw, &signed); err != nil {
		return o, err
	}
	var s succession
	if err := decodeOne(signed.Statement, &s); err != nil {
		return o, err
	}
	if s.Number == 0 {
		return o, errors.New("it names no number")
	}
	if o.previous, err = newTrustedCA(s.Number-1, s.Previous); err != nil {
		return o, fmt.Errorf("previous: %w", err)
	}
	if o.ca, err = newTrustedCA(s.Number, s.CA); err != nil {
		return o, fmt.Errorf("ca: %w", err)
	}
	covered := append([]byte(successionDomain), signed.Statement...)
	if !ed25519.Verify(o.previous.key, covered, signed.Signature) {
		return o, errors.New("the previous CA did not sign it")
	}
	if !ed25519.Verify(o.ca.key, covered, signed.New) {
		return o, errors.New("the new CA did not sign it")
	}
	o.cluster = s.Cluster
	return o, nil
}

// newTrustedCA takes a CA's certificate as a statement or a file carries it.
func newTrustedCA(number uint64, der []byte) (trustedCA, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return trustedCA{}, err
	}
	key, ok := cert.PublicKey.(ed25519.PublicKey)
	switch {
	case !ok:
		return trustedCA{}, errors.New("CA certificate: its key is not ed25519")
	case !cert.IsCA:
		return trustedCA{}, errors.New("CA certificate: it may not issue certificates")
	}
	return trustedCA{number: number, cert: cert, key: key, hash: certHash(cert)}, nil
}

// openRetirement returns the number of the CA, one of these, that is the lowest one to
// be trusted from now on, and signed that. For one that is not above the lowest of
// these already it returns that one's.
func openRetirement(cluster string, raw []byte, among []trustedCA) (lowest uint64, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("read the retirement of a CA: %w", err)
		}
	}()
	if len(raw) > maxCAStatement {
		return 0, fmt.Errorf("it is %d bytes; at most %d are read", len(raw), maxCAStatement)
	}
	var signed signedStatement
	if err := decodeOne(raw, &signed); err != nil {
		return 0, err
	}
	var r retirement
	if err := decodeOne(signed.Statement, &r); err != nil {
		return 0, err
	}
	if r.Cluster != cluster {
		return 0, fmt.Errorf("it is of cluster %q, not %s", r.Cluster, cluster)
	}
	if r.Number <= among[0].number {
		return among[0].number, nil // long followed
	}
	for _, ca := range among {
		if ca.number == r.Number && ca.hash == r.CA {
			if !ed25519.Verify(ca.key, append([]byte(retirementDomain), signed.Statement...), signed.Signature) {
				return 0, errors.New("the CA that it names did not sign it")
			}
			return ca.number, nil
		}
	}
	return 0, fmt.Errorf("it names CA %d, sha256 %.16s…, which this host does not trust", r.Number, r.CA)
}
