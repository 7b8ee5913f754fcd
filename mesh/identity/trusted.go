package identity

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// trustedFile keeps the CAs that a host trusts, in its store. A host that has
// followed no change of the CA has none: its only CA is ca.pem, number 0.
const trustedFile = "cas.json"

// ErrOtherSuccessor says that two CAs claim the same number: somebody besides the
// servers has the key of the one before.
var ErrOtherSuccessor = errors.New("this host follows another CA of that number: somebody besides the servers has a CA's key; see what `moult ca status` tells of this host, and join it again with a new token")

// TrustedCA is a CA with its number, as an enrolment names it.
type TrustedCA struct {
	Number uint64 `json:"number"`
	Cert   []byte `json:"cert"` // PEM
}

// trustedCA is a CA's certificate, and its number in the cluster.
type trustedCA struct {
	number uint64
	cert   *x509.Certificate
	key    ed25519.PublicKey
	hash   string // sha256 of the certificate, hex
}

// caSet does not change once it is sealed.
type caSet struct {
	trusted []trustedCA // by number, at least one
	retired []trustedCA // no longer trusted; what lies on this host's disk may be of them

	roots, ever *x509.CertPool // of trusted, and of both
}

func (s *caSet) sealed() *caSet {
	s.roots, s.ever = x509.NewCertPool(), x509.NewCertPool()
	for _, ca := range s.trusted {
		s.roots.AddCert(ca.cert)
		s.ever.AddCert(ca.cert)
	}
	for _, ca := range s.retired {
		s.ever.AddCert(ca.cert)
	}
	return s
}

func (s *caSet) newest() trustedCA { return s.trusted[len(s.trusted)-1] }

// signed tells whether the key of one of these signed b.
func signed(among []trustedCA, b, sig []byte) bool {
	return slices.ContainsFunc(among, func(ca trustedCA) bool { return ed25519.Verify(ca.key, b, sig) })
}

// Trusted is the CAs that a host trusts. Whoever verifies by the host's Credentials
// asks it each time, so a change takes effect at once. Its methods are safe for
// concurrent use.
type Trusted struct {
	dir string // of the store that keeps it; "": none does

	mu      sync.Mutex // orders Follow
	set     atomic.Pointer[caSet]
	members atomic.Pointer[func(hostID string) (ed25519.PublicKey, bool)]
	unknown atomic.Bool
}

// trustOnly trusts one CA.
func trustOnly(caPEM []byte) (*Trusted, error) {
	cert, err := parseCertificate(caPEM)
	if err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	key, ok := cert.PublicKey.(ed25519.PublicKey)
	if !ok {
		return nil, errors.New("CA certificate: its key is not ed25519")
	}
	t := &Trusted{}
	t.set.Store((&caSet{trusted: []trustedCA{{cert: cert, key: key, hash: certHash(cert)}}}).sealed())
	return t, nil
}

// SetMembers tells which key each host is enrolled with. From then on a certificate
// of an enrolled host is believed with that key only, whoever signed it, and one of
// a retired CA is enough to renew it: the key proves the host. For servers.
func (t *Trusted) SetMembers(keyOf func(hostID string) (ed25519.PublicKey, bool)) {
	t.members.Store(&keyOf)
}

// otherKey tells whether a host is enrolled with another key.
func (t *Trusted) otherKey(hostID string, key ed25519.PublicKey) bool {
	enrolled, known := t.enrolledKey(hostID)
	return known && !enrolled.Equal(key)
}

func (t *Trusted) enrolledKey(hostID string) (ed25519.PublicKey, bool) {
	if keyOf := t.members.Load(); keyOf != nil {
		return (*keyOf)(hostID)
	}
	return nil, false
}

// Hashes returns the sha256 of the certificates of the trusted CAs, in hex, by number.
func (t *Trusted) Hashes() (hashes []string) {
	if t == nil {
		return nil
	}
	for _, ca := range t.set.Load().trusted {
		hashes = append(hashes, ca.hash)
	}
	return hashes
}

// Knows tells whether the CA with this sha256 is, or was, one of the host's cluster.
func (t *Trusted) Knows(hash string) bool {
	if t == nil {
		return false
	}
	set := t.set.Load()
	return slices.ContainsFunc(slices.Concat(set.trusted, set.retired), func(ca trustedCA) bool { return ca.hash == hash })
}

// MetUnknown tells whether a certificate was refused since it was last asked because
// its CA is not known: there may be a new one.
func (t *Trusted) MetUnknown() bool { return t != nil && t.unknown.Swap(false) }

// Follow trusts the CAs that a chain leads to, once that is on the disk. It tells
// whether they are others than before. A chain that does not begin at a CA that the
// host trusts, or that names another CA for a number that it knows, changes nothing.
func (t *Trusted) Follow(cluster string, chain CAChain) (news bool, err error) {
	if len(chain.Successions) > MaxCAStatements {
		return false, fmt.Errorf("follow a change of the CA: it has %d statements, at most %d are read", len(chain.Successions), MaxCAStatements)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	set, err := t.set.Load().follow(cluster, chain)
	if err != nil {
		return false, fmt.Errorf("follow a change of the CA: %w", err)
	}
	if set == nil {
		return false, nil
	}
	if t.dir != "" {
		if err := set.write(t.dir); err != nil {
			return false, fmt.Errorf("follow a change of the CA: %w", err)
		}
	}
	t.set.Store(set)
	return true, nil
}

// follow returns the set that a chain leads to; nil: it is the same.
func (s *caSet) follow(cluster string, chain CAChain) (*caSet, error) {
	next := &caSet{trusted: slices.Clone(s.trusted), retired: slices.Clone(s.retired)}
	changed := false
	for _, raw := range chain.Successions {
		o, err := openSuccession(raw)
		if err != nil {
			return nil, err
		}
		if o.cluster != cluster {
			return nil, fmt.Errorf("the succession to CA %d is of cluster %q, not %s", o.ca.number, o.cluster, cluster)
		}
		newest := next.newest()
		switch {
		case o.ca.number <= newest.number:
			for _, known := range next.trusted {
				if known.number == o.ca.number && known.hash != o.ca.hash {
					return nil, fmt.Errorf("CA %d, sha256 %s: %w", o.ca.number, o.ca.hash, ErrOtherSuccessor)
				}
			}
		case o.ca.number > newest.number+1:
			return nil, fmt.Errorf("the CA was changed %d times since this host was last told, and how is no longer known; join it again with a new token", o.ca.number-newest.number)
		case o.previous.hash != newest.hash:
			return nil, fmt.Errorf("the succession to CA %d is from a CA that this host does not trust", o.ca.number)
		default:
			next.trusted, changed = append(next.trusted, o.ca), true
		}
	}
	if chain.Retirement != nil {
		lowest, err := openRetirement(cluster, chain.Retirement, next.trusted)
		if err != nil {
			return nil, err
		}
		for next.trusted[0].number < lowest {
			next.retired = append(next.retired, next.trusted[0])
			next.trusted, changed = next.trusted[1:], true
		}
		if most := MaxCAStatements; len(next.retired) > most {
			next.retired = next.retired[len(next.retired)-most:]
		}
	}
	if !changed {
		return nil, nil
	}
	return next.sealed(), nil
}

// trustedRecord is cas.json.
type trustedRecord struct {
	Trusted []TrustedCA `json:"trusted"`
	Retired []TrustedCA `json:"retired,omitempty"`
}

func (s *caSet) write(dir string) error {
	var r trustedRecord
	for _, ca := range s.trusted {
		r.Trusted = append(r.Trusted, TrustedCA{Number: ca.number, Cert: certPEM(ca.cert.Raw)})
	}
	for _, ca := range s.retired {
		r.Retired = append(r.Retired, TrustedCA{Number: ca.number, Cert: certPEM(ca.cert.Raw)})
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(dir, trustedFile, append(text, '\n'))
}

// newCASet checks what a server or the disk names: rising numbers, and CAs.
func newCASet(trusted, retired []TrustedCA) (*caSet, error) {
	s := &caSet{}
	for _, list := range []struct {
		from []TrustedCA
		into *[]trustedCA
	}{{trusted, &s.trusted}, {retired, &s.retired}} {
		if len(list.from) > MaxCAStatements+1 {
			return nil, fmt.Errorf("cas: there are %d, at most %d", len(list.from), MaxCAStatements+1)
		}
		for i, named := range list.from {
			block, _ := pem.Decode(named.Cert)
			if block == nil {
				return nil, errors.New("cas: no PEM certificate found")
			}
			ca, err := newTrustedCA(named.Number, block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("cas: %w", err)
			}
			if i > 0 && ca.number <= list.from[i-1].Number {
				return nil, errors.New("cas: their numbers do not rise")
			}
			*list.into = append(*list.into, ca)
		}
	}
	if len(s.trusted) == 0 {
		return nil, errors.New("cas: there is none")
	}
	return s.sealed(), nil
}

// load reads what Follow kept; caPEM is trusted where it kept nothing.
func (t *Trusted) load(caPEM []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	text, err := os.ReadFile(filepath.Join(t.dir, trustedFile))
	if errors.Is(err, os.ErrNotExist) {
		only, err := trustOnly(caPEM)
		if err != nil {
			return fmt.Errorf("%s is damaged: %w; %s", filepath.Join(t.dir, caFile), err, startOver)
		}
		t.keep(only.set.Load())
		return nil
	}
	if err != nil {
		return unreadable(err)
	}
	var r trustedRecord
	if err = json.Unmarshal(text, &r); err == nil {
		var set *caSet
		if set, err = newCASet(r.Trusted, r.Retired); err == nil {
			t.keep(set)
			return nil
		}
	}
	return fmt.Errorf("%s is damaged: %w; %s", filepath.Join(t.dir, trustedFile), err, startOver)
}

// keep leaves a set that is equal as it is: who compares pointers sees no change.
func (t *Trusted) keep(set *caSet) {
	if old := t.set.Load(); old == nil || !old.equal(set) {
		t.set.Store(set)
	}
}

func (s *caSet) equal(o *caSet) bool {
	same := func(a, b trustedCA) bool { return a.number == b.number && a.hash == b.hash }
	return slices.EqualFunc(s.trusted, o.trusted, same) && slices.EqualFunc(s.retired, o.retired, same)
}

// issuerOf returns the PEM of the CA, trusted or retired, that signed a certificate.
func (s *caSet) issuerOf(cert *x509.Certificate) ([]byte, bool) {
	for _, list := range [][]trustedCA{s.trusted, s.retired} {
		for _, ca := range list {
			if bytes.Equal(cert.RawIssuer, ca.cert.RawSubject) && cert.CheckSignatureFrom(ca.cert) == nil {
				return certPEM(ca.cert.Raw), true
			}
		}
	}
	return nil, false
}

// verifyChain is x509's, with the errors that people read.
func verifyChain(cert *x509.Certificate, roots *x509.CertPool, now time.Time) error {
	_, err := cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return fmt.Errorf("verify certificate of %q: %w; compare both hosts' clocks; a host that reaches a server renews its certificate by itself, and if it was off for too long, join the host again with a new token", cert.Subject.CommonName, err)
	}
	if err != nil {
		return fmt.Errorf("verify certificate: %w", err)
	}
	return nil
}
