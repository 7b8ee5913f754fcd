package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"moult/mesh/crowd"
)

// startUIPort serves a handler as a server does its UI, until the test ends.
func startUIPort(t *testing.T, limits crowd.Limits, h http.Handler, cfg *tls.Config) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- serveHTTP(ctx, l, limits, h, cfg, quiet) }()
	t.Cleanup(func() {
		cancel()
		l.Close()
		<-ended
	})
	return l.Addr().String()
}

// uiOverTLS is how a UI speaks TLS, and who trusts it.
func uiOverTLS(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	ca := testUICA(t, "c1")
	cert, err := ca.Issue([]string{"127.0.0.1"}, time.Now(), time.Hour)
	must(t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.CertPEM())
	return uiTLSConfig(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }), &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}
}

// closedByServer tells whether a connection was closed at the other end.
func closedByServer(conn net.Conn) bool {
	_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := io.Copy(io.Discard, conn)
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// Connections that say nothing, or too little, keep nobody out of the UI, over TLS
// or not, and never outlive their limit; those of people who are known stay.
func TestUIFloodKeepsNobodyOut(t *testing.T) {
	serverTLS, clientTLS := uiOverTLS(t)
	limits := crowd.Limits{Total: 48, PerSource: 32}
	for name, cfg := range map[string]*tls.Config{"plain": nil, "TLS": serverTLS} {
		t.Run(name, func(t *testing.T) {
			release, stranger := make(chan struct{}), make(chan struct{})
			addr := startUIPort(t, limits, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/download" { // by a stranger
					w.WriteHeader(http.StatusOK)
					_ = http.NewResponseController(w).Flush()
					<-stranger
					fmt.Fprint(w, "all of it")
				}
				if r.URL.Path == "/stream" { // of somebody who is known, as webui says it
					knownSender(r)
					w.WriteHeader(http.StatusOK)
					_ = http.NewResponseController(w).Flush()
					<-release
					fmt.Fprint(w, "the end")
				}
			}), cfg)
			defer close(release)
			defer close(stranger)
			dial := func() net.Conn {
				conn, err := net.Dial("tcp", addr)
				must(t, err)
				t.Cleanup(func() { conn.Close() })
				return conn
			}
			web := func(keep bool) *http.Client {
				tr := &http.Transport{TLSClientConfig: clientTLS, DisableKeepAlives: !keep}
				t.Cleanup(tr.CloseIdleConnections)
				return &http.Client{Transport: tr, Timeout: 20 * time.Second}
			}
			url := uiURL(cfg != nil, addr)
			stream, err := web(true).Get(url + "/stream")
			must(t, err)
			defer stream.Body.Close()
			download, err := web(true).Get(url + "/download")
			must(t, err)
			defer download.Body.Close()

			var flood []net.Conn
			for i := range 4 * limits.Total {
				conn := dial()
				if i%2 == 0 {
					_, _ = conn.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")) // over TLS it is garbage
				}
				flood = append(flood, conn)
				if i%16 == 0 {
					resp, err := web(false).Get(url + "/")
					if err != nil {
						t.Fatalf("after %d connections: %v", i, err)
					}
					resp.Body.Close()
				}
			}
			deadline := time.Now().Add(20 * time.Second)
			open := len(flood)
			for ; open > limits.PerSource && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
				open = 0
				for _, conn := range flood {
					if !closedByServer(conn) {
						open++
					}
				}
			}
			if open > limits.PerSource {
				t.Errorf("%d connections of one address are held", open)
			}
			stranger <- struct{}{}
			if text, err := io.ReadAll(download.Body); err != nil || string(text) != "all of it" {
				t.Errorf("a download of a stranger: %q, %v", text, err)
			}
			release <- struct{}{}
			if text, err := io.ReadAll(stream.Body); err != nil || string(text) != "the end" {
				t.Errorf("the stream of somebody who is known: %q, %v", text, err)
			}
		})
	}
}

// knownSender does what webui's guard does.
func knownSender(r *http.Request) {
	if m, ok := r.Context().Value(uiConnKey{}).(*crowd.Member); ok {
		m.Keep(crowd.Known)
	}
}

// Over TLS there is HTTP/1.1 in TLS 1.3, and a plain request hears that.
func TestUIOverTLS(t *testing.T) {
	serverTLS, clientTLS := uiOverTLS(t)
	addr := startUIPort(t, uiLimits(1), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%t %s", r.TLS != nil, r.Proto)
	}), serverTLS)
	resp, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: clientTLS, ForceAttemptHTTP2: true}}).Get("https://" + addr)
	must(t, err)
	defer resp.Body.Close()
	if text, _ := io.ReadAll(resp.Body); string(text) != "true HTTP/1.1" {
		t.Errorf("%s", text)
	}
	if _, err := tls.Dial("tcp", addr, &tls.Config{MaxVersion: tls.VersionTLS12, RootCAs: clientTLS.RootCAs}); err == nil {
		t.Error("TLS 1.2 is spoken")
	}
	conn, err := net.Dial("tcp", addr)
	must(t, err)
	defer conn.Close()
	_, err = fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	must(t, err)
	plain, err := http.ReadResponse(bufio.NewReader(conn), nil)
	must(t, err)
	defer plain.Body.Close()
	if text, _ := io.ReadAll(plain.Body); plain.StatusCode != http.StatusBadRequest || !strings.Contains(string(text), "HTTP request to an HTTPS server") {
		t.Errorf("%s: %s", plain.Status, text)
	}
}

// A header may be so long and no longer.
func TestUIHeadersAreBounded(t *testing.T) {
	addr := startUIPort(t, uiLimits(1), http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), nil)
	for size, want := range map[int]int{16 << 10: http.StatusOK, 2 * uiMaxHeaderBytes: http.StatusRequestHeaderFieldsTooLarge} {
		req, err := http.NewRequest(http.MethodGet, "http://"+addr, nil)
		must(t, err)
		req.Header.Set("X-Long", strings.Repeat("x", size))
		resp, err := http.DefaultClient.Do(req)
		must(t, err)
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%d bytes: %s", size, resp.Status)
		}
	}
}
