package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"moult/mesh/identity"
)

func testUICA(t *testing.T, cluster string) *identity.UICA {
	t.Helper()
	ca, err := identity.NewCA(cluster, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	ui, err := ca.UI()
	if err != nil {
		t.Fatal(err)
	}
	return ui
}

func TestWhenTheUISpeaksTLS(t *testing.T) {
	for _, tc := range []struct {
		tls  uiTLS
		addr string
		on   bool
	}{
		{uiTLS{mode: tlsAuto}, "127.0.0.1:8480", false},
		{uiTLS{mode: tlsAuto}, "[::1]:8480", false},
		{uiTLS{mode: tlsAuto}, "localhost:8480", false},
		{uiTLS{mode: tlsAuto}, "0.0.0.0:8480", true},
		{uiTLS{mode: tlsAuto}, ":8480", true},
		{uiTLS{mode: tlsAuto}, "10.0.0.1:8480", true},
		{uiTLS{mode: tlsAuto}, "server.example:8480", true},
		{uiTLS{mode: tlsOn}, "127.0.0.1:8480", true},
		{uiTLS{mode: tlsOff}, "10.0.0.1:8480", false},
		{uiTLS{mode: tlsAuto, certFile: "c", keyFile: "k"}, "127.0.0.1:8480", true},
	} {
		if got := tc.tls.on(tc.addr); got != tc.on {
			t.Errorf("%+v at %s: TLS %t", tc.tls, tc.addr, got)
		}
	}
}

// The certificate that a server makes is renewed at two thirds of its lifetime,
// and when the names or the CA change; else it stays.
func TestMadeCertificateIsRenewed(t *testing.T) {
	ca, names, now, said := testUICA(t, "c1"), []string{"10.0.0.1"}, time.Now(), []string{}
	m := &madeCertificate{
		ca:       func() (*identity.UICA, error) { return ca, nil },
		names:    func() []string { return names },
		lifetime: 3 * time.Hour, now: func() time.Time { return now },
		changed: func(ca *identity.UICA) error { said = append(said, ca.Hash()); return nil },
		logger:  quiet,
	}
	var last *tls.Certificate
	get := func(what string, fresh bool) {
		t.Helper()
		cert, err := m.get(nil)
		if err != nil {
			t.Fatal(err)
		}
		if (cert != last) != fresh {
			t.Errorf("%s: another certificate: %t", what, cert != last)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(ca.CertPEM())
		if _, err := cert.Leaf.Verify(x509.VerifyOptions{DNSName: names[0], Roots: roots, CurrentTime: now}); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		last = cert
	}
	get("at first", true)
	now = now.Add(2*time.Hour - time.Second)
	get("just before two thirds", false)
	now = now.Add(2 * time.Second)
	get("after two thirds", true)
	now, names = now.Add(2*time.Second), []string{"10.0.0.2"}
	get("another address", true)
	now = now.Add(2 * time.Second)
	get("as before", false)
	now, ca = now.Add(2*time.Second), testUICA(t, "c1")
	get("another CA", true)
	if len(said) != 2 || said[1] != ca.Hash() {
		t.Errorf("told of %v", said)
	}
	now = now.Add(2 * time.Second)
	m.ca = func() (*identity.UICA, error) { return nil, errors.New("this server is starting") }
	if _, err := m.get(nil); err == nil {
		t.Error("a certificate without a state")
	}
}

func TestUINames(t *testing.T) {
	got := uiNames([]string{"s1", "10.9.8.7:8480", "0.0.0.0:7947", "[2001:db8::1]:1", "", "a name"})
	for _, want := range []string{"s1", "10.9.8.7", "2001:db8::1", "localhost", "127.0.0.1", "::1"} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is not among %v", want, got)
		}
	}
	if slices.ContainsFunc(got, func(name string) bool {
		return name == "" || strings.Contains(name, "0.0.0.0") || strings.Contains(name, " ")
	}) {
		t.Errorf("%q", got)
	}
}

// writePair writes a certificate of some CA, and its key, as PEM files.
func writePair(t *testing.T, dir string, ca *identity.UICA, ttl time.Duration) (*x509.Certificate, string, string) {
	t.Helper()
	cert, err := ca.Issue([]string{"127.0.0.1"}, time.Now(), ttl)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if err := errors.Join(os.WriteFile(certFile, chainPEM(cert), 0o600), os.WriteFile(keyFile, privatePEM(t, cert), 0o600)); err != nil {
		t.Fatal(err)
	}
	return cert.Leaf, certFile, keyFile
}

func chainPEM(cert tls.Certificate) (text []byte) {
	for _, der := range cert.Certificate {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return text
}

func privatePEM(t *testing.T, cert tls.Certificate) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// A certificate of files is read again when they change; what cannot be used
// leaves the last one.
func TestFileCertificateIsReadAnew(t *testing.T) {
	dir, ca, now := t.TempDir(), testUICA(t, "c1"), time.Now()
	first, certFile, keyFile := writePair(t, dir, ca, time.Hour)
	f := &fileCertificate{certFile: certFile, keyFile: keyFile, logger: quiet, now: func() time.Time { return now }}
	if err := f.load(); err != nil {
		t.Fatal(err)
	}
	shows := func(what string, want *x509.Certificate) {
		t.Helper()
		now = now.Add(2 * uiCertLook)
		cert, err := f.get(nil)
		if err != nil || !cert.Leaf.Equal(want) {
			t.Errorf("%s: another certificate, %v", what, err)
		}
	}
	touch := func(path string, age time.Duration) { // file systems' clocks are coarse
		if err := os.Chtimes(path, time.Time{}, time.Now().Add(age)); err != nil {
			t.Fatal(err)
		}
	}
	shows("unchanged", first)
	key, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	second, _, _ := writePair(t, dir, ca, time.Hour)
	freshKey, err := os.ReadFile(keyFile)
	if err == nil {
		err = os.WriteFile(keyFile, key, 0o600) // the certificate is there, its key not yet
	}
	if err != nil {
		t.Fatal(err)
	}
	touch(certFile, time.Second)
	shows("half replaced", first)
	if err := os.WriteFile(keyFile, freshKey, 0o600); err != nil {
		t.Fatal(err)
	}
	touch(keyFile, 2*time.Second)
	shows("replaced", second)
	if err := os.Remove(certFile); err != nil {
		t.Fatal(err)
	}
	shows("gone", second)

	// At the start each of these is told.
	_, certFile, keyFile = writePair(t, t.TempDir(), ca, time.Minute)
	for name, f := range map[string]*fileCertificate{
		"read --tls-cert": {certFile: certFile + "x", keyFile: keyFile, now: time.Now},
		"read --tls-key":  {certFile: certFile, keyFile: keyFile + "x", now: time.Now},
		"as PEM":          {certFile: keyFile, keyFile: keyFile, now: time.Now},
		"it ended at":     {certFile: certFile, keyFile: keyFile, now: func() time.Time { return time.Now().Add(time.Hour) }},
	} {
		if err := f.load(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A command's token does not follow a redirect from TLS to a plain connection.
func TestRedirectsKeepToTLS(t *testing.T) {
	var token string
	plain := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { token = r.Header.Get("Authorization") }))
	defer plain.Close()
	secure := httptest.NewTLSServer(http.RedirectHandler(plain.URL, http.StatusTemporaryRedirect))
	defer secure.Close()
	roots := x509.NewCertPool()
	roots.AddCert(secure.Certificate())
	c := &client{addrs: []string{secure.URL}, token: "secret", http: newAPIClient(&tls.Config{RootCAs: roots})}
	if err := c.call(t.Context(), http.MethodGet, "/api/hosts", nil, nil); err == nil || !strings.Contains(err.Error(), "not TLS") || token != "" {
		t.Errorf("%v, and the token %q was sent", err, token)
	}
}

// What a command is given without a scheme is reached by TLS, unless it is on this
// machine.
func TestClientsSchemes(t *testing.T) {
	for addr, want := range map[string]string{
		"127.0.0.1:8480": "http://127.0.0.1:8480", "localhost:8480": "http://localhost:8480", "[::1]:1": "http://[::1]:1",
		"10.0.0.1:8480": "https://10.0.0.1:8480", "moult.example": "https://moult.example",
		"http://10.0.0.1:8480": "http://10.0.0.1:8480",
	} {
		c, err := (&clientFlags{addr: addr}).client()
		if err != nil || c.addrs[0] != want {
			t.Errorf("%s: %v, %v", addr, c.addrs, err)
		}
	}
}
