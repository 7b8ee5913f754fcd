package artifact

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"moult/mesh/identity"
	"moult/updater/release"
)

// Of what is coming in one peer gets a stream for each stripe and no more; others still
// get theirs, and of what is held the peer gets as many as of anything.
func TestOnePeerGetsAStreamForEachStripe(t *testing.T) {
	w := newWorld(t, 8*release.MinChunkBytes)
	ca, err := identity.NewCA("cluster-1", time.Now())
	must(t, err)
	server := newPortHost(t, ca, "server", identity.RoleAgent)
	server.serve(t, nil)
	own, landed, err := server.store.claim(t.Context(), w.digest, func(flightState) {})
	must(t, err)
	file, err := openChunkFile(filepath.Dir(server.store.Path(w.digest)), server.store.partialPath(w.digest), int64(len(w.bytes)), w.cut(), mustList(w))
	must(t, err)
	own.share(file)

	var open []io.Closer
	ask := func(peer *portHost) *http.Response {
		t.Helper()
		ask := stripeAsk{chunk: release.MinChunkBytes, of: 1, count: 8} // which are not here: the stream stays open
		resp, err := peer.client.Get("https://" + server.peer.Addr + pathPrefix + w.digest + stripeSuffix + "?" + ask.String())
		must(t, err)
		open = append(open, resp.Body)
		return resp
	}
	greedy, other := newPortHost(t, ca, "greedy", identity.RoleAgent), newPortHost(t, ca, "other", identity.RoleAgent)
	mustRefuse := func(after int) {
		t.Helper()
		for i := range after {
			if resp := ask(greedy); resp.StatusCode != http.StatusOK {
				t.Fatalf("stream %d: %s", i, resp.Status)
			}
		}
		if resp := ask(greedy); resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
			t.Errorf("after %d streams: %s %v", after, resp.Status, resp.Header)
		}
		if resp := ask(other); resp.StatusCode != http.StatusOK {
			t.Errorf("another peer: %s", resp.Status)
		}
	}
	mustRefuse(flightStreamsPerPeer)
	for i := range w.cut().Count(int64(len(w.bytes))) {
		must(t, file.put(i, w.bytes[i*release.MinChunkBytes:][:release.MinChunkBytes]))
	}
	must(t, server.store.adopt(file.end(), w.digest))
	landed()
	for _, body := range open {
		_, _ = io.Copy(io.Discard, body.(io.Reader))
		must(t, body.Close())
	}
}

// When the parents of several hosts vanish at once, and who takes the place of each is
// another one of them, they wait for each other in a circle. They do not do so for long:
// the first to lose its patience asks who has it all, and the others get it from that.
func TestACircleOfHostsBreaks(t *testing.T) {
	const tries = 5 // a machine that stands still has all lose their patience at once
	var wrong string
	for range tries {
		if wrong = circleOfHosts(t); wrong == "" {
			return
		}
		t.Log(wrong)
	}
	t.Errorf("%d tries, and each time: %s", tries, wrong)
}

// circleOfHosts has hosts lose their parents, and tells what was not as it should be.
func circleOfHosts(t *testing.T) (wrong string) {
	const chunks, before, hosts = 12, 3, 3
	waited := 0 // hosts, for each other, when the first turned to who has it all
	const stall, apart = 6 * time.Second, 100 * time.Millisecond
	s := newSwarm(t, chunks*release.MinChunkBytes, hosts)
	gone := make(chan struct{})
	var got sync.WaitGroup
	got.Add(hosts)
	for i := range hosts {
		id, parent := fmt.Sprint("host-", i), fmt.Sprint("parent-", i)
		s.trees[id] = [][]string{{parent, fmt.Sprint("host-", (i+1)%hosts)}}
		s.peer(parent, 0, func(w http.ResponseWriter, _ *http.Request) {
			select {
			case <-gone:
			default:
				list := mustList(s.world)
				w.Header().Set("Content-Length", strconv.Itoa(len(list)+len(s.bytes)))
				_, _ = w.Write(append(list, s.bytes[:before*release.MinChunkBytes]...))
				_ = http.NewResponseController(w).Flush()
				<-gone
				time.Sleep(time.Duration(i) * apart) // or all would lose their patience at the same moment
			}
			panic(http.ErrAbortHandler)
		})
		s.addrs[parent] = s.peers[len(s.peers)-1].Addr
	}
	// Who turns to the seed first tells whether there was a circle.
	var once sync.Once
	s.peers = nil
	s.peer("the whole", 0, func(w http.ResponseWriter, r *http.Request) {
		once.Do(func() {
			for _, h := range s.served {
				h.mu.Lock()
				waited += h.streams
				h.mu.Unlock()
			}
		})
		s.seed.ServeHTTP(w, r)
	})
	var begun time.Time
	go func() {
		got.Wait()
		begun = time.Now()
		close(gone)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var all sync.WaitGroup
	for id := range s.stores {
		req := s.requestOf(id)
		req.StallTimeout, req.MinRate = stall, 1<<20
		req.Progress = func(done int64, from Peer) {
			if done == before*release.MinChunkBytes && strings.HasPrefix(from.HostID, "parent-") {
				got.Done()
			}
		}
		all.Go(func() {
			if _, err := Fetch(ctx, req); err != nil {
				t.Errorf("%s: %v", id, err)
			}
		})
	}
	all.Wait()
	took := time.Since(begun)
	s.mustAllHold(nil)
	rest := int64((chunks - before) * release.MinChunkBytes)
	switch {
	case waited < hosts-1: // who asks the seed has just left it
		return fmt.Sprintf("%d of %d hosts waited in a circle", waited, hosts)
	case took > stall/2:
		return fmt.Sprintf("they waited for each other for %v", took)
	case s.seed.Served() >= hosts*rest:
		return fmt.Sprintf("the seed served %d bytes: nobody got the rest of %d from another", s.seed.Served(), rest)
	}
	return ""
}
