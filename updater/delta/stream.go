package delta

import (
	"fmt"
	"io"
)

const (
	blockLen  = 256 << 10 // bytes that are written at once
	maxBlocks = 4         // that are being made, wait, or are being written
	windowLen = 16 << 10  // bytes of the old file
)

// output is what Apply makes, in blocks. Each is written by a goroutine while the
// next is made: the writer mostly hashes, and waits for the disk.
type output struct {
	block []byte // that is being made; its capacity is blockLen
	made  int    // blocks
	full  chan []byte
	free  chan []byte

	ended chan struct{}
	err   error // once ended
}

func newOutput(w io.Writer) *output {
	o := &output{full: make(chan []byte, maxBlocks), free: make(chan []byte, maxBlocks), ended: make(chan struct{})}
	go func() {
		defer close(o.ended)
		for b := range o.full {
			if _, o.err = w.Write(b); o.err != nil {
				return
			}
			o.free <- b[:0]
		}
	}()
	return o
}

// room returns space for the next n bytes, at most blockLen, that the caller
// fills before he asks again. The error is the writer's.
func (o *output) room(n int) ([]byte, error) {
	if len(o.block)+n > cap(o.block) {
		if err := o.next(); err != nil {
			return nil, err
		}
	}
	at := len(o.block)
	o.block = o.block[:at+n]
	return o.block[at:], nil
}

// next has the block written, and begins another.
func (o *output) next() error {
	if len(o.block) > 0 {
		o.full <- o.block // of maxBlocks it has room for all
		o.block = nil
	}
	select {
	case <-o.ended:
		return o.err
	case o.block = <-o.free:
		return nil
	default:
	}
	if o.made < maxBlocks {
		o.made++
		o.block = make([]byte, 0, blockLen)
		return nil
	}
	select {
	case <-o.ended:
		return o.err
	case o.block = <-o.free:
		return nil
	}
}

// close has the rest written, and returns when all is, or with the writer's
// error.
func (o *output) close() error {
	if len(o.block) > 0 {
		o.full <- o.block
	}
	close(o.full)
	<-o.ended
	return o.err
}

// window reads a file in short pieces, each mostly behind the one before.
type window struct {
	r     io.ReaderAt
	end   int64
	begin int64
	b     []byte
	buf   [windowLen]byte
}

// read returns n bytes, at most windowLen, that are there until the next call.
func (w *window) read(at int64, n int) ([]byte, error) {
	if at < w.begin || at+int64(n) > w.begin+int64(len(w.b)) {
		w.begin, w.b = at, w.buf[:min(int64(len(w.buf)), w.end-at)]
		if err := readFull(w.r, w.b, at); err != nil {
			w.b = nil
			return nil, err
		}
	}
	return w.b[at-w.begin:][:n], nil
}

// into reads len(b) bytes, however many.
func (w *window) into(b []byte, at int64) error {
	if len(b) > windowLen {
		return readFull(w.r, b, at)
	}
	piece, err := w.read(at, len(b))
	copy(b, piece)
	return err
}

func readFull(r io.ReaderAt, b []byte, at int64) error {
	if n, err := r.ReadAt(b, at); n < len(b) {
		return fmt.Errorf("read old file: %w", err)
	}
	return nil
}
