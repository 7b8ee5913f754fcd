package artifact

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func anything(string, int64) bool { return true }

func (w *world) put(content string) string {
	w.t.Helper()
	digest, err := w.store.Import(strings.NewReader(content), 1<<20, anything)
	if err != nil {
		w.t.Fatal(err)
	}
	return digest
}

func TestImport(t *testing.T) {
	w := newWorld(t, 1)
	digest := w.put("content")
	if digest != digestOf([]byte("content")) || !w.store.Has(digest) {
		t.Errorf("imported as %s", digest)
	}
	w.put("content") // again
	f, size, err := w.store.Open(digest)
	if err != nil || size != 7 {
		t.Fatalf("open: %d, %v", size, err)
	}
	defer f.Close()
	if got, _ := io.ReadAll(f); string(got) != "content" {
		t.Errorf("holds %q", got)
	}
	if st, _ := os.Stat(w.dir); !hasMode(st, 0o700) {
		t.Errorf("the directory's mode is %v", st.Mode())
	}
}

func TestImportDropsWhatIsNotWanted(t *testing.T) {
	w := newWorld(t, 1)
	refuse := func(string, int64) bool { return false }
	for name, err := range map[string]error{
		"not wanted": second(w.store.Import(strings.NewReader("content"), 100, refuse)),
		"too long":   second(w.store.Import(strings.NewReader("content"), 6, anything)),
	} {
		if !errors.Is(err, ErrNotWanted) {
			t.Errorf("%s: %v", name, err)
		}
	}
	broken := errors.New("broken")
	if _, err := w.store.Import(io.MultiReader(strings.NewReader("con"), failing{broken}), 100, anything); !errors.Is(err, broken) {
		t.Errorf("a broken upload: %v", err)
	}
	if entries, _ := os.ReadDir(w.dir); len(entries) != 0 {
		t.Errorf("the directory holds %v", entries)
	}
}

func second(_ string, err error) error { return err }

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestOpenStoreSweepsAndCloses(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	partial := unverifiedPrefix + strings.Repeat("a", 64)
	for _, name := range []string{"unverified-import-123", partial} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mustOpen(t, dir)
	entries, _ := os.ReadDir(dir)
	if len(entries) != 1 || entries[0].Name() != partial {
		t.Errorf("left are %v, want only what can be resumed", entries)
	}
	if st, _ := os.Stat(dir); !hasMode(st, 0o700) {
		t.Errorf("the directory's mode is %v", st.Mode())
	}
}

func TestVerifyDropsDamage(t *testing.T) {
	w := newWorld(t, 1)
	digest := w.put("content")
	if err := w.store.Verify(digest); err != nil {
		t.Errorf("a sound artifact: %v", err)
	}
	if err := os.WriteFile(w.store.Path(digest), []byte("c0ntent"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := w.store.Verify(digest); !errors.Is(err, ErrDamaged) {
		t.Errorf("a damaged artifact: %v", err)
	}
	if err := w.store.Verify(digest); !errors.Is(err, ErrNotHeld) {
		t.Errorf("after that: %v", err)
	}
}

func TestRetain(t *testing.T) {
	dir := t.TempDir()
	running := digestOf([]byte("running"))
	s, err := OpenStore(dir, running, os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: dir, store: s}
	w.put("running")
	kept, dropped := w.put("kept"), w.put("dropped")
	partial, busy := strings.Repeat("a", 64), strings.Repeat("b", 64)
	for _, digest := range []string{partial, busy} {
		w.digest = digest
		w.leave([]byte("half"))
	}
	_, release, err := s.claim(t.Context(), busy, func(flightState) {})
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if err := os.WriteFile(filepath.Join(dir, "foreign"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Prune(0, kept); err != nil {
		t.Fatal(err)
	}
	want := []string{running, kept, unverifiedPrefix + busy, "foreign"}
	entries, _ := os.ReadDir(dir)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("left are %v, want %v (dropped is %s)", got, want, dropped)
	}
	if list, _ := s.List(); len(list) != 2 {
		t.Errorf("listed are %v", list)
	}
}

// Of what is not named the newest are spared; the age counts, not the name.
func TestPruneSparesTheNewest(t *testing.T) {
	w := newWorld(t, 1)
	var digests []string
	for i := range 5 {
		digest := w.put(fmt.Sprint("content ", i))
		written := time.Unix(int64(1000+i), 0)
		if err := os.Chtimes(w.store.Path(digest), written, written); err != nil {
			t.Fatal(err)
		}
		digests = append(digests, digest)
	}
	w.digest = strings.Repeat("a", 64)
	w.leave([]byte("half, and newer than all"))
	if err := w.store.Prune(2, digests[0]); err != nil {
		t.Fatal(err)
	}
	want := []string{digests[0], digests[3], digests[4]}
	slices.Sort(want)
	if list, err := w.store.List(); err != nil || !slices.Equal(list, want) {
		t.Errorf("left are %v, %v; want the named one and the newest two %v", list, err, want)
	}
	if _, err := os.Stat(w.store.partialPath(w.digest)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a partial file that nobody fetches was spared: %v", err)
	}
}

// On trial the running binary is the artifact in the store, and nothing else.
func TestTheRunningBinaryIsNeverDeleted(t *testing.T) {
	dir := t.TempDir()
	w := &world{t: t, dir: dir, store: mustOpen(t, dir)}
	digest := w.put("running")
	s, err := OpenStore(dir, digest, w.store.Path(digest))
	if err != nil {
		t.Fatal(err)
	}
	for name, drop := range map[string]func() error{
		"remove": func() error { return s.Remove(digest) },
		"retain": func() error { return s.Prune(0) },
		"prune":  func() error { return s.Prune(0) },
	} {
		if err := drop(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := s.Verify(digest); err != nil {
			t.Fatalf("after %s the running binary is gone: %v", name, err)
		}
	}
}

func TestRemoveSparesWhatIsBeingFetched(t *testing.T) {
	w := newWorld(t, 1000)
	w.leave([]byte("half"))
	_, release, err := w.store.claim(t.Context(), w.digest, func(flightState) {})
	if err != nil {
		t.Fatal(err)
	}
	for _, left := range []bool{true, false} {
		if err := w.store.Remove(w.digest); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(w.store.partialPath(w.digest)); (err == nil) != left {
			t.Errorf("being fetched %v: %v", left, err)
		}
		if left {
			release()
		}
	}
}

// hasMode tells whether a file has a mode; Windows has access control lists instead.
func hasMode(st os.FileInfo, mode os.FileMode) bool {
	return runtime.GOOS == "windows" || st.Mode().Perm() == mode
}

func TestDiskFullSaysHowMuchIsFree(t *testing.T) {
	dir := t.TempDir()
	err := describeDiskError(dir, &os.PathError{Op: "write", Path: "x", Err: errDiskFull})
	if !errors.Is(err, ErrDiskFull) || !errors.Is(err, errDiskFull) || !strings.Contains(err.Error(), "MB are free in "+dir) {
		t.Errorf("error is %v", err)
	}
	other := errors.New("other")
	if got := describeDiskError(dir, other); !errors.Is(got, other) || errors.Is(got, ErrDiskFull) {
		t.Errorf("another error became %v", got)
	}
}

// Whatever mixture of honest, corrupt, dropping and busy peers there is: with an
// honest one the fetch succeeds, without one nothing gets a final name.
func TestPropertyAnyMixtureOfPeers(t *testing.T) {
	w := newWorld(t, 50_000)
	w.peer("honest", 0, w.honest())
	w.peer("corrupt", 0, w.flipped(40_000))
	w.peer("corrupt early", 0, w.flipped(0))
	w.peer("short", 0, serveBytes(w.bytes[:40_000]))
	w.peer("busy", 0, busy)
	w.peer("dropping", 0, dropping(w.bytes, 30_000))
	w.peer("corrupt and dropping", 0, dropping(mustFlip(w.bytes, 10), 10_000))
	all := w.peers
	rapid.Check(t, func(rt *rapid.T) {
		w.peers = nil
		honest := false
		for _, p := range all {
			if rapid.Bool().Draw(rt, p.HostID) {
				p.Class = rapid.IntRange(0, 3).Draw(rt, "class of "+p.HostID)
				w.peers = append(w.peers, p)
				honest = honest || p.HostID == "honest"
			}
		}
		if !honest {
			return // TestOnlyCorruptPeers; each such case takes the seconds of its rounds
		}
		dir, err := os.MkdirTemp(w.dir, "case-*")
		if err != nil {
			rt.Fatal(err)
		}
		if w.store, err = OpenStore(dir, "", ""); err != nil {
			rt.Fatal(err)
		}
		sources, err := Fetch(t.Context(), w.request())
		if err != nil {
			rt.Fatalf("with an honest peer among %s: %v", names(w.peers), err)
		}
		var sum int64
		for _, s := range sources {
			sum += s.Bytes
		}
		if err := w.store.Verify(w.digest); err != nil || sum != int64(len(w.bytes)) {
			rt.Fatalf("%v; sources give %d bytes", err, sum)
		}
	})
}

func names(peers []Peer) string {
	var out []string
	for _, p := range peers {
		out = append(out, fmt.Sprintf("%s/%d", p.HostID, p.Class))
	}
	return strings.Join(out, ", ")
}
