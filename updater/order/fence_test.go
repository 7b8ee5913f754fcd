package order

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func mustFence(t testing.TB, path string) *Fence {
	t.Helper()
	f, err := OpenFence(path)
	must(t, err)
	return f
}

func fenced(job string, index uint64) Order {
	o := goodOrder()
	o.JobID, o.Index = job, index
	return o
}

// Invariant 17, the half that the fence keeps: never a lower index, whether the
// agent was restarted in between or not.
func TestFenceLetsEachJobThroughOnceAndOnlyUpwards(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fence.json")
	f := mustFence(t, path)
	for i, step := range []struct {
		job   string
		index uint64
		want  error
	}{
		{"job-1", 7, nil},
		{"job-1", 7, ErrRepeated}, // a replay
		{"job-1", 8, ErrRepeated}, // the same job under another index
		{"job-0", 6, ErrStale},
		{"job-2", 7, ErrStale}, // another job at the same index
		{"job-2", 9, nil},
		{"job-1", 7, ErrStale},
		{"job-1", 8, ErrStale},
		{"job-3", 1 << 63, nil},
		{"job-4", 10, ErrStale},
	} {
		for _, reopened := range []bool{false, true} {
			if reopened {
				if step.want == nil {
					break // it was accepted just now
				}
				f = mustFence(t, path)
			}
			if err := f.Accept(fenced(step.job, step.index)); !errors.Is(err, step.want) || step.want == nil && err != nil {
				t.Errorf("step %d, reopened %t: %v", i, reopened, err)
			}
		}
	}
	f = mustFence(t, path)
	if err := f.Accept(fenced("job-3", 1<<63)); !errors.Is(err, ErrRepeated) {
		t.Errorf("the last one again after a restart: %v", err)
	}
}

// A host that moved to another cluster meets a log that begins anew. The old
// cluster's orders are refused by Open.
func TestFenceOfAnotherCluster(t *testing.T) {
	f := mustFence(t, filepath.Join(t.TempDir(), "fence.json"))
	must(t, f.Accept(fenced("job-1", 100)))
	o := fenced("job-1", 3)
	o.Cluster = "elsewhere"
	must(t, f.Accept(o))
	if err := f.Accept(o); !errors.Is(err, ErrRepeated) {
		t.Errorf("error %v", err)
	}
}

// Damage never opens the fence: the host takes no order until somebody has
// deleted the file, and no restart is needed then.
func TestDamagedFenceRefusesAll(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fence.json")
	must(t, mustFence(t, path).Accept(fenced("job-1", 7)))
	whole, err := os.ReadFile(path)
	must(t, err)
	damages := map[string][]byte{
		"empty": {}, "zeros": make([]byte, len(whole)), "object": []byte("{}"), "null": []byte("null"),
		"index lowered":   bytes.Replace(whole, []byte(`"index":7`), []byte(`"index":1`), 1),
		"cluster altered": bytes.Replace(whole, []byte(cluster), []byte("cluster-2"), 1),
		"job altered":     bytes.Replace(whole, []byte("job-1"), []byte("job-0"), 1),
		"bytes after it":  append(bytes.Clone(whole), "{}"...),
		"very long":       append(bytes.Repeat([]byte(" "), maxFenceBytes), whole...),
	}
	for n := 1; n < len(whole); n++ {
		damages[fmt.Sprintf("first %d bytes", n)] = whole[:n]
	}
	for name, content := range damages {
		if bytes.Equal(content, whole) {
			t.Fatalf("%s is no damage", name)
		}
		must(t, os.WriteFile(path, content, 0o600))
		f, err := OpenFence(path)
		if !errors.Is(err, ErrFenceDamaged) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "delete the file") {
			t.Fatalf("%s: %v", name, err)
		}
		for _, o := range []Order{fenced("job-1", 7), fenced("job-0", 6), fenced("job-9", 99)} {
			if err := f.Accept(o); !errors.Is(err, ErrFenceDamaged) {
				t.Fatalf("%s: job %s: %v", name, o.JobID, err)
			}
		}
		if after, _ := os.ReadFile(path); !bytes.Equal(after, content) {
			t.Errorf("%s: it was overwritten", name)
		}
		must(t, os.Remove(path))
		if err := f.Accept(fenced("job-9", 99)); err != nil {
			t.Errorf("%s: after the file was deleted: %v", name, err)
		}
		if err := f.Accept(fenced("job-8", 98)); !errors.Is(err, ErrStale) {
			t.Errorf("%s: and then: %v", name, err)
		}
	}
	must(t, os.Remove(path))
	must(t, os.Mkdir(path, 0o700))
	f, err := OpenFence(path)
	if !errors.Is(err, ErrFenceDamaged) {
		t.Errorf("a directory in its place: %v", err)
	}
	if err := f.Accept(fenced("job-9", 99)); !errors.Is(err, ErrFenceDamaged) {
		t.Errorf("a directory in its place: %v", err)
	}
}

// An order that could not be remembered must not run, and may run when it can.
func TestOrderThatCannotBeRemembered(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	path := filepath.Join(dir, "fence.json")
	f := mustFence(t, path) // the directory is not there
	err := f.Accept(fenced("job-1", 7))
	if err == nil || errors.Is(err, ErrRepeated) || errors.Is(err, ErrStale) || !strings.Contains(err.Error(), "cannot run twice") {
		t.Fatalf("error %v", err)
	}
	must(t, os.Mkdir(dir, 0o700))
	must(t, f.Accept(fenced("job-1", 7)))
	if err := mustFence(t, path).Accept(fenced("job-1", 7)); !errors.Is(err, ErrRepeated) {
		t.Errorf("after a restart: %v", err)
	}
}

// The write is one step: a leftover of a crash before the rename changes nothing.
func TestFenceFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "fence.json")
	must(t, mustFence(t, path).Accept(fenced("job-1", 7)))
	must(t, os.WriteFile(filepath.Join(dir, ".fence.json.new"), []byte(`{"index":`), 0o644))
	f := mustFence(t, path)
	if err := f.Accept(fenced("job-0", 6)); !errors.Is(err, ErrStale) {
		t.Errorf("beside a leftover: %v", err)
	}
	must(t, f.Accept(fenced("job-2", 8)))
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) != 1 {
		t.Errorf("the directory holds %v", entries)
	}
	st, err := os.Stat(path)
	must(t, err)
	if runtime.GOOS != "windows" && st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	var m mark
	text, err := os.ReadFile(path)
	must(t, err)
	must(t, json.Unmarshal(text, &m))
	if m.Cluster != cluster || m.Index != 8 || m.JobID != "job-2" || m.Sum != m.sum() {
		t.Errorf("the file says %+v", m)
	}
}

// Of many deliveries at once, one gets through.
func TestFenceUnderManyDeliveries(t *testing.T) {
	f := mustFence(t, filepath.Join(t.TempDir(), "fence.json"))
	var accepted atomic.Int32
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			if f.Accept(fenced("job-1", 7)) == nil {
				accepted.Add(1)
			}
		})
	}
	all.Wait()
	if got := accepted.Load(); got != 1 {
		t.Errorf("accepted %d times", got)
	}
}

// What may be repeated is checked against the fence and does not raise it.
func TestCheckRaisesNothing(t *testing.T) {
	f := mustFence(t, filepath.Join(t.TempDir(), "fence.json"))
	must(t, f.Accept(fenced("job-1", 7)))
	for index, want := range map[uint64]error{6: ErrStale, 7: ErrStale, 8: nil, 100: nil} {
		for range 2 {
			if err := f.Check(fenced("stage-1", index)); !errors.Is(err, want) || want == nil && err != nil {
				t.Errorf("index %d: %v", index, err)
			}
		}
	}
	must(t, f.Accept(fenced("job-2", 8)))
}
