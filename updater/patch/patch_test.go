package patch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"moult/updater/artifact"
	"moult/updater/delta"
)

// host is one that keeps, serves and fetches patches.
type host struct {
	t         *testing.T
	artifacts *artifact.Store
	patches   *Store
	dir       string
}

func newHost(t *testing.T, holds ...[]byte) *host {
	t.Helper()
	dir := t.TempDir()
	artifacts, err := artifact.OpenStore(filepath.Join(dir, "artifacts"), "", "")
	if err != nil {
		t.Fatal(err)
	}
	patches, err := OpenStore(filepath.Join(dir, "patches"))
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t, artifacts, patches, dir}
	for _, b := range holds {
		if _, err := artifacts.Import(bytes.NewReader(b), int64(len(b)), func(string, int64) bool { return true }); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func serve(t *testing.T, h http.Handler) (artifact.Peer, *http.Client) {
	t.Helper()
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	return artifact.Peer{HostID: s.Listener.Addr().String(), Addr: s.Listener.Addr().String()}, s.Client()
}

func (h *host) serve() (artifact.Peer, *http.Client) {
	return serve(h.t, Handler(h.patches, 0, rate.NewLimiter(rate.Inf, chunkLen)))
}

func (h *host) fetch(old, new []byte, client *http.Client, peers ...artifact.Peer) (artifact.Source, error) {
	return Fetch(h.t.Context(), h.request(old, new, client, peers...))
}

func (h *host) request(old, new []byte, client *http.Client, peers ...artifact.Peer) Request {
	return Request{
		Artifacts: h.artifacts, Patches: h.patches, Old: digest(old), New: digest(new), Size: int64(len(new)),
		Candidates: peers, HTTP: client,
	}
}

// mustBeAsBefore fails when a fetch in vain has left anything.
func (h *host) mustBeAsBefore(new []byte) {
	h.t.Helper()
	if h.artifacts.Has(digest(new)) {
		h.t.Error("the store has the new artifact")
	}
	for _, dir := range []string{"artifacts", "patches"} {
		left, err := filepath.Glob(filepath.Join(h.dir, dir, "unverified-*"))
		if err != nil || len(left) > 0 {
			h.t.Errorf("left over: %v %v", left, err)
		}
	}
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// versions are two that differ a little, and do not compress.
func versions() (old, new []byte) {
	r := rand.New(rand.NewPCG(1, 2))
	old = make([]byte, 300_000)
	for i := range old {
		old[i] = byte(r.Uint32())
	}
	new = append(append(bytes.Clone(old[:100_000]), "a new function"...), old[100_200:]...)
	return old, new
}

// A server makes a patch; a host takes the new version by it, and serves it on to
// another one.
func TestPatchTravels(t *testing.T) {
	old, new := versions()
	server := newHost(t, old, new)
	if err := server.patches.Make(t.Context(), server.artifacts, digest(old), digest(new)); err != nil {
		t.Fatal(err)
	}
	from, client := server.serve()
	for range 2 {
		h := newHost(t, old)
		source, err := h.fetch(old, new, client, from)
		if err != nil {
			t.Fatal(err)
		}
		if source.Peer.Addr != from.Addr || source.Bytes == 0 || source.Bytes > 2000 {
			t.Errorf("%d bytes from %s", source.Bytes, source.Peer.Addr)
		}
		got, err := os.ReadFile(h.artifacts.Path(digest(new)))
		if err != nil || !bytes.Equal(got, new) {
			t.Fatalf("the artifact is another: %v", err)
		}
		if !h.patches.Has(digest(old), digest(new)) {
			t.Fatal("the patch is not kept")
		}
		from, client = h.serve()
	}
}

// Whatever a peer sends, nothing becomes of it but an error; the next one is asked.
func TestBadPeers(t *testing.T) {
	old, new := versions()
	good := newHost(t, old, new)
	if err := good.patches.Make(t.Context(), good.artifacts, digest(old), digest(new)); err != nil {
		t.Fatal(err)
	}
	name := Name(digest(old), digest(new))
	made, err := os.ReadFile(good.patches.path(name))
	if err != nil {
		t.Fatal(err)
	}
	// It says that it makes the new file, and makes another one.
	evil := bytes.Clone(new)
	evil[5] ^= 1
	lie, _, err := Make(t.Context(), old, evil)
	if err != nil {
		t.Fatal(err)
	}
	copy(lie[44:76], made[44:76])
	for name, c := range map[string]struct {
		serve http.HandlerFunc
		says  string
		cause error
	}{
		"lacks it": {func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }, "not held", ErrNotHeld},
		"is busy":  {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }, "busy", ErrBusy},
		"sends away": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://example.com", http.StatusFound)
		}, "302", nil},
		"sends garbage":  {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(bytes.Repeat([]byte("x"), 500)) }, "malformed", delta.ErrMalformed},
		"breaks off":     {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(made[:len(made)/2]) }, "ends", delta.ErrMalformed},
		"lies":           {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(lie) }, "signed digest", nil},
		"sends too much": {func(w http.ResponseWriter, _ *http.Request) { sendExtra(w, made[:92], len(new)) }, "", nil},
		"stalls": {func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write(made[:100])
			_ = http.NewResponseController(w).Flush()
			select {
			case <-r.Context().Done():
			case <-time.After(time.Minute):
			}
		}, "sends nothing", errStalled},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad, client := serve(t, c.serve) // all of httptest's servers have one certificate
			h := newHost(t, old)
			fetch := func(peers ...artifact.Peer) error {
				req := h.request(old, new, client, peers...)
				if errors.Is(c.cause, errStalled) {
					req.Stall = 4 * time.Second // a good one must not be taken for stalled
				}
				_, err := Fetch(t.Context(), req)
				return err
			}
			err := fetch(bad)
			if !errors.Is(err, ErrNoPatch) || !strings.Contains(err.Error(), c.says) || c.cause != nil && !errors.Is(err, c.cause) {
				t.Errorf("got %v", err)
			}
			h.mustBeAsBefore(new)
			if h.patches.Has(digest(old), digest(new)) {
				t.Error("a bad patch is kept, to be served on")
			}
			// With a good one behind it, its fault costs nothing.
			helpful, _ := (&host{t, good.artifacts, good.patches, good.dir}).serve()
			helpful.Class = 1
			if err := fetch(bad, helpful); err != nil {
				t.Errorf("with a good peer behind: %v", err)
			}
		})
	}
}

// sendExtra sends a patch that goes on for ever.
func sendExtra(w http.ResponseWriter, header []byte, n int) {
	_, _ = w.Write(header)
	for range n / 1000 {
		// The length of a plan of a million bytes, that never is complete.
		if _, err := w.Write(bytes.Repeat([]byte{0x80, 0x80, 0x40}, 1000)); err != nil {
			return
		}
	}
}

// A patch that goes on when the artifact is complete has done its work, but is
// not passed on.
func TestPatchGoesOn(t *testing.T) {
	old, new := versions()
	made, _, err := Make(t.Context(), old, new)
	if err != nil {
		t.Fatal(err)
	}
	peer, client := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(append(made, 0)) }))
	h := newHost(t, old)
	if _, err := h.fetch(old, new, client, peer); err != nil {
		t.Error(err)
	}
	if !h.artifacts.Has(digest(new)) || h.patches.Has(digest(old), digest(new)) {
		t.Error("the artifact is not there, or the patch is kept")
	}
}

func TestFetchGivesUp(t *testing.T) {
	old, new := versions()
	h := newHost(t, old)
	if _, err := h.fetch(new, old, http.DefaultClient); !errors.Is(err, artifact.ErrNotHeld) {
		t.Errorf("without the old artifact: %v", err)
	}
	if _, err := h.fetch(old, new, http.DefaultClient); !errors.Is(err, ErrNoPatch) {
		t.Errorf("without peers: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	slow, client := serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { cancel(); <-r.Context().Done() }))
	if _, err := Fetch(ctx, h.request(old, new, client, slow)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	// Three that send garbage are enough: the whole artifact is the better way.
	asked := make(chan struct{}, 10)
	garbage, client := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		_, _ = io.WriteString(w, "garbage")
	}))
	if _, err := h.fetch(old, new, client, garbage, garbage, garbage, garbage, garbage); !errors.Is(err, ErrNoPatch) || len(asked) != maxTried {
		t.Errorf("%d were asked: %v", len(asked), err)
	}
	h.mustBeAsBefore(new)
}

func TestMakeIsWorthWhile(t *testing.T) {
	old, new := versions()
	if _, _, err := Make(t.Context(), old, old); !errors.Is(err, ErrNotWorth) {
		t.Errorf("of the same file: %v", err)
	}
	other := make([]byte, 50_000)
	for i := range other {
		other[i] = byte(rand.Uint32())
	}
	if _, _, err := Make(t.Context(), old, other); !errors.Is(err, ErrNotWorth) {
		t.Errorf("of files with nothing in common: %v", err)
	}
	h := newHost(t, old)
	if err := h.patches.Make(t.Context(), h.artifacts, digest(old), digest(new)); !errors.Is(err, artifact.ErrNotHeld) {
		t.Errorf("to an artifact that is not here: %v", err)
	}
	// What the disk has made of an artifact gets no patch.
	h = newHost(t, old, new)
	damaged := bytes.Clone(new)
	damaged[7] ^= 1
	if err := os.WriteFile(h.artifacts.Path(digest(new)), damaged, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := h.patches.Make(t.Context(), h.artifacts, digest(old), digest(new)); !errors.Is(err, artifact.ErrDamaged) {
		t.Errorf("to a damaged artifact: %v", err)
	}
}

// Where memory is short no patch is made, and nothing is read.
func TestMakeNeedsMemory(t *testing.T) {
	old, new := versions()
	h := newHost(t, old, new)
	need := delta.MakeMemory(int64(len(old)), int64(len(new))) + makeSpare
	h.patches.free = func() int64 { return need - 1 }
	if err := h.patches.Make(t.Context(), h.artifacts, digest(old), digest(new)); !errors.Is(err, ErrNoMemory) || h.patches.Has(digest(old), digest(new)) {
		t.Errorf("with too little memory: %v", err)
	}
	h.patches.free = func() int64 { return need }
	if err := h.patches.Make(t.Context(), h.artifacts, digest(old), digest(new)); err != nil {
		t.Errorf("with just enough: %v", err)
	}
}

func TestStoreKeepsWithinBounds(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "unverified-123"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for i := range 4 {
		name := Name(digest([]byte{byte(i)}), digest([]byte("new")))
		names = append(names, name)
		if err := os.WriteFile(s.path(name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(s.path(name), MaxHeld/3); err != nil { // sparse
			t.Fatal(err)
		}
		at := time.Unix(int64(1000+i), 0)
		if err := os.Chtimes(s.path(name), at, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Prune(nil); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Fatalf("%d files: %v", len(entries), err)
	}
	if _, err := s.open(names[0]); !errors.Is(err, ErrNotHeld) {
		t.Errorf("the oldest is kept: %v", err)
	}
	if err := s.Prune(func(string) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("what nobody wants is kept: %v %v", entries, err)
	}
	for _, name := range []string{"", "..", "unverified-123", names[0][:128], "../" + names[0]} {
		if _, err := s.open(name); !errors.Is(err, ErrNotHeld) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestServerIsBusy(t *testing.T) {
	old, new := versions()
	h := newHost(t, old, new)
	if err := h.patches.Make(t.Context(), h.artifacts, digest(old), digest(new)); err != nil {
		t.Fatal(err)
	}
	limiter := rate.NewLimiter(rate.Every(time.Hour), chunkLen)
	limiter.AllowN(time.Now(), chunkLen) // a stream waits for its turn
	handler := Handler(h.patches, 1, limiter)
	url := pathPrefix + Name(digest(old), digest(new))
	ctx, cancel := context.WithCancel(t.Context())
	waiting := make(chan struct{})
	go func() {
		defer close(waiting)
		for ctx.Err() == nil { // it may come while one below has the stream
			handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, http.MethodGet, url, nil))
		}
	}()
	for {
		w := httptest.NewRecorder()
		short, done := context.WithTimeout(t.Context(), 50*time.Millisecond)
		handler.ServeHTTP(w, httptest.NewRequestWithContext(short, http.MethodGet, url, nil))
		done()
		if w.Code == http.StatusServiceUnavailable {
			break
		}
	}
	cancel()
	<-waiting
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequest(http.MethodPost, url, nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST gets %d", w.Code)
	}
}
