package mesh

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/memberlist"

	"moult/mesh/crowd"
)

// Limits of the streams that others open to a gossip port, whether they hold the
// key or not. Members' streams take milliseconds, a thousand members behind one
// address open a few hundred a second, and Timing.Stream ends each.
const (
	maxStreams       = 1024
	maxSourceStreams = 256       // of one address; bursts of messages among them
	maxStreamBytes   = 4 << 20   // read of one stream: a push/pull of maxPeers members takes 3 MiB
	maxStreamsBytes  = 128 << 20 // read of all that are open; beyond, those longer than a message are cut
)

var (
	errStreamTooLong  = errors.New("the stream is longer than a pool's whole state")
	errStreamsTooLong = errors.New("the streams that are open hold too much together")
)

// boundStreams passes incoming streams on, those of allowed networks and no more of
// them at a time than there may be, until stop closes. From the context's end it closes them: nobody takes
// them any more.
func (t *boundedTransport) boundStreams(stop <-chan struct{}, perSource int, allowed []net.IPNet) {
	var held atomic.Int64
	streams := crowd.New(crowd.Limits{Total: maxStreams, PerSource: perSource})
	for {
		select {
		case <-stop:
			return
		case conn := <-t.NodeAwareTransport.StreamCh():
			if !comesFrom(conn.RemoteAddr(), allowed) {
				_ = conn.Close()
				continue
			}
			m, _ := streams.Admit(conn, crowd.Source(conn.RemoteAddr())) // none is worth more than the others
			c := &incoming{Conn: conn, end: m.End, held: &held}
			select {
			case t.streams <- c:
			case <-t.ctx.Done():
				_ = c.Close() // nobody takes it any more
			}
		}
	}
}

// StreamCh delivers the streams that others open, within the limits.
func (t *boundedTransport) StreamCh() <-chan net.Conn { return t.streams }

var _ memberlist.NodeAwareTransport = (*boundedTransport)(nil)

// incoming is a stream that another host has opened.
type incoming struct {
	net.Conn
	end  func()
	held *atomic.Int64 // bytes read of all that are open

	mu     sync.Mutex
	read   int64
	closed bool
}

func (c *incoming) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return n, err
	}
	c.read += int64(n)
	switch held := c.held.Add(int64(n)); {
	case c.read > maxStreamBytes:
		return 0, errStreamTooLong
	case c.read > 2*maxEnvelope && held > maxStreamsBytes:
		return 0, errStreamsTooLong
	}
	return n, err
}

// Close closes the stream and counts it out.
func (c *incoming) Close() error {
	c.mu.Lock()
	if !c.closed {
		c.closed = true
		c.held.Add(-c.read)
	}
	c.mu.Unlock()
	c.end()
	return c.Conn.Close()
}
