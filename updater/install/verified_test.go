//go:build linux

package install

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// started runs a verified file and returns what it prints.
func started(t *testing.T, f *os.File) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, _, err := StartVerified(f, []string{"moult"}, &os.ProcAttr{Env: os.Environ(), Files: []*os.File{nil, w, w}})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if _, waitErr := p.Wait(); err != nil || waitErr != nil {
		t.Fatal(err, waitErr)
	}
	return strings.TrimSpace(string(out))
}

// Between the check and the start the name comes to lead to another file: what
// is executed is what was verified.
func TestTheVerifiedFileIsTheExecutedFile(t *testing.T) {
	for name, attack := range map[string]func(path, evil string) error{
		"rename": func(path, evil string) error { return os.Rename(evil, path) },
		"link":   func(path, evil string) error { return errors.Join(os.Remove(path), os.Symlink(evil, path)) },
		"remove": func(path, _ string) error { return os.Remove(path) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path, evil := filepath.Join(dir, "staged"), filepath.Join(dir, "evil")
			digest := script(t, path, "verified")
			script(t, evil, "evil")
			f, err := OpenVerified(path, digest)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := attack(path, evil); err != nil {
				t.Fatal(err)
			}
			if got := started(t, f); got != "verified" {
				t.Errorf("what was started says %q", got)
			}
		})
	}
}

func TestOpenVerifiedRefusesOtherBytes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "staged")
	digest := script(t, path, "verified")
	script(t, path, "evil")
	if f, err := OpenVerified(path, digest); !errors.Is(err, ErrDigest) {
		f.Close()
		t.Errorf("error is %v, want ErrDigest", err)
	}
}
