package delta

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write the golden files anew")

// A patch makes the new file, whatever the two are.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		length := rapid.IntRange(0, 20_000).Draw(rt, "length")
		symbols := rapid.IntRange(1, 256).Draw(rt, "symbols")
		r := rand.New(rand.NewPCG(seed, 1))
		old := make([]byte, length)
		for i := range old {
			old[i] = byte(r.IntN(symbols))
		}
		new := edited(r, old, rapid.IntRange(0, 40).Draw(rt, "edits"))
		patch := mustMake(t, old, new)
		mustApply(t, old, patch, new)
		if again := mustMake(t, old, new); !bytes.Equal(again, patch) {
			rt.Fatal("the same files give two patches")
		}
	})
}

// Whatever a patch says of the executables, both sides predict the same.
func TestRoundTripWithAnyLayout(t *testing.T) {
	addresses := rapid.OneOf(rapid.Uint64Range(0, 1<<16), rapid.Uint64())
	rapid.Check(t, func(rt *rapid.T) {
		a, b := inventProgram(codeAMD64, false), inventProgram(codeARM64, true)
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 1))
		old := edited(r, a.image, rapid.IntRange(0, 20).Draw(rt, "edits of old"))
		new := edited(r, b.image, rapid.IntRange(0, 20).Draw(rt, "edits of new"))
		l := between(a, b)
		for _, segments := range []*[]segment{&l.oldSegments, &l.newSegments} {
			if rapid.Bool().Draw(rt, "other segments") {
				*segments = nil
				for range rapid.IntRange(0, 5).Draw(rt, "segments") {
					*segments = append(*segments, segment{addresses.Draw(rt, "off"), addresses.Draw(rt, "addr"), addresses.Draw(rt, "len"), addresses.Draw(rt, "mem")})
				}
			}
		}
		if rapid.Bool().Draw(rt, "other bases") {
			for i := range l.oldBases.all() {
				*l.oldBases.all()[i], *l.newBases.all()[i] = addresses.Draw(rt, "base"), addresses.Draw(rt, "base")
			}
		}
		end := int64(0)
		l.regions = nil
		for range rapid.IntRange(0, 10).Draw(rt, "regions") {
			begin := rapid.Int64Range(end, int64(len(old))).Draw(rt, "begin")
			end = rapid.Int64Range(begin, int64(len(old))).Draw(rt, "end")
			l.regions = append(l.regions, region{begin, end, refKind(rapid.IntRange(0, int(kinds)-1).Draw(rt, "kind"))})
		}
		ops, err := match(context.Background(), old, new)
		if err != nil {
			rt.Fatal(err)
		}
		mustApply(t, old, assemble(t, old, new, &plan{layout: l, ops: ops}), new)
	})
}

// References that follow from what moved cost nothing: of an edit that moves all
// functions, little more than the new code is left.
func TestPredictsReferences(t *testing.T) {
	for name, code := range map[string]refKind{"amd64": codeAMD64, "arm64": codeARM64} {
		t.Run(name, func(t *testing.T) {
			a, b := inventProgram(code, false), inventProgram(code, true)
			ops, err := match(context.Background(), a.image, b.image)
			if err != nil {
				t.Fatal(err)
			}
			plain := assemble(t, a.image, b.image, &plan{ops: ops})
			predicted := assemble(t, a.image, b.image, &plan{layout: between(a, b), ops: ops})
			mustApply(t, a.image, plain, b.image)
			mustApply(t, a.image, predicted, b.image)
			t.Logf("%d bytes, %d without prediction", len(predicted), len(plain))
			if len(predicted) > len(plain)/2 {
				t.Errorf("the patch has %d bytes, and %d without prediction", len(predicted), len(plain))
			}
		})
	}
}

// Patches made by earlier versions can be applied for ever, and this one makes the
// same but for their compression. A change to these files is a new format version.
func TestGolden(t *testing.T) {
	old := []byte(strings.Repeat("The quick brown fox jumps over the lazy dog. ", 40))
	text := program{image: old}
	edit := program{image: edited(rand.New(rand.NewPCG(1, 2)), old, 12)}
	for name, pair := range map[string][2]program{
		"text":  {text, edit},
		"amd64": {inventProgram(codeAMD64, false), inventProgram(codeAMD64, true)},
		"arm64": {inventProgram(codeARM64, false), inventProgram(codeARM64, true)},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair[0], pair[1]
			ops, err := match(context.Background(), a.image, b.image)
			if err != nil {
				t.Fatal(err)
			}
			patch := assemble(t, a.image, b.image, &plan{layout: between(a, b), ops: ops})
			path := filepath.Join("testdata", name+".patch")
			if *update {
				if err := os.WriteFile(path, patch, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			golden, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			mustApply(t, a.image, golden, b.image)
			if got, want := describeParts(streams(t, patch)), describeParts(streams(t, golden)); got != want {
				t.Errorf("the patch's parts are:\n%sand of %s:\n%s", got, path, want)
			}
		})
	}
}

func TestApplyRefuses(t *testing.T) {
	old := bytes.Repeat([]byte("0123456789abcdef"), 200)
	new := edited(rand.New(rand.NewPCG(5, 6)), old, 10)
	patch := mustMake(t, old, new)
	good := targetOf(old, new)
	header, err := ReadHeader(bytes.NewReader(patch))
	if err != nil {
		t.Fatal(err)
	}
	parts := streams(t, patch)
	plain := func(ops ...op) *plan { return &plan{ops: ops} }
	length := int64(len(new))
	with := func(at int, b byte) []byte {
		p := bytes.Clone(patch)
		p[at] = b
		return p
	}
	for name, c := range map[string]struct {
		patch []byte
		want  Target
		err   error
		says  string
	}{
		"empty":                 {nil, good, ErrMalformed, "header"},
		"another file":          {bytes.Repeat([]byte("x"), 200), good, ErrMalformed, magic},
		"a newer format":        {with(8, 2), good, ErrVersion, "take the whole file"},
		"reserved bytes":        {with(10, 1), good, ErrMalformed, "not zero"},
		"too long a file":       {with(91, 1), good, ErrMalformed, "at most"},
		"from another file":     {patch, Target{digest(new), good.NewDigest, length}, ErrOtherFiles, "from"},
		"to another file":       {patch, Target{good.OldDigest, digest(old), length}, ErrOtherFiles, "to"},
		"of another length":     {patch, Target{good.OldDigest, good.NewDigest, length - 1}, ErrOtherFiles, "signed"},
		"bytes behind":          {append(bytes.Clone(patch), 0), good, ErrMalformed, "follow on its end"},
		"damaged":               {with(len(patch)-3, patch[len(patch)-3]^1), good, ErrMalformed, ""},
		"copies before":         {repack(t, header, plain(op{old: -1, copy: length}).marshal()), good, ErrMalformed, "outside the old file"},
		"copies behind":         {repack(t, header, plain(op{old: header.OldLength - 5, copy: 10}, op{extra: length - 10}).marshal(), []byte{10, 0}, nil, new[10:]), good, ErrMalformed, "outside the old file"},
		"makes too little":      {repack(t, header, plain(op{copy: length / 2}).marshal()), good, ErrMalformed, "make"},
		"makes too much":        {repack(t, header, plain(op{copy: 1, extra: length}).marshal()), good, ErrMalformed, "bytes from the patch"},
		"does nothing":          {repack(t, header, plain(op{}, op{extra: length}).marshal()), good, ErrMalformed, "does nothing"},
		"a plan too short":      {repack(t, header, parts[0][:len(parts[0])-1]), good, ErrMalformed, "plan"},
		"a plan too long":       {repack(t, header, append(bytes.Clone(parts[0]), 0)), good, ErrMalformed, "follow on its plan"},
		"no group":              {repack(t, header, parts[0]), good, ErrMalformed, "too early"},
		"lacks extra bytes":     {repack(t, header, plain(op{extra: length}).marshal(), nil, nil, nil), good, ErrMalformed, "lacks bytes"},
		"lacks corrections":     {repack(t, header, plain(op{copy: 10}, op{extra: length - 10}).marshal(), []byte{0, 10}, nil, nil), good, ErrMalformed, "lacks corrections"},
		"an empty run":          {repack(t, header, plain(op{copy: 10}, op{extra: length - 10}).marshal(), []byte{0, 0}, nil, nil), good, ErrMalformed, "run is empty"},
		"a broken run":          {repack(t, header, plain(op{copy: 10}, op{extra: length - 10}).marshal(), []byte{0x80}, nil, nil), good, ErrMalformed, "within a run"},
		"too long a run":        {repack(t, header, plain(op{copy: 10}, op{extra: length - 10}).marshal(), []byte{11, 0}, nil, new[10:]), good, ErrMalformed, "goes on"},
		"unused extra":          {repack(t, header, append(append([][]byte{}, parts[:3]...), append(bytes.Clone(parts[3]), 'x'))...), good, ErrMalformed, "goes on"},
		"a group ends too soon": {repack(t, header, plain(op{copy: 10}, op{extra: length - 10}).marshal(), []byte{10, 0}, []byte{1}, nil), good, ErrMalformed, "before its streams"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := apply(t, old, c.patch, c.want)
			if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %v that says %q", err, c.err, c.says)
			}
		})
	}
	for n := range patch {
		if _, err := apply(t, old, patch[:n], good); !errors.Is(err, ErrMalformed) {
			t.Fatalf("the first %d bytes of a patch: %v", n, err)
		}
	}
}

func TestApplyStops(t *testing.T) {
	old := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
	patch := mustMake(t, old, old)
	want := targetOf(old, old)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Apply(ctx, bytes.NewReader(old), bytes.NewReader(patch), want, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := Make(ctx, old, old, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("making cancelled: %v", err)
	}
	if err := Apply(t.Context(), bytes.NewReader(old[:100]), bytes.NewReader(patch), want, io.Discard); !errors.Is(err, io.EOF) {
		t.Errorf("an old file too short: %v", err)
	}
	broken := errors.New("the link broke")
	if err := Apply(t.Context(), bytes.NewReader(old), io.MultiReader(bytes.NewReader(patch[:HeaderLen+3]), failing{broken}), want, io.Discard); !errors.Is(err, broken) || errors.Is(err, ErrMalformed) {
		t.Errorf("a patch that breaks off: %v", err)
	}
	if err := Apply(t.Context(), bytes.NewReader(old), bytes.NewReader(patch), want, failing{broken}); !errors.Is(err, broken) {
		t.Errorf("a disk that fails: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error)  { return 0, f.err }
func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestMakeRefusesLargeFiles(t *testing.T) {
	if err := checkLengths(MaxFileLen, MaxFileLen); err != nil {
		t.Errorf("files of the largest length: %v", err)
	}
	for _, err := range []error{checkLengths(MaxFileLen+1, 0), checkLengths(0, MaxFileLen+1)} {
		if !errors.Is(err, ErrTooLarge) {
			t.Errorf("too large a file: %v", err)
		}
	}
}

// ramp is an old file of which each function record lies behind the one before.
type ramp struct{ table, records int64 }

func (r ramp) ReadAt(b []byte, off int64) (int, error) {
	clear(b)
	for i := range b {
		at := off + int64(i)
		if at < r.table || at >= r.records {
			continue
		}
		k, j := (at-r.table)/functabEntry, (at-r.table)%functabEntry
		if j >= 4 {
			b[i] = byte((r.records - r.table + k*recordLen) >> (8 * (j - 4)))
		}
	}
	return len(b), nil
}

// All that Apply ever allocates is less than what it may hold, with each limit
// of the format used up.
func TestApplyMemory(t *testing.T) {
	h := Header{OldDigest: digest(nil), NewDigest: digest(nil), OldLength: MaxFileLen}
	p := &plan{layout: layout{regions: []region{
		{0, maxFuncs * functabEntry, goFunctab}, {maxFuncs * functabEntry, MaxFileLen, goFuncs},
	}}}
	for i := range int64(maxOps) {
		p.ops = append(p.ops, op{old: i * (MaxFileLen/maxOps - 1), copy: 1, extra: 3, new: 4 * i})
	}
	h.NewLength = 4 * maxOps
	parts := [][]byte{p.marshal()}
	r := rand.New(rand.NewPCG(9, 9))
	// Groups as large as they may be, that do not compress.
	const perGroup = maxGroupLen / 3 // ops
	for done := 0; done < maxOps; done += perGroup {
		n := min(perGroup, maxOps-done)
		extra, fixes := make([]byte, 3*n), make([]byte, n)
		for i := range extra {
			extra[i] = byte(r.Uint32())
		}
		parts = append(parts, bytes.Repeat([]byte{0, 1}, n), fixes, extra)
	}
	patch := repack(t, h, parts...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err := Apply(t.Context(), ramp{0, maxFuncs * functabEntry}, bytes.NewReader(patch), Target{h.OldDigest, h.NewDigest, h.NewLength}, io.Discard)
	runtime.ReadMemStats(&after)
	if err != nil {
		t.Fatal(err)
	}
	allocated := after.TotalAlloc - before.TotalAlloc
	t.Logf("%d KiB allocated in all", allocated>>10)
	if allocated > MaxApplyMemory {
		t.Errorf("%d bytes are allocated in all, and %d may be held", allocated, MaxApplyMemory)
	}
}

// What both sides see of a chunk must be the same, though the one that applies
// has corrected the bytes before. Here a corrected byte looks like an opcode's to
// one side, and records lie over each other.
func TestBothSidesSeeTheSame(t *testing.T) {
	everything := []segment{{memLen: 1 << 63}}
	le := binary.LittleEndian
	code := func(call, between, load uint32) []byte {
		b := append([]byte{0xe8}, le.AppendUint32(nil, call-5)...)
		b = append(append(b, 0xe8), le.AppendUint32(nil, between)...)
		b = append(append(b, 0x05), le.AppendUint32(nil, load-15)...)
		return append(b, make([]byte, 16)...)
	}
	table := func(change uint32) []byte {
		b := make([]byte, 2*functabEntry+200)
		le.PutUint32(b[4:], 2*functabEntry)
		le.PutUint32(b[12:], 2*functabEntry+recordLen)
		for i := 2 * functabEntry; i+4 <= len(b); i += 4 {
			le.PutUint32(b[i:], uint32(i)<<8+change)
		}
		b[2*functabEntry+28], b[2*functabEntry+43] = 20, 0 // its counters lie over the next record
		return b
	}
	for name, c := range map[string]struct {
		old, new []byte
		regions  []region
	}{
		"a corrected byte that was an opcode": {
			code(1000, 0x0b000000, 1000), code(1016, 0x07000000, 1016), []region{{0, 31, codeAMD64}},
		},
		"records over each other": {
			table(0), table(0x10000), []region{{0, 2 * functabEntry, goFunctab}, {2 * functabEntry, 2*functabEntry + 200, goFuncs}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := &plan{layout: layout{oldSegments: everything, newSegments: everything, regions: c.regions}}
			p.oldBases.text, p.newBases.text = 1<<40, 1<<40
			p.ops = []op{{copy: int64(len(c.new))}}
			mustApply(t, c.old, assemble(t, c.old, c.new, p), c.new)
		})
	}
}
