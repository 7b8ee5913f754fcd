package artifact

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"aead.dev/minisign"
	"golang.org/x/time/rate"

	"moult/updater/release"
)

// askPuller sends one request to a host's puller.
func (h *landHost) askPuller(digest string, ask pullAsk) *httptest.ResponseRecorder {
	h.land.t.Helper()
	body, err := json.Marshal(ask)
	must(h.land.t, err)
	w := httptest.NewRecorder()
	h.puller.ServeHTTP(w, httptest.NewRequest(http.MethodPost, pathPrefix+digest+pullSuffix, bytes.NewReader(body)))
	return w
}

// mustPull asks until the artifact is held.
func (h *landHost) mustPull(digest string, ask pullAsk) {
	h.land.t.Helper()
	awaitThat(h.land.t, "a pull that succeeds", func() bool {
		w := h.askPuller(digest, ask)
		if w.Code != http.StatusOK && w.Code != http.StatusAccepted {
			h.land.t.Fatalf("pull: %d %q", w.Code, w.Body)
		}
		return w.Code == http.StatusOK
	})
}

func (l *land) ask(via ...string) pullAsk {
	return pullAsk{Manifest: l.manifest, Signature: l.signature, Via: via}
}

// A relay gets what a release key signed for moult, and nothing else; what it
// refuses costs no byte on its links.
func TestOnlySignedArtifactsArePulled(t *testing.T) {
	l := newLand(t, 1000)
	l.origin("server", 0, "core")
	relay := l.host("relay", 1, "core", "dmz")
	_, foreign, err := release.GenerateKey()
	must(t, err)
	good := l.ask("a")
	unsigned := l.ask("a")
	unsigned.Signature = nil
	altered := l.ask("a")
	altered.Manifest = bytes.Replace(good.Manifest, []byte(`"size":1000`), []byte(`"size":1001`), 1)
	byOther := l.ask("a")
	byOther.Manifest, byOther.Signature = l.sign(l.digest, 1000, foreign)
	product := l.ask("a")
	product.Manifest = bytes.Replace(good.Manifest, []byte(`"product":"moult"`), []byte(`"product":"other"`), 1)
	product.Signature = signRaw(t, l.secret, product.Manifest)
	elsewhere := l.ask("a")
	elsewhere.Manifest, elsewhere.Signature = l.sign(strings.Repeat("ab", 32), 1000, l.secret)
	refused := int64(0)
	for _, tt := range []struct {
		name   string
		ask    pullAsk
		status int
		says   string
	}{
		{"unsigned", unsigned, 403, "not by a pinned release key"},
		{"altered", altered, 403, "not by a pinned release key"},
		{"by another key", byOther, 403, "not by a pinned release key"},
		{"of another product", product, 403, "product"},
		{"of another artifact", elsewhere, 403, "no artifact with the sha256 " + l.digest},
		{"no manifest", pullAsk{Via: []string{"a"}}, 403, "manifest"},
		{"nobody waits", l.ask(), 400, "via"},
		{"a nameless host waits", l.ask(""), 400, "via"},
		{"a name too long", l.ask(strings.Repeat("x", maxHostID+1)), 400, "via"},
		{"it waits itself", l.ask("a", "relay", "b"), 508, "waits for the artifact itself"},
		{"nine hosts wait", l.ask("1", "2", "3", "4", "5", "6", "7", "8", "9"), 508, "at most 8"},
	} {
		w := relay.askPuller(l.digest, tt.ask)
		if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.says) {
			t.Errorf("%s: %d %q, want %d and %q", tt.name, w.Code, w.Body, tt.status, tt.says)
		}
		if tt.status == 403 {
			refused++
		}
	}
	if got := relay.puller.Refused(); got != refused {
		t.Errorf("%d refusals were counted, want %d", got, refused)
	}
	if relay.store.Has(l.digest) || l.out("server") != 0 || relay.puller.Pulled() != 0 {
		t.Error("something was got in spite of a refusal")
	}
	relay.mustPull(l.digest, l.ask("1", "2", "3", "4", "5", "6", "7", "8"))
	if plain := l.host("plain", 0, "core"); plain.askPuller(l.digest, good).Code != 404 {
		t.Error("a host in one segment got something for another")
	}
}

// signRaw signs what release.Sign refuses to.
func signRaw(t *testing.T, secret string, text []byte) []byte {
	t.Helper()
	var key minisign.PrivateKey
	must(t, key.UnmarshalText([]byte(strings.TrimSpace(secret))))
	return minisign.Sign(key, text)
}

func TestMalformedPullRequests(t *testing.T) {
	l := newLand(t, 1000)
	relay := l.host("relay", 1, "core", "dmz")
	for _, tt := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", pathPrefix + l.digest + pullSuffix, "", 405},
		{"POST", pathPrefix + l.digest, "{}", 404},
		{"POST", pathPrefix + "../" + l.digest + pullSuffix, "{}", 404},
		{"POST", pathPrefix + strings.ToUpper(l.digest) + pullSuffix, "{}", 404},
		{"POST", pathPrefix + l.digest + pullSuffix, "", 400},
		{"POST", pathPrefix + l.digest + pullSuffix, "[1]", 400},
		{"POST", pathPrefix + l.digest + pullSuffix, `{"via":["` + strings.Repeat("x", maxPullBody) + `"]}`, 400},
	} {
		w := httptest.NewRecorder()
		relay.puller.ServeHTTP(w, httptest.NewRequest(tt.method, tt.path, strings.NewReader(tt.body)))
		if w.Code != tt.status {
			t.Errorf("%s %s: %d %q, want %d", tt.method, tt.path, w.Code, w.Body, tt.status)
		}
	}
}

// At most so many artifacts are got at once; those who ask for one more are told
// at once, and asked again it is got.
func TestPullsAreBounded(t *testing.T) {
	l := newLand(t, 1000)
	server := l.origin("server", 0, "core")
	hold := make(chan struct{})
	server.conduct = func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-hold:
		case <-r.Context().Done():
		}
		http.NotFound(w, r)
	}
	relay := l.host("relay", 1, "core", "dmz")
	asks := make([]pullAsk, maxPulls+1)
	digests := make([]string, maxPulls+1)
	for i := range asks {
		digests[i] = digestOf(fmt.Append(nil, i))
		asks[i] = l.ask("a")
		asks[i].Manifest, asks[i].Signature = l.sign(digests[i], 1000, l.secret)
	}
	var wg sync.WaitGroup
	for i := range maxPulls {
		wg.Go(func() {
			if w := relay.askPuller(digests[i], asks[i]); w.Code != http.StatusAccepted {
				t.Errorf("pull %d: %d %q", i, w.Code, w.Body)
			}
		})
	}
	wg.Wait()
	w := relay.askPuller(digests[maxPulls], asks[maxPulls])
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Errorf("one more: %d %q", w.Code, w.Body)
	}
	// Who waits holds no stream of those that serve.
	l.give(relay)
	get := httptest.NewRecorder()
	Handler(relay.store, Limits{Streams: 1}).ServeHTTP(get, httptest.NewRequest(http.MethodGet, pathPrefix+l.digest, nil))
	if get.Code != 200 {
		t.Errorf("a download beside the pulls: %d", get.Code)
	}
	close(hold)
	awaitThat(t, "room for another pull", func() bool { return relay.askPuller(digests[maxPulls], asks[maxPulls]).Code == http.StatusBadGateway })
}

// What was got for others makes room for the newer, not what this host is to run.
func TestRelayKeepsFewArtifacts(t *testing.T) {
	l := newLand(t, 1000)
	server := l.origin("server", 0, "core")
	relay := l.host("relay", 1, "core", "dmz")
	var announced []string
	relay.store.Watch(func(digests []string) { announced = digests })
	pull := func(content string) string {
		digest, err := server.store.Import(strings.NewReader(content), 1000, func(string, int64) bool { return true })
		must(t, err)
		ask := l.ask("a")
		ask.Manifest, ask.Signature = l.sign(digest, int64(len(content)), l.secret)
		relay.mustPull(digest, ask)
		old := time.Now().Add(-time.Hour).Add(time.Duration(len(content)) * time.Minute)
		must(t, os.Chtimes(relay.store.Path(digest), old, old))
		return digest
	}
	due := pull("x")
	relay.store.Pin(due)
	var all []string
	for i := range 6 {
		all = append(all, pull(strings.Repeat("y", i+2)))
	}
	want := append(slices.Clone(all[6-KeptByRelay:]), due)
	slices.Sort(want)
	got, err := relay.store.List()
	must(t, err)
	if !slices.Equal(got, want) {
		t.Errorf("kept are %v, want %v", got, want)
	}
	slices.Sort(announced)
	if !slices.Equal(announced, want) {
		t.Errorf("announced are %v, want %v", announced, want)
	}
}

func TestPullNeedsRoom(t *testing.T) {
	l := newLand(t, 1000)
	relay := l.host("relay", 1, "core", "dmz")
	free, ok := freeSpace(relay.dir)
	if !ok {
		t.Skip("the free space is not known here")
	}
	ask := l.ask("a")
	ask.Manifest, ask.Signature = l.sign(l.digest, 1, l.secret)
	// It would fit, but leave this host without room for its own updates.
	_, err := relay.puller.join(release.Artifact{SHA256: l.digest, Size: free - 1}, ask)
	if after, _ := freeSpace(relay.dir); after-free >= pullReserve {
		t.Skip("others have just made room on this disk")
	}
	if no := (*refusal)(nil); !errors.As(err, &no) || no.status != http.StatusInsufficientStorage {
		t.Errorf("error is %v", err)
	}
	if _, err := os.Stat(relay.store.partialPath(l.digest)); err == nil {
		t.Error("it was begun though there is no room")
	}
}

// A relay whose disk has damaged an artifact gets it anew; it may be the only
// one that the hosts behind it have.
func TestDamagedArtifactIsPulledAnew(t *testing.T) {
	l := newLand(t, 1000)
	l.origin("server", 0, "core")
	relay := l.host("relay", 1, "core", "dmz")
	must(t, os.WriteFile(relay.store.Path(l.digest), mustFlip(l.bytes, 7), 0o700))
	a := l.host("a", 0, "dmz")
	req := a.request()
	req.Candidates = func() []Peer { return nil }
	a.mustFetch(req)
	l.mustCarry("relay", "server", 1)
}

// A pull that nobody asks for any more ends, and what it brought waits for the
// next time.
func TestUnaskedPullEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 16<<20)
		l := &land{t: t, digest: w.digest}
		var err error
		l.releaseKey, l.secret, err = release.GenerateKey()
		must(t, err)
		l.manifest, l.signature = l.sign(w.digest, 16<<20, l.secret)
		w.over(link{"server": steady(w.bytes, 100<<10, time.Second)}, "server") // 160 s
		p := w.puller(l.releaseKey, rate.Inf)
		defer p.Close()
		relay := &landHost{land: l, puller: p}
		for range 30 {
			if got := relay.askPuller(w.digest, l.ask("a")); got.Code != http.StatusAccepted {
				t.Fatalf("%d %q", got.Code, got.Body)
			}
		}
		time.Sleep(unaskedFor - 2*answerAfter) // the last one was asked as long ago as its answer took
		if w.store.flying(w.digest).done == 0 {
			t.Error("it ended too early")
		}
		time.Sleep(3 * answerAfter)
		synctest.Wait()
		if w.store.flying(w.digest).done != 0 {
			t.Error("it goes on though nobody asks")
		}
		if n := w.store.partialSize(w.digest); n < 8<<20 {
			t.Errorf("only %d bytes were kept", n)
		}
	})
}

func (w *world) puller(key string, bytesPerSecond rate.Limit) *Puller {
	w.t.Helper()
	p, err := NewPuller(PullerConfig{
		HostID: "relay", Store: w.store, HTTP: w.client, ReleaseKeys: func() release.KeySet { return release.Pinned(key) },
		Candidates: func(string) []Peer { return w.peers }, Relays: func([]string) []Peer { return nil },
		Active: func() bool { return true }, Limiter: NewLimiter(bytesPerSecond),
	})
	must(w.t, err)
	return p
}

// The rate bounds what a relay reads in all, and nobody takes it for slow or
// stuck by it, though it is the least that is allowed.
func TestPullRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 4 << 20
		w := newWorld(t, size)
		w.over(link{"server": steady(w.bytes, 1<<20, 0)}, "server")
		key, secret, err := release.GenerateKey()
		must(t, err)
		l := &land{t: t}
		manifest, signature := l.sign(w.digest, size, secret)
		p := w.puller(key, MinPullRate)
		defer p.Close()
		// A host behind it, over HTTP in the bubble.
		host := newWorld(t, size)
		host.over(link{"relay": func(r *http.Request) *http.Response {
			rec := httptest.NewRecorder()
			if r.Method == http.MethodPost {
				p.ServeHTTP(rec, r)
			} else {
				Handler(w.store, DefaultLimits).ServeHTTP(rec, r)
			}
			return rec.Result()
		}})
		req := host.request()
		req.Rounds = 1
		req.Brief = true
		req.Pull = &Pull{HostID: "a", Manifest: manifest, Signature: signature, Relays: func([]string) []Peer {
			return []Peer{{HostID: "relay", Addr: "relay"}}
		}}
		start := time.Now()
		if _, err := Fetch(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		least := time.Duration(float64(size-limitBurst) / MinPullRate * float64(time.Second))
		if took := time.Since(start); took < least || took > least+5*time.Second {
			t.Errorf("it took %v at %d bytes per second, want %v", took, MinPullRate, least)
		}
	})
}

// A limit that comes, and goes, while a transfer runs: nobody is taken for slow.
func TestPullRateChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 8 << 20
		w := newWorld(t, size)
		w.over(link{"server": steady(w.bytes, 64<<10, time.Second/16)}, "server")
		limiter := NewLimiter(rate.Inf)
		req := w.request()
		req.Rounds, req.Limiter = 1, limiter
		go func() {
			time.Sleep(2 * time.Second)
			limiter.SetLimit(MinPullRate)
			time.Sleep(20 * time.Second)
			limiter.SetLimit(rate.Inf)
		}()
		start := time.Now()
		if _, err := Fetch(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < 22*time.Second || took > 30*time.Second {
			t.Errorf("it took %v, want 22 s until the limit is gone and a few to the end", took)
		}
	})
}

// Those who share a rate don't take their peers for slow.
func TestSharersOfARateAreNotSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limiter := NewLimiter(MinPullRate)
		var wg sync.WaitGroup
		for range limitShare {
			w := newWorld(t, 2<<20)
			asked := 0
			req := w.over(link{"peer": func(r *http.Request) *http.Response {
				asked++
				return steady(w.bytes, 1<<20, 0)(r)
			}}, "peer")
			req.Limiter = limiter
			wg.Go(func() {
				if _, err := Fetch(t.Context(), req); err != nil || asked != 1 {
					t.Errorf("the peer was asked %d times, %v", asked, err)
				}
			})
		}
		wg.Wait()
	})
}

// A relay that is far behind finds its trouble before those who wait for it do.
func TestPatienceShrinksAlongTheWay(t *testing.T) {
	before := DefaultStallTimeout
	for n := 1; n <= MaxHops; n++ {
		d := patience(DefaultStallTimeout, n)
		if d >= before || d < time.Second {
			t.Errorf("with %d waiting: %v after %v", n, d, before)
		}
		before = d
	}
}

// After Close nothing runs and nothing begins.
func TestClosedPuller(t *testing.T) {
	l := newLand(t, 1000)
	server := l.origin("server", 0, "core")
	server.conduct = func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	relay := l.host("relay", 1, "core", "dmz")
	if w := relay.askPuller(l.digest, l.ask("a")); w.Code != http.StatusAccepted {
		t.Errorf("%d %q", w.Code, w.Body)
	}
	start := time.Now()
	relay.puller.Close()
	if took := time.Since(start); took > landStall/2 {
		t.Errorf("Close took %v: it waited for the pull's own end", took)
	}
	if w := relay.askPuller(l.digest, l.ask("a")); w.Code != http.StatusServiceUnavailable {
		t.Errorf("%d %q", w.Code, w.Body)
	}
	_, err := NewPuller(PullerConfig{HostID: "x"})
	if err == nil {
		t.Error("a puller that lacks all it needs was made")
	}
}
