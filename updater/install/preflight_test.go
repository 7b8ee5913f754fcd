//go:build linux

package install

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"moult/updater/internal/disktest"
)

func preflightSite(t *testing.T, staged string) PreflightRequest {
	t.Helper()
	dir := t.TempDir()
	r := PreflightRequest{
		Staged: filepath.Join(dir, "staged"), Installed: filepath.Join(dir, "bin", "moult"), DataDir: dir,
		Version: "1.1.0", OS: "linux", Arch: "amd64",
	}
	if err := os.Mkdir(filepath.Dir(r.Installed), 0o755); err != nil {
		t.Fatal(err)
	}
	script(t, r.Installed, "old")
	restage(t, &r, staged)
	return r
}

func restage(t *testing.T, r *PreflightRequest, content string) {
	t.Helper()
	if err := os.WriteFile(r.Staged, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	if r.Digest, err = Digest(r.Staged); err != nil {
		t.Fatal(err)
	}
}

func mustRefuse(t *testing.T, r PreflightRequest, kind error, texts ...string) {
	t.Helper()
	_, err := Preflight(context.Background(), r)
	if !errors.Is(err, kind) {
		t.Fatalf("error is %v, want %v", err, kind)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q does not say %q", err, text)
		}
	}
}

const goodNew = "#!/bin/sh\n[ \"$*\" = 'version --json' ] || exit 9\n[ -z \"$MOULT_SUPERVISED\" ] || exit 8\necho '{\"version\": \"1.1.0\", \"commit\": \"x\"}'\n"

func TestPreflightPasses(t *testing.T) {
	t.Setenv("MOULT_SUPERVISED", "1") // must not reach the new binary
	r := preflightSite(t, goodNew)
	if _, err := Preflight(context.Background(), r); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t, filepath.Dir(r.Installed)); len(left) > 0 {
		t.Errorf("leftovers %v", left)
	}
}

// What the new binary prints beside its answer is no reason to refuse it.
func TestPreflightReadsTheAnswerOnly(t *testing.T) {
	r := preflightSite(t, "#!/bin/sh\necho warning: no locale >&2\necho '{\"version\":\"1.1.0\"}'\n")
	if _, err := Preflight(context.Background(), r); err != nil {
		t.Fatal(err)
	}
}

func TestPreflightRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		staged string
		texts  []string
	}{
		"another version":   {"#!/bin/sh\necho '{\"version\":\"1.0.9\"}'\n", []string{`says it is version "1.0.9"`, "publish again"}},
		"no version":        {"#!/bin/sh\necho '{}'\n", []string{"did not print"}},
		"an exit code":      {"#!/bin/sh\necho cannot find libmoult >&2\nexit 7\n", []string{"exit status 7", "cannot find libmoult", "by hand"}},
		"endless output":    {"#!/bin/sh\nhead -c 10000000 /dev/zero\n", []string{"did not print"}},
		"not an executable": {"\x00\x01\x02", []string{"exec format error"}},
	} {
		t.Run(name, func(t *testing.T) { mustRefuse(t, preflightSite(t, tt.staged), ErrPreflight, tt.texts...) })
	}
}

func TestPreflightRefusesAnotherPlatform(t *testing.T) {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	arm := bytes.Clone(self[:64])
	binary.LittleEndian.PutUint16(arm[18:], 183) // e_machine: AArch64
	binary.LittleEndian.PutUint64(arm[32:], 0)   // no program headers
	binary.LittleEndian.PutUint64(arm[40:], 0)   // no sections
	for _, at := range []int{56, 60, 62} {
		binary.LittleEndian.PutUint16(arm[at:], 0)
	}
	r := preflightSite(t, string(arm))
	mustRefuse(t, r, ErrPreflight, "built for linux/arm64, this host is linux/amd64")
	r = preflightSite(t, string(self))
	r.OS = "windows"
	mustRefuse(t, r, ErrPreflight, "this host is windows/amd64")
}

func TestPreflightRefusesChangedBytes(t *testing.T) {
	r := preflightSite(t, goodNew)
	digest := r.Digest
	restage(t, &r, goodNew+"# changed\n")
	r.Digest = digest
	mustRefuse(t, r, ErrDigest, "who can write")
}

func TestPreflightRefusesAHangingBinary(t *testing.T) {
	r := preflightSite(t, "#!/bin/sh\nsleep 3600 & wait\n")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errSelfTestTime) // as the time limit would
	_, err := Preflight(ctx, r)
	if !errors.Is(err, ErrPreflight) || !strings.Contains(err.Error(), "no answer within 10s") {
		t.Fatalf("error is %v", err)
	}
}

func TestPreflightRefusesANoexecMount(t *testing.T) {
	disk := disktest.Small(t, 4096)
	disktest.Remount(t, disk, unix.MS_NOEXEC)
	r := preflightSite(t, goodNew)
	r.Staged = filepath.Join(disk, "staged")
	restage(t, &r, goodNew)
	mustRefuse(t, r, ErrPreflight, "noexec", "--data")
}

func TestPreflightRefusesAFullDisk(t *testing.T) {
	disk := disktest.Small(t, 1100)
	r := preflightSite(t, goodNew+strings.Repeat("# filler\n", 20000))
	r.Installed = filepath.Join(disk, "moult")
	script(t, r.Installed, "old")
	mustRefuse(t, r, ErrPreflight, "KiB free", "free ")
}

func TestPreflightRefusesAMissingInstalledDirectory(t *testing.T) {
	r := preflightSite(t, goodNew)
	r.Installed = filepath.Join(t.TempDir(), "none", "moult")
	mustRefuse(t, r, ErrPreflight, "--binary")
}

func TestPreflightOfAReadOnlyDirectory(t *testing.T) {
	disk := disktest.Small(t, 4096)
	r := preflightSite(t, goodNew)
	r.Installed = filepath.Join(disk, "moult")
	script(t, r.Installed, "old")
	disktest.Remount(t, disk, unix.MS_RDONLY)
	mustChoose(t, r, InData, "read-only file system")
	r.Wish = InPlace
	mustRefuse(t, r, ErrPreflight, "cannot be written", "--install-to auto")
}
