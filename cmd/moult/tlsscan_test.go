package main

import (
	"crypto/tls"
	"encoding/xml"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"moult/mesh/identity"
	"moult/mesh/nodeport"
)

// tlsScan is what sslscan reports in XML.
type tlsScan struct {
	Test struct {
		Protocols []struct {
			Type    string `xml:"type,attr"`
			Version string `xml:"version,attr"`
			Enabled string `xml:"enabled,attr"`
		} `xml:"protocol"`
		Compression struct {
			Supported string `xml:"supported,attr"`
		} `xml:"compression"`
		Heartbleed []struct {
			Vulnerable string `xml:"vulnerable,attr"`
		} `xml:"heartbleed"`
		Ciphers []struct {
			Version  string `xml:"sslversion,attr"`
			Cipher   string `xml:"cipher,attr"`
			Strength string `xml:"strength,attr"`
		} `xml:"cipher"`
		Groups []scannedGroup `xml:"group"`
	} `xml:"ssltest"`
}

type scannedGroup struct {
	Name string `xml:"name,attr"`
	Bits int    `xml:"bits,attr"`
}

// scanTLS runs Debian's sslscan, or the test ends here.
func scanTLS(t *testing.T, addr string) (scan tlsScan) {
	t.Helper()
	path, err := exec.LookPath("sslscan")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("sslscan is not installed; CI has to have it: apt-get install sslscan")
		}
		t.Skip("sslscan is not installed; apt-get install sslscan to run this")
	}
	out, err := exec.Command(path, "--no-colour", "--xml=-", addr).Output()
	if err != nil {
		t.Fatalf("sslscan: %v\n%s", err, out)
	}
	if err := xml.Unmarshal(out, &scan); err != nil {
		t.Fatalf("sslscan: %v\n%s", err, out)
	}
	return scan
}

// weaknesses are what a scan finds that should not be there.
func (s tlsScan) weaknesses() (found []string) {
	for _, p := range s.Test.Protocols {
		if p.Enabled != "0" && (p.Type != "tls" || p.Version != "1.3") {
			found = append(found, p.Type+" "+p.Version)
		}
	}
	for _, c := range s.Test.Ciphers {
		if c.Version != "TLSv1.3" || c.Strength != "strong" && c.Strength != "acceptable" {
			found = append(found, c.Version+" "+c.Cipher+" "+c.Strength)
		}
	}
	for _, g := range s.Test.Groups {
		if g.Bits < 112 {
			found = append(found, "group "+g.Name)
		}
	}
	for _, h := range s.Test.Heartbleed {
		if h.Vulnerable != "0" {
			found = append(found, "heartbleed")
		}
	}
	if s.Test.Compression.Supported == "1" {
		found = append(found, "compression")
	}
	return found
}

// sslscan finds nothing weak on the UI's port, and on the node port it finds
// nothing at all: whoever speaks none of moult's protocols gets no handshake.
func TestNothingWeakOnTLSPorts(t *testing.T) {
	t.Parallel()
	serverTLS, _ := uiOverTLS(t)
	ui := scanTLS(t, startUIPort(t, uiLimits(1), http.NotFoundHandler(), serverTLS))
	if weak := ui.weaknesses(); len(weak) > 0 {
		t.Errorf("the UI's port: %s", strings.Join(weak, ", "))
	}
	if len(ui.Test.Ciphers) == 0 || !slices.ContainsFunc(ui.Test.Groups, func(g scannedGroup) bool { return strings.Contains(g.Name, "25519") }) {
		t.Errorf("the scan saw no cipher and no group: %+v", ui)
	}

	creds := startCertifier(t).mustCertify("s1", identity.RoleServer)
	port, err := nodeport.Listen("127.0.0.1:0", func() (identity.Credentials, bool) { return creds, true }, nil, quiet)
	must(t, err)
	defer port.Close(t.Context())
	port.ServeHTTP(nodeport.Handlers{Peer: http.NotFoundHandler()})
	node := scanTLS(t, port.Addr().String())
	if weak := node.weaknesses(); len(weak) > 0 || len(node.Test.Ciphers) > 0 {
		t.Errorf("the node port: %v, %+v", weak, node.Test.Ciphers)
	}

	// A scan that can find something: the same UI with what is weak.
	bad := serverTLS.Clone()
	bad.MinVersion, bad.MaxVersion = tls.VersionTLS10, tls.VersionTLS12
	bad.CipherSuites = []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
	if weak := scanTLS(t, startUIPort(t, uiLimits(1), http.NotFoundHandler(), bad)).weaknesses(); len(weak) < 3 {
		t.Errorf("of what is weak, sslscan found %v", weak)
	}
}
