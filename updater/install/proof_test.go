//go:build linux

package install

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// counting is a release's binary that counts, in a file, how often it is executed.
func counting(t *testing.T) (binary string, runs func() int) {
	t.Helper()
	count := filepath.Join(t.TempDir(), "count")
	return "#!/bin/sh\necho >>" + count + "\necho '{\"version\": \"1.1.0\"}'\n", func() int {
		text, _ := os.ReadFile(count)
		return strings.Count(string(text), "\n")
	}
}

func mustProve(t *testing.T, r PreflightRequest) *Proof {
	t.Helper()
	p, err := Prove(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A proof saves the hash and the self-test, and nothing that may have changed.
func TestProofSavesTheSelfTest(t *testing.T) {
	binary, runs := counting(t)
	r := preflightSite(t, binary)
	r.Proof = mustProve(t, r)
	v, err := Preflight(context.Background(), r)
	if err != nil || !v.Proven || v.Place != InPlace || runs() != 1 {
		t.Fatalf("the verdict is %+v, %v, after %d executions", v, err, runs())
	}
	if err := os.Rename(filepath.Dir(r.Installed), filepath.Dir(r.Installed)+"-gone"); err != nil {
		t.Fatal(err)
	}
	mustRefuse(t, r, ErrPreflight, "cannot be found")
}

// What was changed since in any way, or is asked for in another one, is hashed and
// executed anew.
func TestProofOfAnotherFile(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*PreflightRequest) error
		says   string // what preflight says of it; "": it passes
	}{
		"written in place, of the same length and time": {func(r *PreflightRequest) error {
			st, err := os.Stat(r.Staged)
			if err != nil {
				return err
			}
			f, err := os.OpenFile(r.Staged, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte("9"), st.Size()-8); err != nil {
				return err
			}
			return os.Chtimes(r.Staged, st.ModTime(), st.ModTime())
		}, "changed after it was verified"},
		"replaced by a rename": {func(r *PreflightRequest) error {
			text, err := os.ReadFile(r.Staged)
			if err != nil {
				return err
			}
			text = []byte(strings.Replace(string(text), "1.1.0", "6.6.6", 1))
			if err := os.WriteFile(r.Staged+".new", text, 0o700); err != nil {
				return err
			}
			return os.Rename(r.Staged+".new", r.Staged)
		}, "changed after it was verified"},
		"removed": {func(r *PreflightRequest) error { return os.Remove(r.Staged) }, "open staged binary"},
		"of another version": {func(r *PreflightRequest) error {
			r.Version = "1.2.0"
			return nil
		}, "it is version"},
		"of another digest": {func(r *PreflightRequest) error {
			r.Digest = strings.Repeat("0", 64)
			return nil
		}, "changed after it was verified"},
		"of another platform": {func(r *PreflightRequest) error {
			r.OS = "windows"
			return nil
		}, ""}, // a script names none
		"too old": {func(r *PreflightRequest) error {
			r.Proof.at = r.Proof.at.Add(-proofLife)
			return nil
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			binary, runs := counting(t)
			r := preflightSite(t, binary)
			r.Proof = mustProve(t, r)
			time.Sleep(20 * time.Millisecond) // a tick of the clock that stamps changes
			if err := tc.change(&r); err != nil {
				t.Fatal(err)
			}
			v, err := Preflight(context.Background(), r)
			if v.Proven || (tc.says == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.says) {
				t.Errorf("the verdict is %+v, %v", v, err)
			}
			if tc.says == "" && runs() != 2 {
				t.Errorf("it was executed %d times", runs())
			}
		})
	}
}

// A disk that rots changes no time. Preflight executes nothing then, and who does, the
// supervisor, reads the bytes.
func TestRotAfterAProofIsNoticedBeforeTheBytesRun(t *testing.T) {
	binary, runs := counting(t)
	r := preflightSite(t, binary)
	r.Proof = mustProve(t, r)
	restaged := r
	restage(t, &restaged, strings.Replace(binary, "1.1.0", "6.6.6", 1))
	f, err := os.Open(r.Staged)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if r.Proof.file, err = identify(f); err != nil {
		t.Fatal(err)
	}
	if v, err := Preflight(context.Background(), r); err != nil || !v.Proven || runs() != 1 {
		t.Errorf("the verdict is %+v, %v, after %d executions", v, err, runs())
	}
	swap := SwapRequest{Staged: r.Staged, Digest: r.Digest, Installed: r.Installed}
	if _, _, err := PrepareSwap(swap); !errors.Is(err, ErrDigest) {
		t.Errorf("what is to be executed: %v", err)
	}
	if _, err := OpenVerified(r.Staged, r.Digest); !errors.Is(err, ErrDigest) {
		t.Errorf("what is to be executed: %v", err)
	}
}

// What does not pass is not proven, and what changed before it was executed is not
// executed.
func TestNoProofWithoutPreflight(t *testing.T) {
	r := preflightSite(t, "#!/bin/sh\nexit 7\n")
	if p, err := Prove(context.Background(), r); p != nil || err == nil {
		t.Errorf("proven is what ends with 7: %v", err)
	}
	binary, runs := counting(t)
	r = preflightSite(t, binary)
	r.Digest = strings.Repeat("0", 64)
	if p, err := Prove(context.Background(), r); p != nil || err == nil || runs() != 0 {
		t.Errorf("proven is what is not signed, %d executions: %v", runs(), err)
	}
}

// Which package lists a path is remembered until a list changes.
func TestOwnershipIsLookedUpAnew(t *testing.T) {
	info := t.TempDir()
	write := func(name, list string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(info, name+"-new"), []byte(list), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(info, name+"-new"), filepath.Join(info, name)); err != nil {
			t.Fatal(err)
		}
	}
	before := time.Now() // by which the lists have just changed, however long this takes
	for i := range 3 {
		write(strconv.Itoa(i)+".list", "/opt\n")
	}
	var o ownership
	if got := o.dpkgOwner(info, "/opt/moult", before); got != "" || o != (ownership{}) {
		t.Fatalf("owner %q; remembered of a directory that has just changed: %+v", got, o)
	}
	later := time.Now().Add(settledAfter)
	if got := o.dpkgOwner(info, "/opt/moult", later); got != "" || o == (ownership{}) {
		t.Fatalf("owner %q, remembered is %+v", got, o)
	}
	o.owner = "of memory"
	if got := o.dpkgOwner(info, "/opt/moult", later); got != "of memory" {
		t.Errorf("the lists are read again: %q", got)
	}
	write("moult.list", "/opt/moult\n")
	if got := o.dpkgOwner(info, "/opt/moult", later); got != "moult" {
		t.Errorf("after a package came: %q", got)
	}
	if got := o.dpkgOwner(info, "/opt", later); got != "0" {
		t.Errorf("of another path: %q", got)
	}
}
