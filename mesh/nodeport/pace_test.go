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
// as the pace allows. A server and an agent that were here before get through at
// once, and a stranger in earnest after a short wait.
func TestHandshakeFloodIsPaced(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux gives loopback more addresses than one")
	}
	const perSecond, atOnce = 20, 30
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
		for range 4 {
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
	for range 10 {
		at := time.Now()
		w.raftPair(t)
		if status, _, err := w.get(t, client(t, w.a1), "/", nil); status != http.StatusOK {
			t.Errorf("an agent: %d %v", status, err)
		}
		// What a turn among the 32 that wait would take each of the two.
		if took := time.Since(at); took > 2*time.Second {
			t.Errorf("who is known waited %v", took)
		}
	}
	conn := tls.Client(w.dialFrom(t, "127.0.4.1"), bareTLS(identity.ALPNJoin))
	must(t, conn.SetDeadline(time.Now().Add(handshakeTimeout)))
	if err := conn.Handshake(); err != nil {
		t.Errorf("a stranger in earnest: %v", err)
	}
	most := atOnce + 1 + int64(time.Since(began).Seconds()*perSecond) + 1
	stop()
	if n := answered.Load(); n > most {
		t.Errorf("the flood got %d handshakes in %v, %d at most", n, time.Since(began), most)
	}
	t.Logf("of %d handshakes %d were answered in %v", asked.Load(), answered.Load(), time.Since(began))
}
