package delta

import (
	"bytes"
	"errors"
	"index/suffixarray"
	"testing"

	"pgregory.net/rapid"
)

func TestLongestMatch(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		symbol := rapid.ByteRange(0, rapid.ByteRange(0, 3).Draw(rt, "symbols"))
		text := rapid.SliceOfN(symbol, 0, 200).Draw(rt, "text")
		pattern := rapid.SliceOfN(symbol, 0, 50).Draw(rt, "pattern")
		s, err := newSuffixes(text)
		if err != nil {
			rt.Fatal(err)
		}
		best := 0
		for i := range text {
			best = max(best, common(text[i:], pattern))
		}
		if best < 2 {
			best = 0
		}
		at, n := s.longest(pattern)
		if n < best || !bytes.HasPrefix(text[at:], pattern[:n]) {
			rt.Errorf("the longest match of %v in %v is %d bytes; found %d at %d", pattern, text, best, n, at)
		}
	})
}

// How index/suffixarray keeps its array is not documented. Should it change, this
// fails, and Make with a clear error.
func TestSuffixesAreSorted(t *testing.T) {
	text := bytes.Repeat([]byte("mississippi"), 2000)
	s, err := newSuffixes(text)
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i < len(s.order); i++ {
		if bytes.Compare(text[s.order[i-1]:], text[s.order[i]:]) >= 0 {
			t.Fatalf("suffixes %d and %d are not sorted", i-1, i)
		}
	}
	if _, err := orderOf(suffixarray.New(text), len(text)+1); !errors.Is(err, errOrder) {
		t.Errorf("an array of another length: %v", err)
	}
}
