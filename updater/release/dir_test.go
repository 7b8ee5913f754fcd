package release

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"debug/macho"
	"debug/pe"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// binaries writes one binary per platform, and options to release them.
func binaries(t testing.TB) (o BuildOptions, public string) {
	t.Helper()
	src := t.TempDir()
	public, secret := mustKeys(t)
	o = BuildOptions{
		Dir: filepath.Join(t.TempDir(), "rel"), Version: "1.2.3", Number: 7, Created: created, SecretKey: secret, Files: map[Platform]string{},
	}
	for p, content := range map[Platform][]byte{
		{"linux", "amd64"}: linuxELF(elf.EM_X86_64), {"linux", "arm64"}: linuxELF(elf.EM_AARCH64),
		{"windows", "amd64"}: peFile(pe.IMAGE_FILE_MACHINE_AMD64), {"darwin", "arm64"}: machO(macho.CpuArm64),
	} {
		path := filepath.Join(src, p.OS+p.Arch)
		must(t, os.WriteFile(path, content, 0o755))
		o.Files[p] = path
	}
	return o, public
}

func names(t testing.TB, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func TestBuildReadVerify(t *testing.T) {
	o, public := binaries(t)
	expires := created.AddDate(1, 0, 0)
	o.Floor, o.Rollback, o.Notes, o.Expires = 3, true, "Faster.", &expires
	progress := map[Platform]int64{}
	o.Progress = func(p Platform, done, total int64) {
		if done < progress[p] || done > total {
			t.Errorf("%s: %d of %d after %d", p, done, total, progress[p])
		}
		progress[p] = done
	}
	built, err := Build(o)
	must(t, err)
	want := []string{
		"manifest.json", "manifest.json.minisig", "moult-1.2.3-darwin-arm64", "moult-1.2.3-linux-amd64",
		"moult-1.2.3-linux-arm64", "moult-1.2.3-windows-amd64.exe",
	}
	if got := names(t, o.Dir); !slices.Equal(got, want) {
		t.Errorf("the directory holds %v", got)
	}
	d, err := ReadDir(o.Dir)
	must(t, err)
	verified, err := Verify(Pinned(public), d.Manifest, d.Signature)
	must(t, err)
	if !reflect.DeepEqual(verified, built) || !reflect.DeepEqual(d.Parsed, built) {
		t.Errorf("built %+v, verified %+v", built, verified)
	}
	if built.Floor != 3 || !built.Rollback || built.Notes != "Faster." || !built.Expires.Equal(expires) || !built.Created.Equal(created) {
		t.Errorf("built %+v", built)
	}
	for p, path := range o.Files {
		a, ok := built.Artifact(p.OS, p.Arch)
		content := mustRead(t, path)
		sum := sha256.Sum256(content)
		if !ok || a.Size != int64(len(content)) || a.SHA256 != hex.EncodeToString(sum[:]) || !bytes.Equal(mustRead(t, d.ArtifactPath(a)), content) {
			t.Errorf("%s: %+v", p, a)
		}
		if progress[p] != a.Size {
			t.Errorf("%s: told of %d bytes of %d", p, progress[p], a.Size)
		}
	}
}

// What cannot become a release is refused before anything is written, in the
// words of the command line.
func TestBuildRefuses(t *testing.T) {
	linux := Platform{"linux", "amd64"}
	for name, tc := range map[string]struct {
		spoil func(t *testing.T, o *BuildOptions)
		says  string
	}{
		"no directory":         {func(_ *testing.T, o *BuildOptions) { o.Dir = "" }, "--out"},
		"a file for one":       {func(t *testing.T, o *BuildOptions) { write(t, o.Dir, nil) }, "--out"},
		"no version":           {func(_ *testing.T, o *BuildOptions) { o.Version = "" }, "--version"},
		"a path for a version": {func(_ *testing.T, o *BuildOptions) { o.Version = "../../../etc/x" }, "--version"},
		"dots for a version":   {func(_ *testing.T, o *BuildOptions) { o.Version = ".." }, "--version"},
		"number 0":             {func(_ *testing.T, o *BuildOptions) { o.Number = 0 }, "number"},
		"floor above it":       {func(_ *testing.T, o *BuildOptions) { o.Floor = 8 }, "floor"},
		"expired at birth":     {func(_ *testing.T, o *BuildOptions) { o.Expires = &o.Created }, "expires"},
		"no key":               {func(_ *testing.T, o *BuildOptions) { o.SecretKey = "" }, "moult key generate"},
		"no binary":            {func(_ *testing.T, o *BuildOptions) { o.Files = nil }, "linux/amd64=PATH"},
		"a path for a platform": {func(_ *testing.T, o *BuildOptions) {
			o.Files[Platform{"../../x", "amd64"}] = o.Files[linux]
		}, "give it as linux/amd64"},
		"a missing binary": {func(_ *testing.T, o *BuildOptions) { o.Files[linux] += "x" }, "build it first"},
		"a directory":      {func(t *testing.T, o *BuildOptions) { o.Files[linux] = t.TempDir() }, "is not a file"},
		"an empty binary":  {func(t *testing.T, o *BuildOptions) { write(t, o.Files[linux], nil) }, "0 bytes"},
		"a binary for another platform": {func(_ *testing.T, o *BuildOptions) {
			o.Files[linux] = o.Files[Platform{"linux", "arm64"}]
		}, "GOOS=linux GOARCH=amd64"},
		"its own output": {func(t *testing.T, o *BuildOptions) {
			must(t, os.Mkdir(o.Dir, 0o700))
			path := filepath.Join(o.Dir, FileName(o.Version, linux))
			must(t, os.Rename(o.Files[linux], path))
			o.Files[linux] = path
		}, "give another --out"},
	} {
		o, _ := binaries(t)
		tc.spoil(t, &o)
		before := map[string]bool{}
		if st, err := os.Stat(o.Dir); err == nil && st.IsDir() {
			for _, n := range names(t, o.Dir) {
				before[n] = true
			}
		}
		if _, err := Build(o); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", name, err)
		}
		if st, err := os.Stat(o.Dir); err == nil && st.IsDir() {
			for _, n := range names(t, o.Dir) {
				if !before[n] {
					t.Errorf("%s: %s was left behind", name, n)
				}
			}
			if len(names(t, o.Dir)) < len(before) {
				t.Errorf("%s: a file that was there before is gone", name)
			}
			if len(before) == 0 {
				t.Errorf("%s: an empty directory was left behind", name)
			}
		}
	}
	o, _ := binaries(t)
	_, err := Build(o)
	must(t, err)
	o.Version = "1.2.4"
	if _, err := Build(o); err == nil || !strings.Contains(err.Error(), "another --out") {
		t.Errorf("over a release: %v", err)
	}
	if d, err := ReadDir(o.Dir); err != nil || d.Parsed.Version != "1.2.3" {
		t.Errorf("the release that was there: %v", err)
	}
}

// A directory that a crash left without its signature is finished by building again.
func TestBuildOverACrash(t *testing.T) {
	o, _ := binaries(t)
	must(t, os.Mkdir(o.Dir, 0o755))
	must(t, os.WriteFile(filepath.Join(o.Dir, "moult-1.2.3-linux-amd64"), []byte("half"), 0o755))
	must(t, os.WriteFile(filepath.Join(o.Dir, ".moult-1.2.3-linux-arm64.new"), []byte("half"), 0o755))
	must(t, os.WriteFile(filepath.Join(o.Dir, "manifest.json"), []byte("{"), 0o644))
	_, err := Build(o)
	must(t, err)
	if _, err := ReadDir(o.Dir); err != nil {
		t.Error(err)
	}
}

// A binary that grows or shrinks while it is copied makes no release.
func TestBinaryThatChangesWhileItIsCopied(t *testing.T) {
	for name, size := range map[string]int64{"grows": 200, "shrinks": 50} {
		o, _ := binaries(t)
		o.Files = map[Platform]string{{"linux", "amd64"}: o.Files[Platform{"linux", "amd64"}], {"linux", "arm64"}: o.Files[Platform{"linux", "arm64"}]}
		o.Progress = func(p Platform, _, _ int64) {
			if p.Arch == "amd64" { // copied first
				must(t, os.Truncate(o.Files[Platform{"linux", "arm64"}], size))
			}
		}
		if _, err := Build(o); err == nil || !strings.Contains(err.Error(), "changed while it was copied") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(o.Dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the directory is still there", name)
		}
	}
}

func TestReadDirRefuses(t *testing.T) {
	artifact := FileName("1.2.3", Platform{"linux", "amd64"})
	for name, tc := range map[string]struct {
		spoil func(t *testing.T, dir string)
		want  error
		says  string
	}{
		"a missing directory": {func(t *testing.T, dir string) { must(t, os.RemoveAll(dir)) }, os.ErrNotExist, "moult release create"},
		"no manifest":         {func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, ManifestFile))) }, os.ErrNotExist, "moult release create"},
		"no signature":        {func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, SignatureFile))) }, os.ErrNotExist, "minisign -Sm"},
		"a damaged manifest":  {func(t *testing.T, dir string) { write(t, filepath.Join(dir, ManifestFile), []byte("{")) }, nil, ManifestFile},
		"a huge manifest": {func(t *testing.T, dir string) {
			must(t, os.Truncate(filepath.Join(dir, ManifestFile), MaxManifestBytes+1))
		}, nil, "allowed"},
		"a missing artifact": {func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, artifact))) }, os.ErrNotExist, "create it again"},
		"a longer artifact": {func(t *testing.T, dir string) {
			must(t, os.Truncate(filepath.Join(dir, artifact), 200))
		}, ErrMismatch, "200 bytes, the manifest says"},
		"a flipped bit": {func(t *testing.T, dir string) {
			content := mustRead(t, filepath.Join(dir, artifact))
			content[len(content)-1] ^= 1
			write(t, filepath.Join(dir, artifact), content)
		}, ErrMismatch, "sha256"},
		"a directory for an artifact": {func(t *testing.T, dir string) {
			must(t, os.Remove(filepath.Join(dir, artifact)))
			must(t, os.Mkdir(filepath.Join(dir, artifact), 0o700))
		}, ErrMismatch, "is not a file"},
		"the manifest of another build": {func(t *testing.T, dir string) {
			manifest := mustRead(t, filepath.Join(dir, ManifestFile))
			var m Manifest
			m, err := Parse(manifest)
			must(t, err)
			m.Artifacts[1].SHA256 = strings.Repeat("a", 64)
			write(t, filepath.Join(dir, ManifestFile), mustJSON(t, m))
		}, ErrMismatch, "sha256"},
		"artifacts exchanged": {func(t *testing.T, dir string) {
			m, err := Parse(mustRead(t, filepath.Join(dir, ManifestFile)))
			must(t, err)
			for i := range m.Artifacts {
				switch m.Artifacts[i].Arch + m.Artifacts[i].OS {
				case "arm64linux":
					m.Artifacts[i].Arch = "amd64"
				case "amd64linux":
					m.Artifacts[i].Arch = "arm64"
				}
			}
			write(t, filepath.Join(dir, ManifestFile), mustJSON(t, m))
			a, b := filepath.Join(dir, artifact), filepath.Join(dir, FileName("1.2.3", Platform{"linux", "arm64"}))
			x, y := mustRead(t, a), mustRead(t, b)
			write(t, a, y)
			write(t, b, x)
		}, ErrWrongPlatform, "GOOS="},
	} {
		o, _ := binaries(t)
		_, err := Build(o)
		must(t, err)
		tc.spoil(t, o.Dir)
		_, err = ReadDir(o.Dir)
		if err == nil || tc.want != nil && !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", name, err)
		} else if errors.Is(err, ErrMismatch) && !strings.HasSuffix(err.Error(), "create the release again (digest_mismatch)") {
			t.Errorf("%s: it does not say what to do: %v", name, err)
		}
	}
}

// The manifest that Build signs does not depend on the clock it is read by.
func TestCreatedIsUTCInSeconds(t *testing.T) {
	o, _ := binaries(t)
	o.Created = time.Date(2026, 3, 1, 13, 0, 0, 999, time.FixedZone("CET", 3600))
	m, err := Build(o)
	must(t, err)
	if !m.Created.Equal(created) || m.Created.Location() != time.UTC {
		t.Errorf("created %v", m.Created)
	}
}
