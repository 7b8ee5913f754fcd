package order

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// Whatever a fence file holds: it is either the record that it was, or refuses
// every order until it is deleted.
func FuzzFence(f *testing.F) {
	good := func(m mark) []byte {
		path := filepath.Join(f.TempDir(), "fence.json")
		must(f, mustFence(f, path).Accept(Order{Cluster: m.Cluster, Index: m.Index, JobID: m.JobID}))
		text, err := os.ReadFile(path)
		must(f, err)
		return text
	}
	f.Add(good(mark{Cluster: cluster, Index: 7, JobID: "job-1"}))
	f.Add([]byte(`{"cluster":"c","index":18446744073709551615,"job_id":"j","sum":""}`))
	f.Add([]byte("null"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(t.TempDir(), "fence.json")
		must(t, os.WriteFile(path, text, 0o600))
		fence, err := OpenFence(path)
		if err != nil {
			if !errors.Is(err, ErrFenceDamaged) || !errors.Is(fence.Accept(fenced("j", 1<<63)), ErrFenceDamaged) {
				t.Fatalf("a damaged fence lets an order through: %v", err)
			}
			return
		}
		last := fence.last
		if last.Sum != last.sum() {
			t.Fatalf("taken without its checksum: %+v", last)
		}
		o := fenced("another", last.Index)
		o.Cluster = last.Cluster
		if err := fence.Accept(o); !errors.Is(err, ErrStale) && !errors.Is(err, ErrRepeated) {
			t.Fatalf("the same index again: %v", err)
		}
		if last.Index == 1<<64-1 {
			return
		}
		o.Index++
		must(t, fence.Accept(o))
		if again, err := OpenFence(path); err != nil || again.last.Index != o.Index {
			t.Fatalf("after a restart: %+v, %v", again.last, err)
		}
	})
}
