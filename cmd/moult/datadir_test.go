//go:build unix

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"moult/cmd/internal/nodekit"
)

// A data directory that others could exchange is refused, with what to do; one that
// is too open is closed.
func TestDataDirThatOthersCouldExchange(t *testing.T) {
	base := t.TempDir()
	parent := filepath.Join(base, "parent")
	data := filepath.Join(parent, "data")
	must(t, os.MkdirAll(data, 0o755))
	open := func() error {
		unlock, err := nodekit.OpenDataDir(data, false)
		if err == nil {
			unlock()
		}
		return err
	}
	must(t, open())
	info, err := os.Stat(data)
	must(t, err)
	if mode := info.Mode().Perm(); mode != 0o700 {
		t.Errorf("it was left with mode %04o", mode)
	}
	must(t, os.Chmod(parent, 0o777))
	if err := open(); err == nil || !strings.Contains(err.Error(), parent+" can be written to by others (mode 0777)") || !strings.Contains(err.Error(), "--any-data-path") {
		t.Errorf("a parent that everybody writes to: %v", err)
	}
	if unlock, err := nodekit.OpenDataDir(data, true); err != nil {
		t.Errorf("asked for: %v", err)
	} else {
		unlock()
	}
	// By a link that stands where everybody writes, though what it leads to does not.
	must(t, os.Chmod(parent, 0o755))
	shared := filepath.Join(base, "shared")
	must(t, os.Mkdir(shared, 0o755))
	must(t, os.Chmod(shared, 0o777))
	must(t, os.Symlink(data, filepath.Join(shared, "link")))
	if _, err := nodekit.OpenDataDir(filepath.Join(shared, "link"), false); err == nil || !strings.Contains(err.Error(), shared) {
		t.Errorf("by a link that everybody may replace: %v", err)
	}
	must(t, os.Chmod(parent, 0o777|os.ModeSticky)) // as /tmp
	must(t, open())

	if os.Geteuid() != 0 {
		t.Skip("only root can give directories away")
	}
	must(t, os.Chmod(parent, 0o775))
	must(t, os.Chown(parent, 0, 12345))
	if err := open(); err == nil || !strings.Contains(err.Error(), "mode 0775") {
		t.Errorf("a parent that another group writes to: %v", err)
	}
	must(t, os.Chmod(parent, 0o755))
	must(t, os.Chown(parent, 12345, 0))
	if err := open(); err == nil || !strings.Contains(err.Error(), parent+" belongs to user 12345") {
		t.Errorf("another user's parent: %v", err)
	}
	must(t, os.Chown(parent, 0, 0))
	must(t, os.Chown(data, 12345, 0))
	if err := open(); err == nil || !strings.Contains(err.Error(), "it belongs to user 12345, and moult runs as user 0") {
		t.Errorf("another user's: %v", err)
	}
}

func TestChildrenGetNoJoinToken(t *testing.T) {
	got := nodekit.WithoutJoinToken([]string{"PATH=/bin", "MOULT_TOKEN=MOULT1.x.y", "MOULT_TOKEN_FILE=f"})
	if !slices.Equal(got, []string{"PATH=/bin", "MOULT_TOKEN_FILE=f"}) {
		t.Errorf("%q", got)
	}
}

// An installed binary that others could exchange is refused: it, the directory that it
// is in, or one above it, and by a link as well.
func TestBinaryThatOthersCouldExchange(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "opt", "bin")
	must(t, os.MkdirAll(dir, 0o755))
	path := filepath.Join(dir, "moult")
	must(t, os.WriteFile(path, []byte("#!"), 0o755))
	must(t, os.Chmod(path, 0o755))
	link := filepath.Join(base, "moult")
	must(t, os.Symlink(path, link))
	must(t, nodekit.CheckBinary(path, false))
	must(t, nodekit.CheckBinary(link, false))
	for _, open := range []string{path, dir, filepath.Dir(dir)} {
		must(t, os.Chmod(open, 0o777))
		for _, given := range []string{path, link} {
			err := nodekit.CheckBinary(given, false)
			if err == nil || !strings.Contains(err.Error(), "--binary "+given) || !strings.Contains(err.Error(), open+" can be written to by others (mode 0777)") || !strings.Contains(err.Error(), "--any-data-path") {
				t.Errorf("%s, where everybody writes to %s: %v", given, open, err)
			}
			must(t, nodekit.CheckBinary(given, true))
		}
		must(t, os.Chmod(open, 0o755))
	}
	if err := nodekit.CheckBinary(filepath.Join(dir, "gone"), false); err == nil {
		t.Error("one that is not there is taken")
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	for _, theirs := range []string{path, dir} {
		must(t, os.Chown(theirs, 12345, 0))
		if err := nodekit.CheckBinary(path, false); err == nil || !strings.Contains(err.Error(), theirs+" belongs to user 12345") {
			t.Errorf("where %s is another user's: %v", theirs, err)
		}
		must(t, os.Chown(theirs, 0, 0))
	}
}
