//go:build linux

package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"moult/updater/release"
)

// releaseKey signs what the tests release.
var releasePublic, releaseSecret, _ = release.GenerateKey()

// signed is the proof for a binary of this platform.
func signed(t testing.TB, version string, number uint64, path string) SignedRelease {
	t.Helper()
	digest, err := Digest(path)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	m := release.Manifest{
		Product: release.Product, Version: version, Number: number, Created: time.Now().UTC().Truncate(time.Second),
		Artifacts: []release.Artifact{{OS: runtime.GOOS, Arch: runtime.GOARCH, Size: st.Size(), SHA256: digest}},
	}
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := release.Sign(releaseSecret, text)
	if err != nil {
		t.Fatal(err)
	}
	return SignedRelease{Manifest: text, Signature: sig, Keys: release.Pinned(releasePublic)}
}

// activeSite is a host with a packaged binary that says old, and a staged one that
// says new.
func activeSite(t *testing.T) ActivateRequest {
	t.Helper()
	dir := t.TempDir()
	packaged := filepath.Join(dir, "bin", "moult")
	r := ActivateRequest{Staged: filepath.Join(dir, "staged"), DataDir: filepath.Join(dir, "data")}
	for _, d := range []string{filepath.Dir(packaged), r.DataDir} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	script(t, packaged, "old")
	r.Active = activeOf(t, &r, packaged, "1.1.0", 2, "new")
	return r
}

func activeOf(t *testing.T, r *ActivateRequest, packaged, version string, number uint64, word string) Active {
	t.Helper()
	digest := script(t, r.Staged, word)
	return Active{Version: version, Number: number, Digest: digest, Release: signed(t, version, number, r.Staged), Packaged: packaged}
}

func mustActivate(t *testing.T, r ActivateRequest) {
	t.Helper()
	if err := Activate(r); err != nil {
		t.Fatal(err)
	}
}

// activeSays runs what would be handed over to, "" when there is nothing.
func activeSays(t *testing.T, dataDir string) string {
	t.Helper()
	f, _, err := OpenActive(dataDir, 0)
	if errors.Is(err, ErrNoActive) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return started(t, f)
}

func TestActivate(t *testing.T) {
	r := activeSite(t)
	before := mustDigest(t, r.Active.Packaged)
	mustActivate(t, r)
	if got := activeSays(t, r.DataDir); got != "new" {
		t.Errorf("the active binary says %q", got)
	}
	if got := mustDigest(t, r.Active.Packaged); got != before {
		t.Error("the packaged binary was changed")
	}
	first := r.Active.Digest
	for i, word := range []string{"newer", "newest"} {
		r.Active = activeOf(t, &r, r.Active.Packaged, fmt.Sprint("1.", i+2, ".0"), uint64(i+3), word)
		mustActivate(t, r)
		if got := activeSays(t, r.DataDir); got != word {
			t.Errorf("the active binary says %q, want %q", got, word)
		}
	}
	// The one before is kept, those before it are swept.
	if err := SweepActive(r.DataDir); err != nil {
		t.Fatal(err)
	}
	a, err := LoadActive(r.DataDir)
	if err != nil || a.Previous == "" || a.PackagedDigest != before {
		t.Fatalf("record %+v, %v", a, err)
	}
	if _, err := os.Stat(ActivePath(r.DataDir, a.Previous)); err != nil {
		t.Errorf("the last good binary is gone: %v", err)
	}
	if _, err := os.Stat(ActivePath(r.DataDir, first)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the one before the last is kept: %v", err)
	}
	// Once more the same: it must not count as its own predecessor.
	mustActivate(t, r)
	if again, err := LoadActive(r.DataDir); err != nil || again.Previous != a.Previous {
		t.Errorf("activated again: previous %s, %v; want %s", again.Previous, err, a.Previous)
	}
}

func TestActiveKeepsModeOwnerAndCapabilities(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root gives files away")
	}
	r := activeSite(t)
	packaged := r.Active.Packaged
	capability := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0} // cap_net_bind_service=ep
	if err := errors.Join(os.Chown(packaged, 1234, 2345), os.Chmod(packaged, 0o750|os.ModeSetgid), unix.Setxattr(packaged, capabilityAttribute, capability, 0)); err != nil {
		t.Fatal(err)
	}
	mustActivate(t, r)
	path := ActivePath(r.DataDir, r.Active.Digest)
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	owner := st.Sys().(*syscall.Stat_t)
	if owner.Uid != 1234 || owner.Gid != 2345 || st.Mode() != 0o750|os.ModeSetgid {
		t.Errorf("owner %d:%d, mode %v", owner.Uid, owner.Gid, st.Mode())
	}
	value := make([]byte, 64)
	n, err := unix.Getxattr(path, capabilityAttribute, value)
	if err != nil || !slices.Equal(value[:n], capability) {
		t.Errorf("capabilities %x, %v", value[:max(n, 0)], err)
	}
}

// What is handed over to is what was signed, in a directory that is nobody else's,
// and not below the floor.
func TestOpenActiveRefuses(t *testing.T) {
	evil := func(t *testing.T, r ActivateRequest) string {
		path := ActivePath(r.DataDir, r.Active.Digest)
		script(t, path, "evil")
		return path
	}
	edit := func(t *testing.T, r ActivateRequest, change func(*Active)) {
		a, err := LoadActive(r.DataDir)
		if err != nil {
			t.Fatal(err)
		}
		change(&a)
		if err := SaveSealed(activeRecord(r.DataDir), a); err != nil {
			t.Fatal(err)
		}
	}
	for name, tt := range map[string]struct {
		harm  func(t *testing.T, r ActivateRequest)
		floor uint64
		says  string
	}{
		"changed bytes": {func(t *testing.T, r ActivateRequest) { evil(t, r) }, 0, "does not match its digest"},
		"half a file": {func(t *testing.T, r ActivateRequest) {
			if err := os.Truncate(ActivePath(r.DataDir, r.Active.Digest), 100); err != nil {
				t.Fatal(err)
			}
		}, 0, "does not match its digest"},
		"no file": {func(t *testing.T, r ActivateRequest) {
			if err := os.Remove(ActivePath(r.DataDir, r.Active.Digest)); err != nil {
				t.Fatal(err)
			}
		}, 0, "no such file"},
		"a flipped bit in the record": {func(t *testing.T, r ActivateRequest) {
			text, err := os.ReadFile(activeRecord(r.DataDir))
			if err != nil {
				t.Fatal(err)
			}
			text = []byte(strings.Replace(string(text), `"1.1.0"`, `"1.1.1"`, 1))
			if err := os.WriteFile(activeRecord(r.DataDir), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}, 0, "checksum differs"},
		"an empty record": {func(t *testing.T, r ActivateRequest) {
			if err := os.WriteFile(activeRecord(r.DataDir), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, 0, "corrupt"},
		"a digest that nobody signed": {func(t *testing.T, r ActivateRequest) {
			path := evil(t, r)
			edit(t, r, func(a *Active) { a.Digest = mustDigest(t, path) })
			if err := os.Rename(path, ActivePath(r.DataDir, mustDigest(t, path))); err != nil {
				t.Fatal(err)
			}
		}, 0, "is not that of the binary"},
		"a number that nobody signed": {func(t *testing.T, r ActivateRequest) { edit(t, r, func(a *Active) { a.Number = 99 }) }, 0, "is not that of the binary"},
		"another key's signature": {func(t *testing.T, r ActivateRequest) {
			other, _, err := release.GenerateKey()
			if err != nil {
				t.Fatal(err)
			}
			edit(t, r, func(a *Active) { a.Release.Keys = release.Pinned(other) })
		}, 0, "verify the manifest"},
		"no signature": {func(t *testing.T, r ActivateRequest) { edit(t, r, func(a *Active) { a.Release = SignedRelease{} }) }, 0, "verify the manifest"},
		"a path": {func(t *testing.T, r ActivateRequest) {
			edit(t, r, func(a *Active) { a.Digest = "../../" + a.Digest[6:] })
		}, 0, "is missing"},
		"the floor": {func(*testing.T, ActivateRequest) {}, 3, "below the floor 3"},
		"an open directory": {func(t *testing.T, r ActivateRequest) {
			if err := os.Chmod(ActiveDir(r.DataDir), 0o770); err != nil {
				t.Fatal(err)
			}
		}, 0, "is open to others"},
		"a linked directory": {func(t *testing.T, r ActivateRequest) {
			moved := r.DataDir + "-moved"
			if err := errors.Join(os.Rename(ActiveDir(r.DataDir), moved), os.Symlink(moved, ActiveDir(r.DataDir))); err != nil {
				t.Fatal(err)
			}
		}, 0, "is no directory"},
		"another user's directory": {func(t *testing.T, r ActivateRequest) {
			if err := os.Chown(ActiveDir(r.DataDir), 1234, -1); err != nil {
				t.Skip(err)
			}
		}, 0, "belongs to user 1234"},
	} {
		t.Run(name, func(t *testing.T) {
			r := activeSite(t)
			mustActivate(t, r)
			tt.harm(t, r)
			f, _, err := OpenActive(r.DataDir, tt.floor)
			if err == nil {
				t.Fatalf("it is handed over to %q", started(t, f))
			}
			if !errors.Is(err, ErrActive) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error is %v, want %q in it", err, tt.says)
			}
		})
	}
}

// A key that was taken back signs nothing new; what it signed before runs on.
func TestActivateNeedsTheSignature(t *testing.T) {
	r := activeSite(t)
	r.Active.Release.Signature = nil
	if err := Activate(r); err == nil {
		t.Error("a binary without a signature was made the active one")
	}
	if _, err := LoadActive(r.DataDir); !errors.Is(err, ErrNoActive) {
		t.Errorf("record: %v", err)
	}
}

func TestStartsAreCounted(t *testing.T) {
	r := activeSite(t)
	mustActivate(t, r)
	count := func(digest string, want int) {
		t.Helper()
		if n, err := CountStart(r.DataDir, digest); n != want || err != nil {
			t.Errorf("%d starts before, %v; want %d", n, err, want)
		}
	}
	for i := range 3 {
		count("a", i)
	}
	count("b", 0)
	if err := ForgetStarts(r.DataDir); err != nil {
		t.Fatal(err)
	}
	count("b", 0)
	if err := SweepActive(r.DataDir); err != nil {
		t.Fatal(err)
	}
	count("b", 1)
}

// Whatever call the power fails at, what is handed over to is the one before or the
// new one, complete, and the packaged binary is as it was.
func TestPowerCutAtEachCallOfAnActivation(t *testing.T) {
	var r ActivateRequest
	var packaged string
	var seen []string
	var request string
	cutAtEachCall(t, "the activation", func() []string {
		r = activeSite(t)
		newest := r.Active
		r.Active = activeOf(t, &r, newest.Packaged, "1.0.5", 1, "active")
		mustActivate(t, r)
		script(t, r.Staged, "new")
		r.Active = newest
		packaged = mustDigest(t, newest.Packaged)
		text, err := json.Marshal(r.Active)
		if err != nil {
			t.Fatal(err)
		}
		request = filepath.Join(filepath.Dir(r.DataDir), "request.json")
		if err := os.WriteFile(request, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return []string{"activate", ActiveDir(r.DataDir), r.Staged, r.DataDir, request}
	}, func(at string) {
		word := activeSays(t, r.DataDir)
		seen = append(seen, word)
		if word != "active" && word != "new" {
			t.Errorf("cut at %s: the active binary says %q", at, word)
		}
		if got := mustDigest(t, r.Active.Packaged); got != packaged {
			t.Errorf("cut at %s: the packaged binary was changed", at)
		}
		a, err := LoadActive(r.DataDir)
		if err != nil {
			t.Fatalf("cut at %s: %v", at, err)
		}
		if word == "new" {
			if _, err := OpenVerified(ActivePath(r.DataDir, a.Previous), a.Previous); err != nil {
				t.Errorf("cut at %s: the last good binary is gone: %v", at, err)
			}
		}
		if err := SweepActive(r.DataDir); err != nil {
			t.Errorf("cut at %s: %v", at, err)
		}
		if left := leftovers(t, ActiveDir(r.DataDir)); len(left) > 0 {
			t.Errorf("cut at %s: leftovers %v", at, left)
		}
		mustActivate(t, r)
		if got := activeSays(t, r.DataDir); got != "new" {
			t.Errorf("cut at %s: activated again, it says %q", at, got)
		}
	})
	if !slices.Contains(seen, "active") || !slices.Contains(seen, "new") {
		t.Errorf("the cuts left %q: some have to come before the record, some after", seen)
	}
}

func TestActivationSyncsInOrder(t *testing.T) {
	r := activeSite(t)
	text, err := json.Marshal(r.Active)
	if err != nil {
		t.Fatal(err)
	}
	request := filepath.Join(filepath.Dir(r.DataDir), "request.json")
	if err := os.WriteFile(request, text, 0o600); err != nil {
		t.Fatal(err)
	}
	dir, digest := ActiveDir(r.DataDir), r.Active.Digest
	calls, _ := traced(t, []string{"activate", dir, r.Staged, r.DataDir, request})
	missing := inOrder(calls,
		`^fsync\(\d+<`+r.DataDir+`>`,
		`^(copy_file_range|write)\(.*`+dir+`/\.moult-swap-`,
		`^fsync\(\d+<`+dir+`/\.moult-swap-\d+>`,
		`^renameat2?\(.*\.moult-swap-\d+".*`+dir+`/`+digest+`"`,
		`^fsync\(\d+<`+dir+`>`,
		`^fsync\(\d+<`+dir+`/\.active\.json\.new>`,
		`^renameat2?\(.*`+dir+`/active\.json"`,
		`^fsync\(\d+<`+dir+`>`,
	)
	if missing != "" {
		t.Errorf("no call in its turn matches %s; the calls are %q", missing, calls)
	}
}
