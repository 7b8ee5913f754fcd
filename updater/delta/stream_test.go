package delta

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"runtime"
	"testing"
)

// slowWriter lets whoever fills the blocks get ahead, and fails at its limit.
type slowWriter struct {
	bytes.Buffer
	limit int
	err   error
}

func (w *slowWriter) Write(b []byte) (int, error) {
	for range 20 {
		runtime.Gosched()
	}
	if w.Len()+len(b) > w.limit {
		return 0, w.err
	}
	return w.Buffer.Write(b)
}

// All that was put into blocks is written, in its order, though a block is
// filled while the ones before are written.
func TestOutputKeepsTheOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	w := &slowWriter{limit: 64 << 20}
	o := newOutput(w)
	var want []byte
	for len(want) < 3*maxBlocks*blockLen {
		b, err := o.room(r.IntN(chunkLen + 1))
		if err != nil {
			t.Fatal(err)
		}
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		want = append(want, b...)
	}
	if err := o.close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(w.Bytes(), want) {
		t.Errorf("%d bytes are written, %d were made; they differ from byte %d on", w.Len(), len(want), common(w.Bytes(), want))
	}
	if o.made > maxBlocks {
		t.Errorf("%d blocks were made", o.made)
	}
}

// A writer that fails ends it, wherever the other side is.
func TestOutputFails(t *testing.T) {
	full := errors.New("the disk is full")
	for blocks := range maxBlocks + 2 {
		o := newOutput(&slowWriter{limit: blocks * blockLen, err: full})
		var err error
		for n := 0; err == nil && n < 4*maxBlocks; n++ {
			_, err = o.room(blockLen)
		}
		if !errors.Is(err, full) {
			t.Errorf("after %d blocks: %v", blocks, err)
		}
		if err := o.close(); !errors.Is(err, full) {
			t.Errorf("at its end, after %d blocks: %v", blocks, err)
		}
	}
}
