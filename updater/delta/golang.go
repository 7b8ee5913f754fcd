package delta

import (
	"encoding/binary"
	"io"
	"math"
	"slices"
)

// What is here reads the tables of Go executables: those of pclntab as Go 1.20 to
// 1.26 lay them out (runtime.functab, runtime._func), and type descriptors.
// Nothing breaks when a table is laid out otherwise; the patch only gets larger.

const (
	functabEntry = 8  // bytes: where a function begins, where its record is
	recordLen    = 44 // bytes, before the offsets of its tables
	recordWords  = recordLen / 4
	noFuncdata   = math.MaxUint32
)

// Words of a record.
const (
	wordEntry = 0
	wordName  = 1
	wordPCSP  = 4
	wordPCLn  = 6
	wordUnit  = 8
)

// goFuncIndex says where the function records of the old file are.
type goFuncIndex struct {
	base int64    // what their offsets count from
	at   []uint32 // their offsets, rising

	counters, funcdata []uint8 // how many offsets of each kind follow on a record
}

// read reads the index, if a region says where it is. It passes the records
// once: at the first that does not lie behind the one before, it ends.
func (x *goFuncIndex) read(regions []region, old io.ReaderAt) error {
	i := slices.IndexFunc(regions, func(r region) bool { return r.kind == goFunctab })
	if i < 0 || i+1 == len(regions) || regions[i+1].kind != goFuncs {
		return nil
	}
	table, records := regions[i], regions[i+1]
	n := (table.end - table.begin) / functabEntry
	if n > maxFuncs {
		return malformed("a table of %d functions; at most %d are possible", n, maxFuncs)
	}
	x.base = table.begin
	x.at = make([]uint32, 0, n)
	x.counters, x.funcdata = make([]uint8, 0, n), make([]uint8, 0, n)
	entries := window{r: old, end: table.end}
	bodies := window{r: old, end: records.end}
	last := records.begin - 1
	for k := range n {
		b, err := entries.read(table.begin+k*functabEntry, functabEntry)
		if err != nil {
			return err
		}
		at := binary.LittleEndian.Uint32(b[4:])
		begin := x.base + int64(at)
		if begin <= last || begin+recordLen > records.end {
			return nil
		}
		if b, err = bodies.read(begin, recordLen); err != nil {
			return err
		}
		x.at = append(x.at, at)
		x.counters = append(x.counters, b[28]) // of a uint32; no function has more
		x.funcdata = append(x.funcdata, b[43])
		last = begin
	}
	return nil
}

// offset predicts a uint32 that counts from a base.
func (w *walk) offset(i int, oldBase, newBase uint64) {
	v := oldBase + uint64(binary.LittleEndian.Uint32(w.b[i:]))
	actual := w.put32(i, uint32(w.p.moved(v)-newBase))
	w.p.learn(v, newBase+uint64(actual))
}

func (w *walk) functab(r region) {
	o, n := &w.p.oldBases, &w.p.newBases
	first := w.off + int64(w.at) - r.begin
	for i := w.at + int(-first&3); i+4 <= len(w.b); i += 4 {
		if (w.off+int64(i)-r.begin)&4 == 0 {
			w.offset(i, o.text, n.text)
		} else {
			w.offset(i, o.funcs, n.funcs)
		}
	}
}

func (w *walk) records() {
	x := &w.p.funcs
	k, _ := slices.BinarySearchFunc(x.at, w.off+int64(w.at), func(at uint32, off int64) int {
		if x.base+int64(at) > off {
			return 1
		}
		return -1
	})
	for k = max(0, k-1); k < len(x.at); k++ {
		begin := x.base + int64(x.at[k]) - w.off
		if begin >= int64(len(w.b)) {
			return
		}
		counters, end := recordWords+int(x.counters[k]), recordWords+int(x.counters[k])+int(x.funcdata[k])
		for j := range end {
			i := int(begin) + 4*j
			if i < w.at { // of the chunk before, or of a record that this one overlaps
				continue
			}
			if i+4 > len(w.b) {
				return
			}
			w.recordWord(i, j, counters)
		}
	}
}

// recordWord predicts word j of a record, which has counters before word
// counters and offsets of funcdata from there on.
func (w *walk) recordWord(i, j, counters int) {
	o, n := &w.p.oldBases, &w.p.newBases
	v := binary.LittleEndian.Uint32(w.b[i:])
	switch {
	case j == wordEntry:
		w.offset(i, o.text, n.text)
	case j == wordName:
		w.offset(i, o.names, n.names)
	case j == wordUnit:
		w.offset(i, o.units, n.units)
	case (j >= wordPCSP && j <= wordPCLn || j >= recordWords && j < counters) && v != 0:
		w.offset(i, o.counters, n.counters)
	case j >= counters && v != noFuncdata:
		w.offset(i, o.funcdata, n.funcdata)
	}
}

// What came of a word of a type descriptor, besides the reading that was right.
const (
	readings   = 4
	wasNone    = readings
	wasPointer = readings + 1
	wasOther   = readings + 2
	// maxWord: a word above it is no offset.
	maxWord = 1 << 28
)

// types predicts pointers, and offsets of types, names and methods among words
// of other meanings. What a word is, the three before it tell: each reading has
// a score that rises when it was right behind such three.
func (w *walk) types() {
	p := w.p
	context := 0
	for i := w.at + int(-(uint64(w.at)+w.old)&3); i+4 <= len(w.b); i += 4 {
		if (w.old+uint64(i))&7 == 0 && i+8 <= len(w.b) && w.pointer(i) {
			context = (context<<3 | wasPointer) & (len(p.context) - 1)
			i += 4
			continue
		}
		v := binary.LittleEndian.Uint32(w.b[i:])
		if v == 0 || v > maxWord {
			context = (context<<3 | wasOther) & (len(p.context) - 1)
			continue
		}
		guess := [readings]uint32{
			v,
			uint32(p.moved(p.oldBases.types+uint64(v)) - p.newBases.types),
			uint32(p.moved(p.oldBases.text+uint64(v)) - p.newBases.text),
			v, // as it changed the last time
		}
		k := &p.words[hash(uint64(v))]
		if k.key == uint64(v) {
			guess[3] += uint32(k.moved)
		}
		score := &p.context[context]
		best := 0
		for c := range guess {
			if score[c] > score[best] {
				best = c
			}
		}
		actual := w.put32(i, guess[best])
		was := wasNone
		for c := range guess {
			if guess[c] != actual {
				score[c] -= score[c] >> 4
				continue
			}
			score[c] += (1<<15 - score[c]) >> 4
			if was == wasNone {
				was = c
			}
		}
		*k = place{uint64(v), uint64(actual - v)}
		context = (context<<3 | was) & (len(p.context) - 1)
	}
}
