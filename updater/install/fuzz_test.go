package install

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

// A trial's marker is the one that was written, or none.
func FuzzMarker(f *testing.F) {
	dir := f.TempDir()
	m := Marker{JobID: "job-1", Attempt: 1, Version: "1.1.0", Digest: string(make([]byte, 0)), StagedPath: "/x", State: Staged}
	for range 64 {
		m.Digest += "a"
	}
	if err := SaveMarker(dir, m); err != nil {
		f.Fatal(err)
	}
	text, err := os.ReadFile(MarkerPath(dir))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"sha256":"44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","body":{}}`))
	f.Add([]byte(`{"sha256":"74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b","body":null}`))
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(MarkerPath(dir), text, 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := LoadMarker(dir)
		if err != nil {
			if !errors.Is(err, ErrCorruptMarker) {
				t.Fatalf("neither a marker nor corrupt: %v", err)
			}
			return
		}
		if m.JobID == "" || m.StagedPath == "" || len(m.Digest) != 64 {
			t.Fatalf("taken out of bounds: %+v", m)
		}
		if err := SaveMarker(dir, m); err != nil {
			t.Fatal(err)
		}
		if again, err := LoadMarker(dir); err != nil || !sameMarker(again, m) {
			t.Fatalf("again: %+v, %v", again, err)
		}
	})
}

// sameMarker compares times as times.
func sameMarker(a, b Marker) bool {
	if (a.Expires == nil) != (b.Expires == nil) || a.Expires != nil && !a.Expires.Equal(*b.Expires) {
		return false
	}
	a.Expires, b.Expires = nil, nil
	return reflect.DeepEqual(a, b)
}

// The record of the last job, and that of the failures before, are read as they
// lie there: no content keeps the agent from starting.
func FuzzOutcome(f *testing.F) {
	f.Add([]byte(`{"job_id":"j","result":"committed","at":"2026-03-01T12:00:00Z"}`))
	f.Add([]byte(`[{"job_id":"j","digest":"d"}]`))
	dir := f.TempDir()
	if err := SaveOutcome(dir, Outcome{JobID: "job-1", Result: RolledBack, At: time.Unix(1, 0).UTC()}); err != nil {
		f.Fatal(err)
	}
	for i := range maxFailures { // the most that there are
		if err := RememberFailure(dir, Failure{JobID: fmt.Sprint("job-", i), Digest: "d1", Reason: "r", At: time.Unix(1, 0).UTC()}); err != nil {
			f.Fatal(err)
		}
	}
	for _, name := range []string{outcomeFile, failuresFile} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte("{"))
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		for _, name := range []string{outcomeFile, failuresFile} {
			if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := LoadOutcome(dir); errors.Is(err, ErrNoOutcome) {
			t.Fatal("a damaged outcome counts as none")
		}
		want := Failure{JobID: "job-1", Digest: "d1", Reason: "r", At: time.Unix(1, 0).UTC()}
		if err := RememberFailure(dir, want); err != nil {
			t.Fatalf("remember a failure over %q: %v", text, err)
		}
		if got, ok := FailedBefore(dir, "job-1", "d1"); !ok || got != want {
			t.Fatalf("%+v, %t", got, ok)
		}
		var kept []Failure
		if err := readJSON(filepath.Join(dir, failuresFile), &kept); err != nil || len(kept) > maxFailures {
			t.Fatalf("%d failures are kept: %v", len(kept), err)
		}
		// An outcome that was read is written again as it was.
		if o, err := LoadOutcome(dir); err == nil {
			if err := SaveOutcome(dir, o); err != nil {
				t.Fatalf("write %+v: %v", o, err)
			}
			if again, err := LoadOutcome(dir); err != nil || again.JobID != o.JobID || again.Result != o.Result || !again.At.Equal(o.At) {
				t.Fatalf("%+v, then %+v: %v", o, again, err)
			}
		}
	})
}
