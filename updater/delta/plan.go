package delta

import (
	"encoding/binary"
	"math"
)

// op is one step of a patch: copy bytes from the old file, corrected where they
// differ, then take bytes of the new file from the patch.
type op struct {
	old   int64 // where the copy begins in the old file
	new   int64 // where it goes; follows from the ops before
	copy  int64
	extra int64
}

// plan is what has to be known before the first byte of the new file is made.
type plan struct {
	layout
	ops []op
}

func (p *plan) marshal() []byte {
	var b []byte
	put := func(values ...uint64) {
		for _, v := range values {
			b = binary.AppendUvarint(b, v)
		}
	}
	for _, segments := range [][]segment{p.oldSegments, p.newSegments} {
		put(uint64(len(segments)))
		for _, s := range segments {
			put(s.off, s.addr, s.fileLen, s.memLen)
		}
	}
	put(uint64(len(p.regions)))
	end := int64(0)
	for _, r := range p.regions {
		put(uint64(r.kind), uint64(r.begin-end), uint64(r.end-r.begin))
		end = r.end
	}
	for i := range p.oldBases.all() {
		put(*p.oldBases.all()[i], *p.newBases.all()[i])
	}
	put(uint64(len(p.ops)))
	end = 0
	for _, o := range p.ops {
		put(uint64(o.copy), uint64(o.extra))
		b = binary.AppendVarint(b, o.old-end)
		end = o.old + o.copy
	}
	return b
}

// parsePlan reads a plan and checks it against the lengths of the files: what it
// returns copies from within the old file and makes exactly the new one.
func parsePlan(b []byte, oldLen, newLen int64) (*plan, error) {
	r := varints{b: b}
	p := new(plan)
	for _, segments := range []*[]segment{&p.oldSegments, &p.newSegments} {
		n := r.upTo(maxSegments, "segments")
		for range n {
			*segments = append(*segments, segment{off: r.next(), addr: r.next(), fileLen: r.next(), memLen: r.next()})
		}
	}
	n := r.upTo(maxRegions, "regions")
	end := int64(0)
	for range n {
		kind := refKind(r.upTo(uint64(kinds)-1, "kind of a region"))
		begin := end + int64(r.upTo(uint64(oldLen-end), "begin of a region"))
		end = begin + int64(r.upTo(uint64(oldLen-begin), "length of a region"))
		p.regions = append(p.regions, region{begin, end, kind})
	}
	for i := range p.oldBases.all() {
		*p.oldBases.all()[i] = r.next()
		*p.newBases.all()[i] = r.next()
	}
	n = r.upTo(maxOps, "ops")
	p.ops = make([]op, 0, min(n, uint64(len(r.b)/3)))
	end = 0
	made := int64(0)
	for range n {
		o := op{new: made}
		o.copy = int64(r.upTo(uint64(newLen-made), "copied bytes"))
		made += o.copy
		o.extra = int64(r.upTo(uint64(newLen-made), "bytes from the patch"))
		made += o.extra
		o.old = end + r.signed()
		switch {
		case r.err != nil:
			return nil, r.err
		case o.old < 0 || o.copy > oldLen || o.old > oldLen-o.copy:
			return nil, malformed("op %d copies from outside the old file", len(p.ops))
		case o.copy == 0 && o.extra == 0:
			return nil, malformed("op %d does nothing", len(p.ops))
		}
		end = o.old + o.copy
		p.ops = append(p.ops, o)
	}
	switch {
	case r.err != nil:
		return nil, r.err
	case len(r.b) > 0:
		return nil, malformed("%d bytes follow on its plan", len(r.b))
	case made != newLen:
		return nil, malformed("its ops make %d bytes of %d", made, newLen)
	}
	return p, nil
}

// varints reads numbers; after the first error they are zero.
type varints struct {
	b   []byte
	err error
}

func (r *varints) next() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail("its plan ends within a number")
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *varints) upTo(limit uint64, what string) uint64 {
	v := r.next()
	if v > limit {
		r.fail("%s: %d, and at most %d are possible", what, v, limit)
		return 0
	}
	return v
}

// signed reads a number no file's length away from zero.
func (r *varints) signed() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 || v > math.MaxInt32 || v < -math.MaxInt32 {
		r.fail("its plan ends within a number, or one is out of range")
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *varints) fail(format string, args ...any) {
	if r.err == nil {
		r.err = malformed(format, args...)
	}
	r.b = nil
}
