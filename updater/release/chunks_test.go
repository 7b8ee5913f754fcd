package release

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestChunkSizes(t *testing.T) {
	for size, want := range map[int64]int64{
		1: MinChunkBytes, 8 << 20: 16 << 10, 8<<20 + 1: 32 << 10, 32 << 20: 64 << 10, 128 << 20: 256 << 10, MaxArtifactBytes: 256 << 10,
	} {
		if got := ChunkSizeFor(size); got != want || !ValidChunkSize(got) {
			t.Errorf("%d bytes are cut into chunks of %d, want %d", size, got, want)
		}
	}
}

// However the bytes come in, the list has the sha256 of each chunk; any other list
// is refused.
func TestPropertyChunkList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		content := make([]byte, rapid.IntRange(1, 5*MinChunkBytes).Draw(t, "size"))
		_, _ = rand.NewChaCha8([32]byte{1}).Read(content)
		l := NewChunkLister(MinChunkBytes)
		for rest := content; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "piece")
			_, _ = l.Write(rest[:n])
			rest = rest[n:]
		}
		c, list := l.Chunks(), l.List()
		sums, err := c.Open(list, int64(len(content)))
		if err != nil || len(sums) != c.Count(int64(len(content))) {
			t.Fatalf("%d sums of %d bytes, %v", len(sums), len(content), err)
		}
		for i, sum := range sums {
			own := NewChunkLister(MinChunkBytes)
			_, _ = own.Write(content[i*MinChunkBytes : min((i+1)*MinChunkBytes, len(content))])
			if !bytes.Equal(own.List(), sum[:]) {
				t.Errorf("chunk %d has another sum", i)
			}
		}
		at := rapid.IntRange(0, len(list)-1).Draw(t, "at")
		bad := bytes.Clone(list)
		bad[at] ^= 1
		for name, other := range map[string][]byte{"flipped": bad, "short": list[:len(list)-1], "long": append(bytes.Clone(list), 0), "none": nil} {
			if _, err := c.Open(other, int64(len(content))); !errors.Is(err, ErrChunkList) {
				t.Errorf("a list that is %s: %v", name, err)
			}
		}
	})
}

func TestManifestRefusesBadChunks(t *testing.T) {
	list := strings.Repeat("a", 64)
	for name, c := range map[string]struct {
		size int64
		list string
		ok   bool
	}{
		"none": {0, "", true}, "good": {64 << 10, list, true}, "no list": {64 << 10, "", false}, "no size": {0, list, false},
		"too small": {8 << 10, list, false}, "too large": {512 << 10, list, false}, "no power of two": {48 << 10, list, false},
		"negative": {-64 << 10, list, false}, "no digest": {64 << 10, "chunk", false},
	} {
		m := Manifest{Product: Product, Version: "2", Number: 2, Artifacts: []Artifact{{
			OS: "linux", Arch: "amd64", Size: 1, SHA256: list, ChunkSize: c.size, ChunkList: c.list,
		}}}
		if err := m.validate(); (err == nil) != c.ok || err != nil && !strings.Contains(err.Error(), "artifacts: linux/amd64: chunk_") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A release directory whose chunk list is not its binary's is not published.
func TestReadDirChecksTheChunkList(t *testing.T) {
	_, secret, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	for _, whole := range []bool{false, true} {
		o := BuildOptions{
			Dir: filepath.Join(t.TempDir(), "rel"), Version: "2", Number: 2, SecretKey: secret, Whole: whole,
			Files: map[Platform]string{{runtime.GOOS, runtime.GOARCH}: mustSelf(t)},
		}
		m, err := Build(o)
		if err != nil {
			t.Fatal(err)
		}
		if m.Artifacts[0].Chunks().Signed() == whole {
			t.Errorf("whole %v: the chunks are %+v", whole, m.Artifacts[0].Chunks())
		}
		if _, err := ReadDir(o.Dir); err != nil {
			t.Errorf("whole %v: %v", whole, err)
		}
		path := filepath.Join(o.Dir, ManifestFile)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if whole {
			continue
		}
		text = bytes.Replace(text, []byte(m.Artifacts[0].ChunkList), []byte(strings.Repeat("0", 64)), 1)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadDir(o.Dir); !errors.Is(err, ErrMismatch) || !strings.Contains(err.Error(), "chunk list") {
			t.Errorf("another chunk list: %v", err)
		}
	}
}

func mustSelf(t *testing.T) string {
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}
