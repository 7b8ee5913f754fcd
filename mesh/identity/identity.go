// Package identity is who a host is: its key, its certificate, and how it gets
// them.
//
// A host makes its ed25519 key itself, and the key never leaves it. The
// cluster's CA signs a certificate whose single URI SAN says who the host is:
//
//	moult://CLUSTER/agent/HOST
//	moult://CLUSTER/server/HOST
//
// All that one host may believe of another comes out of that URI, never out of
// a payload and never out of an address. The CommonName is the host's name, for
// people.
//
// # Joining
//
// A join token, MOULT1.<ca-sha256>.<secret>, is good for one host. A new host
// dials any server's node port, or that of a relay, which passes the connection
// on, with ALPN moult-join and
//
//  1. holds the chain that the server shows against the token's CA hash, and
//     goes away when it does not fit: the secret has not been sent yet;
//  2. posts a JoinRequest with the token's secret, its public key and a
//     signature that proves that it holds the private one;
//  3. gets an Enrolment: certificate, CA, gossip keys, release keys, addresses;
//  4. writes it to its Store, cluster.json last.
//
// The host's key and ID are on disk before step 1, so a join that was cut off at
// any point is repeated with the same token and gives the same host.
//
// # Renewal
//
// An enrolled host asks a server, the same way, with ALPN moult-renew and its
// certificate, for a fresh one of the same identity and key. The answer is an
// Enrolment again: what joining gave, as it is now, so that a host started in
// further segments gets their keys. See Renew and Current.
//
// # Files
//
// A Store is a directory of its own (mode 0700), its files are 0600, and each is
// replaced in one step and synced:
//
//	host-id       the host's UUID             made by the host
//	key.pem       its private key, PKCS #8    made by the host
//	ca.pem        the cluster's CA
//	cert.pem      the host's certificate
//	cluster.json  what else joining gave; its presence says "has joined"
//	denied        the newest deny-list, once there is one
//
// DESIGN.md says why it is like this. Everything in the package is safe for
// concurrent use.
package identity

import (
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"
)

// The errors that callers tell apart.
var (
	// ErrNotEnrolled says that this host has joined no cluster yet.
	ErrNotEnrolled = errors.New("this host has joined no cluster yet; make a token on a server with `moult token create` and join with it")
	// ErrOtherCluster says that a data directory belongs to another cluster.
	ErrOtherCluster = errors.New("the data directory belongs to another cluster")
	// ErrUntrustedServer says that who answered a join is not a server of the
	// token's cluster. The secret was not sent.
	ErrUntrustedServer = errors.New("the join token's secret was not sent")
)

// Role is what a certificate entitles its host to.
type Role string

// The roles.
const (
	RoleAgent  Role = "agent"
	RoleServer Role = "server"
)

// Identity is what a certificate says about a host.
type Identity struct {
	Cluster string `json:"cluster_id"`
	HostID  string `json:"host_id"`
	Name    string `json:"name"` // for people; not unique over time
	Role    Role   `json:"role"`
}

// String names the host for people: "agent web-1 (UUID)".
func (id Identity) String() string {
	return fmt.Sprintf("%s %s (%s)", id.Role, id.Name, id.HostID)
}

// LogValue makes a log line show the identity, and of Credentials nothing else.
func (id Identity) LogValue() slog.Value {
	return slog.GroupValue(slog.String("host", id.HostID), slog.String("name", id.Name), slog.String("role", string(id.Role)))
}

const uriScheme = "moult"

func (id Identity) uri() *url.URL {
	return &url.URL{Scheme: uriScheme, Host: id.Cluster, Path: "/" + string(id.Role) + "/" + id.HostID}
}

// FromCertificate reads the identity out of a certificate. It does not verify
// the certificate: see Verifier.
func FromCertificate(cert *x509.Certificate) (Identity, error) {
	if len(cert.URIs) != 1 || cert.URIs[0].Scheme != uriScheme {
		return Identity{}, errors.New("the certificate names no moult host")
	}
	uri := cert.URIs[0]
	role, hostID, _ := strings.Cut(strings.TrimPrefix(uri.Path, "/"), "/")
	id := Identity{Cluster: uri.Host, HostID: hostID, Name: cert.Subject.CommonName, Role: Role(role)}
	if id.Role != RoleAgent && id.Role != RoleServer {
		return Identity{}, fmt.Errorf("the certificate's role %q is not known", role)
	}
	// One identity has one spelling: no user, port, query, escape or further segment.
	if !validID(id.Cluster) || !validID(hostID) || uri.String() != id.uri().String() {
		return Identity{}, fmt.Errorf("the certificate's URI %q is malformed", uri)
	}
	return id, nil
}

const maxIDBytes = 64

// validID tells whether s can stand in a certificate's URI as it is.
func validID(s string) bool {
	if s == "" || len(s) > maxIDBytes {
		return false
	}
	for _, c := range []byte(s) {
		alnum := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !alnum && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

// Verifier believes the certificates of one cluster.
type Verifier struct {
	cluster string
	roots   *x509.CertPool
	ca      ed25519.PublicKey // signs epoch statements and deny-lists
	denials *Denials          // nil: nobody is denied
	refusal error             // set: it believes nobody, and says why
}

// NewVerifier returns a verifier of a cluster's certificates.
func NewVerifier(clusterID string, caPEM []byte) (*Verifier, error) {
	cert, err := parseCertificate(caPEM)
	if err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	key, ok := cert.PublicKey.(ed25519.PublicKey)
	if !ok {
		return nil, errors.New("CA certificate: its key is not ed25519")
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	return &Verifier{cluster: clusterID, roots: roots, ca: key}, nil
}

// Verify returns whose certificate this is, and the host's public key. It
// refuses one that the cluster's CA did not sign, that is not valid at now, that
// names another cluster or, with ErrDenied, whose host or key is on the deny-list.
// Whether the host is still a member the replicated state says, on servers.
func (v *Verifier) Verify(certDER []byte, now time.Time) (Identity, ed25519.PublicKey, error) {
	if v.refusal != nil {
		return Identity{}, nil, v.refusal
	}
	cert, err := x509.ParseCertificate(certDER)
	if err != nil {
		return Identity{}, nil, fmt.Errorf("parse certificate: %w", err)
	}
	_, err = cert.Verify(x509.VerifyOptions{Roots: v.roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return Identity{}, nil, fmt.Errorf("verify certificate of %q: %w; compare both hosts' clocks; a host that reaches a server renews its certificate by itself, and if it was off for too long, join the host again with a new token", cert.Subject.CommonName, err)
	}
	if err != nil {
		return Identity{}, nil, fmt.Errorf("verify certificate: %w", err)
	}
	id, err := FromCertificate(cert)
	if err != nil {
		return Identity{}, nil, err
	}
	if id.Cluster != v.cluster {
		return Identity{}, nil, fmt.Errorf("the certificate is of cluster %s, not %s", id.Cluster, v.cluster)
	}
	pub, ok := cert.PublicKey.(ed25519.PublicKey)
	if !ok {
		return Identity{}, nil, errors.New("the certificate's key is not ed25519")
	}
	if v.denials.denies(id.HostID, pub) {
		return Identity{}, nil, fmt.Errorf("%s: %w", id, ErrDenied)
	}
	return id, pub, nil
}

// VerifyForRenewal is Verify for a host that asks for a fresh certificate: it also
// takes one that expired at most RenewalGrace ago, or that a server issued whose clock
// ran ahead by that much at most.
func (v *Verifier) VerifyForRenewal(certDER []byte, now time.Time) (Identity, ed25519.PublicKey, error) {
	cert, err := x509.ParseCertificate(certDER)
	if err != nil {
		return Identity{}, nil, fmt.Errorf("parse certificate: %w", err)
	}
	switch {
	case now.After(cert.NotAfter) && now.Sub(cert.NotAfter) <= RenewalGrace:
		now = cert.NotAfter
	case now.Before(cert.NotBefore) && cert.NotBefore.Sub(now) <= RenewalGrace:
		now = cert.NotBefore
	}
	return v.Verify(certDER, now)
}
