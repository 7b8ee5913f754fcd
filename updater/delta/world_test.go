package delta

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// fence is an old file that fails the test when it is read outside.
type fence struct {
	t testing.TB
	b []byte
}

func (f fence) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(f.b)) {
		f.t.Errorf("%d bytes at %d are read of an old file of %d", len(p), off, len(f.b))
		return 0, errors.New("outside")
	}
	return copy(p, f.b[off:]), nil
}

// bounded fails the test when more is written than was signed.
type bounded struct {
	t testing.TB
	bytes.Buffer
	limit int64
}

func (w *bounded) Write(p []byte) (int, error) {
	if int64(w.Len()+len(p)) > w.limit {
		w.t.Errorf("more than the signed %d bytes are written", w.limit)
	}
	return w.Buffer.Write(p)
}

func targetOf(old, new []byte) Target {
	return Target{OldDigest: digest(old), NewDigest: digest(new), Length: int64(len(new))}
}

func mustMake(t testing.TB, old, new []byte) []byte {
	t.Helper()
	var patch bytes.Buffer
	if err := Make(context.Background(), old, new, &patch); err != nil {
		t.Fatalf("make: %v", err)
	}
	return patch.Bytes()
}

// apply applies a patch under watch.
func apply(t testing.TB, old, patch []byte, want Target) ([]byte, error) {
	out := &bounded{t: t, limit: want.Length}
	err := Apply(context.Background(), fence{t, old}, bytes.NewReader(patch), want, out)
	return out.Bytes(), err
}

func mustApply(t testing.TB, old, patch, new []byte) {
	t.Helper()
	out, err := apply(t, old, patch, targetOf(old, new))
	if err != nil {
		t.Fatalf("apply: %v", err)
	}
	if !bytes.Equal(out, new) {
		t.Fatalf("the patch makes other bytes than the new file's, from byte %d on", common(out, new))
	}
}

// assemble returns the patch of a plan made by hand.
func assemble(t testing.TB, old, new []byte, p *plan) []byte {
	t.Helper()
	header, err := Header{OldDigest: digest(old), NewDigest: digest(new), OldLength: int64(len(old)), NewLength: int64(len(new))}.marshal()
	if err != nil {
		t.Fatal(err)
	}
	return append(header, mustEncode(t, old, new, p)...)
}

func mustEncode(t testing.TB, old, new []byte, p *plan) []byte {
	t.Helper()
	z, err := newCompressor()
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	patch, err := encode(context.Background(), z, old, new, p)
	if err != nil {
		t.Fatal(err)
	}
	return patch
}

// streams returns what a patch holds, decompressed: the plan, then the streams
// of each group.
func streams(t testing.TB, patch []byte) [][]byte {
	t.Helper()
	r := bytes.NewReader(patch)
	if _, err := ReadHeader(r); err != nil {
		t.Fatal(err)
	}
	in, err := newUnpacker(r)
	if err != nil {
		t.Fatal(err)
	}
	defer in.close()
	var out [][]byte
	for in.end() != nil {
		if err := in.r.UnreadByte(); err != nil {
			t.Fatal(err)
		}
		part, err := in.next(maxPlanLen, nil)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, part)
	}
	return out
}

// repack makes a patch of parts as streams returns them.
func repack(t testing.TB, h Header, parts ...[]byte) []byte {
	t.Helper()
	patch, err := h.marshal()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parts {
		patch = binary.AppendUvarint(patch, uint64(len(p)))
		if len(p) > 0 {
			packed := fastest().EncodeAll(p, nil)
			patch = append(binary.AppendUvarint(patch, uint64(len(packed))), packed...)
		}
	}
	return patch
}

// fastest is made once: the fuzzer uses it thousands of times.
var fastest = sync.OnceValue(func() *zstd.Encoder {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err)
	}
	return z
})

// program is an invented executable: a code segment, a data segment that begins
// elsewhere in memory, and Go's tables. In the second version functions have
// become longer, so that all that refers to those behind them changes.
type program struct {
	image  []byte
	layout layout // but for what is of the other version
}

const (
	codeAddr = 0x400000
	dataAddr = 0x600000
)

func inventProgram(code refKind, edited bool) program {
	r := rand.New(rand.NewPCG(7, 11))
	const functions = 64
	lengths := make([]int, functions)
	for i := range lengths {
		lengths[i] = 64 + 16*r.IntN(12)
	}
	grown := map[int]int{}
	if edited {
		grown = map[int]int{3: 32, 17: 48, 40: 16}
	}
	at := make([]int, functions+1)
	for i := range functions {
		at[i+1] = at[i] + lengths[i] + grown[i]
	}
	le := binary.LittleEndian
	// The data: pointers, type descriptors; then the tables.
	const words = 256
	dataLen := 8*words + 8*words
	codeLen := (at[functions] + 4095) &^ 4095
	b := make([]byte, codeLen)
	for i := range functions {
		body := b[at[i]:at[i+1]]
		fill := rand.New(rand.NewPCG(uint64(i), 1))
		for j := range grown[i] { // the new code is in front; the rest is as it was
			body[j] = byte(i+j)&0x3f | 1
		}
		for j := grown[i]; j < len(body); j++ {
			body[j] = byte(fill.Uint32()) | 1
		}
		for j := grown[i]; j+16 <= len(body); j += 16 {
			to := codeAddr + at[fill.IntN(functions)]
			if fill.IntN(3) == 0 {
				to = dataAddr + 8*fill.IntN(words)
			}
			writeRef(body[j:], code, codeAddr+at[i]+j, to)
		}
	}
	data := make([]byte, dataLen)
	for i := range words {
		le.PutUint64(data[8*i:], uint64(codeAddr+at[r.IntN(functions)]))
		le.PutUint32(data[8*words+8*i:], uint32(at[r.IntN(functions)]))
		le.PutUint32(data[8*words+8*i+4:], uint32(r.IntN(words)))
	}
	tables := make([]byte, functabEntry*functions+4)
	base := len(b) + len(data)
	for i := range functions {
		le.PutUint32(tables[8*i:], uint32(at[i]))
		le.PutUint32(tables[8*i+4:], uint32(len(tables)))
		record := make([]byte, recordLen+4*2+4*3)
		le.PutUint32(record, uint32(at[i]))
		le.PutUint32(record[4:], uint32(16*i))
		le.PutUint32(record[16:], uint32(8*i+1))
		le.PutUint32(record[28:], 2)
		record[43] = 3
		for j := recordLen; j < len(record); j += 4 {
			le.PutUint32(record[j:], uint32(at[i]/16+j))
		}
		le.PutUint32(record[recordLen+8:], noFuncdata)
		tables = append(tables, record...)
	}
	p := program{image: append(append(b, data...), tables...)}
	end := int64(len(p.image))
	p.layout.oldSegments = []segment{
		{0, codeAddr, uint64(len(b)), uint64(len(b))},
		{uint64(len(b)), dataAddr, uint64(len(p.image) - len(b)), uint64(len(p.image)-len(b)) + 4096},
	}
	n := int64(len(b))
	p.layout.regions = []region{
		{0, n, code},
		{n, n + 8*words, pointers},
		{n + 8*words, n + 16*words, goTypes},
		{n + 16*words, n + 16*words + functabEntry*functions + 4, goFunctab},
		{n + 16*words + functabEntry*functions + 4, end, goFuncs},
	}
	tab := uint64(dataAddr + base - len(b))
	p.layout.oldBases = bases{text: codeAddr, names: dataAddr, units: dataAddr, files: dataAddr, counters: dataAddr, funcs: tab, funcdata: dataAddr, types: dataAddr}
	return p
}

func writeRef(b []byte, code refKind, pc, to int) {
	le := binary.LittleEndian
	switch code {
	case codeAMD64:
		if to >= dataAddr {
			copy(b, []byte{0x48, 0x8d, 0x05}) // LEA to(RIP), RAX
			le.PutUint32(b[3:], uint32(to-pc-7))
			return
		}
		b[0] = 0xe8
		le.PutUint32(b[1:], uint32(to-pc-5))
	case codeARM64:
		if to >= dataAddr {
			pages := uint32(to>>12 - pc>>12)
			le.PutUint32(b, 0x90000000|pages&3<<29|pages>>2&0x7ffff<<5)
			le.PutUint32(b[4:], 0x91000000|uint32(to&0xfff)<<10)
			return
		}
		le.PutUint32(b, 0x94000000|uint32(to-pc)>>2&0x03ffffff)
	}
}

// between is what a patch from one program to another says of them.
func between(a, b program) layout {
	l := a.layout
	l.newSegments, l.newBases = b.layout.oldSegments, b.layout.oldBases
	return l
}

// edited returns bytes that came of old by edits at random.
func edited(r *rand.Rand, old []byte, edits int) []byte {
	b := bytes.Clone(old)
	for range edits {
		if len(b) == 0 {
			b = append(b, byte(r.Uint32()))
		}
		i := r.IntN(len(b))
		n := r.IntN(min(200, len(b)-i) + 1)
		switch r.IntN(4) {
		case 0: // change
			for j := range n {
				b[i+j] = byte(r.Uint32())
			}
		case 1: // insert
			b = append(b[:i:i], append(bytes.Repeat([]byte{byte(r.Uint32())}, n), b[i:]...)...)
		case 2: // delete
			b = append(b[:i:i], b[i+n:]...)
		case 3: // repeat what is there
			b = append(b, b[i:i+n]...)
		}
	}
	return b
}

func describeParts(parts [][]byte) string {
	s := ""
	for _, p := range parts {
		s += fmt.Sprintf("%d bytes, sha256 %.16s\n", len(p), digest(p))
	}
	return s
}
