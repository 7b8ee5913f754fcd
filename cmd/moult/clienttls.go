package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"

	"moult/mesh/identity"
)

// maxRedirects bounds how often a server may send a command elsewhere.
const maxRedirects = 5

// trust is whom the command line believes that it is a server; nil: whom the
// system believes.
func (f *clientFlags) trust() (*tls.Config, error) {
	switch {
	case f.ca != "" && f.caHash != "":
		return nil, errors.New("--ca and --ca-sha256 are both given; give one")
	case f.caHash != "":
		hash := strings.ToLower(strings.ReplaceAll(f.caHash, ":", ""))
		if b, err := hex.DecodeString(hash); err != nil || len(b) != 32 {
			return nil, fmt.Errorf("--ca-sha256 %q: give 64 hex digits, as a server logs them (ca_sha256)", f.caHash)
		}
		return identity.PinnedTLS(hash), nil
	case f.ca != "":
		text, err := os.ReadFile(f.ca)
		if err != nil {
			return nil, fmt.Errorf("read --ca: %w", err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("--ca %s: no PEM certificate found; give a server's DATA/%s", f.ca, uiCAFile)
		}
		return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}, nil
	}
	return nil, nil
}

// trustAlso is trust with another UI CA beside the one that was given; nil: whom the
// system believes, which this does not change.
func (f *clientFlags) trustAlso(uiCA, hash string) (*tls.Config, error) {
	cfg, err := f.trust()
	switch {
	case err != nil || cfg == nil:
		return nil, err
	case f.caHash != "":
		return identity.PinnedTLS(strings.ToLower(strings.ReplaceAll(f.caHash, ":", "")), hash), nil
	}
	cfg.RootCAs.AppendCertsFromPEM([]byte(uiCA))
	return cfg, nil
}

// newAPIClient returns an HTTP client of servers' UIs. No redirect gets a token onto
// a plain connection: net/http keeps it back from other hosts, not from other schemes.
func newAPIClient(trust *tls.Config) *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = trust
	return &http.Client{
		Transport: transport,
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if via[len(via)-1].URL.Scheme == "https" && req.URL.Scheme != "https" {
				return fmt.Errorf("the server redirects to %s, which is not TLS", req.URL.Redacted())
			}
			if len(via) >= maxRedirects {
				return errors.New("too many redirects")
			}
			return nil
		},
	}
}

// untrusted says what to do where TLS is not as expected. It stays a *url.Error:
// nothing was sent.
func untrusted(err error) error {
	var sent *url.Error
	if !errors.As(err, &sent) {
		return err
	}
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	switch {
	case errors.As(err, &unknown):
		sent.Err = fmt.Errorf("%w; give the UI CA with --ca (a server's DATA/%s) or --ca-sha256, or their MOULT_CA and MOULT_CA_SHA256", sent.Err, uiCAFile)
	case errors.As(err, &name):
		sent.Err = fmt.Errorf("%w; give an address that the certificate names, or start the server with --tls-name", sent.Err)
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		sent.Err = fmt.Errorf("%w; the server speaks plain HTTP, give its address as http://HOST:PORT", sent.Err)
	}
	return err
}
