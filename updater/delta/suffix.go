package delta

import (
	"encoding/binary"
	"errors"
	"index/suffixarray"
	"reflect"
	"unsafe"
)

// suffixes finds the longest match of any bytes in a text. Safe for concurrent
// use once made.
type suffixes struct {
	text  []byte
	order []int32 // the suffixes of text, sorted
	// first[p] is how many suffixes sort before those that begin with the two bytes
	// p: it spares the search its first sixteen steps, and their cache misses.
	first [1<<16 + 1]int32
}

// newSuffixes sorts the suffixes of text. It holds 4 bytes for each byte of text,
// besides the text. The text is no longer than MaxFileLen.
func newSuffixes(text []byte) (*suffixes, error) {
	s := &suffixes{text: text}
	var err error
	if s.order, err = orderOf(suffixarray.New(text), len(text)); err != nil {
		return nil, err
	}
	for i := range len(text) {
		s.first[s.prefix(i)+1]++
	}
	for p := range 1 << 16 {
		s.first[p+1] += s.first[p]
	}
	return s, nil
}

// prefix is the first two bytes of a suffix; the last suffix, of one byte, sorts
// before all others that begin with that byte, as if a zero followed.
func (s *suffixes) prefix(at int) int {
	if at+1 < len(s.text) {
		return int(s.text[at])<<8 | int(s.text[at+1])
	}
	return int(s.text[at]) << 8
}

// longest returns where the text has the longest match of the beginning of
// pattern, and its length. Matches of a single byte are not looked for.
func (s *suffixes) longest(pattern []byte) (at, length int) {
	if len(pattern) < 2 {
		return 0, 0
	}
	p := int(pattern[0])<<8 | int(pattern[1])
	low, high := int(s.first[p]), int(s.first[p+1])
	if low == high {
		return 0, 0
	}
	// The suffix before low sorts below the pattern, that at high above it; what
	// each has in common with the pattern, all between them have.
	below, above := 0, 0
	for low < high {
		middle := int(uint(low+high) >> 1)
		suffix := s.text[s.order[middle]:]
		n := min(below, above)
		n += common(suffix[n:], pattern[n:])
		if n > length {
			at, length = int(s.order[middle]), n
		}
		switch {
		case n == len(pattern):
			return at, length
		case n == len(suffix) || suffix[n] < pattern[n]:
			low, below = middle+1, n
		default:
			high, above = middle, n
		}
	}
	return at, length
}

// common is how many bytes a and b have in common from their beginnings.
func common(a, b []byte) int {
	n := min(len(a), len(b))
	a, b = a[:n], b[:n]
	i := 0
	for ; i+8 <= n; i += 8 {
		if binary.LittleEndian.Uint64(a[i:]) != binary.LittleEndian.Uint64(b[i:]) {
			break
		}
	}
	for i < n && a[i] == b[i] {
		i++
	}
	return i
}

// orderOf takes the array out of an index of n bytes. The package itself only
// searches for all matches of a given length; what it writes down would be a
// second array beside the first.
func orderOf(index *suffixarray.Index, n int) ([]int32, error) {
	field := reflect.ValueOf(index).Elem().FieldByName("sa")
	if field.IsValid() && field.Kind() == reflect.Struct {
		field = field.FieldByName("int32")
	}
	if !field.IsValid() || field.Type() != reflect.TypeFor[[]int32]() || field.Len() != n {
		return nil, errOrder
	}
	return unsafe.Slice((*int32)(field.UnsafePointer()), n), nil
}

var errOrder = errors.New("sort the suffixes of the old file: index/suffixarray of this Go version is laid out in another way")
