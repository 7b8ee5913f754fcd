//go:build unix

package main

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// mustCopySource copies the repository to a directory, without what is built
// there and without its history.
func mustCopySource(t *testing.T, to string) {
	t.Helper()
	root := filepath.FromSlash("../..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		switch name := d.Name(); {
		case name == ".git" && !d.IsDir():
			return nil // of a second working tree: a copy would commit into that
		case d.IsDir() && (name == ".git" || name == "bin" || name == "dist"):
			return filepath.SkipDir
		case d.IsDir():
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		case !d.Type().IsRegular():
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), content, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// mustBuild runs `make build` in dir and returns the binary's path.
func mustBuild(t *testing.T, dir string, env ...string) string {
	t.Helper()
	cmd := exec.Command("make", "-s", "build", "VERSION=1.2.3", "COMMIT=abc", "BIN=moult-built")
	cmd.Dir, cmd.Env = dir, append(append(os.Environ(), "GOFLAGS=-buildvcs=true"), env...) // the worst that a machine can have set
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make build: %v\n%s", err, text)
	}
	return filepath.Join(dir, "moult-built")
}

func mustRun(t *testing.T, dir, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return out
}

// Anybody can build the same bytes: from an archive of the source or from a
// clone, wherever it lies. In the long form nothing is taken from a cache.
func TestTwoBuildsAreByteIdentical(t *testing.T) {
	archive, clone := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "somewhere", "else")
	mustCopySource(t, archive)
	mustCopySource(t, clone)
	mustRun(t, clone, "git", "init", "-q")
	mustRun(t, clone, "git", "add", ".")
	mustRun(t, clone, "git", "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "x")
	env := func() []string {
		if !longForm() {
			return nil
		}
		return []string{"GOCACHE=" + t.TempDir()}
	}
	first, err := os.ReadFile(mustBuild(t, archive, env()...))
	if err != nil {
		t.Fatal(err)
	}
	second, err := os.ReadFile(mustBuild(t, clone, env()...))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", mustRun(t, clone, "go", "version", "-m", "moult-built"))
	t.Logf("%s", mustRun(t, clone, "git", "status", "--short"))
	if !bytes.Equal(first, second) {
		t.Error("two builds of one source differ")
	}
	if bytes.Contains(first, []byte(archive)) {
		t.Error("the binary tells where it was built")
	}
}

// The bill of materials lists what the linker put in: no module more, none less.
func TestSBOMListsWhatIsInTheBinary(t *testing.T) {
	path := binary(t, versionA)
	var want []string
	for line := range strings.SplitSeq(string(mustRun(t, ".", "go", "version", "-m", path)), "\n") {
		if f := strings.Fields(line); len(f) >= 3 && f[0] == "dep" {
			want = append(want, f[1]+" "+f[2])
		}
	}
	for name, args := range map[string][]string{"its own": {"sbom"}, "of a file": {"sbom", path}} {
		out := mustRun(t, ".", path, args...)
		var b bom
		if err := json.Unmarshal(out, &b); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range b.Components {
			if c.Name == "std" {
				if !strings.HasPrefix(c.Version, "1.") {
					t.Errorf("%s: the standard library is %+v", name, c)
				}
				continue
			}
			got = append(got, c.Name+" "+c.Version)
			if len(c.Hashes) != 1 || len(c.Hashes[0].Content) != 64 {
				t.Errorf("%s: %s has no hash", name, c.Name)
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if len(want) < 20 || !slices.Equal(got, want) {
			t.Errorf("%s: the bill lists\n%q\nthe binary holds\n%q", name, got, want)
		}
		if c := b.Metadata.Component; c.Name != "moult" || (c.Version == versionA) != (len(args) == 1) || b.Format != "CycloneDX" {
			t.Errorf("%s: it is of %+v", name, c)
		}
	}
	cmd := exec.Command(path, "sbom", "build_test.go")
	if text, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(text), "name a binary that was built by Go") {
		t.Errorf("of a text: %s", text)
	}
}
