package meshtest

import (
	"bytes"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Transport is one host's address on a Network.
type Transport struct {
	net     *Network
	host    string
	ip      net.IP
	port    int
	packets chan *memberlist.Packet
	streams chan net.Conn
	once    sync.Once
	closed  chan struct{}
}

var _ memberlist.NodeAwareTransport = (*Transport)(nil)

func (t *Transport) addr() string { return net.JoinHostPort(t.ip.String(), strconv.Itoa(t.port)) }

// FinalAdvertiseAddr returns the address it listens on, whatever is asked for.
func (t *Transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	if ip4 := t.ip.To4(); ip4 != nil {
		return ip4, t.port, nil
	}
	return t.ip, t.port, nil
}

// WriteTo sends a packet, which may get lost.
func (t *Transport) WriteTo(b []byte, addr string) (time.Time, error) {
	now := time.Now()
	t.net.sent.Add(uint64(len(b)))
	to := t.net.at(addr)
	if to == nil {
		return now, nil
	}
	cut, delay := t.net.state(t.host, to.host)
	if cut || t.net.lost() || !t.net.passes(t, to) {
		return now, nil
	}
	// memberlist may use b again.
	p := &memberlist.Packet{Buf: bytes.Clone(b), From: &net.UDPAddr{IP: t.ip, Port: t.port}}
	deliver := func() {
		p.Timestamp = time.Now()
		select {
		case <-to.closed:
		case to.packets <- p:
		default:
		}
	}
	if delay > 0 {
		time.AfterFunc(delay, deliver)
	} else {
		deliver()
	}
	return now, nil
}

// WriteToAddress is WriteTo.
func (t *Transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return t.WriteTo(b, a.Addr)
}

// PacketCh delivers the packets that arrive.
func (t *Transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh delivers the streams that others open.
func (t *Transport) StreamCh() <-chan net.Conn { return t.streams }

// DialTimeout opens a stream.
func (t *Transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
	}
	to := t.net.at(addr)
	if to == nil {
		return fail(errRefused)
	}
	cut, delay := t.net.dialable(t.host, to.host)
	wait := delay
	if cut {
		wait = timeout
	}
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-t.closed:
			return fail(net.ErrClosed)
		}
	}
	if cut {
		return fail(errCut)
	}
	near, far := newConn(t, to)
	select {
	case <-to.closed:
		_ = near.Close()
		return fail(errRefused)
	case to.streams <- far:
		return near, nil
	default:
		_ = near.Close()
		return fail(errRefused)
	}
}

// DialAddressTimeout is DialTimeout.
func (t *Transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return t.DialTimeout(a.Addr, timeout)
}

// Shutdown frees the address and ends its streams. It may be called twice.
func (t *Transport) Shutdown() error {
	t.once.Do(func() {
		close(t.closed)
		t.net.mu.Lock()
		defer t.net.mu.Unlock()
		delete(t.net.byAddr, t.addr())
		for c := range t.net.conns {
			if c.local == t || c.remote == t {
				c.breakOff()
			}
		}
	})
	return nil
}
