package patch

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"moult/updater/artifact"
	"moult/updater/release"
)

// relayStall is so long that a machine that stands still is not taken for a stall: a relay
// waits for a patch for a part of it only.
const relayStall = 30 * time.Second

// chain is hosts in a row, of which each reaches the next: a host, relays, and a
// server at its end. What goes over each link is counted.
type chain struct {
	t                   *testing.T
	old, new            []byte
	keys                release.KeySet
	manifest, signature []byte

	links []*link // towards the server
	hosts []*host // the host first, the server last

	mu    sync.Mutex
	moved []int64 // over each link
}

// link leads to one host of the chain.
type link struct {
	peer   artifact.Peer
	client *http.Client
}

// newChain has the server, and so many relays, of which those that know the old
// version can make use of a patch.
func newChain(t *testing.T, relaysKnowOld ...bool) *chain {
	t.Helper()
	old, new := versions()
	c := &chain{t: t, old: old, new: new}
	public, secret, err := release.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	c.keys = release.Pinned(public)
	if c.manifest, err = json.Marshal(release.Manifest{
		Product: release.Product, Version: "2.0.0", Number: 2, Created: time.Now().UTC(),
		Artifacts: []release.Artifact{{OS: "linux", Arch: "amd64", Size: int64(len(new)), SHA256: digest(new)}},
	}); err != nil {
		t.Fatal(err)
	}
	if c.signature, err = release.Sign(secret, c.manifest); err != nil {
		t.Fatal(err)
	}
	c.hosts = []*host{newRunningHost(t, old)}
	for _, knows := range relaysKnowOld {
		if knows {
			c.hosts = append(c.hosts, newRunningHost(t, old))
		} else {
			c.hosts = append(c.hosts, newHost(t))
		}
	}
	server := newHost(t, old, new)
	if err := server.patches.Make(t.Context(), server.artifacts, digest(old), digest(new)); err != nil {
		t.Fatal(err)
	}
	c.hosts = append(c.hosts, server)
	c.moved = make([]int64, len(c.hosts)-1)
	c.links = make([]*link, len(c.hosts)-1)
	for i := len(c.hosts) - 1; i > 0; i-- {
		c.open(i)
	}
	return c
}

// newRunningHost runs a version that is not in its store.
func newRunningHost(t *testing.T, runs []byte) *host {
	t.Helper()
	h := newHost(t)
	executable := filepath.Join(h.dir, "running")
	err := os.WriteFile(executable, runs, 0o700)
	if err == nil {
		h.artifacts, err = artifact.OpenStore(filepath.Join(h.dir, "artifacts"), digest(runs), executable)
	}
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func id(i int) string { return string(rune('a' + i)) }

// open makes the link to a host.
func (c *chain) open(i int) {
	c.t.Helper()
	h := c.hosts[i]
	mux := http.NewServeMux()
	mux.Handle("/artifact/", artifact.Handler(h.artifacts, artifact.DefaultLimits))
	mux.Handle("/patch/", Handler(h.patches, 0, nil))
	if i < len(c.hosts)-1 {
		mux.Handle("POST /artifact/{digest}/pull", c.puller(i))
	}
	srv := httptest.NewTLSServer(mux)
	c.t.Cleanup(srv.Close)
	addr := srv.Listener.Addr().String()
	c.links[i-1] = &link{
		artifact.Peer{HostID: id(i), Name: id(i), Addr: addr},
		&http.Client{Transport: &toll{srv.Client().Transport, c, i - 1}},
	}
}

func (c *chain) puller(i int) *artifact.Puller {
	c.t.Helper()
	h, next := c.hosts[i], c.links[i]
	p, err := artifact.NewPuller(artifact.PullerConfig{
		HostID: id(i), Store: h.artifacts, HTTP: next.client, ReleaseKeys: func() release.KeySet { return c.keys },
		Candidates: c.candidates(i), Relays: c.relays(i), Active: func() bool { return true }, Prune: true,
		Patched: Fetcher(h.artifacts, h.patches, next.client, nil), StallTimeout: relayStall,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(p.Close)
	return p
}

// candidates are the server, to who reaches it.
func (c *chain) candidates(i int) func(string) []artifact.Peer {
	return func(string) []artifact.Peer {
		if i+2 < len(c.hosts) {
			return nil
		}
		return []artifact.Peer{c.links[i].peer}
	}
}

func (c *chain) relays(i int) func([]string) []artifact.Peer {
	return func(via []string) []artifact.Peer {
		if i+2 >= len(c.hosts) || slices.Contains(via, id(i+1)) {
			return nil
		}
		return []artifact.Peer{c.links[i].peer}
	}
}

// toll counts the bytes of artifacts and patches that are read over a link.
type toll struct {
	http.RoundTripper
	c    *chain
	link int
}

func (t *toll) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.RoundTripper.RoundTrip(r)
	if err == nil && r.Method == http.MethodGet {
		resp.Body = &tolled{resp.Body, t}
	}
	return resp, err
}

type tolled struct {
	io.ReadCloser
	*toll
}

func (t *tolled) Read(b []byte) (int, error) {
	n, err := t.ReadCloser.Read(b)
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	t.c.moved[t.link] += int64(n)
	return n, err
}

func (c *chain) over(link int) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.moved[link]
}

// fetch fetches as a host behind relays does: as a patch, else the whole.
func (c *chain) fetch() ([]artifact.Source, error) {
	h, next := c.hosts[0], c.links[0]
	req := artifact.FetchRequest{
		Store: h.artifacts, Digest: digest(c.new), Size: int64(len(c.new)), HTTP: next.client, StallTimeout: relayStall, Rounds: 1,
		Candidates: func() []artifact.Peer { return c.candidates(0)("") },
		Pull: &artifact.Pull{
			HostID: id(0), Manifest: c.manifest, Signature: c.signature, Relays: c.relays(0),
			Old: digest(c.old), Patched: Fetcher(h.artifacts, h.patches, next.client, nil),
		},
	}
	sources, err := artifact.FetchPatched(c.t.Context(), req)
	if errors.Is(err, artifact.ErrNoPatch) {
		sources, err = artifact.Fetch(c.t.Context(), req)
	}
	return sources, err
}

// A patch goes through relays that hold what is patched, over each link; who does
// not takes the whole, and so does who asks it.
func TestPatchThroughRelays(t *testing.T) {
	for name, c := range map[string]struct {
		know    []bool // relays, nearest to the host first
		patched []bool // over each link
	}{
		"one relay":                           {[]bool{true}, []bool{true, true}},
		"two relays":                          {[]bool{true, true}, []bool{true, true, true}},
		"a relay of another version":          {[]bool{false}, []bool{false, false}},
		"only the relay next to the server":   {[]bool{false, true}, []bool{false, false, true}},
		"only the relay next to the host":     {[]bool{true, false}, []bool{false, false, false}},
		"a relay of another version between":  {[]bool{true, false, true}, []bool{false, false, false, true}},
		"two that know it, one far that does": {[]bool{false, true, true}, []bool{false, false, true, true}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newChain(t, c.know...)
			sources, err := w.fetch()
			if err != nil {
				t.Fatal(err)
			}
			if err := w.hosts[0].artifacts.Verify(digest(w.new)); err != nil {
				t.Fatal(err)
			}
			for i, patched := range c.patched {
				if got := w.over(i); patched != (got < 2000) || got == 0 || got > int64(len(w.new))+2000 {
					t.Errorf("%d bytes went over link %d, as a patch: want %v", got, i, patched)
				}
				if has := w.hosts[i].patches.Has(digest(w.old), digest(w.new)); has != patched {
					t.Errorf("host %d has the patch to serve on: %v, want %v", i, has, patched)
				}
			}
			if len(sources) != 1 || sources[0].Peer.HostID != id(1) || c.patched[0] != (sources[0].Bytes < 2000) {
				t.Errorf("sources are %+v", sources)
			}
			for _, h := range w.hosts {
				h.mustHaveNothingLeft()
			}
		})
	}
}

// mustHaveNothingLeft fails when anything unverified is on the disk.
func (h *host) mustHaveNothingLeft() {
	h.t.Helper()
	for _, dir := range []string{"artifacts", "patches"} {
		entries, err := os.ReadDir(filepath.Join(h.dir, dir))
		if err != nil {
			h.t.Fatal(err)
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), "unverified-") || strings.Contains(e.Name(), "partial") {
				h.t.Errorf("%s/%s is left", dir, e.Name())
			}
		}
	}
}

// A server's patch that is no good costs its bytes: nothing of it stays on the
// relay, and the whole goes the same way.
func TestBadPatchThroughARelay(t *testing.T) {
	for name, spoil := range map[string]func(c *chain, path string) error{
		"garbage": func(_ *chain, path string) error { return os.WriteFile(path, []byte("garbage"), 0o600) },
		"too long": func(c *chain, path string) error {
			return os.WriteFile(path, bytes.Repeat([]byte{0x80}, 2*len(c.new)), 0o600)
		},
		"of other bytes": func(c *chain, path string) error {
			evil := bytes.Clone(c.new)
			evil[5] ^= 1
			lie, _, err := Make(c.t.Context(), c.old, evil)
			if err != nil {
				return err
			}
			made, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			copy(lie[44:76], made[44:76])
			return os.WriteFile(path, lie, 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newChain(t, true)
			server := w.hosts[len(w.hosts)-1]
			if err := spoil(w, server.patches.path(Name(digest(w.old), digest(w.new)))); err != nil {
				t.Fatal(err)
			}
			if _, err := w.fetch(); err != nil {
				t.Fatal(err)
			}
			if got := w.over(1); got < int64(len(w.new)) || got > 2*int64(len(w.new)) {
				t.Errorf("%d bytes went over the server's link", got)
			}
			for _, h := range w.hosts[:2] {
				if h.patches.Has(digest(w.old), digest(w.new)) || !h.artifacts.Has(digest(w.new)) {
					t.Error("the patch is kept, or the artifact is not there")
				}
				h.mustHaveNothingLeft()
			}
		})
	}
}

// Nothing is got for names that nobody has signed, or that the relay does not
// hold.
func TestRelayGetsNoOtherPatches(t *testing.T) {
	w := newChain(t, true)
	ask := func(old string) int {
		body, err := json.Marshal(map[string]any{"manifest": w.manifest, "signature": w.signature, "via": []string{"x"}, "old": old})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := w.links[0].client.Post("https://"+w.links[0].peer.Addr+"/artifact/"+digest(w.new)+"/pull", "application/json", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		_, _ = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode
	}
	for _, old := range []string{"../" + digest(w.old)[3:], "x", strings.Repeat("x", 100)} {
		if code := ask(old); code != http.StatusBadRequest {
			t.Errorf("old %q gets %d", old, code)
		}
	}
	if got := w.over(1); got != 0 {
		t.Errorf("%d bytes were got", got)
	}
	// Of an old file that the relay does not hold the whole is got, and no patch.
	stranger := digest([]byte("a version that is not here"))
	server := w.hosts[2]
	if err := os.Rename(server.patches.path(Name(digest(w.old), digest(w.new))), server.patches.path(Name(stranger, digest(w.new)))); err != nil {
		t.Fatal(err)
	}
	for ask(stranger) == http.StatusAccepted {
		continue // an answer takes a second, or comes with the end
	}
	if relay := w.hosts[1]; !relay.artifacts.Has(digest(w.new)) || relay.patches.Has(stranger, digest(w.new)) {
		t.Error("the artifact is not there, or a patch that nobody verified is")
	}
	if got := w.over(1); got < int64(len(w.new)) || got > int64(len(w.new))+2000 {
		t.Errorf("%d bytes went over the server's link", got)
	}
}

// While the server is busy the relay waits a little, rather than have the whole
// cross its link.
func TestRelayWaitsForABusyServer(t *testing.T) {
	old, new := versions()
	good := newHost(t, old, new)
	if err := good.patches.Make(t.Context(), good.artifacts, digest(old), digest(new)); err != nil {
		t.Fatal(err)
	}
	patches, asked := Handler(good.patches, 0, nil), 0
	peer, client := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked++; asked == 1 { // one after the other
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		patches.ServeHTTP(w, r)
	}))
	h := newHost(t, old)
	heard := int64(0)
	want := artifact.PatchWanted{
		Old: digest(old), New: digest(new), Size: int64(len(new)), From: []artifact.Peer{peer},
		Progress: func(n int64) { heard += n },
	}
	source, err := Fetcher(h.artifacts, h.patches, client, nil)(t.Context(), want)
	if err != nil || asked != 2 || heard != source.Bytes {
		t.Errorf("asked %d times, told of %d bytes of %d: %v", asked, heard, source.Bytes, err)
	}
	want.From = nil
	if _, err := Fetcher(h.artifacts, h.patches, client, nil)(t.Context(), want); !errors.Is(err, ErrNoPatch) {
		t.Errorf("without peers: %v", err)
	}
}
