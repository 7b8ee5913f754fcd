package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/url"
	"time"
)

const (
	// clockSkew is how far a host's clock may run behind the issuer's.
	clockSkew = time.Hour
	// caSkew is how far the clock of the server that made the CA may have run ahead:
	// what the CA signs holds from when each certificate says.
	caSkew = 30 * 24 * time.Hour
	// caLifetime is that of the cluster: there is no rotation of the CA.
	caLifetime = 20 * 365 * 24 * time.Hour
)

// NewKey makes a host key.
func NewKey() (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	return key, err
}

// CA is a cluster's certificate authority: its certificate and its key.
type CA struct {
	cert *x509.Certificate
	key  ed25519.PrivateKey
}

// String names the CA's certificate. Neither it nor a log line shows the key.
func (ca *CA) String() string { return "CA " + certHash(ca.cert) }

// GoString is String, for %#v.
func (ca *CA) GoString() string { return ca.String() }

// LogValue keeps the key out of logs.
func (ca *CA) LogValue() slog.Value { return slog.StringValue(ca.String()) }

// NewCA makes the certificate authority of a new cluster.
func NewCA(clusterID string, now time.Time) (*CA, error) {
	if !validID(clusterID) {
		return nil, fmt.Errorf("cluster id %q: give 1 to %d of a-z A-Z 0-9 . _ -", clusterID, maxIDBytes)
	}
	key, err := NewKey()
	if err != nil {
		return nil, fmt.Errorf("make CA key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "moult cluster " + clusterID},
		NotBefore:    now.Add(-caSkew), NotAfter: now.Add(caLifetime),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, // hosts cannot issue
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make CA certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make CA certificate: %w", err)
	}
	return &CA{cert: cert, key: key}, nil
}

// LoadCA reads what CertPEM and KeyPEM wrote.
func LoadCA(certPEM, keyPEM []byte) (*CA, error) {
	cert, err := parseCertificate(certPEM)
	if err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("CA key: %w", err)
	}
	if !cert.IsCA {
		return nil, errors.New("CA certificate: it may not issue certificates")
	}
	if !publicOf(key).Equal(cert.PublicKey) {
		return nil, errors.New("CA key: it is not the CA certificate's")
	}
	return &CA{cert: cert, key: key}, nil
}

// CertPEM returns the CA's certificate.
func (ca *CA) CertPEM() []byte { return certPEM(ca.cert.Raw) }

// KeyPEM returns the CA's secret key.
func (ca *CA) KeyPEM() []byte { return keyPEM(ca.key) }

// Issue signs a certificate for a host's public key. It is valid from an hour
// before now, for hosts whose clocks run behind, until now+ttl.
func (ca *CA) Issue(id Identity, pub ed25519.PublicKey, now time.Time, ttl time.Duration) ([]byte, error) {
	if len(pub) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("issue certificate: the public key is %d bytes, not %d", len(pub), ed25519.PublicKeySize)
	}
	if ttl <= 0 {
		return nil, fmt.Errorf("issue certificate: a lifetime of %s; it must be positive", ttl)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: id.Name},
		URIs:         []*url.URL{id.uri()},
		NotBefore:    now.Add(-clockSkew), NotAfter: now.Add(ttl),
		BasicConstraintsValid: true, // and IsCA is false
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, pub, ca.key)
	if err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	// A name that does not come back as it went in would be another's.
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	if got, err := FromCertificate(cert); err != nil || got != id {
		return nil, fmt.Errorf("issue certificate: %+q cannot be written into one", id.String())
	}
	return certPEM(der), nil
}

// CAHash returns the sha256 of a CA certificate's DER in 64 hex digits: what
// join tokens pin.
func CAHash(certPEM []byte) (string, error) {
	cert, err := parseCertificate(certPEM)
	if err != nil {
		return "", fmt.Errorf("CA certificate: %w", err)
	}
	return certHash(cert), nil
}

func certHash(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("draw a serial number: %w", err)
	}
	return serial, nil
}

func publicOf(key ed25519.PrivateKey) ed25519.PublicKey {
	return key.Public().(ed25519.PublicKey)
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func keyPEM(key ed25519.PrivateKey) []byte {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic("identity: " + err.Error()) // an ed25519 key always marshals
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func parseCertificate(text []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("no PEM certificate found")
	}
	return x509.ParseCertificate(block.Bytes)
}

func parseKey(text []byte) (ed25519.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("no PEM private key found")
	}
	raw, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := raw.(ed25519.PrivateKey)
	if !ok {
		return nil, errors.New("the key is not ed25519")
	}
	return key, nil
}
