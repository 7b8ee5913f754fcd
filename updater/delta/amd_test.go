package delta

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// What is found is part of the format: the same as byte by byte, by the rules of
// DESIGN.md.
func TestDisplacementsAreFoundByTheRules(t *testing.T) {
	telling := []byte{0, 1, 0x05, 0x0f, 0x0d, 0x80, 0x84, 0x8b, 0x8d, 0xe8, 0xe9, 0xff}
	rapid.Check(t, func(rt *rapid.T) {
		// rapid likes short slices of few bytes; here all of them are to meet.
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 1))
		b := make([]byte, rapid.IntRange(0, 5000).Draw(rt, "length"))
		for i := range b {
			b[i] = telling[r.IntN(len(telling))]
		}
		from := rapid.IntRange(0, min(len(b), 3)).Draw(rt, "begin of the region")
		p := &predictor{layout: layout{oldSegments: []segment{{addr: 1 << 20, memLen: rapid.SampledFrom([]uint64{1 << 16, 1 << 29, 1 << 33}).Draw(rt, "memory")}}}}
		w := walk{p: p, b: b, at: from, old: 1<<20 + 4096}
		var got []displacement
		var some [displacements]displacement
		for n := len(some); n == len(some); {
			n = w.find(&some)
			got = append(got, some[:n]...)
		}
		if want := byTheRules(p, b, from, w.old); !slices.Equal(got, want) {
			rt.Errorf("found %v, want %v", got, want)
		}
	})
}

func byTheRules(p *predictor, b []byte, from int, addr uint64) (found []displacement) {
	for i := from; i+6 <= len(b); {
		at := -1
		switch c := b[i]; {
		case c == 0xe8, c == 0xe9:
			at = i + 1
		case c == 0x0f && b[i+1]&0xf0 == 0x80:
			at = i + 2
		case c&0xc7 == 0x05 && i > 0 && mayFollow[b[i-1]]&operand != 0:
			at = i + 1
		}
		if at >= 0 {
			target := addr + uint64(at+4) + extend(binary.LittleEndian.Uint32(b[at:]))
			if p.mapped(target) {
				found = append(found, displacement{at, target})
				i = at + 4
				continue
			}
		}
		i++
	}
	return found
}
