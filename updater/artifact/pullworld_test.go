package artifact

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"moult/updater/release"
)

// The StallTimeouts of hosts in these tests: where a stall is waited for, and where there
// is none, so that a machine that stands still is not taken for one.
const (
	pullStall = 2 * time.Second
	landStall = 30 * time.Second
)

// land is hosts in segments, and one release's artifact. A host reaches those it
// shares a segment with, unless the way there is cut, and what goes over each way
// is counted.
type land struct {
	t                   *testing.T
	bytes               []byte
	digest              string
	manifest, signature []byte
	chunks              release.Chunks // none: the artifact goes as a whole
	releaseKey          string         // public
	secret              string

	mu    sync.Mutex
	hosts map[string]*landHost
	cuts  map[way]bool
	moved map[way]int64 // bytes of artifacts, to from, and questions
	asked map[way]int   // requests to get it
}

// way leads from who asks to who answers.
type way struct{ from, to string }

type landHost struct {
	land     *land
	id       string
	server   bool
	class    int // as a relay
	segments []string
	dir      string
	rate     int // of what it serves, bytes per second
	conduct  http.HandlerFunc

	store  *Store
	puller *Puller
	srv    *httptest.Server // nil: it is down
	client *http.Client
}

func newLand(t *testing.T, size int) *land {
	t.Helper()
	l := &land{t: t, bytes: make([]byte, size), hosts: map[string]*landHost{}, cuts: map[way]bool{}, moved: map[way]int64{}, asked: map[way]int{}}
	_, _ = rand.NewChaCha8([32]byte{9}).Read(l.bytes)
	l.digest = digestOf(l.bytes)
	var err error
	l.releaseKey, l.secret, err = release.GenerateKey()
	must(t, err)
	l.manifest, l.signature = l.sign(l.digest, int64(size), l.secret)
	return l
}

// cutLand is a land whose artifact's chunks are signed.
func cutLand(t *testing.T, size int) *land {
	t.Helper()
	l := newLand(t, size)
	lister := release.NewChunkLister(release.MinChunkBytes)
	_, _ = lister.Write(l.bytes)
	l.chunks = lister.Chunks()
	l.manifest, l.signature = l.sign(l.digest, int64(size), l.secret)
	return l
}

func (l *land) sign(digest string, size int64, secret string) (manifest, signature []byte) {
	l.t.Helper()
	text, err := json.Marshal(release.Manifest{
		Product: release.Product, Version: "2.0.0", Number: 2, Created: time.Now().UTC(),
		Artifacts: []release.Artifact{{OS: "linux", Arch: "amd64", Size: size, SHA256: digest, ChunkSize: l.chunks.Size, ChunkList: l.chunks.List}},
	})
	must(l.t, err)
	sig, err := release.Sign(secret, text)
	must(l.t, err)
	return text, sig
}

// host starts a host. A class says how far from the servers a relay is.
func (l *land) host(id string, class int, segments ...string) *landHost {
	l.t.Helper()
	h := &landHost{land: l, id: id, class: class, segments: segments, dir: l.t.TempDir()}
	h.client = &http.Client{Transport: roads{l, id}}
	l.start(h)
	l.t.Cleanup(h.stop)
	return h
}

// origin starts a server that holds the artifact.
func (l *land) origin(id string, rate int, segments ...string) *landHost {
	l.t.Helper()
	h := &landHost{land: l, id: id, server: true, segments: segments, dir: l.t.TempDir(), rate: rate}
	h.client = &http.Client{Transport: roads{l, id}}
	l.start(h)
	l.t.Cleanup(h.stop)
	l.give(h)
	return h
}

// give puts the artifact into a host's store.
func (l *land) give(h *landHost) {
	l.t.Helper()
	_, err := h.store.Import(readerOf(l.bytes), int64(len(l.bytes)), func(string, int64) bool { return true })
	must(l.t, err)
}

// start starts a host, or starts it again with what is on its disk.
func (l *land) start(h *landHost) {
	l.t.Helper()
	store := mustOpen(l.t, h.dir)
	puller, err := NewPuller(PullerConfig{
		HostID: h.id, Store: store, HTTP: h.client, ReleaseKeys: func() release.KeySet { return release.Pinned(l.releaseKey) },
		Candidates: func(digest string) []Peer { return l.holders(h.id, digest) },
		Relays:     func(via []string) []Peer { return l.relays(h.id, via) },
		Active:     func() bool { return len(h.segments) > 1 || h.server },
		Prune:      !h.server, StallTimeout: landStall,
	})
	must(l.t, err)
	mux := http.NewServeMux()
	mux.Handle("/artifact/", Handler(store, Limits{Streams: 4, BytesPerSecond: h.rate}))
	mux.Handle("POST /artifact/{digest}/pull", puller)
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h.conduct != nil {
			h.conduct(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	l.mu.Lock()
	defer l.mu.Unlock()
	h.store, h.puller, h.srv = store, puller, srv
	l.hosts[h.id] = h
}

// holdAt makes a host that holds the artifact give so many bytes in each answer, and the
// rest when the gate is open. Who gets them keeps the last 128 KiB in its buffer.
func (h *landHost) holdAt(n int, gate <-chan struct{}) {
	held := Handler(h.store, Limits{Streams: 4})
	h.conduct = func(w http.ResponseWriter, r *http.Request) {
		held.ServeHTTP(&gatedWriter{ResponseWriter: w, left: n, gate: gate, gone: r.Context().Done()}, r)
	}
}

// stop is as a kill: connections break off.
func (h *landHost) stop() {
	h.land.mu.Lock()
	srv, puller := h.srv, h.puller
	h.srv = nil
	h.land.mu.Unlock()
	if srv == nil {
		return
	}
	srv.CloseClientConnections()
	puller.Close()
	srv.Close()
}

// reach tells whether one host gets a connection to another. Under the lock.
func (l *land) reach(from, to string) bool {
	a, b := l.hosts[from], l.hosts[to]
	return a != nil && b != nil && b.srv != nil && !l.cuts[way{from, to}] &&
		slices.ContainsFunc(a.segments, func(s string) bool { return slices.Contains(b.segments, s) })
}

// shares tells what the roster would say, which knows nothing of cuts.
func (l *land) shares(from, to string) bool {
	return from != to && l.hosts[to].srv != nil && slices.ContainsFunc(l.hosts[from].segments, func(s string) bool { return slices.Contains(l.hosts[to].segments, s) })
}

func (l *land) holders(from, digest string) (peers []Peer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, h := range l.hosts {
		if l.shares(from, id) && (h.server || h.store.Has(digest)) {
			p := Peer{HostID: id, Name: "name of " + id, Addr: h.srv.Listener.Addr().String()}
			if h.server {
				p.Class = 2
			}
			peers = append(peers, p)
		}
	}
	return peers
}

func (l *land) relays(from string, via []string) (peers []Peer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, h := range l.hosts {
		if l.shares(from, id) && len(h.segments) > 1 && !slices.Contains(via, id) {
			peers = append(peers, Peer{HostID: id, Name: "name of " + id, Addr: h.srv.Listener.Addr().String(), Class: h.class})
		}
	}
	return peers
}

// roads is a host's HTTP transport.
type roads struct {
	land *land
	from string
}

var errNoRoad = errors.New("no route to host")

func (r roads) RoundTrip(req *http.Request) (*http.Response, error) {
	l := r.land
	l.mu.Lock()
	var to *landHost
	for _, h := range l.hosts {
		if h.srv != nil && h.srv.Listener.Addr().String() == req.URL.Host {
			to = h
		}
	}
	open := to != nil && l.reach(r.from, to.id)
	var srv *httptest.Server
	if open {
		srv = to.srv
		if req.Method == http.MethodPost {
			l.asked[way{r.from, to.id}]++
		}
	}
	l.mu.Unlock()
	if !open {
		return nil, errNoRoad
	}
	resp, err := srv.Client().Transport.RoundTrip(req)
	if err == nil && req.Method == http.MethodGet {
		resp.Body = &tolled{resp.Body, func(n int) {
			l.mu.Lock()
			l.moved[way{r.from, to.id}] += int64(n)
			l.mu.Unlock()
		}}
	}
	return resp, err
}

type tolled struct {
	io.ReadCloser
	count func(int)
}

func (t *tolled) Read(b []byte) (int, error) {
	n, err := t.ReadCloser.Read(b)
	t.count(n)
	return n, err
}

func (l *land) cut(from, to string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cuts[way{from, to}] = true
}

// over returns how many bytes of artifacts a host got from another.
func (l *land) over(from, to string) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.moved[way{from, to}]
}

// out returns how many bytes of artifacts a host gave to all.
func (l *land) out(of string) (n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for w, moved := range l.moved {
		if w.to == of {
			n += moved
		}
	}
	return n
}

func (l *land) questions(of string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for w, asked := range l.asked {
		if w.to == of {
			n += asked
		}
	}
	return n
}

// request is how a host fetches for itself.
func (h *landHost) request() FetchRequest {
	l := h.land
	return FetchRequest{
		Store: h.store, Digest: l.digest, Size: int64(len(l.bytes)), Chunks: l.chunks, HTTP: h.client, StallTimeout: landStall,
		Candidates: func() []Peer { return l.holders(h.id, l.digest) },
		Pull: &Pull{
			HostID: h.id, Manifest: l.manifest, Signature: l.signature,
			Relays: func(via []string) []Peer { return l.relays(h.id, via) },
		},
	}
}

// mustFetch fetches and returns the bytes by who served them.
func (h *landHost) mustFetch(req FetchRequest) map[string]int64 {
	t := h.land.t
	t.Helper()
	sources, err := Fetch(t.Context(), req)
	if err != nil {
		t.Fatalf("%s: fetch: %v", h.id, err)
	}
	if err := h.store.Verify(h.land.digest); err != nil {
		t.Fatalf("%s: %v", h.id, err)
	}
	out := map[string]int64{}
	for _, s := range sources {
		out[s.Peer.HostID] += s.Bytes
	}
	return out
}

// awaitPulling waits until a host has got n bytes of the artifact for others.
func (h *landHost) awaitPulling(n int64) {
	h.land.t.Helper()
	awaitThat(h.land.t, fmt.Sprintf("%s to get %d bytes", h.id, n), func() bool { return h.store.flying(h.land.digest).done >= n })
}

func awaitThat(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no sign of: %s", what)
		}
	}
}

// mustHavePulled: a host got the artifact for others once. It is counted, as a pull ends, a
// moment after it is held.
func (h *landHost) mustHavePulled() {
	h.land.t.Helper()
	awaitThat(h.land.t, h.id+" to get it", func() bool { return h.puller.Pulled() > 0 })
	if n := h.puller.Pulled(); n != 1 {
		h.land.t.Errorf("%s got it %d times", h.id, n)
	}
}

// mustCarry: the artifact went over a link once, and little more.
func (l *land) mustCarry(from, to string, times float64) {
	l.t.Helper()
	got, want := float64(l.over(from, to)), times*float64(len(l.bytes))
	if got < want || got > want*1.01 {
		l.t.Errorf("%.0f bytes went from %s to %s, want %.0f", got, to, from, want)
	}
}
