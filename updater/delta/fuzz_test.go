package delta

import (
	"bytes"
	"context"
	"errors"
	"testing"
)

// FuzzApply feeds Apply patches of a small program: whatever they say, it
// returns, reads within the old file, and writes no more than was signed.
func FuzzApply(f *testing.F) {
	a, b := inventProgram(codeAMD64, false), inventProgram(codeAMD64, true)
	want := targetOf(a.image, b.image)
	ops, err := match(context.Background(), a.image, b.image)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(assemble(f, a.image, b.image, &plan{ops: ops}))
	f.Add(assemble(f, a.image, b.image, &plan{layout: between(a, b), ops: ops}))
	f.Add(assemble(f, a.image, b.image, &plan{ops: []op{{extra: want.Length}}}))
	f.Fuzz(func(t *testing.T, patch []byte) {
		out, err := apply(t, a.image, patch, want)
		checkEnd(t, out, err, want)
	})
}

// FuzzApplyParts does the same with what is within the compression, where the
// fuzzer does not come to by itself for the checksums.
func FuzzApplyParts(f *testing.F) {
	var olds [2][]byte
	for i, code := range []refKind{codeAMD64, codeARM64} {
		a, b := inventProgram(code, false), inventProgram(code, true)
		ops, err := match(context.Background(), a.image, b.image)
		if err != nil {
			f.Fatal(err)
		}
		for _, l := range []layout{{}, between(a, b)} {
			parts := streams(f, assemble(f, a.image, b.image, &plan{layout: l, ops: ops}))
			f.Add(i == 1, uint16(len(b.image)), parts[0], parts[1], parts[2], parts[3])
		}
		olds[i] = a.image
	}
	f.Fuzz(func(t *testing.T, arm bool, length uint16, plan, runs, fixes, extra []byte) {
		old := olds[0]
		if arm {
			old = olds[1]
		}
		h := Header{OldDigest: digest(old), NewDigest: digest(nil), OldLength: int64(len(old)), NewLength: int64(length)}
		want := Target{OldDigest: h.OldDigest, NewDigest: h.NewDigest, Length: h.NewLength}
		out, err := apply(t, old, repack(t, h, plan, runs, fixes, extra), want)
		checkEnd(t, out, err, want)
	})
}

func checkEnd(t *testing.T, out []byte, err error, want Target) {
	switch {
	case err == nil && int64(len(out)) != want.Length:
		t.Errorf("%d bytes of %d, and no error", len(out), want.Length)
	case err != nil && !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrVersion) && !errors.Is(err, ErrOtherFiles):
		t.Errorf("an error of no kind: %v", err)
	}
}

// FuzzMake makes and applies a patch of any two files, executables among them.
func FuzzMake(f *testing.F) {
	f.Add([]byte("the old file"), []byte("the new file"))
	f.Add([]byte{}, []byte("new"))
	f.Add([]byte("old"), []byte{})
	header := append([]byte("\x7fELF\x02\x01\x01"), bytes.Repeat([]byte{0}, 57)...)
	header[18] = 62 // x86-64
	f.Add(header, append(bytes.Clone(header), 1))
	f.Fuzz(func(t *testing.T, old, new []byte) {
		mustApply(t, old, mustMake(t, old, new), new)
	})
}
