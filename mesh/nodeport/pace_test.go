package nodeport

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"moult/mesh/crowd"
	"moult/mesh/identity"
)

// Strangers ask for handshakes without a pause, from many addresses: they get as many
// as the pace allows. A server and an agent that were here before do not wait behind
// them; that is told by how many strangers had their turn meanwhile, not by a clock.
func TestHandshakeFloodIsPaced(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux gives loopback more addresses than one")
	}
	const perSecond, atOnce, waiting, rounds = 1, 30, 32, 10
	limits := paceLimits(1)
	limits.PerSecond, limits.AtOnce = perSecond, atOnce
	w := newWorld(t, func(p *Port) { p.pace = crowd.NewPace(limits) })
	w.raftPair(t) // from here on its address is known
	ctx, stop := context.WithCancel(t.Context())
	var flood sync.WaitGroup
	defer flood.Wait()
	defer stop()
	var asked, answered atomic.Int64
	began := time.Now()
	for i := range 8 {
		source := fmt.Sprintf("127.0.3.%d", i+1)
		for range waiting / 8 {
			flood.Go(func() {
				d := tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}, Config: bareTLS(identity.ALPNJoin)}
				for ctx.Err() == nil {
					asked.Add(1)
					conn, err := d.DialContext(ctx, "tcp", w.addr)
					if err != nil {
						continue
					}
					answered.Add(1)
					conn.Close()
				}
			})
		}
	}
	await(t, "the flood", func() bool { return answered.Load() >= atOnce })
	before := answered.Load()
	for range rounds {
		w.raftPair(t)
		if status, _, err := w.get(t, client(t, w.a1), "/", nil); status != http.StatusOK {
			t.Errorf("an agent: %d %v", status, err)
		}
	}
	// In line with the others each of their handshakes would have let all that wait go
	// first.
	if turns := answered.Load() - before; turns > 2*rounds*waiting/4 {
		t.Errorf("%d strangers had their turn while those who are known made %d connections", turns, 2*rounds)
	}
	most := atOnce + 1 + int64(time.Since(began).Seconds()*perSecond) + 1
	stop()
	if n := answered.Load(); n > most {
		t.Errorf("the flood got %d handshakes in %v, %d at most", n, time.Since(began), most)
	}
	t.Logf("of %d handshakes %d were answered in %v", asked.Load(), answered.Load(), time.Since(began))
}
