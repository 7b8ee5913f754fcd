//go:build linux

package updater

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"moult/updater/artifact"
	"moult/updater/release"
)

// A host whose relay fetches the artifact first says so: the job's log in a few
// lines, and the reports by bytes that grow while none has reached it.
func TestRelaysProgressIsReported(t *testing.T) {
	h := newHost(t)
	p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, saysVersion("1.1.0"))
	size := int64(len(saysVersion("1.1.0")))
	var asked, done atomic.Int64
	ready := make(chan struct{})
	relay := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			artifact.Handler(h.serve, artifact.DefaultLimits).ServeHTTP(w, r)
			return
		}
		asked.Add(1)
		if h.lastReport().Pulled >= 2*done.Load() { // each step is to be told of
			done.Store(min(done.Load()+size/8, size/2))
		}
		select {
		case <-ready:
			fmt.Fprintf(w, `{"held":true,"done":%d,"size":%d,"moved":%d}`, size, size, size)
		default:
			w.WriteHeader(http.StatusAccepted)
			fmt.Fprintf(w, `{"done":%d,"size":%d,"moved":%d,"from":"server-1"}`, done.Load(), size, 2*done.Load())
		}
	}))
	t.Cleanup(relay.Close)
	h.cfg.Candidates = func(string) []artifact.Peer { return nil }
	h.cfg.Relays = func(via []string) []artifact.Peer {
		if !slices.Equal(via, []string{"agent-1"}) {
			t.Errorf("waiting are %v", via)
		}
		return []artifact.Peer{{HostID: "relay-1", Name: "dmz-relay", Role: "agent", Addr: relay.Listener.Addr().String()}}
	}
	h.run()
	h.updater.HandleOrder(fromServer, h.order("job-1", "1.1.0", p))
	h.await("progress in a report", func() bool {
		r := h.lastReport()
		return r.Pulled == 2*(size/2) && r.Done == 0 && r.Total == size
	})
	heard := map[int64]bool{}
	h.mu.Lock()
	for _, r := range h.reports {
		heard[r.Pulled] = true
	}
	h.mu.Unlock()
	if len(heard) < 5 { // there are two quarters, of which a line tells
		t.Errorf("the reports told of %v bytes", heard)
	}
	h.await("the relay's progress in the log", func() bool {
		return slices.ContainsFunc(h.lines(), func(l string) bool {
			return strings.Contains(l, "relay dmz-relay fetches it: ") && strings.HasSuffix(l, " %, from server-1")
		})
	})
	close(ready)
	h.awaitLastLine()
	n := 0
	for _, l := range h.lines() {
		if strings.Contains(l, "fetches it") {
			n++
		}
	}
	if n > 4 || int64(n) >= asked.Load() {
		t.Errorf("%d lines for %d answers: %q", n, asked.Load(), h.lines())
	}
	if r := h.lastReport(); len(r.Sources) != 1 || r.Sources[0].HostID != "relay-1" || r.Done != size {
		t.Errorf("report %+v", r)
	}
}
