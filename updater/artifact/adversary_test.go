package artifact

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// adversaryRounds is how often each conduct below is tried, each time with other
// numbers.
func adversaryRounds() int {
	if os.Getenv("MOULT_LONG") != "" {
		return 1000
	}
	return 15
}

// Whatever peers serve instead of the artifact, over real connections: none of it
// gets the name under which things are executed, no more than the signed length
// is read from one answer, and the fetch ends. With one honest peer among them
// it ends well.
func TestHostilePeers(t *testing.T) {
	const size = 20_000
	for name, conduct := range map[string]func(*world, *rand.Rand) http.HandlerFunc{
		"endless": func(w *world, r *rand.Rand) http.HandlerFunc {
			var beyond atomic.Int64
			bad := *w
			bad.bytes = mustFlip(w.bytes, r.IntN(size))
			return bad.endless(&beyond)
		},
		"oversized": func(w *world, r *rand.Rand) http.HandlerFunc {
			return serveBytes(append(slices.Clone(w.bytes), make([]byte, 1+r.IntN(size))...))
		},
		"truncated": func(w *world, r *rand.Rand) http.HandlerFunc { return serveBytes(w.bytes[:r.IntN(size)]) },
		"flipped":   func(w *world, r *rand.Rand) http.HandlerFunc { return w.flipped(r.IntN(size)) },
		"breaking off": func(w *world, r *rand.Rand) http.HandlerFunc {
			return dropping(mustFlip(w.bytes, r.IntN(100)), 100+r.IntN(size/2))
		},
		// Of the same release, whole and signed, but another platform's: it has a
		// length of its own, and says what it is.
		"wrong platform": func(_ *world, r *rand.Rand) http.HandlerFunc {
			other := make([]byte, size-1000+r.IntN(2000))
			copy(other, []string{"\x7fELF\x02\x01\x01", "MZ\x90\x00", "\xcf\xfa\xed\xfe"}[r.IntN(3)])
			other[18] = byte(r.IntN(256))
			return serveBytes(other)
		},
		// Of another release, for this platform, and of the same length.
		"swapped": func(w *world, r *rand.Rand) http.HandlerFunc {
			other := slices.Clone(w.bytes)
			for range 1 + r.IntN(100) {
				other[r.IntN(size)] ^= byte(1 + r.IntN(255))
			}
			return serveBytes(other)
		},
		"lying about ranges": func(w *world, r *rand.Rand) http.HandlerFunc {
			first := r.IntN(size)
			return func(rw http.ResponseWriter, _ *http.Request) {
				rw.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, size-1, size+r.IntN(3)))
				rw.WriteHeader(http.StatusPartialContent)
				_, _ = rw.Write(w.bytes[min(first+1, size):])
			}
		},
		"slow": func(w *world, _ *rand.Rand) http.HandlerFunc {
			return func(rw http.ResponseWriter, r *http.Request) {
				promise(rw, r, w.bytes)
				_ = http.NewResponseController(rw).Flush()
				<-r.Context().Done()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // they wait more than they work
			for round := range adversaryRounds() {
				t.Run(fmt.Sprint(round), func(t *testing.T) { fetchAmongHostile(t, size, uint64(round), conduct) })
			}
		})
	}
}

func fetchAmongHostile(t *testing.T, size int, seed uint64, conduct func(*world, *rand.Rand) http.HandlerFunc) {
	r := rand.New(rand.NewPCG(seed, seed))
	w := newWorld(t, size)
	w.peer("bad", 0, conduct(w, r))
	honest := seed%3 == 0
	if honest {
		w.peer("good", 1, w.honest())
	}
	req := w.request()
	// A slow peer is given up after the stall; a good one must not be taken for one.
	// Where bytes of both were mixed, another round tells who sent the bad ones.
	req.Rounds, req.StallTimeout, req.MinRate = 3, 2*time.Second, -1
	if !honest {
		req.Rounds, req.StallTimeout = 1, 50*time.Millisecond
	}
	read := &countingTransport{base: w.client.Transport}
	req.HTTP = &http.Client{Transport: read}
	_, err := Fetch(t.Context(), req)
	switch {
	case honest && err != nil:
		t.Fatalf("seed %d: the honest peer was not found: %v", seed, err)
	case honest:
		w.mustHold()
	case err == nil:
		t.Fatalf("seed %d: a hostile peer was believed", seed)
	default:
		if !errors.Is(err, ErrNoPeer) {
			t.Errorf("seed %d: %v", seed, err)
		}
		w.mustLack()
	}
	answers := w.asked["bad"].Load()
	if honest {
		answers += w.asked["good"].Load()
	}
	if n := read.n.Load(); n > answers*int64(size) {
		t.Errorf("seed %d: %d bytes were read in %d answers, %d are signed", seed, n, answers, size)
	}
}

// No path that a peer asks for leads out of the store, spelt as it may be.
func TestPathsOutOfTheStore(t *testing.T) {
	dir := t.TempDir()
	store := mustOpen(t, filepath.Join(dir, "artifacts"))
	secret := "what no peer may read"
	for _, name := range []string{"secret", "artifacts/unverified-secret", "artifacts/secret"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(secret), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: Handler(store, DefaultLimits), ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan struct{})
	go func() { _ = srv.Serve(l); close(ended) }()
	defer func() { srv.Close(); <-ended }()
	for _, path := range []string{
		"../secret", "..%2fsecret", "%2e%2e/secret", "%2e%2e%2fsecret", "..\\secret", "%2e%2e%5csecret", "/etc/passwd", "//etc/passwd",
		"%2fetc%2fpasswd", "secret", "unverified-secret", "secret%00", "./secret", "....//secret", "..;/secret", "%c0%ae%c0%ae/secret",
		strings.Repeat("../", 20) + "etc/passwd", strings.Repeat("0", 64) + "/../secret", strings.Repeat("0", 64) + "%2f..%2fsecret", "", ".", "..",
	} {
		// Written by hand: a client would tidy the path up first.
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(c, "GET %s%s HTTP/1.0\r\n\r\n", pathPrefix, path)
		answer := make([]byte, 64<<10)
		n := 0
		for n < len(answer) {
			m, err := c.Read(answer[n:])
			n += m
			if err != nil {
				break
			}
		}
		c.Close()
		if text := string(answer[:n]); strings.Contains(text, secret) || strings.Contains(text, "root:") || strings.HasPrefix(text, "HTTP/1.0 200") || n == 0 {
			t.Errorf("%q: %q", path, text)
		}
		if f, _, err := store.Open(path); err == nil {
			f.Close()
			t.Errorf("%q opens", path)
		}
	}
}
