package delta

import "encoding/binary"

// displacement is one that was found in code, and the address that it leads to.
type displacement struct {
	at     int // of its four bytes in the chunk
	target uint64
}

// displacements is how many are looked for before they are predicted: to do each
// for itself keeps the processor from waiting for several tables' memory at once.
const displacements = 256

// amd64 finds displacements by the opcode or the operand before them, without
// decoding instructions: a false one costs a few bytes.
func (w *walk) amd64() {
	var found [displacements]displacement
	for n := len(found); n == len(found); {
		n = w.find(&found)
		for _, d := range found[:n] {
			w.rel32(d)
		}
	}
}

// rel32 predicts a displacement, which counts from behind it.
func (w *walk) rel32(d displacement) {
	end := uint64(d.at + 4)
	actual := w.put32(d.at, uint32(w.p.moved(d.target)-w.new-end))
	w.p.learn(d.target, w.new+end+extend(actual))
}

func extend(v uint32) uint64 { return uint64(int64(int32(v))) }

// find finds the next displacements, and how many.
func (w *walk) find(found *[displacements]displacement) (n int) {
	b, i := w.b, w.at
	before := byte(0)
	if i > 0 {
		before = b[i-1]
	}
	for ; i+5 <= len(b) && n < len(found); i++ {
		kind := mayFollow[before] & mayPrecede[b[i]]
		before = b[i]
		if kind == 0 ||
			kind == branch && i == w.at || // its first byte is another displacement's
			kind != branch && i+6 > len(b) {
			continue
		}
		end := i + 5
		target := w.old + uint64(end) + extend(binary.LittleEndian.Uint32(b[i+1:end]))
		if w.p.mapped(target) {
			found[n] = displacement{i + 1, target}
			n++
			w.at = end
			i = end - 1
			before = b[i]
		}
	}
	return n
}

// What stands before a displacement: an opcode of one byte, the second of two, or
// the ModRM byte of a RIP-relative operand.
const (
	call   = 1 << iota // E8, E9
	branch             // 0F 8x
	operand
)

// mayPrecede says of a byte what it may be, as the last before a displacement;
// mayFollow what may follow on it.
var mayPrecede, mayFollow = func() (last, before [256]byte) {
	for c := range last {
		before[c] = call
		switch {
		case c == 0xe8 || c == 0xe9:
			last[c] = call
		case c&0xf0 == 0x80:
			last[c] = branch
		case c&0xc7 == 0x05:
			last[c] = operand
		}
	}
	before[0x0f] |= branch
	// The opcodes, or their last bytes, that may have a RIP-relative operand.
	for _, c := range []byte{
		0x01, 0x03, 0x09, 0x0b, 0x21, 0x23, 0x29, 0x2b, 0x31, 0x33, 0x38, 0x39, 0x3a, 0x3b, 0x63, 0x69, 0x6b,
		0x80, 0x81, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8b, 0x8d, 0xc6, 0xc7, 0xf6, 0xf7, 0xff,
		0x10, 0x11, 0x28, 0x29, 0x6f, 0x7f, 0xb6, 0xb7, 0xbe, 0xbf, 0xc1, 0xb0, 0xb1, 0x2a, 0x2e, 0x2f, 0x51, 0x54, 0x57, 0x58, 0x59, 0x5c, 0x5e, 0x6e, 0x7e, 0xd6, 0xef, 0xfe,
	} {
		before[c] |= operand
	}
	return last, before
}()
