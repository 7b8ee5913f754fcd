package identity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"moult/mesh/identity"
)

func TestIssuedCertificateProvesTheIdentity(t *testing.T) {
	now := time.Now()
	ca := mustCA(t, clusterID, now)
	loaded, err := identity.LoadCA(ca.CertPEM(), ca.KeyPEM())
	must(t, err)
	v, err := identity.NewVerifier(clusterID, ca.CertPEM())
	must(t, err)
	for _, id := range []identity.Identity{agent(hostID), server("s.1_x"), {Cluster: clusterID, HostID: hostID, Name: "Köln 1", Role: identity.RoleAgent}} {
		key := mustKey(t)
		got, pub, err := v.Verify(der(mustIssue(t, loaded, id, key, now, time.Hour)), now)
		must(t, err)
		if got != id || !pub.Equal(public(key)) {
			t.Errorf("verified as %+v", got)
		}
	}
}

func TestVerifyRefuses(t *testing.T) {
	now := time.Now()
	ca, other := mustCA(t, clusterID, now), mustCA(t, clusterID, now)
	key := mustKey(t)
	good := der(mustIssue(t, ca, agent(hostID), key, now, time.Hour))
	v, err := identity.NewVerifier(clusterID, ca.CertPEM())
	must(t, err)
	elsewhere, err := identity.NewVerifier("another-cluster", ca.CertPEM())
	must(t, err)
	// A host with a certificate is no authority: what it signs counts for nothing.
	hostCert, err := x509.ParseCertificate(good)
	must(t, err)
	child := template(t, "moult://"+clusterID+"/server/"+hostID, now)
	byHost, err := x509.CreateCertificate(rand.Reader, child, hostCert, public(key), key)
	must(t, err)

	for name, tc := range map[string]struct {
		verifier *identity.Verifier
		cert     []byte
		at       time.Time
		says     string
	}{
		"another CA of the same cluster id": {v, der(mustIssue(t, other, agent(hostID), key, now, time.Hour)), now, "unknown authority"},
		"expired":                           {v, good, now.Add(time.Hour + time.Minute), "clocks"},
		"not valid yet":                     {v, good, now.Add(-time.Hour - time.Minute), "clocks"},
		"another cluster":                   {elsewhere, good, now, "is of cluster " + clusterID},
		"signed by a host":                  {v, byHost, now, "verify certificate"},
		"truncated":                         {v, good[:len(good)-1], now, "parse certificate"},
		"empty":                             {v, nil, now, "parse certificate"},
		"the CA itself":                     {v, der(ca.CertPEM()), now, "names no moult host"},
		"a verifier without a CA":           {identity.Credentials{}.Verifier(), good, now, "no PEM certificate"},
	} {
		if id, _, err := tc.verifier.Verify(tc.cert, tc.at); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, %v", name, id, err)
		}
	}
	for i := range good {
		forged := append([]byte(nil), good...)
		forged[i] ^= 1
		if id, _, err := v.Verify(forged, now); err == nil {
			t.Fatalf("byte %d altered: verified as %v", i, id)
		}
	}
}

func template(t testing.TB, uri string, now time.Time) *x509.Certificate {
	t.Helper()
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "server " + hostID},
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour), BasicConstraintsValid: true,
	}
	for _, text := range strings.Fields(uri) {
		u, err := url.Parse(text)
		must(t, err)
		cert.URIs = append(cert.URIs, u)
	}
	return cert
}

// What a certificate says besides its one URI is no identity.
func TestIdentityComesFromTheURIOnly(t *testing.T) {
	ca := mustCA(t, clusterID, time.Now())
	parent, err := x509.ParseCertificate(der(ca.CertPEM()))
	must(t, err)
	block, _ := pem.Decode(ca.KeyPEM())
	caKey, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	must(t, err)
	v, err := identity.NewVerifier(clusterID, ca.CertPEM())
	must(t, err)
	base := "moult://" + clusterID
	for uri, ok := range map[string]bool{
		base + "/agent/h1":  true,
		base + "/server/h1": true,
		"":                  false, // the CommonName alone says "server …"
		base + "/agent/h1 " + base + "/server/h1":  false,
		base + "/king/h1":                          false,
		base + "/agent":                            false,
		base + "/agent/":                           false,
		base + "/agent/h1/server":                  false,
		base + "/server/../agent/h1":               false,
		base + "//server/h1":                       false,
		base + "/agent/h%31":                       false,
		base + "/agent/h1?role=server":             false,
		base + "/agent/h1#server":                  false,
		"moult://root@" + clusterID + "/server/h1": false,
		"moult://" + clusterID + ":1/server/h1":    false,
		"moult:///server/h1":                       false,
		"https://" + clusterID + "/server/h1":      false,
		base + "/agent/" + strings.Repeat("h", 65): false,
	} {
		raw, err := x509.CreateCertificate(rand.Reader, template(t, uri, time.Now()), parent, public(mustKey(t)), caKey)
		must(t, err)
		if id, _, err := v.Verify(raw, time.Now()); (err == nil) != ok {
			t.Errorf("%q: %+v, %v", uri, id, err)
		}
	}
	// Another kind of key could not sign orders and records.
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	raw, err := x509.CreateCertificate(rand.Reader, template(t, base+"/agent/h1", time.Now()), parent, ec.Public(), caKey)
	must(t, err)
	if _, _, err := v.Verify(raw, time.Now()); err == nil || !strings.Contains(err.Error(), "ed25519") {
		t.Errorf("an ECDSA key: %v", err)
	}
}

func TestIssueRefusesWhatWouldNotComeBack(t *testing.T) {
	now := time.Now()
	ca := mustCA(t, clusterID, now)
	key := mustKey(t)
	for name, spoil := range map[string]func(*identity.Identity){
		"no role":              func(id *identity.Identity) { id.Role = "" },
		"unknown role":         func(id *identity.Identity) { id.Role = "admin" },
		"a path for a role":    func(id *identity.Identity) { id.Role = "server/h1?" },
		"no host id":           func(id *identity.Identity) { id.HostID = "" },
		"slash in the host id": func(id *identity.Identity) { id.HostID = "h1/../../server/h2" },
		"long host id":         func(id *identity.Identity) { id.HostID = strings.Repeat("h", 65) },
		"space in the cluster": func(id *identity.Identity) { id.Cluster = "a b" },
	} {
		id := agent("h1")
		spoil(&id)
		if _, err := ca.Issue(id, public(key), now, time.Hour); err == nil {
			t.Errorf("%s: issued", name)
		}
	}
	if _, err := ca.Issue(agent("h1"), public(key)[:31], now, time.Hour); err == nil || !strings.Contains(err.Error(), "31 bytes") {
		t.Errorf("short key: %v", err)
	}
	if _, err := ca.Issue(agent("h1"), public(key), now, 0); err == nil || !strings.Contains(err.Error(), "must be positive") {
		t.Errorf("no lifetime: %v", err)
	}
	if _, err := identity.NewCA("a/b", now); err == nil || !strings.Contains(err.Error(), "give 1 to 64") {
		t.Errorf("cluster id with a slash: %v", err)
	}
}

func TestLoadCARefusesWhatIsNoCA(t *testing.T) {
	now := time.Now()
	ca, other := mustCA(t, clusterID, now), mustCA(t, clusterID, now)
	host := credentials(t, ca, agent(hostID))
	hostKey, err := x509.MarshalPKCS8PrivateKey(host.Key)
	must(t, err)
	for name, tc := range map[string]struct{ cert, key []byte }{
		"another CA's key":     {ca.CertPEM(), other.KeyPEM()},
		"a host's certificate": {host.CertPEM, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: hostKey})},
		"no certificate":       {nil, ca.KeyPEM()},
		"no key":               {ca.CertPEM(), nil},
		"the two exchanged":    {ca.KeyPEM(), ca.CertPEM()},
		"key cut off":          {ca.CertPEM(), ca.KeyPEM()[:60]},
	} {
		if _, err := identity.LoadCA(tc.cert, tc.key); err == nil {
			t.Errorf("%s: loaded", name)
		} else if strings.Contains(err.Error(), string(tc.key)) && len(tc.key) > 0 {
			t.Errorf("%s: the error shows the key: %v", name, err)
		}
	}
}
