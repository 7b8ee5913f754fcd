package nodeport

import (
	"errors"
	"net"
	"sync"
)

var errBacklog = errors.New("nobody accepts connections of this protocol now")

// queue is a net.Listener of connections that were accepted elsewhere.
type queue struct {
	addr  net.Addr
	ended chan struct{}

	mu     sync.Mutex // held by who puts, so that nothing is put after Close
	closed bool
	conns  chan net.Conn
}

func newQueue(addr net.Addr) *queue {
	return &queue{addr: addr, ended: make(chan struct{}), conns: make(chan net.Conn, backlog)}
}

// put hands a connection over, or closes it and tells why. It never blocks.
func (q *queue) put(c net.Conn) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		c.Close()
		return net.ErrClosed
	}
	select {
	case q.conns <- c:
		return nil
	default:
		c.Close()
		return errBacklog
	}
}

// Accept returns the next connection, or net.ErrClosed.
func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.ended:
		return nil, net.ErrClosed
	}
}

// Close ends Accept and closes the connections that nobody has accepted.
func (q *queue) Close() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil
	}
	q.closed = true
	close(q.ended)
	for {
		select {
		case c := <-q.conns:
			c.Close()
		default:
			return nil
		}
	}
}

// Addr is the node port's.
func (q *queue) Addr() net.Addr { return q.addr }
