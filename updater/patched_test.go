//go:build linux

package updater

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"moult/updater/artifact"
	"moult/updater/delta"
	"moult/updater/patch"
	"moult/updater/release"
)

// A job takes a patch of what runs where a peer has one, and the whole artifact
// where none has, or what it has is bad.
func TestJobTakesAPatch(t *testing.T) {
	for name, c := range map[string]struct {
		spoil   func(patch []byte) []byte // nil: the peer has no patch
		busy    int                       // how often the peer is
		staged  bool                      // ahead of the job
		patched bool
		says    string
	}{
		"good":             {func(p []byte) []byte { return p }, 0, false, true, "took it as a patch of"},
		"busy at first":    {func(p []byte) []byte { return p }, 1, false, true, "took it as a patch of"},
		"always busy":      {func(p []byte) []byte { return p }, patchRounds, false, false, "busy serving others"},
		"garbage":          {func([]byte) []byte { return []byte("garbage") }, 0, false, false, "the whole artifact is needed"},
		"cut off":          {func(p []byte) []byte { return p[:len(p)-4] }, 0, false, false, "the whole artifact is needed"},
		"none":             {nil, 0, false, false, "fetched"},
		"staged":           {func(p []byte) []byte { return p }, 0, true, true, "staged ahead of this job, as a patch of what runs here\n"},
		"none when staged": {nil, 0, true, false, "staged ahead of this job\n"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			var err error
			h.cfg.Patches, err = patch.OpenStore(filepath.Join(h.data, "patches"))
			must(t, err)
			binary := saysVersion("1.1.0") + strings.Repeat("# the same line\n", 500)
			p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, binary)
			peerDir := t.TempDir()
			held, err := patch.OpenStore(peerDir)
			must(t, err)
			length := 0
			if c.spoil != nil {
				old, err := os.ReadFile(h.cfg.Installed)
				must(t, err)
				var made bytes.Buffer
				must(t, delta.Make(t.Context(), old, []byte(binary), &made))
				length = made.Len()
				must(t, os.WriteFile(filepath.Join(peerDir, patch.Name(h.cfg.Digest, p.digest)), c.spoil(made.Bytes()), 0o600))
			}
			both := http.NewServeMux()
			both.Handle("/artifact/", artifact.Handler(h.serve, artifact.DefaultLimits))
			patches, asked := patch.Handler(held, 0, nil), 0
			both.HandleFunc("/patch/", func(w http.ResponseWriter, r *http.Request) {
				if asked++; asked <= c.busy { // one host asks, one time after the other
					w.WriteHeader(http.StatusServiceUnavailable)
					return
				}
				patches.ServeHTTP(w, r)
			})
			peer := httptest.NewTLSServer(both)
			t.Cleanup(peer.Close)
			h.cfg.Candidates = func(string) []artifact.Peer {
				return []artifact.Peer{{HostID: "agent-2", Name: "two", Role: "agent", Addr: peer.Listener.Addr().String()}}
			}
			stop := h.run()
			if c.staged {
				h.again("the staged artifact", h.stageOrder("1.1.0", p, asIs), func() bool {
					h.updater.staged.mu.Lock()
					defer h.updater.staged.mu.Unlock()
					return h.cfg.Store.Has(p.digest) && !h.updater.staged.running
				})
			}
			h.ordered("job-1", "1.1.0", p, PhaseRestarting)
			h.awaitLastLine()
			_ = stop()
			want := int64(len(binary))
			if c.patched {
				want = int64(length)
			}
			if r := h.lastReport(); len(r.Sources) != 1 || r.Sources[0].Bytes != want || r.Done != r.Total || r.Total != int64(len(binary)) {
				t.Errorf("report is %+v, want %d bytes from agent-2", r, want)
			}
			if log := strings.Join(h.lines(), "\n") + "\n"; !strings.Contains(log, c.says) {
				t.Errorf("the log lacks %q:\n%s", c.says, log)
			}
			if h.cfg.Patches.Has(h.cfg.Digest, p.digest) != c.patched {
				t.Error("a good patch is kept to be served on, and no other")
			}
		})
	}
}

// Behind a relay, which says that it has got the artifact, the patch comes from
// there; the relay was told what this host runs.
func TestJobTakesAPatchThroughARelay(t *testing.T) {
	h := newHost(t)
	var err error
	h.cfg.Patches, err = patch.OpenStore(filepath.Join(h.data, "patches"))
	must(t, err)
	binary := saysVersion("1.1.0") + strings.Repeat("# the same line\n", 500)
	p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, binary)
	old, err := os.ReadFile(h.cfg.Installed)
	must(t, err)
	made, _, err := patch.Make(t.Context(), old, []byte(binary))
	must(t, err)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, patch.Name(h.cfg.Digest, p.digest)), made, 0o600))
	held, err := patch.OpenStore(dir)
	must(t, err)
	mux := http.NewServeMux()
	mux.Handle("/patch/", patch.Handler(held, 0, nil))
	mux.HandleFunc("POST /artifact/{digest}/pull", func(w http.ResponseWriter, r *http.Request) {
		var ask struct{ Old string }
		if err := json.NewDecoder(r.Body).Decode(&ask); err != nil || ask.Old != h.cfg.Digest || r.PathValue("digest") != p.digest {
			t.Errorf("the relay is asked for %.12s as a patch of %.12s: %v", r.PathValue("digest"), ask.Old, err)
		}
		fmt.Fprintf(w, `{"held":true,"done":%d,"size":%d,"moved":%d}`, len(binary), len(binary), len(binary))
	})
	relay := httptest.NewTLSServer(mux)
	t.Cleanup(relay.Close)
	h.cfg.Candidates = func(string) []artifact.Peer { return nil }
	h.cfg.Relays = func([]string) []artifact.Peer {
		return []artifact.Peer{{HostID: "relay-1", Name: "dmz-relay", Role: "agent", Addr: relay.Listener.Addr().String()}}
	}
	stop := h.run()
	h.ordered("job-1", "1.1.0", p, PhaseRestarting)
	h.awaitLastLine()
	_ = stop()
	if r := h.lastReport(); len(r.Sources) != 1 || r.Sources[0].HostID != "relay-1" || r.Sources[0].Bytes != int64(len(made)) || r.Done != r.Total {
		t.Errorf("report is %+v, want %d bytes from the relay", r, len(made))
	}
	if log := strings.Join(h.lines(), "\n"); !strings.Contains(log, "took it as a patch of") {
		t.Errorf("the log tells of no patch:\n%s", log)
	}
}
