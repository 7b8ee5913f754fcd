package artifact

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func readerOf(b []byte) io.Reader { return bytes.NewReader(b) }

// Servers, a relay, hosts behind it: the link to the servers carries the artifact
// once, whoever is asked afterwards.
func TestPullThroughARelay(t *testing.T) {
	l := newLand(t, 1<<20)
	l.origin("server", 0, "core")
	relay := l.host("relay", 1, "core", "dmz")
	first, second := l.host("first", 0, "dmz"), l.host("second", 0, "dmz")
	if got := first.mustFetch(first.request()); got["relay"] != 1<<20 {
		t.Errorf("sources %v", got)
	}
	second.mustFetch(second.request())
	l.mustCarry("relay", "server", 1)
	l.mustCarry("first", "relay", 1)
	relay.mustHavePulled()
	if !relay.store.Has(l.digest) {
		t.Error("the relay did not keep what it got")
	}
	if relay.store.Fetched() != 1<<20 || first.store.Fetched() != 1<<20 {
		t.Errorf("the relay counts %d bytes fetched, the first host %d", relay.store.Fetched(), first.store.Fetched())
	}
	// For itself it has it, too.
	relay.mustFetch(relay.request())
	l.mustCarry("relay", "server", 1)
}

// A host whose peers give it, and one that has no relay, ask no relay.
func TestNoRelayIsAskedWithoutNeed(t *testing.T) {
	l := newLand(t, 100_000)
	l.origin("server", 0, "core")
	relay := l.host("relay", 1, "core", "dmz")
	a := l.host("a", 0, "core")
	if got := a.mustFetch(a.request()); got["server"] != 100_000 || l.questions("relay") != 0 || relay.store.Has(l.digest) {
		t.Errorf("sources %v; the relay was asked %d times", got, l.questions("relay"))
	}
	alone := l.host("alone", 0, "island")
	req := alone.request()
	req.Rounds, req.Brief = 1, true
	if _, err := Fetch(t.Context(), req); !errors.Is(err, ErrNoPeer) || !errors.Is(err, errNobody) {
		t.Errorf("error is %v", err)
	}
}

// What a near host holds but is too busy to serve is waited for, within reason:
// another crossing would cost the link.
func TestNearHolderIsBusy(t *testing.T) {
	for name, busyFor := range map[string]int64{"for a moment": 2, "for ever": 1 << 30} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLand(t, 100_000)
			l.origin("server", 0, "core")
			l.host("relay", 1, "core", "dmz")
			peer := l.host("peer", 0, "dmz")
			l.give(peer)
			peer.conduct = l.busyAtFirst(peer, busyFor)
			a := l.host("a", 0, "dmz")
			got := a.mustFetch(a.request())
			if waits := busyFor == 2; waits != (got["peer"] == 100_000) || waits != (l.questions("relay") == 0) {
				t.Errorf("sources %v; the relay was asked %d times", got, l.questions("relay"))
			}
		})
	}
}

// A relay that got it and is too busy to serve it is waited for: no other one is
// asked to get it, too.
func TestBusyRelayIsWaitedFor(t *testing.T) {
	l := newLand(t, 100_000)
	l.origin("server", 0, "core")
	l.host("r1", 1, "core", "dmz")
	l.host("r2", 1, "core", "dmz")
	a := l.host("a", 0, "dmz")
	order := (&fetch{FetchRequest: a.request()}).orderRelays()
	first, second := l.hosts[order[0].HostID], l.hosts[order[1].HostID]
	first.conduct = l.busyAtFirst(first, 2)
	if got := a.mustFetch(a.request()); got[first.id] != 100_000 || l.questions(second.id) != 0 {
		t.Errorf("sources %v; the second relay was asked %d times", got, l.questions(second.id))
	}
}

// busyAtFirst serves nothing the first n times, and pulls as ever.
func (l *land) busyAtFirst(h *landHost, n int64) http.HandlerFunc {
	var asked atomic.Int64
	return func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodPost:
			h.puller.ServeHTTP(w, r)
		case asked.Add(1) <= n:
			busy(w, r)
		default:
			Handler(h.store, DefaultLimits).ServeHTTP(w, r)
		}
	}
}

// In a chain the far relay waits for the near one; the host hears of bytes that
// move on links it never sees, and each link carries the artifact once.
func TestPullThroughAChain(t *testing.T) {
	l := newLand(t, 1<<20)
	server := l.origin("server", 0, "core")
	near := l.host("near", 1, "core", "mid")
	far := l.host("far", 2, "mid", "end")
	a := l.host("a", 0, "end")
	gate := make(chan struct{})
	server.holdAt(1<<19, gate)
	open := sync.OnceFunc(func() { close(gate) })
	req := a.request()
	var told []PullProgress
	req.Pull.Progress = func(p PullProgress) {
		told = append(told, p)
		if p.Moved > 0 {
			open() // heard of, while none of it has come nearer
		}
	}
	if got := a.mustFetch(req); got["far"] != 1<<20 {
		t.Errorf("sources %v", got)
	}
	l.mustCarry("near", "server", 1)
	l.mustCarry("far", "near", 1)
	l.mustCarry("a", "far", 1)
	near.mustHavePulled()
	far.mustHavePulled()
	before := int64(0)
	grew := 0
	for _, p := range told {
		if p.Relay.HostID != "far" || p.Size != 1<<20 || p.Moved < before {
			t.Errorf("progress %+v after %d", p, before)
		}
		if p.Done == 0 && p.Moved > before {
			grew++
			if p.From != "name of near" {
				t.Errorf("far gets it from %q", p.From)
			}
		}
		before = p.Moved
	}
	if grew == 0 {
		t.Errorf("nothing was heard of the near link: %+v", told)
	}
}

// Fifty hosts at once, and the link carries the artifact once.
func TestFiftyAskersShareOneDownload(t *testing.T) {
	l := newLand(t, 1<<20)
	l.origin("server", 1_000_000, "core")
	relay := l.host("relay", 1, "core", "dmz")
	var wg sync.WaitGroup
	for i := range 50 {
		h := l.host(fmt.Sprintf("host-%d", i), 0, "dmz")
		wg.Go(func() {
			if _, err := Fetch(t.Context(), h.request()); err != nil {
				t.Errorf("%s: %v", h.id, err)
			}
		})
	}
	wg.Wait()
	l.mustCarry("relay", "server", 1)
	if n := l.out("server"); n > int64(len(l.bytes))*101/100 {
		t.Errorf("%d bytes left the server", n)
	}
	relay.mustHavePulled()
}

// With several relays all hosts of a segment ask the same one, one artifact
// another than the other; so the artifact crosses to the segment once.
func TestAllAskTheSameRelayFirst(t *testing.T) {
	l := newLand(t, 200_000)
	l.origin("server", 400_000, "core")
	relays := []string{"r1", "r2", "r3"}
	for _, r := range relays {
		l.host(r, 1, "core", "dmz")
	}
	var wg sync.WaitGroup
	for i := range 10 {
		h := l.host(fmt.Sprintf("host-%d", i), 0, "dmz")
		wg.Go(func() {
			if _, err := Fetch(t.Context(), h.request()); err != nil {
				t.Errorf("%s: %v", h.id, err)
			}
		})
	}
	wg.Wait()
	if n := l.out("server"); n > int64(len(l.bytes))*101/100 {
		t.Errorf("%d bytes of %d left the server", n, len(l.bytes))
	}
	// A relay that needs it itself finds it on its own side.
	for _, r := range relays {
		l.hosts[r].mustFetch(l.hosts[r].request())
	}
	if n := l.out("server"); n > int64(len(l.bytes))*101/100 {
		t.Errorf("%d bytes of %d left the server after the relays' own fetches", n, len(l.bytes))
	}
}

func TestRendezvousSpreadsArtifacts(t *testing.T) {
	first := map[string]int{}
	for i := range 300 {
		digest := digestOf(fmt.Appendf(nil, "artifact %d", i))
		f := &fetch{FetchRequest: FetchRequest{Digest: digest, Pull: &Pull{HostID: "h", Relays: func([]string) []Peer {
			return []Peer{{HostID: "r1"}, {HostID: "r2"}, {HostID: "r3"}, {HostID: "far", Class: 1}}
		}}}}
		order := f.orderRelays()
		first[order[0].HostID]++
		if order[3].HostID != "far" {
			t.Fatalf("a farther relay comes before a nearer one: %v", order)
		}
		f.Pull.Relays = func([]string) []Peer { return []Peer{{HostID: "r3"}, {HostID: "r2"}, {HostID: "r1"}} }
		if again := f.orderRelays(); again[0] != order[0] {
			t.Fatalf("the order depends on who lists them")
		}
	}
	for _, r := range []string{"r1", "r2", "r3"} {
		if first[r] < 60 {
			t.Errorf("first are %v of 300", first)
		}
	}
}

// A ring: when the near way does not carry connections, the far one is taken,
// and no relay waits for itself.
func TestPullAroundARing(t *testing.T) {
	l := newLand(t, 200_000)
	l.origin("server", 0, "a")
	l.host("ab", 1, "a", "b")
	l.host("bc", 2, "b", "c")
	l.host("ca", 1, "c", "a")
	l.cut("ab", "server") // one way only: the server still reaches it
	l.cut("ab", "ca")
	h := l.host("h", 0, "b")
	if got := h.mustFetch(h.request()); got["ab"]+got["bc"] != 200_000 {
		t.Errorf("sources %v", got)
	}
	l.mustCarry("ca", "server", 1)
	l.mustCarry("bc", "ca", 1)
}

// A ring in which nobody has it: everybody is asked, nobody for ever.
func TestRingWithoutASourceEnds(t *testing.T) {
	l := newLand(t, 1000)
	for i, id := range []string{"ab", "bc", "ca"} {
		l.host(id, 1, string("abc"[i]), string("bca"[i]))
	}
	a, b := l.host("h1", 0, "b"), l.host("h2", 0, "c")
	var wg sync.WaitGroup
	for _, h := range []*landHost{a, b} {
		wg.Go(func() {
			req := h.request()
			req.Rounds, req.Brief = 1, true
			if _, err := Fetch(t.Context(), req); !errors.Is(err, ErrNoPeer) {
				t.Errorf("%s: %v", h.id, err)
			}
		})
	}
	wg.Wait()
	for _, id := range []string{"ab", "bc", "ca"} {
		if n := l.questions(id); n == 0 || n > 100 {
			t.Errorf("%s was asked %d times", id, n)
		}
	}
}

// A relay that came to wait for one that waits for it finds out and goes on
// elsewhere, instead of waiting until it is tired.
func TestRelaysThatWaitForEachOther(t *testing.T) {
	l := newLand(t, 200_000)
	server := l.origin("server", 0, "a")
	x := l.host("x", 1, "a", "b")
	l.host("y", 1, "a", "b")
	l.cut("x", "server")
	waits, refused := make(chan struct{}), make(chan struct{})
	var once sync.Once
	server.conduct = func(w http.ResponseWriter, r *http.Request) {
		first := false
		once.Do(func() { first = true })
		if first { // y waits here, so that x comes to wait for y
			close(waits)
			<-refused
			http.Error(w, "not now", http.StatusInternalServerError)
			return
		}
		Handler(server.store, DefaultLimits).ServeHTTP(w, r)
	}
	h1, h2 := l.host("h1", 0, "b"), l.host("h2", 0, "b")
	ask := func(h *landHost, relay string) {
		req := h.request()
		req.Pull.Relays = func(via []string) []Peer {
			return slices.DeleteFunc(l.relays(h.id, via), func(p Peer) bool { return p.HostID != relay })
		}
		if _, err := Fetch(t.Context(), req); err != nil {
			t.Errorf("%s: %v", h.id, err)
		}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { ask(h2, "y") })
	<-waits
	wg.Go(func() { ask(h1, "x") })
	awaitThat(t, "x to wait for y", func() bool { return slices.Equal(x.store.flying(l.digest).through, []string{"y"}) })
	close(refused)
	wg.Wait()
	l.mustCarry("y", "server", 1)
	if n := l.asked[way{"y", "x"}]; n != 1 {
		t.Errorf("y asked x %d times though x waits for y", n)
	}
}

// The relay is killed in the middle of its own download: the host goes on
// through the other one.
func TestRelayKilledWhilePulling(t *testing.T) {
	l := newLand(t, 1<<20)
	gate := make(chan struct{})
	l.origin("server", 0, "core").holdAt(600_000, gate)
	l.host("r1", 1, "core", "dmz")
	l.host("r2", 1, "core", "dmz")
	a := l.host("a", 0, "dmz")
	f := &fetch{FetchRequest: a.request()}
	order := f.orderRelays()
	first, second := l.hosts[order[0].HostID], l.hosts[order[1].HostID]
	done := make(chan map[string]int64)
	go func() { done <- a.mustFetch(a.request()) }()
	first.awaitPulling(300_000)
	first.stop()
	close(gate)
	if got := <-done; got[second.id] != 1<<20 {
		t.Errorf("sources %v", got)
	}
}

// The only relay is killed and comes back: it goes on with what it has, and so
// does the host.
func TestRelayComesBackWithItsBytes(t *testing.T) {
	l := newLand(t, 2<<20)
	gate := make(chan struct{})
	l.origin("server", 0, "core").holdAt(800_000, gate)
	relay := l.host("relay", 1, "core", "dmz")
	a := l.host("a", 0, "dmz")
	done := make(chan map[string]int64)
	go func() { done <- a.mustFetch(a.request()) }()
	relay.awaitPulling(500_000)
	relay.stop()
	relay.rate = 1_000_000
	l.start(relay)
	relay.awaitPulling(1_000_000) // resumed: a new pull has all of the old one
	close(gate)
	// And now it dies while it serves.
	awaitThat(t, "the relay to serve", func() bool { return l.over("a", "relay") > 500_000 })
	relay.stop()
	l.start(relay)
	if got := <-done; got["relay"] != 2<<20 {
		t.Errorf("sources %v", got)
	}
	// What was in the air is lost, and little else.
	const air = 512 << 10
	if n := l.over("relay", "server"); n > int64(len(l.bytes))+air {
		t.Errorf("%d bytes of %d crossed the link", n, len(l.bytes))
	}
	if n := l.over("a", "relay"); n > int64(len(l.bytes))+air {
		t.Errorf("%d bytes of %d went to the host", n, len(l.bytes))
	}
}

// The relay breaks off while it serves: the bytes that came count, and the rest
// comes from another.
func TestRelayKilledWhileServing(t *testing.T) {
	l := newLand(t, 1<<20)
	l.origin("server", 0, "core")
	l.host("r1", 1, "core", "dmz")
	l.host("r2", 1, "core", "dmz")
	a := l.host("a", 0, "dmz")
	order := (&fetch{FetchRequest: a.request()}).orderRelays()
	first, second := l.hosts[order[0].HostID], l.hosts[order[1].HostID]
	first.stop()
	first.rate = 500_000
	l.start(first)
	req := a.request()
	req.Progress = func(done int64, from Peer) {
		if done > 400_000 && from.HostID == first.id {
			first.stop()
		}
	}
	got := a.mustFetch(req)
	if got[first.id] < 300_000 || got[first.id]+got[second.id] != 1<<20 {
		t.Errorf("sources %v", got)
	}
	if n := l.over("a", second.id); n > 1<<20-300_000 {
		t.Errorf("%d bytes came from the second relay", n)
	}
}

// Relays that do not do what they should: the host gets it from the honest one,
// in bounded time, and reads nothing beyond the signed length.
func TestBadRelays(t *testing.T) {
	say := func(l *land, status int, a string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodPost {
				http.NotFound(w, r)
				return
			}
			w.WriteHeader(status)
			_, _ = io.WriteString(w, strings.ReplaceAll(a, "SIZE", fmt.Sprint(len(l.bytes))))
		}
	}
	// held says that it has the artifact, and serves something.
	held := func(serve http.HandlerFunc) func(*land) http.HandlerFunc {
		return func(l *land) http.HandlerFunc {
			yes := say(l, http.StatusOK, `{"held":true,"done":SIZE,"size":SIZE,"moved":SIZE}`)
			return func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPost {
					yes(w, r)
					return
				}
				serve(w, r)
			}
		}
	}
	answering := func(status int, a string) func(*land) http.HandlerFunc {
		return func(l *land) http.HandlerFunc { return say(l, status, a) }
	}
	rising := func(step int64) func(*land) http.HandlerFunc {
		return func(l *land) http.HandlerFunc {
			var mu sync.Mutex
			var moved int64
			return func(w http.ResponseWriter, _ *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				moved += step
				w.WriteHeader(http.StatusAccepted)
				fmt.Fprintf(w, `{"done":0,"size":%d,"moved":%d}`, len(l.bytes), moved)
			}
		}
	}
	wrong := make([]byte, 200_000)
	for _, tt := range []struct {
		name     string
		conduct  func(*land) http.HandlerFunc
		setAside bool
		took     time.Duration // to see through it; 0: it shows at once
	}{
		{"no progress", answering(http.StatusAccepted, `{"done":0,"size":SIZE,"moved":0}`), false, 2 * pullStall},
		{"progress by one byte", rising(1), false, 2 * pullStall},
		{"progress without end", rising(1 << 20), false, 2 * pullStall},
		{"complete without end", answering(http.StatusAccepted, `{"done":SIZE,"size":SIZE,"moved":SIZE}`), false, (completePatience + 1) * pullStall},
		{"silence", func(*land) http.HandlerFunc {
			return func(_ http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body) // or the server does not see who goes away
				<-r.Context().Done()
				panic(http.ErrAbortHandler) // or an empty answer may still get there
			}
		}, false, 2 * pullStall},
		{"more done than there is", answering(http.StatusAccepted, `{"done":200001,"size":SIZE,"moved":200001}`), true, 0},
		{"negative", answering(http.StatusAccepted, `{"done":-1,"size":SIZE,"moved":0}`), true, 0},
		{"another length", answering(http.StatusAccepted, `{"done":0,"size":7,"moved":0}`), true, 0},
		{"too many behind it", answering(http.StatusAccepted, `{"size":SIZE,"through":["1","2","3","4","5","6","7","8","9"]}`), true, 0},
		{"a name that is none", answering(http.StatusAccepted, `{"size":SIZE,"from":"x\u001b[2J"}`), true, 0},
		{"no JSON", answering(http.StatusAccepted, `<html>`), true, 0},
		{"an answer without end", func(*land) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusAccepted)
				for {
					if _, err := w.Write(bytes.Repeat([]byte("["), 4096)); err != nil {
						return
					}
				}
			}
		}, true, 0},
		{"held and not held", answering(http.StatusAccepted, `{"held":true,"done":SIZE,"size":SIZE,"moved":SIZE}`), true, 0},
		{"waits for the asking host", answering(http.StatusAccepted, `{"size":SIZE,"through":["x","a"]}`), false, 0},
		{"redirect", answering(http.StatusFound, ``), false, 0},
		{"refuses", answering(http.StatusForbidden, "no"), false, 0},
		{"an old version", answering(http.StatusMethodNotAllowed, "artifacts are only read"), false, 0},
		{"held, serves nothing", held(http.NotFound), false, 0},
		{"held, other bytes", held(serveBytes(wrong)), true, 0},
		{"held, another length", held(serveBytes(wrong[:100])), true, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLand(t, 200_000)
			l.origin("server", 0, "core")
			l.host("honest", 2, "core", "dmz")
			l.host("bad", 1, "core", "dmz").conduct = tt.conduct(l) // nearer
			a := l.host("a", 0, "dmz")
			req := a.request()
			var aside []string
			req.SetAside = func(p Peer, _ error) { aside = append(aside, p.HostID) }
			if tt.took > 0 {
				req.StallTimeout = pullStall
			}
			start := time.Now()
			if got := a.mustFetch(req); got["honest"] != 200_000 {
				t.Errorf("sources %v", got)
			}
			if took := time.Since(start); took > tt.took+landStall/2 {
				t.Errorf("it took %v", took)
			}
			if set := slices.Equal(aside, []string{"bad"}); set != tt.setAside {
				t.Errorf("set aside are %v", aside)
			}
			if n := l.over("a", "bad"); n > 200_000 {
				t.Errorf("%d bytes were read from the bad one", n)
			}
			if n := l.questions("bad"); n == 0 || tt.took == 0 && n != 1 {
				t.Errorf("the bad one was asked %d times", n)
			}
		})
	}
}

// When there are only bad relays it ends, too.
func TestOnlyABadRelay(t *testing.T) {
	l := newLand(t, 200_000)
	var moved int64
	var mu sync.Mutex
	l.host("bad", 1, "core", "dmz").conduct = func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		moved += 1 << 20
		w.WriteHeader(http.StatusAccepted)
		fmt.Fprintf(w, `{"done":1,"size":200000,"moved":%d}`, moved)
	}
	a := l.host("a", 0, "dmz")
	req := a.request()
	req.Rounds, req.StallTimeout = 2, 300*time.Millisecond
	var told int64
	req.Pull.Progress = func(p PullProgress) { told = max(told, p.Moved) }
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := Fetch(ctx, req); !errors.Is(err, ErrNoPeer) {
		t.Errorf("error is %v", err)
	}
	if told > MaxHops*200_000 {
		t.Errorf("%d bytes count as moved", told)
	}
}

// A host that waits for a pull by another part of itself hears of its progress.
func TestWhoWaitsForAnothersFetchHearsOfIt(t *testing.T) {
	l := newLand(t, 1<<20)
	gate := make(chan struct{})
	l.origin("server", 0, "core").holdAt(1<<19, gate)
	open := sync.OnceFunc(func() { close(gate) })
	relay := l.host("relay", 1, "core", "dmz")
	a := l.host("a", 0, "dmz")
	done := make(chan map[string]int64)
	go func() { done <- a.mustFetch(a.request()) }()
	relay.awaitPulling(1) // for a
	req := relay.request()
	var told []int64
	req.Progress = func(done int64, _ Peer) {
		told = append(told, done)
		open() // in the middle
	}
	if got := relay.mustFetch(req); got["server"] != 1<<20 { // for itself
		t.Errorf("sources %v", got)
	}
	if len(told) < 2 || !slices.IsSorted(told) || told[len(told)-1] != 1<<20 {
		t.Errorf("progress %v", told)
	}
	if got := <-done; !maps.Equal(got, map[string]int64{"relay": 1 << 20}) {
		t.Errorf("sources %v", got)
	}
	l.mustCarry("relay", "server", 1)
}
