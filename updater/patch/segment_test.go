package patch

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"moult/updater/artifact"
)

// wire hands requests to hosts by their address, without a network between.
type wire struct{ hosts map[string]http.Handler }

const roundTrip = 20 * time.Millisecond

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	time.Sleep(roundTrip)
	rec := httptest.NewRecorder()
	w.hosts[r.URL.Host].ServeHTTP(rec, r)
	return rec.Result(), nil
}

// How many copies of a patch the leader sends when all hosts of a segment stage at once,
// over links of 100 Mbit/s, in made-up time: to those who ask before anybody else is known
// to have it, and no more. Nobody has to take the whole. MOULT_HOSTS plays a segment of so
// many.
func TestTheLeaderSendsFewPatches(t *testing.T) {
	sizes := []int{256}
	if n, err := strconv.Atoi(os.Getenv("MOULT_HOSTS")); err == nil {
		sizes = []int{n}
	}
	for _, n := range sizes {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			old, new := versions()
			leader := newHost(t, old, new)
			if err := leader.patches.Make(t.Context(), leader.artifacts, digest(old), digest(new)); err != nil {
				t.Fatal(err)
			}
			hosts := make([]*host, n)
			for i := range hosts {
				hosts[i] = newRunningHost(t, old)
			}
			var copies, whole int
			synctest.Test(t, func(t *testing.T) { copies, whole = playSegment(t, leader, hosts, old, new) })
			t.Logf("%d hosts: the leader sends %d copies", n, copies)
			if n > 200 && copies > n/2 || whole > 0 {
				t.Errorf("%d hosts: the leader sends %d copies; %d hosts take the whole", n, copies, whole)
			}
		})
	}
}

func playSegment(t *testing.T, leader *host, hosts []*host, old, new []byte) (copies, whole int) {
	// As hosts begin, and as they ask the busy again: updater's stageJitter, patchRounds
	// and patchPause, and the leader's stageSpread.
	const (
		jitter, spread = time.Second, 5 * time.Millisecond
		rounds, pause  = 5, 2 * time.Second
		link           = 100e6 / 8              // bytes per second
		known          = 300 * time.Millisecond // until all know who has it
	)
	handler := func(h *host) http.Handler { return Handler(h.patches, 0, rate.NewLimiter(link, chunkLen)) }
	w := &wire{hosts: map[string]http.Handler{"leader": handler(leader)}}
	var mu sync.Mutex // guards what follows
	holders := []artifact.Peer{{HostID: "leader", Addr: "leader", Class: 1}}
	var all sync.WaitGroup
	for i, h := range hosts {
		w.hosts[fmt.Sprint("h", i)] = handler(h)
	}
	for i, h := range hosts {
		id := fmt.Sprint("h", i)
		all.Go(func() {
			time.Sleep(rand.N(min(jitter, time.Duration(len(hosts))*spread)))
			for round := 1; ; round++ {
				mu.Lock()
				req := h.request(old, new, &http.Client{Transport: w}, append([]artifact.Peer(nil), holders...)...)
				mu.Unlock()
				source, err := Fetch(t.Context(), req)
				mu.Lock()
				switch {
				case err == nil:
					time.AfterFunc(known, func() {
						mu.Lock()
						defer mu.Unlock()
						holders = append(holders, artifact.Peer{HostID: id, Addr: id})
					})
					if source.Peer.HostID == "leader" {
						copies++
					}
				case round == rounds || !errors.Is(err, ErrBusy):
					whole++
				default:
					mu.Unlock()
					time.Sleep(pause/2 + rand.N(pause/2))
					continue
				}
				mu.Unlock()
				return
			}
		})
	}
	all.Wait()
	return copies, whole
}
