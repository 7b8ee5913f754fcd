package nodeport

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// halfCloser can end its writing side alone: TCP and TLS connections can.
type halfCloser interface{ CloseWrite() error }

// splice copies bytes both ways until both have ended, or until either way is
// idle for too long, carries too much, or the whole takes too long. It closes
// both connections.
func (p *Port) splice(a, b net.Conn) {
	ctx, cancel := context.WithTimeout(p.serving, spliceTime)
	defer cancel()
	both := func() {
		a.Close()
		b.Close()
	}
	defer both()
	defer context.AfterFunc(ctx, both)()
	var ways sync.WaitGroup
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		ways.Go(func() {
			if err := copyWay(way[1], way[0]); err != nil {
				both() // neither side has use for half of it
			}
		})
	}
	ways.Wait()
}

// copyWay copies from one to the other until the end, which it passes on.
func copyWay(to, from net.Conn) error {
	buf := make([]byte, spliceBuffer)
	for total := 0; ; {
		if err := from.SetReadDeadline(time.Now().Add(spliceIdle)); err != nil {
			return err
		}
		n, err := from.Read(buf)
		if total += n; total > spliceBytes {
			return errors.New("more bytes than joining takes")
		}
		if n > 0 {
			if err := to.SetWriteDeadline(time.Now().Add(spliceIdle)); err != nil {
				return err
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			if half, ok := to.(halfCloser); ok {
				return half.CloseWrite()
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// hello is a connection whose client's first message may yet be passed on as it
// came: it keeps what was read until keep is called off, and while it is mute
// nothing is answered.
type hello struct {
	net.Conn
	mu   sync.Mutex
	keep bool
	mute bool
	read []byte
}

func (h *hello) Read(b []byte) (int, error) {
	n, err := h.Conn.Read(b)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.keep {
		h.read = append(h.read, b[:n]...) // at most what crypto/tls reads of one ClientHello: 64 KiB
	}
	return n, err
}

func (h *hello) Write(b []byte) (int, error) {
	h.mu.Lock()
	mute := h.mute
	h.mu.Unlock()
	if mute {
		return len(b), nil
	}
	return h.Conn.Write(b)
}

// decide ends the keeping, or has the connection stay silent.
func (h *hello) decide(passOn bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.keep, h.mute = false, passOn
	if !passOn {
		h.read = nil
	}
}

// replay is a connection of which the first bytes were read already.
type replay struct {
	net.Conn
	read *bytes.Reader
}

func (r *replay) Read(b []byte) (int, error) {
	if r.read.Len() > 0 {
		return r.read.Read(b)
	}
	return r.Conn.Read(b)
}

// CloseWrite ends the writing side.
func (r *replay) CloseWrite() error {
	if half, ok := r.Conn.(halfCloser); ok {
		return half.CloseWrite()
	}
	return nil
}
