package artifact

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

// link is an HTTP transport without a network, for tests that take minutes of
// the bubble's time. Hosts are peers' addresses.
type link map[string]func(*http.Request) *http.Response

func (l link) RoundTrip(r *http.Request) (*http.Response, error) {
	if resp := l[r.URL.Host](r); resp != nil {
		return resp, nil
	}
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// steady answers with chunk bytes each interval.
func steady(b []byte, chunk int, interval time.Duration) func(*http.Request) *http.Response {
	return func(r *http.Request) *http.Response {
		rest := b[from(r):]
		resp := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, ContentLength: int64(len(rest))}
		if first := from(r); first > 0 {
			resp.StatusCode = http.StatusPartialContent
			resp.Header.Set("Content-Range", "bytes "+strconv.Itoa(first)+"-"+strconv.Itoa(len(b)-1)+"/"+strconv.Itoa(len(b)))
		}
		resp.Body = &steadyBody{r.Context(), bytes.NewReader(rest), chunk, interval}
		return resp
	}
}

type steadyBody struct {
	ctx      context.Context
	rest     *bytes.Reader
	chunk    int
	interval time.Duration
}

func (s *steadyBody) Read(b []byte) (int, error) {
	t := time.NewTimer(s.interval)
	defer t.Stop()
	select {
	case <-s.ctx.Done():
		return 0, s.ctx.Err()
	case <-t.C:
	}
	return s.rest.Read(b[:min(len(b), s.chunk)])
}

func (s *steadyBody) Close() error { return nil }

func answer(status int) func(*http.Request) *http.Response {
	return func(*http.Request) *http.Response {
		return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(&bytes.Reader{})}
	}
}

func silence(*http.Request) *http.Response { return nil }

// over makes requests go through the link; classes follow the order of names.
func (w *world) over(l link, names ...string) FetchRequest {
	for i, name := range names {
		w.peers = append(w.peers, Peer{HostID: name, Addr: name, Class: i})
	}
	w.client = &http.Client{Transport: l}
	req := w.request()
	req.Rounds = 0
	return req
}

func TestDefaultStallIsTenSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 100_000)
		req := w.over(link{"silent": silence, "fast": steady(w.bytes, 1<<20, 0)}, "silent", "fast")
		start := time.Now()
		if got := w.fetch(t.Context(), req); got["fast"] != 100_000 {
			t.Errorf("sources %v", got)
		}
		if took := time.Since(start); took < 10*time.Second || took > 11*time.Second {
			t.Errorf("it took %v to leave a silent peer", took)
		}
	})
}

// A peer that sends a little now and then never stalls; it is left all the
// same, and what it sent is kept.
func TestTricklingPeerIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1<<20)
		req := w.over(link{"trickling": steady(w.bytes, 1000, 9*time.Second), "fast": steady(w.bytes, 1<<20, 0)}, "trickling", "fast")
		start := time.Now()
		got := w.fetch(t.Context(), req)
		if got["trickling"] != 2000 || got["fast"] != 1<<20-2000 {
			t.Errorf("sources %v", got)
		}
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("it took %v to leave a trickling peer", took)
		}
	})
}

// When the fast peer fails, a slow one goes on, and does not come first again.
func TestSlowPeerComesLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 4<<20)
		broken := 0
		fast := steady(w.bytes, 1<<20, 0)
		req := w.over(link{
			"slow": steady(w.bytes, 10_000, time.Second),
			"fast": func(r *http.Request) *http.Response {
				if broken++; broken == 1 {
					return answer(http.StatusInternalServerError)(r)
				}
				return fast(r)
			},
		}, "slow", "fast")
		if got := w.fetch(t.Context(), req); got["slow"] != 100_000 {
			t.Errorf("sources %v: the slow peer came first again", got)
		}
	})
}

// A slow link is no reason to fail: everybody is slow, and yet it ends.
func TestSlowLinkEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 4<<20)
		req := w.over(link{
			"one": steady(w.bytes, 10_000, time.Second),
			"two": steady(w.bytes, 10_000, time.Second),
		}, "one", "two")
		got := w.fetch(t.Context(), req)
		if got["one"]+got["two"] != 4<<20 || got["one"] == 0 || got["two"] == 0 {
			t.Errorf("sources %v", got)
		}
	})
}

func TestAnyRateWillDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 100)
		req := w.over(link{"slow": steady(w.bytes, 1, 9*time.Second), "other": silence}, "slow", "other")
		req.MinRate = -1
		if got := w.fetch(t.Context(), req); got["slow"] != 100 {
			t.Errorf("sources %v", got)
		}
	})
}

// Busy peers are waited for much longer than peers that fail.
func TestGivingUp(t *testing.T) {
	for name, tt := range map[string]struct {
		status   int
		min, max time.Duration
	}{
		"failing": {http.StatusInternalServerError, 9 * time.Second, 30 * time.Second},
		"busy":    {http.StatusServiceUnavailable, 80 * time.Second, 5 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 1000)
				req := w.over(link{"peer": answer(tt.status)}, "peer")
				start := time.Now()
				if _, err := Fetch(t.Context(), req); !errors.Is(err, ErrNoPeer) {
					t.Errorf("error is %v", err)
				}
				if took := time.Since(start); took < tt.min || took > tt.max {
					t.Errorf("gave up after %v, want %v to %v", took, tt.min, tt.max)
				}
			})
		})
	}
}

// A peer that gives one byte a time and breaks off cannot keep a fetch alive.
func TestByteByByteIsNoProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1<<20)
		req := w.over(link{"miser": func(r *http.Request) *http.Response {
			resp := steady(w.bytes, 1, 0)(r)
			resp.Body = io.NopCloser(io.LimitReader(resp.Body, 1))
			return resp
		}}, "miser")
		start := time.Now()
		if _, err := Fetch(t.Context(), req); !errors.Is(err, ErrNoPeer) {
			t.Errorf("error is %v", err)
		}
		if took := time.Since(start); took > time.Minute {
			t.Errorf("gave up after %v", took)
		}
	})
}

// Two bad peers that each have to deliver all by themselves, and break off at
// lengths that go up and down, cannot keep a fetch alive by that.
func TestUpAndDownIsNoProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 4<<20)
		upTo := func(n int) func(*http.Request) *http.Response {
			bad := steady(mustFlip(w.bytes, 0), 1<<20, 0)
			return func(r *http.Request) *http.Response {
				resp := bad(r)
				resp.Body = io.NopCloser(io.LimitReader(resp.Body, int64(max(0, n-from(r)))))
				return resp
			}
		}
		req := w.over(link{"low": upTo(1 << 20), "high": upTo(3 << 20)}, "low", "high")
		asked := 0
		req.Candidates = func() []Peer {
			asked++
			if asked > 2*DefaultRounds {
				return nil // it would never end
			}
			return w.peers
		}
		f := &fetch{FetchRequest: req, flight: &flight{}, alone: true, banned: map[string]bool{}, slow: map[string]bool{}, suspect: map[string]bool{}}
		must(t, f.setDefaults())
		if _, err := f.run(t.Context()); !errors.Is(err, ErrNoPeer) {
			t.Errorf("error is %v", err)
		}
		if asked > 2*DefaultRounds {
			t.Errorf("it was not given up after %d rounds", asked)
		}
	})
}

// A peer that sends a little at a time is heard of at once: what it sent is told
// and on disk before a buffer is full.
func TestSlowBytesAreToldSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1<<20)
		req := w.over(link{"slow": steady(w.bytes, 100_000, time.Second)}, "slow")
		start, last := time.Now(), int64(0)
		req.Progress = func(done int64, _ Peer) {
			if rate := done / int64(time.Since(start)/time.Second); rate != 100_000 && done != 1<<20 {
				t.Errorf("told of %d bytes after %v", done, time.Since(start))
			}
			if st, err := os.Stat(w.store.partialPath(w.digest)); err != nil || st.Size() != done {
				t.Errorf("told of %d bytes, on disk are %d, %v", done, st.Size(), err)
			}
			last = done
		}
		w.fetch(t.Context(), req)
		if last != 1<<20 {
			t.Errorf("last told of are %d bytes", last)
		}
	})
}

// Candidates that show up later are found, and nobody is asked in between.
func TestCandidatesAreAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1000)
		req := w.over(link{"late": steady(w.bytes, 1000, 0)})
		rounds := 0
		req.Candidates = func() []Peer {
			if rounds++; rounds < 5 {
				return nil
			}
			return []Peer{{HostID: "late", Addr: "late"}}
		}
		if got := w.fetch(t.Context(), req); got["late"] != 1000 {
			t.Errorf("sources %v", got)
		}
	})
}

func TestCancelledFetchEndsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1000)
		req := w.over(link{"silent": silence}, "silent")
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		if _, err := Fetch(ctx, req); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error is %v", err)
		}
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}
