package artifact

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"moult/updater/release"
)

// cut makes the world's artifact one whose chunks are signed.
func (w *world) cut() release.Chunks {
	l := release.NewChunkLister(release.MinChunkBytes)
	_, _ = l.Write(w.bytes)
	return l.Chunks()
}

func (w *world) chunkRequest() FetchRequest {
	req := w.request()
	req.Chunks = w.cut()
	return req
}

// holder starts a peer that serves the artifact with a real Server.
func (w *world) holder(id string) *Server {
	w.t.Helper()
	store := mustOpen(w.t, w.t.TempDir())
	if _, err := store.Import(bytes.NewReader(w.bytes), int64(len(w.bytes)), anything); err != nil {
		w.t.Fatal(err)
	}
	h := Handler(store, DefaultLimits)
	w.peer(id, 0, h.ServeHTTP)
	return h
}

// mustServe: a server sent so many bytes. It counts them a moment after they are here.
func (s *Server) mustServe(t *testing.T, n int64) {
	t.Helper()
	awaitThat(t, fmt.Sprintf("%d bytes served", n), func() bool { return s.Served() >= n })
	if got := s.Served(); got != n {
		t.Errorf("%d bytes were served, want %d", got, n)
	}
}

func TestFetchByChunks(t *testing.T) {
	for _, size := range []int{1, release.MinChunkBytes - 1, release.MinChunkBytes, release.MinChunkBytes + 1, 10*release.MinChunkBytes + 5} {
		w := newWorld(t, size)
		h := w.holder("holder")
		if got := w.fetch(t.Context(), w.chunkRequest()); got["holder"] != int64(size) {
			t.Errorf("%d bytes: they came from %v", size, got)
		}
		h.mustServe(t, int64(size))
	}
}

// swarm is hosts that get the artifact at the same time, and a seed.
type swarm struct {
	*world
	seed   *Server
	stores map[string]*Store
	served map[string]*Server
	addrs  map[string]string
	trees  map[string][][]string
}

func newSwarm(t *testing.T, size, hosts int) *swarm {
	s := &swarm{world: newWorld(t, size), stores: map[string]*Store{}, served: map[string]*Server{}, addrs: map[string]string{}}
	s.seed = s.holder("seed")
	var ids []string
	for i := range hosts {
		id := fmt.Sprintf("host-%d", i)
		ids = append(ids, id)
		s.stores[id] = mustOpen(t, t.TempDir())
		s.served[id] = Handler(s.stores[id], DefaultLimits)
		srv := httptest.NewTLSServer(s.served[id])
		t.Cleanup(srv.Close)
		s.addrs[id] = srv.Listener.Addr().String()
	}
	s.trees = Trees(s.digest, ids)
	return s
}

func (s *swarm) requestOf(id string) FetchRequest {
	req := s.chunkRequest()
	req.Store = s.stores[id]
	req.Parents = func() [][]Peer {
		var out [][]Peer
		for _, ancestors := range s.trees[id] {
			var peers []Peer
			for _, a := range ancestors {
				peers = append(peers, Peer{HostID: a, Addr: s.addrs[a]})
			}
			out = append(out, peers)
		}
		return out
	}
	return req
}

func (s *swarm) fetchAll(t *testing.T, alter func(id string, req *FetchRequest)) map[string]error {
	var mu sync.Mutex
	var all sync.WaitGroup
	errs := map[string]error{}
	for id := range s.stores {
		req := s.requestOf(id)
		if alter != nil {
			alter(id, &req)
		}
		all.Go(func() {
			_, err := Fetch(t.Context(), req)
			mu.Lock()
			defer mu.Unlock()
			errs[id] = err
		})
	}
	all.Wait()
	return errs
}

func (s *swarm) mustAllHold(errs map[string]error) {
	s.t.Helper()
	for id, store := range s.stores {
		if errs[id] != nil {
			s.t.Errorf("%s: %v", id, errs[id])
			continue
		}
		got, err := os.ReadFile(store.Path(s.digest))
		if err != nil || !bytes.Equal(got, s.bytes) {
			s.t.Errorf("%s holds %d bytes of %d, %v", id, len(got), len(s.bytes), err)
		}
	}
}

// All hosts get it at once, and the seed sends it once.
func TestTheSeedSendsOneCopy(t *testing.T) {
	const tries = 5 // on a machine that stands still hosts leave their parents for others
	var wrong []string
	for range tries {
		s := newSwarm(t, 40*release.MinChunkBytes+7, 13)
		s.mustAllHold(s.fetchAll(t, nil))
		if wrong = s.sentTooMuch(); len(wrong) == 0 {
			return
		}
		t.Log(wrong)
	}
	t.Errorf("%d tries, and each time hosts sent too much: %v", tries, wrong)
}

// sentTooMuch tells who sent more than its share once all have got it.
func (s *swarm) sentTooMuch() (who []string) {
	size := int64(len(s.bytes))
	awaitThat(s.t, "a copy of the seed's", func() bool { return s.seed.Served() >= size }) // counted a moment later
	if n := s.seed.Served(); n != size {
		who = append(who, fmt.Sprintf("the seed served %d bytes of an artifact of %d", n, size))
	}
	for id, h := range s.served {
		if n := h.Served(); n > 11*size/10 {
			who = append(who, fmt.Sprintf("%s served %d bytes of an artifact of %d", id, n, size))
		}
	}
	return who
}

// A host passes on what it has while its own source holds the rest back.
func TestCutThrough(t *testing.T) {
	s := newSwarm(t, 8*release.MinChunkBytes, 2)
	s.peers, s.trees = nil, map[string][][]string{"host-0": {{}}, "host-1": {{"host-0"}}}
	const before = 3
	gate, passed := make(chan struct{}), make(chan struct{})
	var once sync.Once
	s.peer("gated seed", 0, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, stripeSuffix) {
			w = &gatedWriter{ResponseWriter: w, left: before*release.MinChunkBytes + len(mustList(s.world)), gate: gate, gone: r.Context().Done()}
		}
		s.seed.ServeHTTP(w, r)
	})
	errs := s.fetchAll(t, func(id string, req *FetchRequest) {
		req.StallTimeout = time.Minute
		if id == "host-1" {
			req.Candidates = func() []Peer { return nil }
			req.Progress = func(done int64, from Peer) {
				if done == before*release.MinChunkBytes {
					once.Do(func() {
						if from.HostID != "host-0" || s.stores["host-0"].Has(s.digest) {
							t.Errorf("chunks came from %s", from.HostID)
						}
						close(passed)
						close(gate)
					})
				}
			}
		}
	})
	s.mustAllHold(errs)
	select {
	case <-passed:
	default:
		t.Error("nothing was passed on before the rest came in")
	}
}

// gatedWriter lets so many bytes through, and the rest when the gate is open.
type gatedWriter struct {
	http.ResponseWriter
	left int
	gate <-chan struct{}
	gone <-chan struct{} // who reads it
}

func (w *gatedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *gatedWriter) Write(b []byte) (int, error) {
	if w.left < len(b) {
		_ = http.NewResponseController(w.ResponseWriter).Flush()
		select {
		case <-w.gate:
		case <-w.gone:
			return 0, context.Canceled
		}
		w.left = 1 << 30
	}
	w.left -= len(b)
	return w.ResponseWriter.Write(b)
}

// A chunk that is not the signed one is passed on to nobody, costs that chunk, and
// its sender is asked no more.
func TestABadChunkCostsAChunk(t *testing.T) {
	w := newWorld(t, 12*release.MinChunkBytes)
	w.holder("good")
	w.peers[0].Class = 1
	const sound = 5
	bad := bytes.Clone(w.bytes)
	bad[sound*release.MinChunkBytes+9] ^= 1
	w.peer("bad", 0, func(rw http.ResponseWriter, r *http.Request) {
		list := mustList(w)
		rw.Header().Set("Content-Length", strconv.Itoa(len(list)+len(bad)))
		_, _ = rw.Write(append(list, bad...))
	})
	var aside []string
	req := w.chunkRequest()
	req.SetAside = func(p Peer, why error) {
		if !errors.Is(why, errCorrupt) {
			t.Errorf("set aside because %v", why)
		}
		aside = append(aside, p.HostID)
	}
	got := w.fetch(t.Context(), req)
	if got["bad"] != sound*release.MinChunkBytes || got["good"] != 7*release.MinChunkBytes {
		t.Errorf("bytes came from %v", got)
	}
	if !slices.Equal(aside, []string{"bad"}) || w.asked["bad"].Load() != 1 {
		t.Errorf("set aside are %v, asked %d times", aside, w.asked["bad"].Load())
	}
}

// Whatever is served instead of a chunk list: the artifact comes whole.
func TestHostileChunkLists(t *testing.T) {
	for name, list := range map[string]func(w *world) []byte{
		"flipped": func(w *world) []byte { return mustFlip(mustList(w), 3) },
		"short":   func(w *world) []byte { return mustList(w)[1:] },
		"long":    func(w *world) []byte { return append(mustList(w), make([]byte, 32)...) },
		"empty":   func(*world) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 3*release.MinChunkBytes)
			w.peer("bad", 0, func(rw http.ResponseWriter, r *http.Request) {
				if _, _, ok := chunkPath(r.URL.Path); ok {
					answer := list(w)
					if strings.HasSuffix(r.URL.Path, stripeSuffix) {
						answer = append(answer, w.bytes...)
					}
					_, _ = rw.Write(answer)
					return
				}
				w.honest()(rw, r)
			})
			if got := w.fetch(t.Context(), w.chunkRequest()); got["bad"] != int64(len(w.bytes)) {
				t.Errorf("bytes came from %v", got)
			}
		})
	}
}

func mustList(w *world) []byte {
	l := release.NewChunkLister(release.MinChunkBytes)
	_, _ = l.Write(w.bytes)
	return l.List()
}

// Chunks that are signed and an artifact that is signed, but do not fit: nothing
// gets the final name by the chunks alone.
func TestTheWholeDigestDecides(t *testing.T) {
	w := newWorld(t, 3*release.MinChunkBytes)
	other := newWorld(t, len(w.bytes))
	other.bytes = mustFlip(w.bytes, 5)
	h := other.holder("other")
	w.peer("other", 0, func(rw http.ResponseWriter, r *http.Request) {
		r.URL.Path = strings.Replace(r.URL.Path, w.digest, digestOf(other.bytes), 1)
		h.ServeHTTP(rw, r)
	})
	req := w.request()
	req.Chunks = other.cut()
	if _, err := Fetch(t.Context(), req); !errors.Is(err, ErrNoPeer) {
		t.Errorf("error is %v", err)
	}
	w.mustLack()
}

// What is here of an earlier fetch is not fetched again, whichever way it came.
func TestChunksResume(t *testing.T) {
	const chunks = 6
	for name, left := range map[string]func(whole []byte) []byte{
		"a prefix":         func(b []byte) []byte { return b[:2*release.MinChunkBytes+100] },
		"with a gap":       func(b []byte) []byte { return mustFlip(mustFlip(b, release.MinChunkBytes), 4*release.MinChunkBytes) },
		"all":              func(b []byte) []byte { return b },
		"more than signed": func(b []byte) []byte { return append(bytes.Clone(b), "tail"...) },
		"nothing good":     func(b []byte) []byte { return make([]byte, len(b)) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, chunks*release.MinChunkBytes)
			h := w.holder("holder")
			part := left(w.bytes)
			want := 0
			for i := range chunks {
				end := (i + 1) * release.MinChunkBytes
				if len(part) < end || !bytes.Equal(part[end-release.MinChunkBytes:end], w.bytes[end-release.MinChunkBytes:end]) {
					want += release.MinChunkBytes
				}
			}
			w.leave(part)
			w.fetch(t.Context(), w.chunkRequest())
			h.mustServe(t, int64(want))
		})
	}
}

// A peer of a version that knows no chunks serves the whole, from where the chunks
// ended.
func TestOldPeersServeTheWhole(t *testing.T) {
	w := newWorld(t, 4*release.MinChunkBytes)
	w.leave(mustFlip(w.bytes, 3*release.MinChunkBytes))
	var sent atomic.Int64
	w.peer("old", 0, func(rw http.ResponseWriter, r *http.Request) {
		if _, _, ok := chunkPath(r.URL.Path); ok {
			http.Error(rw, "no such artifact", http.StatusNotFound)
			return
		}
		sent.Add(1)
		w.honest()(rw, r)
	})
	w.fetch(t.Context(), w.chunkRequest())
	if sent.Load() == 0 {
		t.Error("the whole was not asked for")
	}
}

// Hosts that vanish in the middle cost those behind them no more than a moment.
func TestParentsThatVanish(t *testing.T) {
	s := newSwarm(t, 60*release.MinChunkBytes, 12)
	var broken atomic.Int64
	const gone = "host-3"
	for id, h := range s.served {
		srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if id == gone && strings.HasSuffix(r.URL.Path, stripeSuffix) {
				if broken.Add(1) > 2 {
					http.Error(w, "down", http.StatusInternalServerError)
					return
				}
				w = &breakingWriter{ResponseWriter: w, left: 4 * release.MinChunkBytes}
			}
			h.ServeHTTP(w, r)
		}))
		t.Cleanup(srv.Close)
		s.addrs[id] = srv.Listener.Addr().String()
	}
	s.mustAllHold(s.fetchAll(t, nil))
	if broken.Load() == 0 {
		t.Error("nobody had it for a parent; choose another one")
	}
}

type breakingWriter struct {
	http.ResponseWriter
	left int
}

func (w *breakingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *breakingWriter) Write(b []byte) (int, error) {
	if w.left -= len(b); w.left < 0 {
		panic(http.ErrAbortHandler)
	}
	return w.ResponseWriter.Write(b)
}

// What requests for chunks are refused.
func TestChunkRequestsThatAreRefused(t *testing.T) {
	w := newWorld(t, 4*release.MinChunkBytes)
	h := w.holder("holder")
	path := pathPrefix + w.digest
	for query, want := range map[string]int{
		stripeSuffix + "?chunk=16384&first=0&of=1&count=4":     http.StatusOK,
		stripeSuffix + "?chunk=16384&first=1&of=2&count=2":     http.StatusOK,
		stripeSuffix + "?chunk=16384&first=0&of=1&count=5":     http.StatusBadRequest,
		stripeSuffix + "?chunk=16384&first=4&of=1&count=1":     http.StatusBadRequest,
		stripeSuffix + "?chunk=16384&first=-1&of=1&count=1":    http.StatusBadRequest,
		stripeSuffix + "?chunk=16384&first=0&of=0&count=1":     http.StatusBadRequest,
		stripeSuffix + "?chunk=16384&first=0&of=99&count=1":    http.StatusBadRequest,
		stripeSuffix + "?chunk=16384&first=0&of=1&count=0":     http.StatusBadRequest,
		stripeSuffix + "?chunk=16384&first=0&of=1&count=9e9":   http.StatusBadRequest,
		stripeSuffix + "?chunk=16384&first=0&of=1&count=99999": http.StatusBadRequest,
		stripeSuffix + "?chunk=1&first=0&of=1&count=1":         http.StatusBadRequest,
		stripeSuffix + "?first=0&of=1&count=1":                 http.StatusBadRequest,
		listSuffix + "?chunk=16384":                            http.StatusOK,
		listSuffix + "?chunk=12345":                            http.StatusBadRequest,
		listSuffix:                                             http.StatusBadRequest,
	} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path+query, nil))
		if rec.Code != want {
			t.Errorf("%s: %d %s", query, rec.Code, rec.Body)
		}
	}
	for _, path := range []string{pathPrefix + strings.Repeat("a", 64), pathPrefix + "..", pathPrefix} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path+listSuffix+"?chunk=16384&now=1", nil))
		if rec.Code != http.StatusNotFound {
			t.Errorf("%s: %d", path, rec.Code)
		}
	}
}

// The busy say so, and who only begins is no source for who asks for what is there.
func TestChunksAreServedInBounds(t *testing.T) {
	w := newWorld(t, 4*release.MinChunkBytes)
	c := w.cut()
	h := Handler(w.store, DefaultLimits)
	own, release, err := w.store.claim(t.Context(), w.digest, func(flightState) {})
	if err != nil {
		t.Fatal(err)
	}
	file, err := openChunkFile(w.dir, w.store.partialPath(w.digest), int64(len(w.bytes)), c, mustList(w))
	if err != nil {
		t.Fatal(err)
	}
	own.share(file)
	ask := func(query string) int {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, pathPrefix+w.digest+stripeSuffix+query, nil))
		return rec.Code
	}
	if code := ask("?chunk=16384&first=0&of=1&count=1&now=1"); code != http.StatusNotFound {
		t.Errorf("before it is there: %d", code)
	}
	if err := file.put(0, w.bytes[:c.Size]); err != nil {
		t.Fatal(err)
	}
	if code := ask("?chunk=16384&first=0&of=1&count=1&now=1"); code != http.StatusOK {
		t.Errorf("once it is there: %d", code)
	}
	if err := file.put(1, w.bytes[:c.Size]); !errors.Is(err, errCorrupt) || file.holds(1) {
		t.Errorf("other bytes: %v", err)
	}
	for range DefaultLimits.Streams {
		h.enter("", DefaultLimits.Streams, DefaultLimits.Streams)
	}
	if code := ask("?chunk=16384&first=0&of=1&count=1"); code != http.StatusServiceUnavailable {
		t.Errorf("with all streams taken: %d", code)
	}
	file.end().Close()
	release()
}
