package artifact

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
)

// world is one artifact, a store that lacks it, and peers that say they have it.
type world struct {
	t      *testing.T
	bytes  []byte
	digest string
	dir    string
	store  *Store
	peers  []Peer
	asked  map[string]*atomic.Int64 // requests by host ID
	client *http.Client
}

func newWorld(t *testing.T, size int) *world {
	t.Helper()
	w := &world{t: t, bytes: make([]byte, size), dir: t.TempDir(), asked: map[string]*atomic.Int64{}}
	random := rand.NewChaCha8([32]byte{7})
	_, _ = random.Read(w.bytes)
	w.digest = digestOf(w.bytes)
	w.store = mustOpen(t, w.dir)
	return w
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func mustOpen(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := OpenStore(dir, "", "")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// peer starts a peer; those of a lower class are asked first.
func (w *world) peer(id string, class int, conduct http.HandlerFunc) {
	w.t.Helper()
	count := &atomic.Int64{}
	srv := httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		count.Add(1)
		conduct(rw, r)
	}))
	w.t.Cleanup(srv.Close)
	w.asked[id] = count
	w.client = srv.Client() // all test servers have the same certificate
	w.t.Cleanup(w.client.CloseIdleConnections)
	w.peers = append(w.peers, Peer{HostID: id, Addr: srv.Listener.Addr().String(), Class: class})
}

func (w *world) request() FetchRequest {
	client := w.client
	if client == nil {
		client = http.DefaultClient
	}
	return FetchRequest{
		Store: w.store, Digest: w.digest, Size: int64(len(w.bytes)), HTTP: client, Rounds: 2,
		Candidates: func() []Peer { return w.peers },
	}
}

func (w *world) fetch(ctx context.Context, req FetchRequest) map[string]int64 {
	w.t.Helper()
	sources, err := Fetch(ctx, req)
	if err != nil {
		w.t.Fatalf("fetch: %v", err)
	}
	w.mustHold()
	out := map[string]int64{}
	for _, s := range sources {
		out[s.Peer.HostID] += s.Bytes
	}
	return out
}

// mustHold: the store has exactly these bytes, and nothing unverified.
func (w *world) mustHold() {
	w.t.Helper()
	got, err := os.ReadFile(w.store.Path(w.digest))
	if err != nil || !bytes.Equal(got, w.bytes) {
		w.t.Fatalf("the store holds %d bytes of %d, %v", len(got), len(w.bytes), err)
	}
	entries, err := os.ReadDir(w.dir)
	if err != nil || len(entries) != 1 {
		w.t.Errorf("the store's directory holds %v, %v", entries, err)
	}
}

// mustLack: nothing got a final name.
func (w *world) mustLack() {
	w.t.Helper()
	if w.store.Has(w.digest) {
		w.t.Error("bytes that were not verified have the final name")
	}
	if list, err := w.store.List(); err != nil || len(list) != 0 {
		w.t.Errorf("the store lists %v, %v", list, err)
	}
}

// The conducts of peers.

func (w *world) honest() http.HandlerFunc { return serveBytes(w.bytes) }

func serveBytes(b []byte) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		http.ServeContent(rw, r, "", time.Time{}, bytes.NewReader(b))
	}
}

// flipped serves bytes with one bit wrong.
func (w *world) flipped(at int) http.HandlerFunc {
	bad := slices.Clone(w.bytes)
	bad[at] ^= 1
	return serveBytes(bad)
}

// from returns where a request's range starts.
func from(r *http.Request) int {
	var first int
	_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &first)
	return first
}

// dropping promises all that was asked for and breaks off after n bytes.
func dropping(b []byte, n int) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		promise(rw, r, b)
		rest := b[from(r):]
		_, _ = rw.Write(rest[:min(n, len(rest))])
		if len(rest) > n {
			_ = http.NewResponseController(rw).Flush()
			panic(http.ErrAbortHandler)
		}
	}
}

// promise writes the header of an answer that would hold all that was asked for.
func promise(rw http.ResponseWriter, r *http.Request, b []byte) {
	first := from(r)
	rw.Header().Set("Content-Length", strconv.Itoa(len(b)-first))
	if first == 0 {
		rw.WriteHeader(http.StatusOK)
		return
	}
	rw.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, len(b)-1, len(b)))
	rw.WriteHeader(http.StatusPartialContent)
}

// endless serves what was asked for, and then more and more.
func (w *world) endless(sent *atomic.Int64) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		junk := make([]byte, 64<<10)
		rw.WriteHeader(http.StatusOK) // no length: chunked
		// In one piece: the end of the artifact is no end of a read.
		_, _ = rw.Write(append(slices.Clone(w.bytes), junk...))
		for r.Context().Err() == nil {
			n, err := rw.Write(junk)
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	}
}
