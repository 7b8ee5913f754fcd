package patch

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// What makes room for releases is the oldest patch; one that comes in stays.
func TestDropMakesRoomOldestFirst(t *testing.T) {
	dir := t.TempDir()
	s, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for i := range 4 {
		name := Name(digest([]byte{byte(3 - i)}), digest([]byte("new")))
		names = append(names, name)
		if err := os.WriteFile(s.path(name), make([]byte, 100), 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Unix(int64(1000+i), 0)
		if err := os.Chtimes(s.path(name), at, at); err != nil {
			t.Fatal(err)
		}
	}
	coming := unverifiedPrefix + "123"
	if err := os.WriteFile(filepath.Join(dir, coming), make([]byte, 50), 0o600); err != nil {
		t.Fatal(err)
	}
	if used := s.Used(); used != 450 {
		t.Errorf("%d bytes are counted", used)
	}
	if err := s.Drop(101); err != nil {
		t.Fatal(err)
	}
	left := func() (found []string) {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			found = append(found, e.Name())
		}
		return found
	}
	want := []string{names[2], names[3], coming}
	slices.Sort(want)
	if got := left(); !slices.Equal(got, want) {
		t.Errorf("left are %v, want the newest two and what comes in %v", got, want)
	}
	if err := s.Drop(1 << 40); err != nil {
		t.Fatal(err)
	}
	if got := left(); !slices.Equal(got, []string{coming}) {
		t.Errorf("left are %v", got)
	}
}
