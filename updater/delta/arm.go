package delta

import "encoding/binary"

// arm64 predicts branches (B, BL) and pairs of an ADRP and the ADD, load or
// store that takes the rest of its address.
func (w *walk) arm64() {
	at := w.at + int(-(uint64(w.at)+w.old)&3)
	for i := at; i+4 <= len(w.b); i += 4 {
		insn := binary.LittleEndian.Uint32(w.b[i:])
		switch {
		case insn&0x7c000000 == 0x14000000:
			w.branch(i, insn)
		case insn&0x9f000000 == 0x90000000 && i+8 <= len(w.b):
			if w.page(i, insn) {
				i += 4
			}
		}
	}
}

func (w *walk) branch(i int, insn uint32) {
	at := uint64(i)
	target := w.old + at + branchOffset(insn)
	if !w.p.mapped(target) {
		return
	}
	d := w.p.moved(target) - w.new - at
	actual := w.put32(i, insn&^0x03ffffff|uint32(d>>2)&0x03ffffff)
	if actual&0x7c000000 == 0x14000000 {
		w.p.learn(target, w.new+at+branchOffset(actual))
	}
}

func branchOffset(insn uint32) uint64 { return uint64(int64(int32(insn<<6) >> 4)) }

func (w *walk) page(i int, insn uint32) bool {
	second := binary.LittleEndian.Uint32(w.b[i+4:])
	shift, ok := low12(second, insn&31)
	if !ok {
		return false
	}
	at := uint64(i)
	target := adrp(w.old+at, insn) + uint64(second>>10&0xfff)<<shift
	if !w.p.mapped(target) {
		return false
	}
	to := w.p.moved(target)
	pages := uint32(to>>12 - (w.new+at)>>12)
	binary.LittleEndian.PutUint32(w.guess[i:], insn&^0x60ffffe0|pages&3<<29|pages>>2&0x7ffff<<5)
	second = w.put32(i+4, second&^0x003ffc00|uint32(to&0xfff>>shift)<<10)
	insn = binary.LittleEndian.Uint32(w.truth()[i:])
	if s, ok := low12(second, insn&31); ok && insn&0x9f000000 == 0x90000000 {
		w.p.learn(target, adrp(w.new+at, insn)+uint64(second>>10&0xfff)<<s)
	}
	return true
}

// adrp is the page that an ADRP at addr makes.
func adrp(addr uint64, insn uint32) uint64 {
	pages := insn>>29&3 | insn>>5&0x7ffff<<2
	return addr&^0xfff + uint64(int64(int32(pages<<11)>>11))<<12
}

// low12 tells whether the instruction adds its 12-bit immediate to register, and
// by how much it is shifted.
func low12(insn, register uint32) (shift uint, ok bool) {
	if insn>>5&31 != register {
		return 0, false
	}
	switch {
	case insn&0xffc00000 == 0x91000000: // ADD (immediate), 64 bits
		return 0, true
	case insn&0x3b000000 == 0x39000000: // load or store with an unsigned offset
		shift = uint(insn >> 30)
		if insn&0x04800000 == 0x04800000 { // 128 bits
			shift = 4
		}
		return shift, true
	}
	return 0, false
}
