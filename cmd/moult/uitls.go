package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"moult/cmd/internal/nodekit"
	"moult/consensus/fleet"
	"moult/mesh/identity"
)

// uiCAFile is the certificate of the UI CA in a server's data directory, for
// browsers and clients.
const uiCAFile = "ui-ca.pem"

// Times of the UI's certificate.
const (
	maxUICertLifetime = 90 * 24 * time.Hour // or the servers' --certificate-lifetime, where that is less
	uiCertLook        = time.Second         // between looks whether it is still the right one
)

// What --tls takes.
const (
	tlsAuto = "auto"
	tlsOn   = "on"
	tlsOff  = "off"
)

// uiTLS says how the UI and the API are served.
type uiTLS struct {
	mode              string
	certFile, keyFile string
	names             []string
}

func (o *uiTLS) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.mode, "tls", tlsAuto, "the UI over TLS: on, off, or auto, which is on unless --http is a loopback address")
	f.StringVar(&o.certFile, "tls-cert", "", "PEM file of the UI's certificate and its chain, looked at again when it changes (default: the server makes one by the cluster's UI CA)")
	f.StringVar(&o.keyFile, "tls-key", "", "PEM file of that certificate's key")
	f.StringArrayVar(&o.names, "tls-name", nil, "further name or IP address that the UI is reached by, for the certificate that the server makes; may be repeated")
}

func (o *uiTLS) validate() error {
	files := o.certFile != "" || o.keyFile != ""
	var errs []error
	if o.mode != tlsAuto && o.mode != tlsOn && o.mode != tlsOff {
		errs = append(errs, fmt.Errorf("--tls is %q; give on, off or auto", o.mode))
	}
	switch {
	case files && (o.certFile == "" || o.keyFile == ""):
		errs = append(errs, errors.New("--tls-cert and --tls-key go together; give both, or neither for a certificate by the cluster's UI CA"))
	case files && o.mode == tlsOff:
		errs = append(errs, errors.New("--tls is off, and --tls-cert is given; leave one out"))
	case files && len(o.names) > 0:
		errs = append(errs, errors.New("--tls-name is for the certificate that the server makes; leave it out, or --tls-cert"))
	}
	for _, name := range o.names {
		if !isHostName(name) {
			errs = append(errs, fmt.Errorf("--tls-name %q: give an IP address or a host name", name))
		}
	}
	return errors.Join(errs...)
}

// isHostName takes what may stand in a certificate as a name.
func isHostName(name string) bool {
	if net.ParseIP(name) != nil {
		return true
	}
	return name != "" && len(name) <= 253 && !strings.ContainsFunc(name, func(c rune) bool {
		return c != '-' && c != '.' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z')
	})
}

// on tells whether a UI that listens at addr speaks TLS.
func (o uiTLS) on(addr string) bool {
	switch {
	case o.certFile != "":
		return true
	case o.mode == tlsAuto:
		return !isLoopback(addr)
	}
	return o.mode == tlsOn
}

// isLoopback tells whether HOST:PORT is reached from this machine alone.
func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// uiCertificate returns the certificate of each handshake.
type uiCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)

// uiTLSConfig is what the UI's port speaks. TLS 1.3 alone, as node ports do: all
// browsers do since 2019. HTTP/1.1 alone: its limits are those that are tested.
func uiTLSConfig(get uiCertificate) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: get, NextProtos: []string{"http/1.1"}}
}

// certificate returns where the UI's certificates come from. Files are read at
// once, so that a wrong one is told at the start.
func (o serverOptions) certificate(view func() fleet.View, logger *slog.Logger) (uiCertificate, error) {
	if o.tls.certFile != "" {
		f := &fileCertificate{certFile: o.tls.certFile, keyFile: o.tls.keyFile, logger: logger, now: time.Now}
		return f.get, f.load()
	}
	listen, given := o.listenHTTP, o.http
	m := &madeCertificate{
		ca: func() (*identity.UICA, error) { return clusterUICA(view()) },
		names: func() []string {
			return uiNames(append([]string{o.Name, o.Advertise, listen, given, o.PeerAdv}, o.tls.names...))
		},
		lifetime: min(o.certLifetime, maxUICertLifetime),
		now:      time.Now,
		changed: func(ca *identity.UICA) error {
			return nodekit.WriteFileAtomic(filepath.Join(o.Data, uiCAFile), ca.CertPEM(), 0o600)
		},
		logger: logger,
	}
	return m.get, nil
}

// clusterUICA derives the UI CA of the cluster's CA as it is now.
func clusterUICA(v fleet.View) (*identity.UICA, error) {
	cluster, ok := v.Cluster()
	if !ok {
		return nil, errors.New("this server is starting")
	}
	ca, err := identity.LoadCA(cluster.CACert, cluster.CAKey)
	if err != nil {
		return nil, err
	}
	return ca.UI()
}

// uiNames are the names and addresses that a UI is reached by: those given, where
// HOST:PORT counts as HOST, and what this machine has.
func uiNames(given []string) []string {
	names := []string{"localhost", "127.0.0.1", "::1"}
	if host, err := os.Hostname(); err == nil {
		names = append(names, host)
	}
	for _, name := range given {
		if host, _, err := net.SplitHostPort(name); err == nil {
			name = host
		}
		names = append(names, name)
	}
	if addrs, err := net.InterfaceAddrs(); err == nil {
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && !n.IP.IsLinkLocalUnicast() {
				names = append(names, n.IP.String())
			}
		}
	}
	names = slices.DeleteFunc(names, func(name string) bool { return !isHostName(name) || nodekit.Unspecified(name) })
	slices.Sort(names)
	return slices.Compact(names)
}

// madeCertificate makes the UI's certificate, which is in memory only, and another
// one at two thirds of its lifetime, and when the names or the CA have changed. It
// looks at a handshake, so it takes no goroutine. Safe for concurrent use.
type madeCertificate struct {
	ca       func() (*identity.UICA, error)
	names    func() []string
	lifetime time.Duration
	now      func() time.Time
	changed  func(*identity.UICA) error // another CA than before
	logger   *slog.Logger

	mu       sync.Mutex
	cert     *tls.Certificate
	caHash   string
	forNames []string
	due      time.Time
	looked   time.Time
}

func (m *madeCertificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	if m.cert != nil && now.Sub(m.looked) < uiCertLook && now.Before(m.due) {
		return m.cert, nil
	}
	m.looked = now
	ca, err := m.ca()
	if err != nil {
		return nil, err
	}
	names := m.names()
	if m.cert != nil && now.Before(m.due) && ca.Hash() == m.caHash && slices.Equal(names, m.forNames) {
		return m.cert, nil
	}
	cert, err := ca.Issue(names, now, m.lifetime)
	if err != nil {
		return nil, err
	}
	if ca.Hash() != m.caHash {
		if err := m.changed(ca); err != nil {
			m.logger.Warn("write the UI CA's certificate", "error", err)
		}
	}
	m.cert, m.caHash, m.forNames, m.due = &cert, ca.Hash(), names, now.Add(m.lifetime*2/3)
	m.logger.Info("the UI has a certificate", "names", names, "ends", cert.Leaf.NotAfter, "ca_sha256", m.caHash)
	return m.cert, nil
}

// fileCertificate is the UI's certificate out of files, read again when they
// change. Files that do not fit together, as when one of them is just being
// replaced, leave the last ones that did. Safe for concurrent use.
type fileCertificate struct {
	certFile, keyFile string
	logger            *slog.Logger
	now               func() time.Time

	mu     sync.Mutex
	cert   *tls.Certificate
	state  string // of the files that were read last, whether they fit or not
	looked time.Time
}

func (f *fileCertificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := f.now(); now.Sub(f.looked) >= uiCertLook {
		f.looked = now
		if f.fileState() != f.state {
			if err := f.read(); err != nil {
				f.logger.Warn("the UI's certificate has changed and cannot be used; the last one stays", "error", err)
			} else {
				f.logger.Info("the UI's certificate was read anew", "file", f.certFile, "ends", f.cert.Leaf.NotAfter)
			}
		}
	}
	return f.cert, nil
}

// load reads the files for the first time.
func (f *fileCertificate) load() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.read()
}

func (f *fileCertificate) read() error {
	f.state = f.fileState()
	certPEM, err := os.ReadFile(f.certFile)
	if err != nil {
		return fmt.Errorf("read --tls-cert: %w", err)
	}
	keyPEM, err := os.ReadFile(f.keyFile)
	if err != nil {
		return fmt.Errorf("read --tls-key: %w", err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("--tls-cert %s and --tls-key %s: %w; give a certificate and its key as PEM", f.certFile, f.keyFile, err)
	}
	if cert.Leaf == nil {
		if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return fmt.Errorf("--tls-cert %s: %w", f.certFile, err)
		}
	}
	if f.now().After(cert.Leaf.NotAfter) {
		return fmt.Errorf("--tls-cert %s: it ended at %s; get a new one", f.certFile, cert.Leaf.NotAfter.Format(time.RFC3339))
	}
	f.cert = &cert
	return nil
}

// fileState changes when one of the files does.
func (f *fileCertificate) fileState() string {
	var state strings.Builder
	for _, path := range []string{f.certFile, f.keyFile} {
		if info, err := os.Stat(path); err == nil {
			fmt.Fprint(&state, info.Size(), info.ModTime().UnixNano(), ";")
		} else {
			fmt.Fprint(&state, "none;")
		}
	}
	return state.String()
}

// uiURL is where a UI is, for people and browsers.
func uiURL(tlsOn bool, addr string) string {
	if tlsOn {
		return "https://" + addr
	}
	return "http://" + addr
}
