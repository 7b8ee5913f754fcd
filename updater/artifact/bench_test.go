package artifact

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"moult/mesh/identity"
	"moult/mesh/nodeport"
)

const benchSize = 64 << 20

// line is two hosts of one cluster: the node port of one serves its store, the
// other fetches over loopback TLS, as agents do.
type line struct {
	held   *Store // of the serving host
	digest string
	peer   Peer
	client *http.Client
	creds  identity.Credentials // of the serving host
}

func newLine(tb testing.TB, size int64) *line {
	tb.Helper()
	now := time.Now()
	ca, err := identity.NewCA("cluster-1", now)
	must(tb, err)
	host := func(id string, role identity.Role) identity.Credentials {
		key, err := identity.NewKey()
		must(tb, err)
		who := identity.Identity{Cluster: "cluster-1", HostID: id, Name: id, Role: role}
		cert, err := ca.Issue(who, key.Public().(ed25519.PublicKey), now, time.Hour)
		must(tb, err)
		return identity.Credentials{Identity: who, Key: key, CertPEM: cert, CAPEM: ca.CertPEM()}
	}
	l := &line{creds: host("agent-1", identity.RoleAgent)}
	l.held, err = OpenStore(tb.TempDir(), "", "")
	must(tb, err)
	random := io.LimitReader(rand.NewChaCha8([32]byte{7}), size)
	l.digest, err = l.held.Import(random, size, func(string, int64) bool { return true })
	must(tb, err)
	port, err := nodeport.Listen("127.0.0.1:0", func() (identity.Credentials, bool) { return l.creds, true }, nil, slog.New(slog.DiscardHandler))
	must(tb, err)
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := port.Close(ctx); err != nil {
			tb.Error(err)
		}
	})
	port.ServeHTTP(nodeport.Handlers{Peer: Handler(l.held, DefaultLimits)})
	l.peer = Peer{HostID: "agent-1", Addr: port.Addr().String()}
	asker := host("agent-2", identity.RoleAgent)
	l.client = nodeport.Client(func() identity.Credentials { return asker }, nil)
	tb.Cleanup(l.client.CloseIdleConnections)
	return l
}

func (l *line) request(into *Store, size int64) FetchRequest {
	return FetchRequest{
		Store: into, Digest: l.digest, Size: size, HTTP: l.client,
		Candidates: func() []Peer { return []Peer{l.peer} },
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// contender is one way to bring the artifact over loopback TLS to a file.
type contender struct {
	name  string
	get   func() error
	clean func() error // drops what get brought; nobody is timed by it
	took  []time.Duration
}

func (c *contender) rate() float64 {
	slices.Sort(c.took)
	return benchSize / 1e6 / c.took[len(c.took)/2].Seconds()
}

// BenchmarkFetch brings 64 MB from a host to another: over the real node port,
// verified, and durable under its final name. Side by side with it, in turns so
// that whatever else the machine does meets all of them, Go's plain file server
// with a plain client, which neither hashes nor syncs, and nginx with curl. The
// figures are of each one's median turn; x-… is the fetch's rate by the other's.
func BenchmarkFetch(b *testing.B) {
	l := newLine(b, benchSize)
	store, err := OpenStore(b.TempDir(), "", "")
	must(b, err)
	ours := &contender{name: "moult", get: func() error {
		_, err := Fetch(b.Context(), l.request(store, benchSize))
		return err
	}, clean: func() error { return store.Remove(l.digest) }}
	all := []*contender{ours, fileServer(b, l)}
	if c, err := nginx(b, l); err == nil {
		all = append(all, c)
	} else {
		b.Logf("without nginx and curl: %v", err)
	}
	b.SetBytes(benchSize)
	for b.Loop() {
		for _, c := range all {
			runtime.GC() // nobody pays for another's garbage
			start := time.Now()
			if err := c.get(); err != nil {
				b.Fatalf("%s: %v", c.name, err)
			}
			c.took = append(c.took, time.Since(start))
			must(b, c.clean())
		}
	}
	b.ReportMetric(0, "ns/op") // of all of them together: says nothing
	b.ReportMetric(0, "MB/s")
	for _, c := range all {
		b.ReportMetric(c.rate(), c.name+"-MB/s")
		if c != ours {
			b.ReportMetric(ours.rate()/c.rate(), "x-"+c.name)
		}
	}
}

// fileServer is http.FileServer, and a client that copies to a file.
func fileServer(b *testing.B, l *line) *contender {
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{l.certificate()}})
	must(b, err)
	srv := &http.Server{Handler: http.FileServer(http.Dir(l.held.dir))}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(listener) }()
	b.Cleanup(func() {
		srv.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			b.Error(err)
		}
	})
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableCompression: true}}
	b.Cleanup(client.CloseIdleConnections)
	to := filepath.Join(b.TempDir(), "artifact")
	return &contender{name: "fileserver", get: func() error {
		resp, err := client.Get("https://" + listener.Addr().String() + "/" + l.digest)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		f, err := os.Create(to)
		if err != nil {
			return err
		}
		defer f.Close()
		if n, err := io.Copy(f, resp.Body); err != nil || n != benchSize {
			return fmt.Errorf("%d bytes, %w", n, err)
		}
		return f.Close()
	}, clean: func() error { return os.Remove(to) }}
}

func (l *line) certificate() tls.Certificate {
	block, _ := pem.Decode(l.creds.CertPEM)
	return tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: l.creds.Key}
}

// nginx is nginx with its usual settings, and curl. It errs when either is not
// installed.
func nginx(b *testing.B, l *line) (*contender, error) {
	for _, program := range []string{"nginx", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, err
		}
	}
	dir := b.TempDir()
	must(b, os.Chmod(dir, 0o755)) // nginx's workers are another user
	key, err := x509.MarshalPKCS8PrivateKey(l.creds.Key)
	must(b, err)
	addr := freeAddr(b)
	for name, content := range map[string][]byte{
		"cert.pem": l.creds.CertPEM,
		"key.pem":  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		"nginx.conf": fmt.Appendf(nil, `daemon off; master_process off; pid nginx.pid; error_log stderr;
events {}
http {
	access_log off; sendfile on;
	client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
	server { listen %s ssl; ssl_protocols TLSv1.3; ssl_certificate cert.pem; ssl_certificate_key key.pem; root %s; }
}
`, addr, l.held.dir),
	} {
		must(b, os.WriteFile(filepath.Join(dir, name), content, 0o600))
	}
	var said bytes.Buffer
	cmd := exec.Command("nginx", "-e", "stderr", "-p", dir, "-c", "nginx.conf")
	cmd.Stderr = &said
	must(b, cmd.Start())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	b.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		<-ended
	})
	for conn := net.Conn(nil); conn == nil; {
		select {
		case <-ended:
			return nil, fmt.Errorf("nginx does not start: %s", said.Bytes())
		case <-time.After(10 * time.Millisecond):
			if conn, _ = net.Dial("tcp", addr); conn != nil {
				conn.Close()
			}
		}
	}
	to := filepath.Join(dir, "artifact")
	return &contender{name: "nginx+curl", get: func() error {
		out, err := exec.Command("curl", "-sS", "-f", "-k", "-o", to, "https://"+addr+"/"+l.digest).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		if st, err := os.Stat(to); err != nil || st.Size() != benchSize {
			return fmt.Errorf("curl brought something else: %w", err)
		}
		return nil
	}, clean: func() error { return os.Remove(to) }}, nil
}

// freeAddr is an address nobody listens on at the moment.
func freeAddr(b *testing.B) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(b, err)
	defer l.Close()
	return l.Addr().String()
}
