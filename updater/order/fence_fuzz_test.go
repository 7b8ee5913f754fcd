package order

import (
	"encoding/json"
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
	f.Add(good(mark{Cluster: cluster, Index: 1<<64 - 1, JobID: "job-2"}))
	f.Add([]byte(`{"cluster":"c","index":3,"job_id":"j","sum":"","epoch":4,"epoch_sum":""}`))
	f.Add([]byte("null"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(t.TempDir(), "fence.json")
		must(t, os.WriteFile(path, text, 0o600))
		checkFence(t, path)
		// The same, as if whoever wrote it had summed it up: else hardly any input gets
		// past the sums.
		var m mark
		if json.Unmarshal(text, &m) != nil {
			return
		}
		m.Sum, m.EpochSum = m.sum(), m.epochSum()
		text, err := json.Marshal(m)
		must(t, err)
		must(t, os.WriteFile(path, text, 0o600))
		checkFence(t, path)
	})
}

// checkFence opens a fence file, and tries orders on it.
func checkFence(t *testing.T, path string) {
	t.Helper()
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
	o.Cluster, o.Epoch = last.Cluster, last.Epoch
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
}
