package artifact

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// ballast is what else is kept within a store's limit.
type ballast struct{ used int64 }

func (b *ballast) Used() int64 { return b.used }
func (b *ballast) Drop(n int64) error {
	b.used = max(0, b.used-n)
	return nil
}

// crowdedStore holds five artifacts of a hundred bytes, the oldest first; the third
// runs here.
func crowdedStore(t *testing.T) (w *world, digests []string) {
	dir := t.TempDir()
	content := func(i int) []byte { return bytes.Repeat([]byte{byte('0' + i)}, 100) }
	s, err := OpenStore(dir, digestOf(content(2)), os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	w = &world{t: t, dir: dir, store: s}
	for i := range 5 {
		digest := w.put(string(content(i)))
		at := time.Unix(int64(1000+i), 0)
		if err := os.Chtimes(s.Path(digest), at, at); err != nil {
			t.Fatal(err)
		}
		digests = append(digests, digest)
	}
	return w, digests
}

func (w *world) mustKeep(what string, digests ...string) {
	w.t.Helper()
	digests = slices.Sorted(slices.Values(digests))
	if list, err := w.store.List(); err != nil || !slices.Equal(list, digests) {
		w.t.Errorf("%s: left are %.6s, %v; want %.6s", what, list, err, digests)
	}
}

// The limit is in bytes: what is over goes, the oldest first, and only as much as
// has to.
func TestRoomIsMadeOldestFirst(t *testing.T) {
	wanted := strings.Repeat("a", 64)
	for _, tc := range []struct {
		limit int64
		gone  []int
	}{
		{0, nil}, {1000, nil}, {700, nil}, {699, []int{0}}, {600, []int{0}}, {599, []int{0, 1}}, {500, []int{0, 1}}, {400, []int{0, 1, 3}},
	} {
		w, all := crowdedStore(t)
		w.store.SetLimit(tc.limit)
		if err := w.store.MakeRoom(wanted, 200, 10); err != nil {
			t.Errorf("limit %d: %v", tc.limit, err)
		}
		var want []string
		for i, d := range all {
			if !slices.Contains(tc.gone, i) {
				want = append(want, d)
			}
		}
		w.mustKeep(fmt.Sprint("limit ", tc.limit), want...)
	}
}

// What runs, what is to run, what can be gone back to, what is named and what is
// being fetched is never deleted for what is to come: that is refused.
func TestNoRoomIsMadeOfWhatIsNeeded(t *testing.T) {
	w, all := crowdedStore(t)
	w.store.SetLimit(749)
	w.store.Pin(all[0])
	w.store.Keep(all[1], "")
	err := w.store.MakeRoom(strings.Repeat("a", 64), 350, 0, all[3])
	if !errors.Is(err, ErrLimit) {
		t.Errorf("the error is %v", err)
	}
	w.mustKeep("after it", all[0], all[1], all[2], all[3])
	// Of a half that is here only the rest is to come.
	w.digest = strings.Repeat("a", 64)
	w.leave(make([]byte, 150))
	w.store.SetLimit(750)
	if err := w.store.MakeRoom(w.digest, 350, 0, all[3]); err != nil {
		t.Errorf("with a half of it here: %v", err)
	}
	w.mustKeep("with a half of it here", all[0], all[1], all[2], all[3])
	// What is being fetched counts as if it were here.
	own, release, err := w.store.claim(t.Context(), w.digest, func(flightState) {})
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	own.update(func(s *flightState) { s.size = 350 })
	if err := w.store.MakeRoom(strings.Repeat("b", 64), 1, 0, all[3]); !errors.Is(err, ErrLimit) {
		t.Errorf("beside a fetch that takes the rest: %v", err)
	}
	if _, err := os.Stat(w.store.partialPath(w.digest)); err != nil {
		t.Errorf("what is being fetched was deleted: %v", err)
	}
	w.mustKeep("beside it", all[0], all[1], all[2], all[3])
}

// What is kept besides counts, and goes when artifacts have gone.
func TestWhatIsKeptBesidesCounts(t *testing.T) {
	w, all := crowdedStore(t)
	b := &ballast{used: 300}
	w.store.CountBesides(b)
	w.store.SetLimit(800)
	if used := w.store.Used(); used != 800 {
		t.Errorf("%d bytes are counted", used)
	}
	if err := w.store.MakeRoom(strings.Repeat("a", 64), 100, 10); err != nil {
		t.Error(err)
	}
	w.mustKeep("within the limit", all[1:]...)
	w.store.SetLimit(350)
	if err := w.store.MakeRoom(strings.Repeat("a", 64), 100, 10); err != nil || b.used != 150 {
		t.Errorf("%d bytes are kept besides: %v", b.used, err)
	}
	w.mustKeep("within a small limit", all[2])
}
