package mesh

import (
	"encoding/binary"
	"encoding/hex"
)

// writer appends the fields of the mesh's binary formats. The caller has checked
// the bounds.
type writer struct{ b []byte }

func (w *writer) byte(v byte)     { w.b = append(w.b, v) }
func (w *writer) uint16(v uint16) { w.b = binary.BigEndian.AppendUint16(w.b, v) }
func (w *writer) uint64(v uint64) { w.b = binary.BigEndian.AppendUint64(w.b, v) }
func (w *writer) raw(v []byte)    { w.b = append(w.b, v...) }

func (w *writer) text8(s string) {
	w.byte(byte(len(s)))
	w.b = append(w.b, s...)
}

func (w *writer) bytes32(v []byte) {
	w.b = binary.BigEndian.AppendUint32(w.b, uint32(len(v)))
	w.raw(v)
}

func (w *writer) prefix(digits string) {
	b, _ := hex.DecodeString(digits)
	w.raw(b)
}

// reader takes the fields off again. After a failure it returns zero values;
// the caller looks at failed once, at the end.
type reader struct {
	b      []byte
	failed bool
}

func (r *reader) take(n int) []byte {
	if r.failed || n > len(r.b) {
		r.failed, r.b = true, nil
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) byte() byte {
	if v := r.take(1); v != nil {
		return v[0]
	}
	return 0
}

func (r *reader) uint16() uint16 {
	if v := r.take(2); v != nil {
		return binary.BigEndian.Uint16(v)
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if v := r.take(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

// count reads a count of at most limit.
func (r *reader) count(limit int) int {
	n := int(r.byte())
	if n > limit {
		r.failed = true
		return 0
	}
	return n
}

func (r *reader) text8(limit int) string { return string(r.take(r.count(limit))) }

// bytes32 reads at most limit bytes; the result shares memory with the input.
func (r *reader) bytes32(limit int) []byte {
	v := r.take(4)
	if v == nil {
		return nil
	}
	n := binary.BigEndian.Uint32(v)
	if n > uint32(limit) {
		r.failed = true
		return nil
	}
	return r.take(int(n))
}

func (r *reader) prefix() string { return hex.EncodeToString(r.take(digestPrefix)) }
