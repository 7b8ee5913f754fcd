package delta

import (
	"cmp"
	"encoding/binary"
	"io"
	"slices"
)

// The predictor says what the copied bytes of an old executable will be in the
// new one. Where code and data refer to other places, by relative displacement,
// offset or pointer, and these places have moved, the reference has changed too,
// and how follows from the ops, which say what moved where, and from references
// that came before. Whoever makes a patch and whoever applies it run this same
// code in the same order over the same bytes.

// refKind is how the references in a region are found and written.
type refKind byte

const (
	codeAMD64 refKind = 1 + iota // calls, jumps and RIP-relative operands
	codeARM64                    // BL and B, ADRP with the ADD, load or store behind it
	pointers                     // 8-byte absolute addresses, aligned
	goFunctab                    // pairs of uint32: text offset, offset of a function's record
	goFuncs                      // the function records of pclntab
	goTypes                      // int32 offsets in type descriptors, and pointers
	kinds
)

// segment is a part of a file that is loaded at an address.
type segment struct {
	off, addr, fileLen, memLen uint64
}

// region is a part of the old file whose references are predicted.
type region struct {
	begin, end int64 // in the old file
	kind       refKind
}

// bases are the addresses that the offsets in Go's tables count from.
type bases struct {
	text, names, units, files, counters, funcs, funcdata, types uint64
}

func (b *bases) all() [8]*uint64 {
	return [8]*uint64{&b.text, &b.names, &b.units, &b.files, &b.counters, &b.funcs, &b.funcdata, &b.types}
}

// layout is what a patch says of both executables.
type layout struct {
	oldSegments, newSegments []segment
	regions                  []region // sorted, apart
	oldBases, newBases       bases
}

const (
	placeBits = 16 // of the table of places
	nearBits  = 10 // of those of neighbourhoods
	pageBits  = 10 // of the old file, for which the ops are indexed
)

// place says how far a place of the old image has moved.
type place struct {
	key, moved uint64
}

// predictor holds what was learned so far. Its memory does not grow.
type predictor struct {
	layout
	ops   []op    // those that copy, by where they copy from, without overlap
	pages []int32 // of each page of the old file, the first op that ends behind its begin
	funcs goFuncIndex
	old   [chunkLen]byte // the chunk at hand

	places  [1 << placeBits]place   // by the hash of their address
	near    [2][1 << nearBits]place // by their neighbourhood
	words   [1 << placeBits]place   // of type descriptors, by the hash of their value
	context [512][4]uint16          // how well the readings of a word did, by what came before
}

// neighbourhoods are of 64 bytes and of 4 KiB.
var neighbourhoods = [2]uint{6, 12}

// newPredictor reads the index of Go's functions from the old file, if the plan
// says that there is one.
func newPredictor(plan *plan, old io.ReaderAt, oldLen int64) (*predictor, error) {
	p := &predictor{layout: plan.layout}
	if len(p.regions) == 0 {
		return p, nil
	}
	p.ops = apart(plan.ops)
	p.pages = make([]int32, oldLen>>pageBits+2)
	i := 0
	for k := range p.pages {
		for i < len(p.ops) && p.ops[i].old+p.ops[i].copy <= int64(k)<<pageBits {
			i++
		}
		p.pages[k] = int32(i)
	}
	return p, p.funcs.read(p.regions, old)
}

// apart returns the ops that copy, by where they copy from; what several copy,
// the one that begins first has, of these the longest.
func apart(ops []op) []op {
	out := make([]op, 0, len(ops))
	for _, o := range ops {
		if o.copy > 0 {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(a, b op) int {
		return cmp.Or(cmp.Compare(a.old, b.old), cmp.Compare(b.copy, a.copy), cmp.Compare(a.new, b.new))
	})
	kept := out[:0]
	end := int64(0)
	for _, o := range out {
		if over := end - o.old; over > 0 {
			if over >= o.copy {
				continue
			}
			o.old, o.new, o.copy = o.old+over, o.new+over, o.copy-over
		}
		end = o.old + o.copy
		kept = append(kept, o)
	}
	return kept
}

// moved returns where a place of the old image, by address, is in the new one:
// where it was last seen to be; else where the ops put it; else as far away as
// its neighbours; else where it was.
func (p *predictor) moved(addr uint64) uint64 {
	if k := &p.places[hash(addr)]; k.key == addr {
		return addr + k.moved
	}
	return p.unseen(addr)
}

func (p *predictor) unseen(addr uint64) uint64 {
	if to, ok := p.copied(addr); ok {
		return to
	}
	for i, bits := range neighbourhoods {
		if k := &p.near[i][addr>>bits&(1<<nearBits-1)]; k.key == addr>>bits+1 {
			return addr + k.moved
		}
	}
	return addr
}

// copied returns where the ops put a place. One that is not copied is taken to
// be as far from what lay before it as it was.
func (p *predictor) copied(addr uint64) (uint64, bool) {
	for i := range p.oldSegments {
		s := &p.oldSegments[i]
		if addr-s.addr >= s.fileLen {
			continue
		}
		off := int64(addr - s.addr + s.off)
		if off < 0 || off>>pageBits >= int64(len(p.pages)-1) {
			return 0, false
		}
		first, last := p.pages[off>>pageBits], p.pages[off>>pageBits+1] // of those that may be the first to end behind off
		for first < last {
			middle := (first + last) / 2
			if o := &p.ops[middle]; o.old+o.copy <= off {
				first = middle + 1
			} else {
				last = middle
			}
		}
		if int(first) == len(p.ops) || p.ops[first].old > off {
			if first == 0 {
				return 0, false
			}
			first--
		}
		return p.newAddr(off - p.ops[first].old + p.ops[first].new), true
	}
	return 0, false
}

func (p *predictor) newAddr(off int64) uint64 { return addrOf(p.newSegments, off) }
func (p *predictor) oldAddr(off int64) uint64 { return addrOf(p.oldSegments, off) }

func addrOf(segments []segment, off int64) uint64 {
	for i := range segments {
		if s := &segments[i]; uint64(off)-s.off < s.fileLen {
			return s.addr + uint64(off) - s.off
		}
	}
	return uint64(off)
}

// mapped tells whether the address is one of the old image.
func (p *predictor) mapped(addr uint64) bool {
	for i := range p.oldSegments {
		if s := &p.oldSegments[i]; addr-s.addr < s.memLen {
			return true
		}
	}
	return false
}

// learn takes down where a place has moved.
func (p *predictor) learn(from, to uint64) {
	p.places[hash(from)] = place{from, to - from}
	for i, bits := range neighbourhoods {
		p.near[i][from>>bits&(1<<nearBits-1)] = place{from>>bits + 1, to - from}
	}
}

func hash(v uint64) uint64 { return v * 0x9e3779b97f4a7c15 >> (64 - placeBits) }

// truth gives the bytes that the new file has.
type truth interface {
	// upTo makes sure that of the chunk the bytes before n are right, and returns
	// the chunk. What is right may not be guessed at again. Those before sure will be
	// as they are guessed: about them it need not be asked.
	upTo(n int) (chunk []byte, sure int)
}

// chunk predicts one piece of a copy, at most chunkLen bytes: guess holds the
// old bytes from old, which will be those from new. References that are not
// wholly within it are left alone.
func (p *predictor) chunk(guess []byte, old, new int64, t truth) {
	if len(p.regions) == 0 {
		return
	}
	// What references look like is read here: of guess, whoever applies the patch
	// has corrected the part that is done, and whoever makes it has not.
	b := p.old[:copy(p.old[:], guess)]
	for _, r := range p.regions {
		if r.end <= old {
			continue
		}
		if r.begin >= old+int64(len(b)) {
			break
		}
		from, to := max(r.begin, old)-old, min(r.end, old+int64(len(b)))-old
		w := walk{
			p: p, t: t, b: b[:to], guess: guess, at: int(from), off: old,
			old: p.oldAddr(old+from) - uint64(from), new: p.newAddr(new+from) - uint64(from),
		}
		switch r.kind {
		case codeAMD64:
			w.amd64()
		case codeARM64:
			w.arm64()
		case pointers:
			w.pointers()
		case goFunctab:
			w.functab(r)
		case goFuncs:
			w.records()
		case goTypes:
			w.types()
		}
	}
}

// walk is the way through the part of a chunk that lies in one region. It only
// goes forward: no reference begins before the end of the one before.
type walk struct {
	p        *predictor
	t        truth
	b        []byte // the old bytes, up to the end of the region
	guess    []byte
	at       int    // how far it is
	sure     int    // guesses before it are right
	off      int64  // of b[0] in the old file
	old, new uint64 // addresses of b[0]
}

// put32 makes a guess and returns the truth.
func (w *walk) put32(i int, v uint32) uint32 {
	binary.LittleEndian.PutUint32(w.guess[i:], v)
	if w.at = i + 4; w.at <= w.sure {
		return v
	}
	return binary.LittleEndian.Uint32(w.truth()[i:])
}

// truth returns the chunk, right up to where the walk is.
func (w *walk) truth() (chunk []byte) {
	if w.at <= w.sure {
		return w.guess
	}
	chunk, w.sure = w.t.upTo(w.at)
	return chunk
}

func (w *walk) pointers() {
	for i := w.at + int(-(uint64(w.at)+w.old)&7); i+8 <= len(w.b); i += 8 {
		w.pointer(i)
	}
}

func (w *walk) pointer(i int) bool {
	v := binary.LittleEndian.Uint64(w.b[i:])
	if !w.p.mapped(v) {
		return false
	}
	binary.LittleEndian.PutUint64(w.guess[i:], w.p.moved(v))
	w.at = i + 8
	w.p.learn(v, binary.LittleEndian.Uint64(w.truth()[i:]))
	return true
}
