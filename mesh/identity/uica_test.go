package identity_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"moult/mesh/identity"
)

func uiCA(t *testing.T, cluster string, now time.Time) (*identity.CA, *identity.UICA) {
	t.Helper()
	ca, err := identity.NewCA(cluster, now)
	if err != nil {
		t.Fatal(err)
	}
	ui, err := ca.UI()
	if err != nil {
		t.Fatal(err)
	}
	return ca, ui
}

// All servers derive the same UI CA from the cluster's, and another cluster's is
// another one.
func TestUICAIsTheSameOnAllServers(t *testing.T) {
	now := time.Now()
	ca, ui := uiCA(t, "c1", now)
	again, err := identity.LoadCA(ca.CertPEM(), ca.KeyPEM())
	if err != nil {
		t.Fatal(err)
	}
	other, err := again.UI()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(ui.CertPEM(), other.CertPEM()) || ui.Hash() != other.Hash() {
		t.Error("another server has another UI CA")
	}
	if _, foreign := uiCA(t, "c1", now); foreign.Hash() == ui.Hash() {
		t.Error("another cluster has the same UI CA")
	}
	for _, text := range []string{fmt.Sprintf("%v", ui), fmt.Sprintf("%+v", ui), fmt.Sprintf("%#v", ui)} {
		if text != "UI CA "+ui.Hash() {
			t.Errorf("printed as %q", text)
		}
	}
}

// A browser or a client that trusts the UI CA, by itself or by its hash, believes
// the UI at its names, until the certificate ends, and nobody else.
func TestUICertificates(t *testing.T) {
	now := time.Now()
	ca, ui := uiCA(t, "c1", now)
	cert, err := ui.Issue([]string{"10.0.0.1", "s1.example", "::1"}, now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ui.CertPEM())
	for _, tc := range []struct {
		name string
		at   time.Duration
		good bool
	}{
		{"10.0.0.1", 0, true},
		{"s1.example", 0, true},
		{"::1", 59 * time.Minute, true},
		{"::1", 61 * time.Minute, false},
		{"10.0.0.2", 0, false},
		{"other.example", 0, false},
	} {
		_, err := cert.Leaf.Verify(x509.VerifyOptions{DNSName: tc.name, Roots: roots, CurrentTime: now.Add(tc.at)})
		if (err == nil) != tc.good {
			t.Errorf("%s after %v: %v", tc.name, tc.at, err)
		}
	}
	_, foreign := uiCA(t, "c1", now)
	strangers := x509.NewCertPool()
	strangers.AppendCertsFromPEM(foreign.CertPEM())
	if _, err := cert.Leaf.Verify(x509.VerifyOptions{DNSName: "10.0.0.1", Roots: strangers}); err == nil {
		t.Error("another cluster's UI CA vouches for it")
	}

	// What the UI CA signs is no host, and what the CA signs is no UI.
	verifier, err := identity.NewVerifier("c1", ca.CertPEM())
	if err != nil {
		t.Fatal(err)
	}
	for _, der := range cert.Certificate {
		if _, _, err := verifier.Verify(der, now); err == nil {
			t.Error("a node port would take a UI's certificate for a host's")
		}
	}
	if _, err := identity.FromCertificate(cert.Leaf); err == nil {
		t.Error("a UI's certificate names a host")
	}
	block, _ := pem.Decode(ca.CertPEM())
	if slices.ContainsFunc(cert.Certificate, func(der []byte) bool { return bytes.Equal(der, block.Bytes) }) {
		t.Error("the chain has the cluster's CA")
	}
	if !strings.Contains(cert.Leaf.SignatureAlgorithm.String(), "ECDSA") {
		t.Errorf("signed with %v, which browsers do not know", cert.Leaf.SignatureAlgorithm)
	}
	for name, names := range map[string][]string{"no names": nil, "a name that is none": {"späce"}} {
		if _, err := ui.Issue(names, now, time.Hour); err == nil {
			t.Errorf("%s: issued", name)
		}
	}
}

// Whoever pins the hash believes certificates under that very one for the name that
// was dialled, and not a stranger's that is shown beside it.
func TestPinnedTLS(t *testing.T) {
	now := time.Now()
	_, ui := uiCA(t, "c1", now)
	_, foreign := uiCA(t, "c1", now)
	good, err := ui.Issue([]string{"s1.example"}, now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := foreign.Issue([]string{"s1.example"}, now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	forged.Certificate = append(forged.Certificate, good.Certificate[1]) // the true one, for show
	ended, err := ui.Issue([]string{"s1.example"}, now.Add(-3*time.Hour), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for what, tc := range map[string]struct {
		shown      tls.Certificate
		pin, name  string
		isBelieved bool
	}{
		"the server":       {good, ui.Hash(), "s1.example", true},
		"another name":     {good, ui.Hash(), "s2.example", false},
		"another pin":      {good, foreign.Hash(), "s1.example", false},
		"a forged chain":   {forged, ui.Hash(), "s1.example", false},
		"one that is over": {ended, ui.Hash(), "s1.example", false},
	} {
		here, there := net.Pipe()
		go func() {
			_ = tls.Server(there, &tls.Config{Certificates: []tls.Certificate{tc.shown}}).Handshake() // the client judges
			there.Close()
		}()
		cfg := identity.PinnedTLS(tc.pin)
		cfg.ServerName = tc.name
		if err := tls.Client(here, cfg).Handshake(); (err == nil) != tc.isBelieved {
			t.Errorf("%s: %v", what, err)
		}
		here.Close()
	}
}
