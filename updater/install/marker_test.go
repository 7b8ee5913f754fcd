package install

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

func TestMarkerIsReadAsWritten(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadMarker(dir); !errors.Is(err, ErrNoMarker) {
		t.Fatalf("error is %v, want ErrNoMarker", err)
	}
	want := Marker{JobID: "j", Attempt: 2, Index: 3, Version: "1.1.0", Digest: strings.Repeat("a", 64), Number: 9, StagedPath: "/s", FromVersion: "1.0.0", Starts: 1, State: OnTrial}
	if err := SaveMarker(dir, want); err != nil {
		t.Fatal(err)
	}
	got, err := LoadMarker(dir)
	if err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := RemoveMarker(dir); err != nil {
		t.Fatal(err)
	}
	if err := RemoveMarker(dir); err != nil {
		t.Errorf("removing a removed marker: %v", err)
	}
}

// Every flipped byte and every truncation is found out, or changes nothing.
func TestCorruptMarkerIsRefused(t *testing.T) {
	dir := t.TempDir()
	want := Marker{JobID: "j", Version: "1.1.0", Digest: strings.Repeat("a", 64), StagedPath: "/s", State: Staged}
	if err := SaveMarker(dir, want); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(MarkerPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	check := func(content []byte, what string) {
		if err := os.WriteFile(MarkerPath(dir), content, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := LoadMarker(dir); !errors.Is(err, ErrCorruptMarker) && (err != nil || got != want) {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
	}
	for i := range file {
		flipped := bytes.Clone(file)
		flipped[i] ^= 1
		check(flipped, fmt.Sprintf("byte %d flipped", i))
		check(file[:i], fmt.Sprintf("cut at %d", i))
	}
	check(nil, "empty")
	if _, err := LoadMarker(dir); !errors.Is(err, ErrCorruptMarker) {
		t.Errorf("an empty marker: %v", err)
	}
	if err := SetCorruptMarkerAside(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadMarker(dir); !errors.Is(err, ErrNoMarker) {
		t.Errorf("after setting it aside: %v", err)
	}
}

func TestFailuresAreRememberedPerJob(t *testing.T) {
	dir := t.TempDir()
	for i := range maxFailures + 5 {
		f := Failure{JobID: fmt.Sprint("job-", i), Digest: "d", Reason: "crashed", At: time.Unix(1, 0)}
		if err := RememberFailure(dir, f); err != nil {
			t.Fatal(err)
		}
	}
	if f, ok := FailedBefore(dir, "job-104", "d"); !ok || f.Reason != "crashed" {
		t.Errorf("got %+v, %v", f, ok)
	}
	for _, job := range []string{"job-0", "job-105"} {
		if _, ok := FailedBefore(dir, job, "d"); ok {
			t.Errorf("%s is remembered", job)
		}
	}
	if _, ok := FailedBefore(dir, "job-104", "e"); ok {
		t.Error("another digest is remembered")
	}
}

func TestOutcomeIsReadAsWritten(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadOutcome(dir); !errors.Is(err, ErrNoOutcome) {
		t.Fatalf("error is %v, want ErrNoOutcome", err)
	}
	if err := SaveOutcome(dir, Outcome{JobID: "j", Result: RolledBack, Reason: "exit status 1", LastOutput: []string{"a", "b"}}); err != nil {
		t.Fatal(err)
	}
	o, err := LoadOutcome(dir)
	if err != nil || o.JobID != "j" || o.Result != RolledBack || len(o.LastOutput) != 2 {
		t.Errorf("got %+v, %v", o, err)
	}
}
