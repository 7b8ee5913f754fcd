//go:build linux

package install

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"moult/updater/internal/disktest"
)

// script writes an executable that prints a word, big enough for a copy to take
// more than one write.
func script(t *testing.T, path, word string) string {
	t.Helper()
	content := "#!/bin/sh\necho " + word + "\nexit 0\n" + strings.Repeat("# filler\n", 20000)
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	d, err := Digest(path)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func says(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.Command(path).Output()
	if err != nil {
		t.Fatalf("%s does not run: %v", path, err)
	}
	return strings.TrimSpace(string(out))
}

func swapSite(t *testing.T) SwapRequest {
	t.Helper()
	dir := t.TempDir()
	r := SwapRequest{Staged: filepath.Join(dir, "staged"), Installed: filepath.Join(dir, "bin", "moult")}
	if err := os.Mkdir(filepath.Dir(r.Installed), 0o755); err != nil {
		t.Fatal(err)
	}
	r.Digest = script(t, r.Staged, "new")
	script(t, r.Installed, "old")
	return r
}

func leftovers(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, tempPrefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestSwapStopsAtEachStep(t *testing.T) {
	var steps []string
	r := swapSite(t)
	r.Step = func(step string) error { steps = append(steps, step); return nil }
	if err := Swap(r); err != nil {
		t.Fatal(err)
	}
	if len(steps) < 12 {
		t.Fatalf("only %d steps: %v", len(steps), steps)
	}
	renamed := false
	for i, step := range steps {
		t.Run(step, func(t *testing.T) {
			r := swapSite(t)
			cut := errors.New("power cut")
			r.Step = func(s string) error {
				// At every step up to the cut there is a complete, runnable binary.
				if got := says(t, r.Installed); got != "old" && got != "new" {
					t.Errorf("before %s installed says %q", s, got)
				}
				if s == step {
					return cut
				}
				return nil
			}
			if err := Swap(r); !errors.Is(err, cut) {
				t.Fatalf("error is %v, want the cut", err)
			}
			want := "old"
			if renamed {
				want = "new"
			}
			if got := says(t, r.Installed); got != want {
				t.Errorf("installed says %q, want %q", got, want)
			}
			if renamed && says(t, r.Installed+".old") != "old" {
				t.Error("the last good binary is not kept")
			}
			if err := SweepLeftovers(r.Installed); err != nil {
				t.Error(err)
			}
			if left := leftovers(t, filepath.Dir(r.Installed)); len(left) > 0 {
				t.Errorf("leftovers %v", left)
			}
			r.Step = nil
			if err := Swap(r); err != nil {
				t.Fatalf("the next swap: %v", err)
			}
			if says(t, r.Installed) != "new" {
				t.Error("the next swap did not install the new binary")
			}
		})
		renamed = renamed || steps[i] == "rename"
	}
}

func TestSwapPreservesModeOwnerAndCapabilities(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("giving a file to another user and capabilities takes root")
	}
	r := swapSite(t)
	if err := os.Chown(r.Installed, 12, 34); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(r.Installed, 0o750|os.ModeSetgid); err != nil {
		t.Fatal(err)
	}
	// VFS_CAP_REVISION_2 with cap_net_bind_service (bit 10) permitted and effective.
	capability := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	for name, value := range map[string][]byte{"security.capability": capability, "user.note": []byte("kept")} {
		if err := unix.Setxattr(r.Installed, name, value, 0); err != nil {
			if errors.Is(err, unix.ENOTSUP) {
				t.Skipf("%s is on a file system without extended attributes", r.Installed)
			}
			t.Fatal(err)
		}
	}
	if err := Swap(r); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{r.Installed, r.Installed + ".old"} {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode() != 0o750|os.ModeSetgid {
			t.Errorf("mode of %s is %v", path, st.Mode())
		}
		if sys := st.Sys().(*syscall.Stat_t); sys.Uid != 12 || sys.Gid != 34 {
			t.Errorf("owner of %s is %d:%d", path, sys.Uid, sys.Gid)
		}
		value, err := attributeBytes(func(b []byte) (int, error) { return unix.Getxattr(path, "security.capability", b) })
		if err != nil || !bytes.Equal(value, capability) {
			t.Errorf("capabilities of %s are %v, %v", path, value, err)
		}
		value, err = attributeBytes(func(b []byte) (int, error) { return unix.Getxattr(path, "user.note", b) })
		if err != nil || string(value) != "kept" {
			t.Errorf("attribute of %s is %q, %v", path, value, err)
		}
	}
}

func TestSwapRefusesChangedBytes(t *testing.T) {
	r := swapSite(t)
	script(t, r.Staged, "evil")
	if err := Swap(r); !errors.Is(err, ErrDigest) {
		t.Fatalf("error is %v, want ErrDigest", err)
	}
	if says(t, r.Installed) != "old" || len(leftovers(t, filepath.Dir(r.Installed))) > 0 {
		t.Error("a refused swap left something")
	}
}

func TestSwapFollowsASymbolicLink(t *testing.T) {
	r := swapSite(t)
	link := filepath.Join(t.TempDir(), "moult")
	if err := os.Symlink(r.Installed, link); err != nil {
		t.Fatal(err)
	}
	target := r.Installed
	r.Installed = link
	if err := Swap(r); err != nil {
		t.Fatal(err)
	}
	if got, err := os.Readlink(link); err != nil || got != target {
		t.Errorf("the link is %s, %v", got, err)
	}
	if says(t, target) != "new" {
		t.Error("the link's target is not the new binary")
	}
}

// A prepared swap has changed nothing; discarded, it leaves nothing, and finished, it
// has nothing more to discard.
func TestPreparedSwap(t *testing.T) {
	r := swapSite(t)
	dir := filepath.Dir(r.Installed)
	p, staged, err := PrepareSwap(r)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(staged); err != nil || !strings.Contains(string(got), "echo new") {
		t.Errorf("the verified descriptor gives %d bytes, %v", len(got), err)
	}
	staged.Close()
	if got := says(t, r.Installed); got != "old" || len(leftovers(t, dir)) != 1 {
		t.Errorf("installed says %q, beside it are %v", got, leftovers(t, dir))
	}
	if err := p.Discard(); err != nil || len(leftovers(t, dir)) != 0 {
		t.Errorf("discarded: %v, left %v", err, leftovers(t, dir))
	}
	if p, staged, err = PrepareSwap(r); err != nil {
		t.Fatal(err)
	}
	staged.Close()
	p.Flush()
	if err := errors.Join(p.Finish(), p.Discard()); err != nil {
		t.Error(err)
	}
	if got := says(t, r.Installed) + " " + says(t, r.Installed+".old"); got != "new old" || len(leftovers(t, dir)) != 0 {
		t.Errorf("installed and .old say %q, left %v", got, leftovers(t, dir))
	}
}

func TestSwapTwiceKeepsTheLastGoodOne(t *testing.T) {
	r := swapSite(t)
	if err := Swap(r); err != nil {
		t.Fatal(err)
	}
	r.Digest = script(t, r.Staged, "newer")
	if err := Swap(r); err != nil {
		t.Fatal(err)
	}
	if got := says(t, r.Installed) + " " + says(t, r.Installed+".old"); got != "newer new" {
		t.Errorf("installed and .old say %q", got)
	}
}

func TestSwapOnAFullDisk(t *testing.T) {
	disk := disktest.Small(t, 256) // the old binary fits, the new one beside it does not
	r := swapSite(t)
	r.Installed = filepath.Join(disk, "moult")
	script(t, r.Installed, "old")
	if err := Swap(r); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("error is %v, want no space left", err)
	}
	if says(t, r.Installed) != "old" || len(leftovers(t, disk)) > 0 {
		t.Error("a failed swap harmed the installed binary or left something")
	}
}
