package meshtest

import (
	"bytes"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// conn is one end of a stream. Writes never block: what is written waits, for as
// long as the network delays it, in the other end's inbox.
type conn struct {
	net           *Network
	local, remote *Transport
	in, out       *pipe
}

func newConn(from, to *Transport) (near, far *conn) {
	a, b := newPipe(), newPipe()
	near = &conn{net: from.net, local: from, remote: to, in: a, out: b}
	far = &conn{net: from.net, local: to, remote: from, in: b, out: a}
	from.net.mu.Lock()
	from.net.conns[near] = true
	from.net.mu.Unlock()
	return near, far
}

// breakOff ends both directions with an error; the network's lock is held.
func (c *conn) breakOff() {
	c.in.fail(errCut)
	c.out.fail(errCut)
	delete(c.net.conns, c)
}

func (c *conn) Read(b []byte) (int, error) { return c.in.read(b) }

func (c *conn) Write(b []byte) (int, error) {
	c.net.sent.Add(uint64(len(b)))
	_, delay := c.net.state(c.local.host, c.remote.host)
	return c.out.write(b, delay)
}

// Close lets the other end read what was written, and then EOF.
func (c *conn) Close() error {
	c.out.close()
	c.in.fail(net.ErrClosed)
	c.net.mu.Lock()
	delete(c.net.conns, c)
	c.net.mu.Unlock()
	return nil
}

func (c *conn) LocalAddr() net.Addr  { return &net.TCPAddr{IP: c.local.ip, Port: c.local.port} }
func (c *conn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: c.remote.ip, Port: c.remote.port} }

func (c *conn) SetDeadline(t time.Time) error {
	c.in.setDeadline(t)
	return nil
}
func (c *conn) SetReadDeadline(t time.Time) error { return c.SetDeadline(t) }

// SetWriteDeadline does nothing: writes never block.
func (c *conn) SetWriteDeadline(time.Time) error { return nil }

// pipe is one direction of a stream.
type pipe struct {
	mu       sync.Mutex
	chunks   []chunk
	err      error // after the chunks were read, or at once if it failed
	failed   bool
	deadline time.Time
	wake     chan struct{} // closed at each change, then replaced
}

type chunk struct {
	data  []byte
	ready time.Time
}

func newPipe() *pipe { return &pipe{wake: make(chan struct{})} }

func (p *pipe) changed() {
	close(p.wake)
	p.wake = make(chan struct{})
}

func (p *pipe) write(b []byte, delay time.Duration) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return 0, &net.OpError{Op: "write", Net: "tcp", Err: p.err}
	}
	p.chunks = append(p.chunks, chunk{bytes.Clone(b), time.Now().Add(delay)})
	p.changed()
	return len(b), nil
}

func (p *pipe) read(b []byte) (int, error) {
	for {
		n, wait, wake, err := p.tryRead(b)
		if n > 0 || err != nil {
			return n, err
		}
		if wait < 0 {
			<-wake
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// tryRead returns what is there, or how long to wait for what may come; a
// negative wait is without end.
func (p *pipe) tryRead(b []byte) (n int, wait time.Duration, wake <-chan struct{}, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	switch {
	case p.failed:
		return 0, 0, nil, &net.OpError{Op: "read", Net: "tcp", Err: p.err}
	case len(p.chunks) > 0 && !now.Before(p.chunks[0].ready):
		n = copy(b, p.chunks[0].data)
		if p.chunks[0].data = p.chunks[0].data[n:]; len(p.chunks[0].data) == 0 {
			p.chunks = p.chunks[1:]
		}
		return n, 0, nil, nil
	case len(p.chunks) == 0 && p.err != nil:
		return 0, 0, nil, p.err
	case !p.deadline.IsZero() && !now.Before(p.deadline):
		return 0, 0, nil, &net.OpError{Op: "read", Net: "tcp", Err: os.ErrDeadlineExceeded}
	}
	wait = -1
	if len(p.chunks) > 0 {
		wait = p.chunks[0].ready.Sub(now)
	}
	if !p.deadline.IsZero() {
		if d := p.deadline.Sub(now); wait < 0 || d < wait {
			wait = d
		}
	}
	return 0, wait, p.wake, nil
}

func (p *pipe) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = io.EOF
		p.changed()
	}
}

func (p *pipe) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.failed {
		p.err, p.failed = err, true
		p.changed()
	}
}

func (p *pipe) setDeadline(t time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deadline = t
	p.changed()
}
