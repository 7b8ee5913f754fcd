package artifact

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// held returns a store that holds the bytes, and their digest.
func held(t *testing.T, content string) (*Store, string) {
	t.Helper()
	s := mustOpen(t, t.TempDir())
	digest, err := s.Import(strings.NewReader(content), 1<<30, func(string, int64) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	return s, digest
}

func ask(h http.Handler, method, path string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestServe(t *testing.T) {
	s, digest := held(t, "0123456789")
	h := Handler(s, DefaultLimits)
	path := pathPrefix + digest
	for _, tt := range []struct {
		method, path, ranges string
		status               int
		body                 string
	}{
		{"GET", path, "", 200, "0123456789"},
		{"GET", path, "bytes=4-", 206, "456789"},
		{"GET", path, "bytes=4-5", 206, "45"},
		{"GET", path, "bytes=10-", 416, ""},
		{"HEAD", path, "", 200, ""},
		{"POST", path, "", 405, ""},
		{"GET", pathPrefix + strings.Repeat("0", 64), "", 404, ""},
		{"GET", pathPrefix + strings.ToUpper(digest), "", 404, ""},
		{"GET", pathPrefix + unverifiedPrefix + digest, "", 404, ""},
		{"GET", pathPrefix + "../" + digest, "", 404, ""},
		{"GET", "/" + digest, "", 404, ""},
	} {
		w := ask(h, tt.method, tt.path, "Range", tt.ranges)
		if w.Code != tt.status || w.Code < 300 && w.Body.String() != tt.body {
			t.Errorf("%s %s %s: %d %q, want %d %q", tt.method, tt.path, tt.ranges, w.Code, w.Body, tt.status, tt.body)
		}
		// sha256 of "0123456789", in base64
		const want = "sha-256=:hNiYd/DUBB77a/kaFvAkjy/Vc+avBcGflr7bn4gveII=:"
		if got := w.Header().Get("Repr-Digest"); w.Code < 300 && got != want {
			t.Errorf("Repr-Digest is %q", got)
		}
	}
	if got := h.Served(); got != 10+6+2 {
		t.Errorf("served %d bytes", got)
	}
}

func TestPartialBytesAreNotServed(t *testing.T) {
	w := newWorld(t, 1000)
	w.leave(w.bytes)
	if got := ask(Handler(w.store, DefaultLimits), "GET", pathPrefix+w.digest); got.Code != http.StatusNotFound {
		t.Errorf("unverified bytes were served: %d", got.Code)
	}
}

func TestRunningBinaryIsServedUntilItIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(path, []byte("old"), 0o755); err != nil {
		t.Fatal(err)
	}
	digest := digestOf([]byte("old"))
	s, err := OpenStore(t.TempDir(), digest, path)
	if err != nil {
		t.Fatal(err)
	}
	h := Handler(s, DefaultLimits)
	if w := ask(h, "GET", pathPrefix+digest); w.Code != 200 || w.Body.String() != "old" {
		t.Errorf("the running binary: %d %q", w.Code, w.Body)
	}
	if s.Has(digest) {
		t.Error("the running binary counts as held: Path leads nowhere")
	}
	next := path + ".new"
	if err := os.WriteFile(next, []byte("new"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
	if w := ask(h, "GET", pathPrefix+digest); w.Code != http.StatusNotFound {
		t.Errorf("another file is served under the running binary's digest: %d %q", w.Code, w.Body)
	}
}

// slowReader is a response that takes its bytes when it is told to.
type slowReader struct {
	*httptest.ResponseRecorder
	take chan struct{}
}

func (s *slowReader) Write(b []byte) (int, error) {
	<-s.take
	return s.ResponseRecorder.Write(b)
}

func TestStreamsAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, digest := held(t, "0123456789")
		h := Handler(s, Limits{})
		take := make(chan struct{})
		for range DefaultLimits.Streams {
			go h.ServeHTTP(&slowReader{httptest.NewRecorder(), take}, httptest.NewRequest("GET", pathPrefix+digest, nil))
		}
		synctest.Wait()
		w := ask(h, "GET", pathPrefix+digest)
		if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" || w.Header().Get("Repr-Digest") != "" {
			t.Errorf("one more stream: %d %v", w.Code, w.Header())
		}
		if w := ask(h, "HEAD", pathPrefix+digest); w.Code != http.StatusOK {
			t.Errorf("HEAD takes a stream: %d", w.Code)
		}
		close(take)
		synctest.Wait()
		if w := ask(h, "GET", pathPrefix+digest); w.Code != http.StatusOK {
			t.Errorf("after they ended: %d", w.Code)
		}
	})
}

func TestOnePeerCannotTakeAllStreams(t *testing.T) {
	h := Handler(mustOpen(t, t.TempDir()), DefaultLimits)
	for i := range DefaultLimits.StreamsPerPeer {
		if !h.enter("greedy", h.limits.Streams, h.limits.StreamsPerPeer) {
			t.Fatalf("stream %d was refused", i)
		}
	}
	if h.enter("greedy", h.limits.Streams, h.limits.StreamsPerPeer) {
		t.Error("a peer took more than its streams")
	}
	if !h.enter("other", h.limits.Streams, h.limits.StreamsPerPeer) {
		t.Error("another peer gets none")
	}
	h.leave("greedy")
	if !h.enter("greedy", h.limits.Streams, h.limits.StreamsPerPeer) {
		t.Error("a stream that was left is not free")
	}
}

func TestRateIsLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bytesPerSecond = 100_000
		s, digest := held(t, strings.Repeat("x", rateBurst+10*bytesPerSecond))
		h := Handler(s, Limits{BytesPerSecond: bytesPerSecond})
		start := time.Now()
		ask(h, "GET", pathPrefix+digest)
		if took := time.Since(start); took < 9*time.Second || took > 11*time.Second {
			t.Errorf("it took %v, want 10 s after the burst", took)
		}
	})
}

// A rate that is set while a stream is open holds for the rest of it.
func TestLimitsChangeWhileServing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slow, fast = 100_000, 1_000_000
		s, digest := held(t, strings.Repeat("x", rateBurst+10*slow+10*fast))
		h := Handler(s, Limits{BytesPerSecond: slow})
		go func() {
			time.Sleep(10 * time.Second)
			h.SetLimits(Limits{Streams: 1, BytesPerSecond: fast})
		}()
		start := time.Now()
		ask(h, "GET", pathPrefix+digest)
		if took := time.Since(start); took < 19*time.Second || took > 21*time.Second {
			t.Errorf("it took %v, want 10 s at the one rate and 10 s at the other", took)
		}
		streams := h.current().Streams
		if !h.enter("a", streams, streams) || h.enter("b", streams, streams) {
			t.Error("the number of streams is not the one that was set")
		}
		h.leave("a")
		h.SetLimits(Limits{})
		start = time.Now()
		ask(h, "GET", pathPrefix+digest)
		if took := time.Since(start); took > time.Second {
			t.Errorf("it took %v without a limit", took)
		}
	})
}

// pausingReader takes each write after a pause of the bubble's time.
type pausingReader struct {
	*httptest.ResponseRecorder
	pause time.Duration
	taken int
}

func (p *pausingReader) Write(b []byte) (int, error) {
	time.Sleep(p.pause)
	p.taken += len(b)
	return len(b), nil
}

func TestReaderThatHoldsAStreamIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, digest := held(t, strings.Repeat("x", 10<<20))
		slow := &pausingReader{httptest.NewRecorder(), 30 * time.Second, 0}
		start := time.Now()
		Handler(s, DefaultLimits).ServeHTTP(slow, httptest.NewRequest("GET", pathPrefix+digest, nil))
		allowed := blockedTimeout + 10<<20/slowestReader*time.Second
		if took := time.Since(start); took < allowed || took > allowed+time.Minute {
			t.Errorf("cut off after %v, want %v", took, allowed)
		}
		if slow.taken == 10<<20 {
			t.Error("it got everything")
		}
	})
}

// Over a real link a fetch from a Handler brings the bytes and counts them.
func TestFetchFromHandler(t *testing.T) {
	w := newWorld(t, 500_000)
	from := mustOpen(t, t.TempDir())
	if _, err := from.Import(strings.NewReader(string(w.bytes)), 1<<30, func(string, int64) bool { return true }); err != nil {
		t.Fatal(err)
	}
	h := Handler(from, DefaultLimits)
	w.peer("handler", 0, h.ServeHTTP)
	w.leave(w.bytes[:100_000])
	if got := w.fetch(t.Context(), w.request()); got["handler"] != 400_000 {
		t.Errorf("sources %v", got)
	}
	h.mustServe(t, 400_000)
}

// A reader that goes away frees its stream.
func TestGoneReaderFreesItsStream(t *testing.T) {
	s, digest := held(t, strings.Repeat("x", 8<<20))
	h := Handler(s, Limits{Streams: 1})
	ended := make(chan struct{}, 1)
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r)
		ended <- struct{}{}
	}))
	defer srv.Close()
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "GET", srv.URL+pathPrefix+digest, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, resp.Body, 1000); err != nil {
		t.Fatal(err)
	}
	cancel()
	resp.Body.Close()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the stream is still taken")
	}
	if w := ask(h, "GET", pathPrefix+digest); w.Code != http.StatusOK {
		t.Errorf("the next reader gets %d", w.Code)
	}
}
