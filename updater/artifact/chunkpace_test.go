package artifact

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"moult/updater/release"
)

// stripes answers for stripes, piece bytes each interval, and falls silent after so
// many chunks; asked counts the requests.
func (w *world) stripes(chunks, piece int, interval time.Duration, asked *atomic.Int64) func(*http.Request) *http.Response {
	return func(r *http.Request) *http.Response {
		ask, err := parseStripe(r.URL.Query())
		if err != nil {
			return answer(http.StatusNotFound)(r)
		}
		asked.Add(1)
		var body bytes.Buffer
		if ask.list {
			body.Write(mustList(w))
		}
		for i := ask.first; i <= ask.last(); i += ask.of {
			if (i-ask.first)/ask.of == chunks {
				break
			}
			at := int64(i) * ask.chunk
			body.Write(w.bytes[at:min(at+ask.chunk, int64(len(w.bytes)))])
		}
		return &http.Response{
			StatusCode: http.StatusOK, Header: http.Header{}, ContentLength: ask.bytes(int64(len(w.bytes))),
			Body: &steadyBody{r.Context(), bytes.NewReader(body.Bytes()), piece, interval},
		}
	}
}

// silentEnd makes a body that has ended wait instead.
type silentEnd struct {
	io.ReadCloser
	ctx context.Context
}

func (s silentEnd) Read(b []byte) (int, error) {
	n, err := s.ReadCloser.Read(b)
	if err == nil || n > 0 {
		return n, nil
	}
	<-s.ctx.Done()
	return 0, s.ctx.Err()
}

func falling(silent func(*http.Request) *http.Response) func(*http.Request) *http.Response {
	return func(r *http.Request) *http.Response {
		resp := silent(r)
		resp.Body = silentEnd{resp.Body, r.Context()}
		return resp
	}
}

// A parent that falls silent in the middle is left within moments, and another one goes
// on with the next chunk.
func TestASilentParentCostsAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 20*release.MinChunkBytes)
		var silent, next atomic.Int64
		req := w.over(link{
			"silent": falling(w.stripes(3, release.MinChunkBytes, 0, &silent)),
			"next":   w.stripes(20, release.MinChunkBytes, 0, &next),
		})
		req.Chunks = w.cut()
		req.Parents = func() [][]Peer { return [][]Peer{{{HostID: "silent", Addr: "silent"}, {HostID: "next", Addr: "next"}}} }
		start := time.Now()
		got := w.fetch(t.Context(), req)
		if got["silent"] != 3*release.MinChunkBytes || got["next"] != 17*release.MinChunkBytes || silent.Load() != 1 || next.Load() != 1 {
			t.Errorf("sources %v, asked %d and %d times", got, silent.Load(), next.Load())
		}
		if took := time.Since(start); took > DefaultStallTimeout*3/4 {
			t.Errorf("it took %v to leave a silent parent", took)
		}
	})
}

// Who takes a parent's place is left sooner: it may have come to wait for this host.
func TestReplacementsAreLeftSooner(t *testing.T) {
	c := &chunkFetch{fetch: &fetch{FetchRequest: FetchRequest{StallTimeout: DefaultStallTimeout, MinRate: DefaultMinRate}}, stripes: Stripes}
	of := func(place int) time.Duration {
		return c.stallOf(chunkPeer{kind: parent, place: place, ancient: maxAncestors - place})
	}
	if of(1) >= of(0)/2 {
		t.Errorf("a replacement may be silent for %v, a parent for %v", of(1), of(0))
	}
	c.Pull = &Pull{Via: []string{"a"}}
	for kind, name := range map[chunkPeerKind]string{holder: "a holder", relay: "a relay"} {
		if d := c.stallOf(chunkPeer{kind: kind}); d >= of(0) {
			t.Errorf("%s may be silent for %v while others wait, longer than a parent, %v", name, d, of(0))
		}
	}
	before := of(0)
	c.Chunks.Size = release.MaxChunkBytes
	if more, least := of(0)-before, 8*time.Second; more < least {
		t.Errorf("a chunk that takes %v at the least rate puts the end off by %v", least, more)
	}
}

// A peer that is too slow is left with what it has sent: it costs no more than the
// chunk that was under way.
func TestASlowPeerCostsAChunk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 60*release.MinChunkBytes)
		var slow, fast atomic.Int64
		req := w.over(link{
			"slow": w.stripes(60, 10_000, time.Second, &slow),
			"fast": w.stripes(60, release.MinChunkBytes, 0, &fast),
		}, "slow", "fast")
		req.Chunks = w.cut()
		got := w.fetch(t.Context(), req)
		if n := got["slow"]; n < 5*release.MinChunkBytes || n > 8*release.MinChunkBytes || slow.Load() != 1 {
			t.Errorf("sources %v, the slow one was asked %d times", got, slow.Load())
		}
		if got["slow"]+got["fast"] != int64(len(w.bytes)) {
			t.Errorf("sources %v of %d bytes", got, len(w.bytes))
		}
	})
}

// Chunks are paced as whole artifacts are, at both ends; a limit below the least rate
// makes no peer a slow one.
func TestRatesHoldForChunks(t *testing.T) {
	const perSecond, seconds = 32 << 10, 20
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, seconds*perSecond)
		var asked, other atomic.Int64
		req := w.over(link{
			"first":  w.stripes(1000, release.MinChunkBytes, 0, &asked),
			"second": w.stripes(1000, release.MinChunkBytes, 0, &other),
		}, "first", "second")
		req.Chunks = w.cut()
		req.Limiter = NewLimiter(rate.Limit(perSecond))
		start := time.Now()
		w.fetch(t.Context(), req)
		if took := time.Since(start); took < (seconds-3)*time.Second || took > (seconds+1)*time.Second {
			t.Errorf("reading took %v", took)
		}
		if asked.Load() != 1 || other.Load() != 0 {
			t.Errorf("asked %d and %d times", asked.Load(), other.Load())
		}
	})
	synctest.Test(t, func(t *testing.T) {
		s, digest := held(t, strings.Repeat("x", rateBurst+seconds*perSecond))
		h := Handler(s, Limits{BytesPerSecond: perSecond})
		start := time.Now()
		if got := ask(h, "GET", pathPrefix+digest+stripeSuffix+"?chunk=16384&first=0&of=1&count=56"); got.Code != http.StatusOK || got.Body.Len() != rateBurst+seconds*perSecond {
			t.Errorf("%d, %d bytes", got.Code, got.Body.Len())
		}
		if took := time.Since(start); took < (seconds-1)*time.Second || took > (seconds+1)*time.Second {
			t.Errorf("serving took %v", took)
		}
	})
}
