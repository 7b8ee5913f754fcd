package webui

import (
	"fmt"
	"net"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	"moult/consensus/fleet"
)

// measuredSubscribers is how many streams a server takes; see maxStreams.
const measuredSubscribers = maxStreams

// maxSubscriberBytes is what an open stream may cost a server, its connection
// and goroutines included.
const maxSubscriberBytes = 64 << 10

// subscribers opens streams over real connections. Their readers are in this
// process too, but hold little more than a socket.
func (w *world) subscribers(tb testing.TB, addr string, n int) []net.Conn {
	tb.Helper()
	for i := range (n + maxStreamsPerCaller - 1) / maxStreamsPerCaller {
		w.MustPropose("system", fleet.APITokenCreated{Token: fleet.APIToken{
			ID: fmt.Sprint("r", i, "-", n), Name: fmt.Sprint("reader-", i), Role: fleet.Viewer, Hash: hashSecret(reader(i, n)),
		}})
	}
	conns := make([]net.Conn, 0, n)
	tb.Cleanup(func() {
		for _, c := range conns {
			c.Close()
		}
	})
	for i := range n {
		var d net.Dialer
		c, err := d.DialContext(tb.Context(), "tcp", addr)
		if err != nil {
			tb.Fatal(err)
		}
		conns = append(conns, c)
		if _, err := fmt.Fprintf(c, "GET /api/events HTTP/1.1\r\nHost: moult\r\nAuthorization: Bearer %s\r\n\r\n", reader(i/maxStreamsPerCaller, n)); err != nil {
			tb.Fatal(err)
		}
		first := make([]byte, 512)
		if k, err := c.Read(first); err != nil || !strings.HasPrefix(string(first[:k]), "HTTP/1.1 200") {
			tb.Fatalf("stream %d: %v %s", i, err, first[:k])
		}
	}
	return conns
}

// reader is the token of the i-th of those who open n streams together.
func reader(i, n int) string { return fmt.Sprintf("moult_reader_%d_of_%d", i, n) }

// inUse is what the process holds after a collection: heap and stacks.
func inUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// perSubscriber measures open streams: at rest, and after a burst of changes that
// none of the readers has read.
func perSubscriber(tb testing.TB, n int) (rest, behind int64) {
	w := StartWorld(tb)
	srv := httptest.NewServer(w.handler)
	defer srv.Close()
	addr := srv.Listener.Addr().String()
	w.subscribers(tb, addr, 1)[0].Close()
	before := inUse()
	conns := w.subscribers(tb, addr, n)
	rest = (inUse() - before) / int64(n)
	floor := w.unsubscribed(tb)
	for i := range 500 {
		w.change(tb, i)
	}
	behind = (inUse() - before - floor) / int64(n)
	for _, c := range conns {
		c.Close()
	}
	return rest, behind
}

// change makes one change that names many topics.
func (w *world) change(tb testing.TB, i int) {
	tb.Helper()
	w.MustPropose("system", fleet.HostAddressesChanged{HostID: "s1", PeerAddr: fmt.Sprintf("10.0.0.1:%d", 1000+i)})
}

// unsubscribed is what the changes of a burst cost a state that nobody follows.
func (w *world) unsubscribed(tb testing.TB) int64 {
	tb.Helper()
	quiet := StartWorld(tb)
	before := inUse()
	for i := range 500 {
		quiet.change(tb, i)
	}
	cost := inUse() - before
	runtime.KeepAlive(quiet)
	return cost
}

// BenchmarkEventSubscribers reports what an open stream costs a server.
func BenchmarkEventSubscribers(b *testing.B) {
	for b.Loop() {
		rest, behind := perSubscriber(b, measuredSubscribers)
		b.ReportMetric(float64(rest), "B/subscriber")
		b.ReportMetric(float64(behind), "B/subscriber-behind")
	}
	b.ReportMetric(0, "ns/op")
}

func TestMemoryOfAnEventSubscriberIsBounded(t *testing.T) {
	rest, behind := perSubscriber(t, 200)
	t.Logf("%d bytes at rest, %d behind", rest, behind)
	if rest > maxSubscriberBytes || behind > maxSubscriberBytes {
		t.Errorf("a stream costs %d bytes, %d when its reader is behind; at most %d are meant", rest, behind, maxSubscriberBytes)
	}
}
