package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"time"
)

// uiCAContext begins what the UI CA is derived with.
const uiCAContext = "moult ui ca 1"

// UICA is the authority for the servers' UI and API: what browsers and the command
// line hold them to. It is the cluster CA's own, derived from its key, so that all
// servers have the same one and none is replicated. It is apart from the CA
// because browsers know no ed25519, and because nobody who trusts it for web pages
// shall be able to mistake a web certificate for a host's: no node port takes one.
type UICA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// UI derives the UI CA: the same bytes at each call, on each server.
func (ca *CA) UI() (*UICA, error) {
	key, err := deriveP256(ca.key.Seed(), uiCAContext)
	if err != nil {
		return nil, fmt.Errorf("derive the UI CA: %w", err)
	}
	serial := sha256.Sum256(append([]byte(uiCAContext), ca.cert.Raw...))
	serial[0] &= 0x7f
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial[:16]),
		Subject:      pkix.Name{CommonName: ca.cert.Subject.CommonName + ", UI"},
		NotBefore:    ca.cert.NotBefore, NotAfter: ca.cert.NotAfter,
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage:    x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	// Without a source of randomness the signature is that of RFC 6979.
	der, err := x509.CreateCertificate(nil, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make the UI CA's certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make the UI CA's certificate: %w", err)
	}
	return &UICA{cert: cert, key: key}, nil
}

// deriveP256 makes a P-256 key of a secret: a number from 1 to the group's order
// less one, whose bias is 2^-128.
func deriveP256(secret []byte, context string) (*ecdsa.PrivateKey, error) {
	const wide = 48 // bytes: the order's 32, and 16 for the bias
	stream, err := hkdf.Key(sha256.New, secret, nil, context, wide)
	if err != nil {
		return nil, err
	}
	most := new(big.Int).Sub(elliptic.P256().Params().N, big.NewInt(1))
	n := new(big.Int).SetBytes(stream)
	n.Mod(n, most).Add(n, big.NewInt(1))
	return ecdsa.ParseRawPrivateKey(elliptic.P256(), n.FillBytes(make([]byte, 32)))
}

// CertPEM returns the UI CA's certificate, for browsers and clients to import.
func (u *UICA) CertPEM() []byte { return certPEM(u.cert.Raw) }

// Hash is the certificate's sha256 in 64 hex digits.
func (u *UICA) Hash() string { return certHash(u.cert) }

// String names the certificate. Neither it nor a log line shows the key.
func (u *UICA) String() string { return "UI CA " + u.Hash() }

// GoString is String, for %#v.
func (u *UICA) GoString() string { return u.String() }

// LogValue keeps the key out of logs.
func (u *UICA) LogValue() slog.Value { return slog.StringValue(u.String()) }

// PinnedTLS believes whoever shows a certificate for its name that chains to the
// one with this sha256, or one of these, which it has to show too.
func PinnedTLS(caHashes ...string) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // the hash is the trust: VerifyConnection checks the chain against it
		VerifyConnection: func(cs tls.ConnectionState) error {
			ca := pinned(cs.PeerCertificates, caHashes...)
			if ca == nil {
				return fmt.Errorf("none of the certificates has the sha256 %s: %w", strings.Join(caHashes, " or "), x509.UnknownAuthorityError{Cert: cs.PeerCertificates[0]})
			}
			roots, between := x509.NewCertPool(), x509.NewCertPool()
			roots.AddCert(ca)
			for _, cert := range cs.PeerCertificates[1:] {
				between.AddCert(cert)
			}
			_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{DNSName: cs.ServerName, Roots: roots, Intermediates: between})
			return err
		},
	}
}

// Issue makes a key and a certificate for a UI that is reached by these names: IP
// addresses and DNS names. The chain includes the UI CA, for clients that know
// only its hash. It is valid from an hour before now until now+ttl.
func (u *UICA) Issue(names []string, now time.Time, ttl time.Duration) (tls.Certificate, error) {
	if len(names) == 0 || ttl <= 0 {
		return tls.Certificate{}, errors.New("issue the UI's certificate: it takes a name and a lifetime")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make the UI's key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "moult UI"},
		NotBefore:    now.Add(-clockSkew), NotAfter: now.Add(ttl),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, u.cert, &key.PublicKey, u.key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("issue the UI's certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("issue the UI's certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der, u.cert.Raw}, PrivateKey: key, Leaf: leaf}, nil
}
