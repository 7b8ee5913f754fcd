package artifact

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func busy(rw http.ResponseWriter, _ *http.Request) {
	rw.Header().Set("Retry-After", "1")
	rw.WriteHeader(http.StatusServiceUnavailable)
}

func TestFetchFromANearPeer(t *testing.T) {
	w := newWorld(t, 1<<20)
	w.peer("far", 2, w.honest())
	w.peer("near", 0, w.honest())
	var last int64
	req := w.request()
	req.Progress = func(done int64, p Peer) {
		if done <= last || p.HostID != "near" {
			t.Errorf("progress %d from %s after %d", done, p.HostID, last)
		}
		last = done
	}
	got := w.fetch(t.Context(), req)
	if len(got) != 1 || got["near"] != 1<<20 || last != 1<<20 {
		t.Errorf("sources %v, last progress %d", got, last)
	}
	if n := w.asked["far"].Load(); n != 0 {
		t.Errorf("the far peer was asked %d times", n)
	}
	if st, err := os.Stat(w.store.Path(w.digest)); err != nil || !hasMode(st, 0o700) {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if got := w.fetch(t.Context(), req); len(got) != 0 {
		t.Errorf("what is held was fetched again: %v", got)
	}
}

func TestFetchSpreadsOverAClass(t *testing.T) {
	w := newWorld(t, 1000)
	for i := range 4 {
		w.peer(fmt.Sprintf("peer-%d", i), 0, w.honest())
	}
	served := map[string]bool{}
	for range 60 {
		for id := range w.fetch(t.Context(), w.request()) {
			served[id] = true
		}
		if err := w.store.Remove(w.digest); err != nil {
			t.Fatal(err)
		}
	}
	if len(served) != 4 { // by chance alone: 4·(3/4)^60 < 1e-6
		t.Errorf("only %v served", served)
	}
}

func TestCorruptPeerIsSetAside(t *testing.T) {
	w := newWorld(t, 300_000)
	w.peer("corrupt", 0, w.flipped(150_000))
	w.peer("honest", 1, w.honest())
	req := w.request()
	var aside []string
	req.SetAside = func(p Peer, why error) { aside = append(aside, p.HostID+": "+why.Error()) }
	got := w.fetch(t.Context(), req)
	if len(got) != 1 || got["honest"] != 300_000 {
		t.Errorf("sources %v", got)
	}
	if n := w.asked["corrupt"].Load(); n != 1 {
		t.Errorf("the corrupt peer was asked %d times", n)
	}
	if want := []string{"corrupt: the bytes do not have the signed digest"}; !slices.Equal(aside, want) {
		t.Errorf("told to be set aside are %q, want %q", aside, want)
	}
}

// Two peers had a part in bad bytes: which one is to blame shows when each has
// to deliver all by itself, and a third is asked before either.
func TestMixedBadBytesAreToldApart(t *testing.T) {
	for _, third := range []bool{false, true} {
		w := newWorld(t, 300_000)
		w.peer("dropping", 0, onceThen(dropping(w.bytes, 100_000), w.honest()))
		w.peer("corrupt", 1, w.flipped(299_999))
		want := "dropping"
		if third {
			w.peer("third", 5, w.honest())
			want = "third"
		}
		req := w.request()
		req.Rounds = 4
		got := w.fetch(t.Context(), req)
		if len(got) != 1 || got[want] != 300_000 {
			t.Errorf("third %v: sources %v, want all from %s", third, got, want)
		}
		if n := w.asked["corrupt"].Load(); n > 2 {
			t.Errorf("the corrupt peer was asked %d times", n)
		}
	}
}

func onceThen(first, then http.HandlerFunc) http.HandlerFunc {
	var asked atomic.Bool
	return func(rw http.ResponseWriter, r *http.Request) {
		if asked.CompareAndSwap(false, true) {
			first(rw, r)
			return
		}
		then(rw, r)
	}
}

// A peer that must deliver all by itself may break off and go on.
func TestAlonePeerMayBreakOff(t *testing.T) {
	w := newWorld(t, 400_000)
	w.peer("corrupt", 0, onceThen(dropping(w.bytes, 1000), w.flipped(0)))
	w.peer("dropping", 1, onceThen(dropping(mustFlip(w.bytes, 2000), 1<<20), dropping(w.bytes, 100_000)))
	req := w.request()
	req.Rounds = 4
	if got := w.fetch(t.Context(), req); got["dropping"] != 400_000 {
		t.Errorf("sources %v", got)
	}
}

func mustFlip(b []byte, at int) []byte {
	b = slices.Clone(b)
	b[at] ^= 1
	return b
}

func TestOnlyCorruptPeers(t *testing.T) {
	w := newWorld(t, 100_000)
	w.peer("one", 0, w.flipped(1))
	w.peer("two", 0, w.flipped(2))
	_, err := Fetch(t.Context(), w.request())
	if !errors.Is(err, ErrNoPeer) {
		t.Errorf("error is %v", err)
	}
	w.mustLack()
	for id, n := range w.asked {
		if n.Load() != 1 {
			t.Errorf("%s was asked %d times", id, n.Load())
		}
	}
}

func TestDroppingPeersEachGiveAPart(t *testing.T) {
	w := newWorld(t, 300_000)
	w.peer("one", 0, onceThen(dropping(w.bytes, 100_000), busy))
	w.peer("two", 1, onceThen(dropping(w.bytes, 100_000), busy))
	w.peer("three", 2, onceThen(dropping(w.bytes, 100_000), busy))
	got := w.fetch(t.Context(), w.request())
	if len(got) != 3 || got["one"] != 100_000 || got["two"] != 100_000 || got["three"] != 100_000 {
		t.Errorf("sources %v", got)
	}
}

func TestTruncatingPeer(t *testing.T) {
	w := newWorld(t, 100_000)
	w.peer("short", 0, serveBytes(w.bytes[:99_999]))
	w.peer("long", 0, serveBytes(append(slices.Clone(w.bytes), 0)))
	w.peer("honest", 1, w.honest())
	if got := w.fetch(t.Context(), w.request()); got["honest"] != 100_000 {
		t.Errorf("sources %v: a peer of another length had a part", got)
	}
}

// An endless answer is read to the signed length and not beyond, however it
// claims to be; the right prefix of it is as good as any other.
func TestEndlessPeer(t *testing.T) {
	w := newWorld(t, 100_000)
	var beyond atomic.Int64
	w.peer("endless", 0, w.endless(&beyond))
	read := &countingTransport{base: w.client.Transport}
	w.client = &http.Client{Transport: read}
	if got := w.fetch(t.Context(), w.request()); got["endless"] != 100_000 {
		t.Errorf("sources %v", got)
	}
	if n := read.n.Load(); n > 100_000 {
		t.Errorf("%d bytes were read, %d are signed", n, 100_000)
	}
}

// countingTransport counts the bytes that a client takes out of bodies.
type countingTransport struct {
	base http.RoundTripper
	n    atomic.Int64
}

func (c *countingTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.base.RoundTrip(r)
	if err == nil {
		resp.Body = &countingBody{resp.Body, &c.n}
	}
	return resp, err
}

type countingBody struct {
	io.ReadCloser
	n *atomic.Int64
}

func (c *countingBody) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	c.n.Add(int64(n))
	return n, err
}

func TestPeerThatDoesNoRanges(t *testing.T) {
	w := newWorld(t, 300_000)
	w.peer("dropping", 0, onceThen(dropping(w.bytes, 100_000), busy))
	w.peer("whole", 1, func(rw http.ResponseWriter, r *http.Request) {
		r.Header.Del("Range")
		w.honest()(rw, r)
	})
	got := w.fetch(t.Context(), w.request())
	if got["dropping"] != 100_000 || got["whole"] != 200_000 {
		t.Errorf("sources %v: what was here already was not kept", got)
	}
}

func TestAnswersThatAreRefused(t *testing.T) {
	var elsewhere atomic.Int64
	other := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	t.Cleanup(other.Close)
	for name, conduct := range map[string]http.HandlerFunc{
		"redirect": func(rw http.ResponseWriter, r *http.Request) { http.Redirect(rw, r, other.URL, http.StatusFound) },
		"gzip": func(rw http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Accept-Encoding") != "identity" {
				t.Errorf("asked for the encoding %q", r.Header.Get("Accept-Encoding"))
			}
			rw.Header().Set("Content-Encoding", "gzip")
			_, _ = rw.Write([]byte("\x1f\x8b"))
		},
		"unasked range": func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Range", "bytes 500-999/1000")
			rw.WriteHeader(http.StatusPartialContent)
			_, _ = rw.Write(make([]byte, 500))
		},
		"no range":  func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusPartialContent) },
		"no body":   func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusNoContent) },
		"error":     func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusInternalServerError) },
		"not found": http.NotFound,
		"abort":     func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1000)
			w.peer("odd", 0, conduct)
			w.peer("honest", 1, w.honest())
			if got := w.fetch(t.Context(), w.request()); len(got) != 1 || got["honest"] != 1000 {
				t.Errorf("sources %v", got)
			}
		})
	}
	if elsewhere.Load() != 0 {
		t.Error("a redirect was followed")
	}
}

func TestBusyPeerIsPassedOver(t *testing.T) {
	w := newWorld(t, 1000)
	w.peer("busy", 0, busy)
	w.peer("honest", 1, w.honest())
	rounds := 0
	req := w.request()
	req.Candidates = func() []Peer {
		rounds++
		return w.peers
	}
	if got := w.fetch(t.Context(), req); got["honest"] != 1000 {
		t.Errorf("sources %v", got)
	}
	if rounds != 1 {
		t.Errorf("the next peer had to wait for round %d", rounds)
	}
}

func TestStalledPeerIsLeft(t *testing.T) {
	t.Parallel() // it waits more than it works
	w := newWorld(t, 300_000)
	stalled := func(rw http.ResponseWriter, r *http.Request) {
		promise(rw, r, w.bytes)
		_, _ = rw.Write(w.bytes[:100_000])
		_ = http.NewResponseController(rw).Flush()
		<-r.Context().Done()
	}
	silent := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	w.peer("silent", 0, silent)
	w.peer("stalled", 1, stalled)
	w.peer("honest", 2, w.honest())
	req := w.request()
	req.StallTimeout = 4 * time.Second // the honest one must not be taken for stalled
	got := w.fetch(t.Context(), req)
	if got["stalled"] != 100_000 || got["honest"] != 200_000 {
		t.Errorf("sources %v", got)
	}
}

// A peer that trickles over a real connection never stalls, and is left; what
// it sent is kept, and it is not set aside: its bytes are good.
func TestTricklingPeerOverARealConnection(t *testing.T) {
	t.Parallel() // it waits more than it works
	w := newWorld(t, 300_000)
	w.peer("trickling", 0, func(rw http.ResponseWriter, r *http.Request) {
		promise(rw, r, w.bytes)
		rest := w.bytes[from(r):]
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for ; len(rest) > 0; rest = rest[min(len(rest), 100):] {
			select {
			case <-r.Context().Done():
				return
			case <-tick.C:
			}
			_, _ = rw.Write(rest[:min(len(rest), 100)])
			_ = http.NewResponseController(rw).Flush()
		}
	})
	w.peer("honest", 1, w.honest())
	req := w.request()
	req.StallTimeout, req.MinRate = 4*time.Second, 100_000 // who stands still for a moment does not stall
	req.SetAside = func(p Peer, why error) { t.Errorf("%s is set aside: %v", p.HostID, why) }
	got := w.fetch(t.Context(), req)
	if got["trickling"] == 0 || got["trickling"] > 100_000 || got["trickling"]+got["honest"] != 300_000 {
		t.Errorf("sources %v", got)
	}
}

func TestFetchResumesAfterARestart(t *testing.T) {
	w := newWorld(t, 300_000)
	w.peer("dropping", 0, onceThen(dropping(w.bytes, 100_000), busy))
	ctx, cancel := context.WithCancel(t.Context())
	req := w.request()
	req.Progress = func(done int64, _ Peer) {
		if done == 100_000 {
			cancel()
		}
	}
	if _, err := Fetch(ctx, req); !errors.Is(err, context.Canceled) {
		t.Fatalf("fetch ended with %v", err)
	}
	w.mustLack()
	w.store = mustOpen(t, w.dir) // a new process
	var first []string
	w.peer("honest", 0, func(rw http.ResponseWriter, r *http.Request) {
		first = append(first, r.Header.Get("Range"))
		w.honest()(rw, r)
	})
	w.peers = w.peers[1:]
	got := w.fetch(t.Context(), w.request())
	if got["honest"] != 200_000 || !slices.Equal(first, []string{"bytes=100000-299999"}) {
		t.Errorf("sources %v, ranges %q", got, first)
	}
}

// What an earlier run left is of unknown origin: when the whole proves bad,
// that is no reason to set aside the peer that gave the rest.
func TestBadLeftoverBlamesNobody(t *testing.T) {
	w := newWorld(t, 300_000)
	w.leave(mustFlip(w.bytes[:100_000], 5))
	w.peer("honest", 0, w.honest())
	if got := w.fetch(t.Context(), w.request()); got["honest"] != 300_000 {
		t.Errorf("sources %v", got)
	}
}

func TestCompleteLeftoverNeedsNoPeer(t *testing.T) {
	w := newWorld(t, 1000)
	w.leave(w.bytes)
	if got := w.fetch(t.Context(), w.request()); len(got) != 0 {
		t.Errorf("sources %v", got)
	}
}

// Bytes beyond the signed length must not follow the verified ones.
func TestOverlongLeftoverIsCut(t *testing.T) {
	w := newWorld(t, 1000)
	w.leave(append(slices.Clone(w.bytes), "evil"...))
	w.fetch(t.Context(), w.request())
}

func (w *world) leave(partial []byte) {
	w.t.Helper()
	if err := os.WriteFile(w.store.partialPath(w.digest), partial, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func TestDamagedArtifactIsFetchedAgain(t *testing.T) {
	w := newWorld(t, 1000)
	if err := os.WriteFile(w.store.Path(w.digest), mustFlip(w.bytes, 3), 0o700); err != nil {
		t.Fatal(err)
	}
	w.peer("honest", 0, w.honest())
	if got := w.fetch(t.Context(), w.request()); got["honest"] != 1000 {
		t.Errorf("sources %v", got)
	}
}

// A manifest that signs another length than the digest's bytes have is not met
// by bytes that are held already.
func TestHeldArtifactOfAnotherLength(t *testing.T) {
	w := newWorld(t, 1000)
	w.peer("honest", 0, w.honest())
	w.fetch(t.Context(), w.request())
	req := w.request()
	req.Size = 999
	if _, err := Fetch(t.Context(), req); !errors.Is(err, ErrLength) || !strings.Contains(err.Error(), "is 1000 bytes, the manifest says 999") {
		t.Errorf("error is %v", err)
	}
}

// An adoption that a crash cut short leaves the file executable; until it is
// verified again it must not be.
func TestLeftoverIsNotExecutable(t *testing.T) {
	w := newWorld(t, 1000)
	w.leave(w.bytes[:500])
	if err := os.Chmod(w.store.partialPath(w.digest), 0o700); err != nil {
		t.Fatal(err)
	}
	w.peer("honest", 0, func(rw http.ResponseWriter, r *http.Request) {
		if st, err := os.Stat(w.store.partialPath(w.digest)); err != nil || !hasMode(st, 0o600) {
			t.Errorf("unverified bytes have the mode %v, %v", st.Mode(), err)
		}
		w.honest()(rw, r)
	})
	w.fetch(t.Context(), w.request())
}

func TestConcurrentFetchesShareOneDownload(t *testing.T) {
	w := newWorld(t, 1<<20)
	w.peer("honest", 0, w.honest())
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := Fetch(t.Context(), w.request()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	w.mustHold()
	if n := w.asked["honest"].Load(); n != 1 {
		t.Errorf("the peer was asked %d times", n)
	}
}

// Servers that are all down may be back in a minute: that nobody has the artifact
// is waited out, not for ever.
func TestFetchWithoutPeersWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1000)
		req := w.request()
		req.Rounds = 0 // the default
		began := time.Now()
		_, err := Fetch(t.Context(), req)
		if !errors.Is(err, ErrNoPeer) || !strings.Contains(err.Error(), "moult status") {
			t.Errorf("error is %v", err)
		}
		if d := time.Since(began); d < time.Minute || d > 5*time.Minute {
			t.Errorf("it waited %v", d)
		}
	})
}

func TestFetchOfAMalformedDigest(t *testing.T) {
	w := newWorld(t, 1000)
	bad := w.request()
	bad.Digest = "../../etc/passwd"
	if _, err := Fetch(t.Context(), bad); err == nil || errors.Is(err, ErrNoPeer) {
		t.Errorf("a malformed digest: %v", err)
	}
}

func TestTooLittleSpace(t *testing.T) {
	w := newWorld(t, 1000)
	w.peer("honest", 0, w.honest())
	req := w.request()
	req.Size = 1 << 60
	_, err := Fetch(t.Context(), req)
	if !errors.Is(err, ErrDiskFull) || !strings.Contains(err.Error(), "MB are free in "+w.dir) {
		t.Errorf("error is %v", err)
	}
	if w.asked["honest"].Load() != 0 {
		t.Error("a peer was asked although there is no room")
	}
}
