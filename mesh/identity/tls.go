package identity

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"
)

// The protocols of a node port. TLS 1.3 carries all of them.
const (
	ALPNRaft = "moult-raft" // Raft between servers, both sides with a server's certificate
	ALPNHTTP = "moult-http" // HTTP/1.1 between hosts of the cluster, both with a certificate
	ALPNJoin = "moult-join" // HTTP/1.1 from a host that has no certificate yet
	// ALPNRenew is HTTP/1.1 from a host to a server, for a fresh certificate: the
	// one protocol that takes an expired one, see RenewalGrace.
	ALPNRenew = "moult-renew"
	// ALPNRelay carries another host's connection on towards a server, see package
	// nodeport.
	ALPNRelay = "moult-relay"
)

var alpns = []string{ALPNRaft, ALPNHTTP, ALPNJoin, ALPNRenew, ALPNRelay}

// ChosenALPN returns which protocol ServerTLS speaks with a client that offers
// these: the first that is one of moult's. "" when there is none.
func ChosenALPN(offered []string) string {
	for _, proto := range offered {
		if slices.Contains(alpns, proto) {
			return proto
		}
	}
	return ""
}

// ServerTLS is the listening side. It takes moult-raft from servers, moult-http
// and moult-relay from any host of the cluster, moult-renew also from one whose
// certificate has expired, and then asks allow (nil: no further question), which
// runs during the handshake and must not block; moult-join it takes from
// anybody. A client that offers none of these is refused.
//
// In TLS 1.3 the client's handshake ends before its certificate is looked at: a
// refused client learns it on its first read.
func (c Credentials) ServerTLS(allow func(alpn string, id Identity) error) *tls.Config {
	verifier := c.Verifier()
	configs := make(map[string]*tls.Config)
	for _, alpn := range alpns {
		cfg := c.baseTLS(alpn)
		if alpn != ALPNJoin {
			verify := verifier.Verify
			if alpn == ALPNRenew {
				verify = verifier.VerifyForRenewal
			}
			cfg.ClientAuth = tls.RequireAnyClientCert // VerifyConnection checks which
			cfg.VerifyConnection = func(cs tls.ConnectionState) error {
				return verifyPeer(verify, cs, alpn, func(id Identity) error {
					if allow == nil {
						return nil
					}
					return allow(alpn, id)
				})
			}
		}
		configs[alpn] = cfg
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: alpns,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if cfg, ok := configs[ChosenALPN(hello.SupportedProtos)]; ok {
				return cfg, nil // it offers this one protocol only, so this one is negotiated
			}
			return nil, errors.New("the client speaks none of moult's protocols")
		},
	}
}

// ClientTLS is the dialing side of all protocols but moult-join. The other side is
// believed by its certificate's URI, not by its address, and for moult-raft must
// be a server; want may refuse it (nil: any host of the cluster will do).
func (c Credentials) ClientTLS(alpn string, want func(Identity) error) *tls.Config {
	verifier := c.Verifier()
	cfg := c.baseTLS(alpn)
	cfg.InsecureSkipVerify = true // names and addresses are no identity here: VerifyConnection checks chain and URI
	cfg.VerifyConnection = func(cs tls.ConnectionState) error { return verifyPeer(verifier.Verify, cs, alpn, want) }
	return cfg
}

func (c Credentials) baseTLS(alpn string) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{c.tlsCertificate()},
		NextProtos:   []string{alpn},
		// A ticket would carry a host past a check that has changed its mind.
		SessionTicketsDisabled: true,
		// Small records first are for browsers that render what has come: here they
		// cost a hundred writes for each connection's first 128 KiB.
		DynamicRecordSizingDisabled: true,
	}
}

// tlsCertificate is what this host shows. The CA goes along, so that a joining
// host can hold it against its token.
func (c Credentials) tlsCertificate() tls.Certificate {
	shown := tls.Certificate{PrivateKey: c.Key}
	for _, text := range [][]byte{c.CertPEM, c.CAPEM} {
		if block, _ := pem.Decode(text); block != nil {
			shown.Certificate = append(shown.Certificate, block.Bytes)
		}
	}
	return shown
}

// verifyPeer decides on the other side of a connection.
func verifyPeer(verify func(certDER []byte, now time.Time) (Identity, ed25519.PublicKey, error), cs tls.ConnectionState, alpn string, decide func(Identity) error) error {
	if cs.NegotiatedProtocol != alpn {
		return fmt.Errorf("the other side does not speak %s; is this a node port of moult?", alpn)
	}
	if len(cs.PeerCertificates) == 0 {
		return errors.New("the other side shows no certificate")
	}
	id, _, err := verify(cs.PeerCertificates[0].Raw, time.Now())
	if err != nil {
		return err
	}
	if alpn == ALPNRaft && id.Role != RoleServer {
		return fmt.Errorf("%s is not a server; only servers speak Raft", id)
	}
	if decide == nil {
		return nil
	}
	return decide(id)
}

// PeerIdentity returns who is at the other end of a connection that ServerTLS
// or ClientTLS has let through.
func PeerIdentity(cs tls.ConnectionState) (Identity, error) {
	if len(cs.PeerCertificates) == 0 {
		return Identity{}, errors.New("the other side shows no certificate")
	}
	return FromCertificate(cs.PeerCertificates[0])
}

// joinTLS is the dialing side of moult-join: no certificate to show, and the
// other side must be a server under the CA that the token pins, or one of these.
func joinTLS(cas ...string) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{ALPNJoin},
		InsecureSkipVerify: true, // the token is the trust: VerifyConnection checks the chain against it
		VerifyConnection: func(cs tls.ConnectionState) error {
			err := verifyPinned(cs, cas, time.Now())
			if err != nil {
				return fmt.Errorf("%w; %w", err, ErrUntrustedServer)
			}
			return nil
		},
	}
}

// errNotPinned says that a server's CA is none of those that are looked for.
var errNotPinned = errors.New("the server's CA is not the one in the join token: this is another cluster, or somebody stands in between; check the address, or create a new token on a server with: moult token create")

// verifyPinned tells whether the other side is a server under a CA with one of these
// hashes.
func verifyPinned(cs tls.ConnectionState, cas []string, now time.Time) error {
	if cs.NegotiatedProtocol != ALPNJoin {
		return fmt.Errorf("the other side does not speak %s; give --join a server's node port (7947 by default)", ALPNJoin)
	}
	ca := pinned(cs.PeerCertificates, cas...)
	if ca == nil {
		return errNotPinned
	}
	leaf := cs.PeerCertificates[0]
	id, err := FromCertificate(leaf)
	if err != nil {
		return err
	}
	verifier, err := NewVerifier(id.Cluster, certPEM(ca.Raw))
	if err != nil {
		return err
	}
	if _, _, err := verifier.Verify(leaf.Raw, now); err != nil {
		return err
	}
	if id.Role != RoleServer {
		return fmt.Errorf("%s is not a server, and passes on to none now; look at its log, or give --join the node port of a server, or of a relay that reaches one", id)
	}
	return nil
}

func pinned(chain []*x509.Certificate, hashes ...string) *x509.Certificate {
	for _, cert := range chain {
		if slices.Contains(hashes, certHash(cert)) {
			return cert
		}
	}
	return nil
}
