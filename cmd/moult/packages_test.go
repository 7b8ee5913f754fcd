//go:build linux

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// mustRelease runs `make release` or `make packages` from a copy of the source.
func mustRelease(t *testing.T, source, out string, args ...string) {
	t.Helper()
	cmd := exec.Command("make", append([]string{"-s", "VERSION=1.2.3", "COMMIT=abc", "DIST=" + out}, args...)...)
	cmd.Dir, cmd.Env = source, append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make %q: %v\n%s", args, err, text)
	}
}

// Two releases of one source are the same bytes, wherever it lies and whoever asks;
// Debian's and RPM's own tools take the packages, and minisign the signature.
func TestPackages(t *testing.T) {
	if os.Getenv("MOULT_PACKAGES") == "" {
		t.Skip("it builds for five platforms: run it by `make test-packages`")
	}
	for tool, pkg := range map[string]string{"lintian": "lintian", "rpm": "rpm", "dpkg-deb": "dpkg", "minisign": "minisign", "tar": "tar"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v; install the package %s", err, pkg)
		}
	}
	here, elsewhere := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "some where", "else")
	mustCopySource(t, here)
	mustCopySource(t, elsewhere)
	for _, dir := range []string{here, elsewhere} {
		if err := os.Chmod(filepath.Join(dir, "cmd/moult/packaging/release.sh"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	key := filepath.Join(t.TempDir(), "release.key")
	mustRun(t, ".", binary(t, versionA), "key", "generate", "--no-password", "--out", key)
	first, second := t.TempDir(), t.TempDir()
	mustRelease(t, here, first, "release", "KEY="+key)
	mustRelease(t, elsewhere, second, "release", "PLATFORMS=linux/arm windows/amd64") // one of each kind

	entries, err := os.ReadDir(second)
	if err != nil {
		t.Fatal(err)
	}
	compared := 0
	for _, e := range entries {
		if e.Name() == "SHA256SUMS" {
			continue
		}
		compared++
		a, err := os.ReadFile(filepath.Join(first, e.Name()))
		if err != nil {
			t.Error(err)
			continue
		}
		b, err := os.ReadFile(filepath.Join(second, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Errorf("two builds of %s differ", e.Name())
		}
	}
	if compared != 4 {
		t.Errorf("%d files were compared", compared)
	}
	var files []string
	if entries, err = os.ReadDir(first); err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		files = append(files, e.Name())
	}
	want := []string{
		"SHA256SUMS", "SHA256SUMS.minisig", "release", "moult-1.2.3-darwin-arm64.tar.gz", "moult-1.2.3-linux-amd64.tar.gz", "moult-1.2.3-linux-arm.tar.gz", "moult-1.2.3-linux-arm64.tar.gz",
		"moult-1.2.3-windows-amd64.zip", "moult-1.2.3.aarch64.rpm", "moult-1.2.3.armv7hl.rpm", "moult-1.2.3.x86_64.rpm",
		"moult_1.2.3_amd64.deb", "moult_1.2.3_arm64.deb", "moult_1.2.3_armhf.deb",
	}
	slices.Sort(files)
	slices.Sort(want)
	if !slices.Equal(files, want) {
		t.Errorf("made %q\nwant %q", files, want)
	}
	mustRun(t, first, "sha256sum", "--check", "--strict", "SHA256SUMS")
	mustRun(t, first, "minisign", "-V", "-p", key+".pub", "-m", "SHA256SUMS")
	for _, kind := range []string{"*.deb", "*.rpm"} {
		paths, err := filepath.Glob(filepath.Join(first, kind))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			if kind == "*.deb" {
				out, err := exec.Command("lintian", "--allow-root", "--no-cfg", path).CombinedOutput()
				t.Logf("lintian %s: %v\n%s", filepath.Base(path), err, out)
				if err != nil || strings.Contains(string(out), "E:") {
					t.Errorf("lintian finds errors in %s", path)
				}
				continue
			}
			if out := mustRun(t, first, "rpm", "-K", "--nosignature", path); !strings.Contains(string(out), "digests OK") {
				t.Errorf("rpm -K: %s", out)
			}
			list := string(mustRun(t, first, "rpm", "-qlp", path))
			for _, file := range packagedFiles {
				if !strings.Contains(list, file) {
					t.Errorf("%s lacks %s:\n%s", path, file, list)
				}
			}
			if out := string(mustRun(t, first, "rpm", "-qcp", path)); out != "/etc/moult/agent.toml\n/etc/moult/server.toml\n" {
				t.Errorf("its configuration files are %q", out)
			}
		}
	}
	deb := string(mustRun(t, first, "dpkg-deb", "--contents", filepath.Join(first, "moult_1.2.3_amd64.deb")))
	for _, file := range packagedFiles {
		if !strings.Contains(deb, strings.TrimPrefix(file, "/usr")) { // units are in /lib there
			t.Errorf("the deb lacks %s:\n%s", file, deb)
		}
	}
	unpacked := t.TempDir()
	mustRun(t, unpacked, "tar", "xzf", filepath.Join(first, "moult-1.2.3-linux-amd64.tar.gz"))
	if out := mustRun(t, unpacked, filepath.Join(unpacked, "moult-1.2.3-linux-amd64", "moult"), "version"); !strings.Contains(string(out), "1.2.3") {
		t.Errorf("the archive's program says %s", out)
	}
}

// packagedFiles are in both kinds of package.
var packagedFiles = []string{
	"/usr/bin/moult", "/usr/lib/systemd/system/moult-agent.service", "/usr/lib/systemd/system/moult-server.service",
	"/etc/moult/agent.toml", "/etc/moult/server.toml", "/usr/lib/sysusers.d/moult.conf",
	"/usr/share/bash-completion/completions/moult", "/usr/share/fish/vendor_completions.d/moult.fish", "/usr/share/moult/completion.ps1", "/_moult",
	"/usr/share/man/man1/moult-agent.1.gz", "/usr/share/man/man1/moult-server.1.gz",
}
