package artifact

import (
	"crypto/sha256"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"moult/updater/release"
)

const relayedChunks = 40

// gated makes a host that holds the artifact give only so many chunks of each stripe
// until the gate is open.
func (h *landHost) gated(chunks int, gate <-chan struct{}) {
	held := Handler(h.store, Limits{Streams: 4})
	h.conduct = func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, stripeSuffix) {
			w = &gatedWriter{ResponseWriter: w, left: chunks*release.MinChunkBytes + relayedChunks*sha256.Size, gate: gate, gone: r.Context().Done()}
		}
		held.ServeHTTP(w, r)
	}
}

// Two relays in a row pass on what they have while the server still holds the rest
// back, and each link carries the artifact once.
func TestRelaysPassOnWhatComesIn(t *testing.T) {
	l := cutLand(t, relayedChunks*release.MinChunkBytes)
	server := l.origin("server", 0, "core")
	near := l.host("near", 1, "core", "mid")
	far := l.host("far", 2, "mid", "end")
	a := l.host("a", 0, "end")
	const before = 5
	gate := make(chan struct{})
	server.gated(before, gate)
	var once sync.Once
	passed := false
	req := a.request()
	req.StallTimeout = time.Minute
	req.Progress = func(done int64, from Peer) {
		if done == before*release.MinChunkBytes {
			once.Do(func() {
				passed = from.HostID == "far" && !near.store.Has(l.digest) && !far.store.Has(l.digest)
				close(gate)
			})
		}
	}
	if got := a.mustFetch(req); got["far"] != int64(len(l.bytes)) {
		t.Errorf("sources %v", got)
	}
	if !passed {
		t.Error("nothing was passed on before the rest came in")
	}
	l.mustCarry("near", "server", 1)
	l.mustCarry("far", "near", 1)
	l.mustCarry("a", "far", 1)
}

// A relay that gets other bytes than the signed ones passes none of them on.
func TestRelaysVerifyWhatTheyPassOn(t *testing.T) {
	l := cutLand(t, relayedChunks*release.MinChunkBytes)
	bad := l.origin("bad", 0, "core")
	flipped := mustFlip(l.bytes, 7*release.MinChunkBytes)
	list := func() []byte {
		lister := release.NewChunkLister(release.MinChunkBytes)
		_, _ = lister.Write(l.bytes)
		return lister.List()
	}()
	var sent atomic.Int64
	bad.conduct = func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, stripeSuffix) {
			http.Error(w, "not now", http.StatusServiceUnavailable)
			return
		}
		if sent.Add(1) == 1 {
			l.origin("good", 0, "core")
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(list)+len(flipped)))
		_, _ = w.Write(append(list, flipped...))
	}
	l.host("relay", 1, "core", "end")
	a := l.host("a", 0, "end")
	req := a.request()
	req.SetAside = func(p Peer, why error) { t.Errorf("%s served bad bytes: %v", p.HostID, why) }
	if got := a.mustFetch(req); got["relay"] != int64(len(l.bytes)) {
		t.Errorf("sources %v", got)
	}
	if sent.Load() != 1 || l.over("relay", "bad") < 7*release.MinChunkBytes {
		t.Errorf("the bad one was asked %d times and sent %d bytes", sent.Load(), l.over("relay", "bad"))
	}
	l.mustCarry("a", "relay", 1)
}

// A relay that is killed in the middle costs the other one's link only what was still
// missing.
func TestRelayKilledWhilePassingOn(t *testing.T) {
	l := cutLand(t, relayedChunks*release.MinChunkBytes)
	server := l.origin("server", 0, "core")
	l.host("r1", 1, "core", "dmz")
	l.host("r2", 1, "core", "dmz")
	a := l.host("a", 0, "dmz")
	order := (&fetch{FetchRequest: a.request()}).orderRelays()
	first, second := l.hosts[order[0].HostID], l.hosts[order[1].HostID]
	const before = 10
	gate := make(chan struct{})
	server.gated(before, gate)
	var once sync.Once
	req := a.request()
	req.Progress = func(done int64, _ Peer) {
		if done == before*release.MinChunkBytes {
			once.Do(func() {
				go func() {
					first.stop()
					close(gate)
				}()
			})
		}
	}
	got := a.mustFetch(req)
	if got[first.id] != before*release.MinChunkBytes || got[second.id] != (relayedChunks-before)*release.MinChunkBytes {
		t.Errorf("sources %v", got)
	}
}

// Who reads chunks need not ask again: the pull goes on.
func TestReadersKeepAPullGoing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, relayedChunks*release.MinChunkBytes)
		own, end, err := w.store.claim(t.Context(), w.digest, func(flightState) {})
		must(t, err)
		l := &land{t: t, digest: w.digest, chunks: w.cut()}
		l.releaseKey, l.secret, err = release.GenerateKey()
		must(t, err)
		l.manifest, l.signature = l.sign(w.digest, int64(len(w.bytes)), l.secret)
		w.client = &http.Client{}
		p := w.puller(l.releaseKey, rate.Inf)
		defer p.Close()
		asked := &landHost{land: l, puller: p}
		if got := asked.askPuller(w.digest, l.ask("a")); got.Code != http.StatusAccepted {
			t.Fatalf("%d %q", got.Code, got.Body)
		}
		own.readers.Add(1)
		time.Sleep(3 * unaskedFor)
		p.mu.Lock()
		running := p.pulls[w.digest].running()
		p.mu.Unlock()
		if !running {
			t.Error("it ended while it was read")
		}
		own.readers.Add(-1)
		time.Sleep(2 * unaskedFor)
		synctest.Wait()
		p.mu.Lock()
		work := p.pulls[w.digest]
		p.mu.Unlock()
		if work.running() || work.err == nil {
			t.Errorf("it goes on though nobody reads or asks: %v", work.err)
		}
		end()
	})
}

// A relay that waits for this host itself is told apart at once.
func TestRelaysThatPassOnInACircle(t *testing.T) {
	l := cutLand(t, release.MinChunkBytes)
	a := l.host("a", 0, "end", "far")
	req := a.request()
	l.host("relay", 1, "end", "other").conduct = func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusAccepted)
		_, _ = w.Write([]byte(`{"size":16384,"through":["a"]}`))
	}
	c := &chunkFetch{fetch: &fetch{FetchRequest: req}}
	if err := req.setDefaults(); err != nil {
		t.Fatal(err)
	}
	c.FetchRequest = req
	c.names = map[string]string{}
	peer := chunkPeer{Peer: req.Pull.Relays(nil)[0], kind: relay}
	if err := c.askToPull(t.Context(), &peer); !errors.Is(err, errLoop) {
		t.Errorf("error is %v", err)
	}
}
