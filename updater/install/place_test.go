//go:build linux

package install

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"moult/updater/internal/disktest"
)

// mustChoose has a preflight pass and choose a place for a reason.
func mustChoose(t *testing.T, r PreflightRequest, want Place, why string) {
	t.Helper()
	v, err := Preflight(context.Background(), r)
	if err != nil || v.Place != want || !strings.Contains(v.Why, why) {
		t.Errorf("preflight chooses %q because %q, error %v; want %q because %q", v.Place, v.Why, err, want, why)
	}
	if left := leftovers(t, filepath.Dir(r.Installed)); len(left) > 0 {
		t.Errorf("leftovers %v", left)
	}
}

func TestPlaceOfAnOrdinaryBinary(t *testing.T) {
	r := preflightSite(t, goodNew)
	mustChoose(t, r, InPlace, "can be replaced")
	r.Wish = InData
	mustChoose(t, r, InData, "configuration")
}

// Its directory can be written, and a swap would fail all the same.
func TestPlaceOfAnImmutableBinary(t *testing.T) {
	r := preflightSite(t, goodNew)
	if out, err := exec.Command("chattr", "+i", r.Installed).CombinedOutput(); err != nil {
		t.Skipf("chattr +i: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("chattr", "-i", r.Installed).CombinedOutput(); err != nil {
			t.Errorf("chattr -i: %v: %s", err, out)
		}
	})
	mustChoose(t, r, InData, "is immutable")
	r.Wish = InPlace
	mustRefuse(t, r, ErrPreflight, "is immutable", "--install-to auto")
}

func TestPlaceOfABindMountedBinary(t *testing.T) {
	disktest.Small(t, 64) // skips where nothing can be mounted
	r := preflightSite(t, goodNew)
	image := filepath.Join(t.TempDir(), "moult")
	script(t, image, "old")
	if err := unix.Mount(image, r.Installed, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(r.Installed, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	mustChoose(t, r, InData, "is a mount by itself")
	r.Wish = InPlace
	mustRefuse(t, r, ErrPreflight, "is a mount by itself")
}

// What is active in the data directory stays there, whatever has become of the
// installed binary.
func TestPlaceStaysInTheDataDirectory(t *testing.T) {
	r := preflightSite(t, goodNew)
	if err := os.MkdirAll(ActiveDir(r.DataDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(activeRecord(r.DataDir), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	mustChoose(t, r, InData, "the active binary is there")
}

func TestPackageOwner(t *testing.T) {
	for path, want := range map[string]string{
		"/usr/bin/moult": "system's packages", "/usr/lib/moult/moult": "system's packages", "/sbin/moult": "system's packages",
		"/nix/store/abc-moult/bin/moult": "system's packages", "/opt/homebrew/Cellar/moult/1.0/bin/moult": "Homebrew",
		"/usr/local/bin/moult": "", "/opt/moult/moult": "", "/usrmoult": "", "/home/u/usr/moult": "",
	} {
		if got := packageOwner(path, new(ownership)); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: owner %q, want %q", path, got, want)
		}
	}
}

func TestDpkgOwner(t *testing.T) {
	info := t.TempDir()
	for name, list := range map[string]string{"base-files.list": "/.\n/opt\n", "moult.list": "/.\n/opt/moult/moult.conf\n/opt/moult\n/opt/moult/moult\n/opt/moult/moult/last", "z.md5sums": "/opt/z\n"} {
		if err := os.WriteFile(filepath.Join(info, name), []byte(list), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]string{"/opt/moult/moult": "moult", "/opt/moult/moul": "", "/opt/moult/moult2": "", "moult": "", "/.": "base-files", "/opt/moult/moult/last": "moult", "/opt/z": ""} {
		if got := dpkgOwner(info, path); got != want {
			t.Errorf("%s: owner %q, want %q", path, got, want)
		}
	}
}

func TestPreflightRefusesAFullDataDirectory(t *testing.T) {
	disk := disktest.Small(t, 1400)
	r := preflightSite(t, goodNew+strings.Repeat("# filler\n", 100_000))
	r.Wish, r.DataDir = InData, disk
	mustRefuse(t, r, ErrPreflight, "KiB free", disk)
}
