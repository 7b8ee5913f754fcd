package artifact

import (
	"io"
	"math/rand/v2"
	"runtime"
	"testing"
)

// maxAllocated is what bringing an artifact from one host to another may
// allocate in all on both hosts, TLS included. An artifact is 64 MB here.
const maxAllocated = 8 << 20

// Artifacts are streamed: what is allocated does not depend on their length.
func TestNoArtifactIsHeldInMemory(t *testing.T) {
	const size = 64 << 20
	l := newLine(t, 1) // its own artifact is another one
	store, err := OpenStore(t.TempDir(), "", "")
	must(t, err)
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"import", func() (err error) {
			random := io.LimitReader(rand.NewChaCha8([32]byte{8}), size)
			l.digest, err = l.held.Import(random, size, anything)
			return err
		}},
		{"fetch and serve", func() error {
			_, err := Fetch(t.Context(), l.request(store, size))
			return err
		}},
		{"verify", func() error { return store.Verify(l.digest) }},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := step.do()
		runtime.ReadMemStats(&after)
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		allocated := after.TotalAlloc - before.TotalAlloc
		t.Logf("%s of %d bytes: %d bytes allocated", step.name, int64(size), allocated)
		if allocated > maxAllocated {
			t.Errorf("%s of %d bytes allocated %d bytes, want at most %d", step.name, int64(size), allocated, maxAllocated)
		}
	}
}
