package install

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// Place is where a committed binary goes.
type Place string

// The places.
const (
	// InPlace: over the installed binary.
	InPlace Place = "installed"
	// InData: into the data directory; the installed binary, which is somebody
	// else's to replace, hands over to it.
	InData Place = "data"
	// AnyPlace is a wish: InData for a binary that a package manager owns or that
	// cannot be replaced, else InPlace.
	AnyPlace Place = "auto"
)

// ParsePlace reads a wish; empty means AnyPlace.
func ParsePlace(text string) (Place, error) {
	switch p := Place(text); p {
	case "":
		return AnyPlace, nil
	case InPlace, InData, AnyPlace:
		if p == InData && runtime.GOOS == "windows" {
			return "", fmt.Errorf("%q: Windows replaces the installed binary; give installed or auto", text)
		}
		return p, nil
	}
	return "", fmt.Errorf("%q: give auto, installed or data", text)
}

// choose tells where a committed binary would go, and why: a reason to be read
// after "because". It writes nothing but a temporary file beside the installed
// binary. Once a binary is active in the data directory, later ones go there too.
func (wish Place) choose(installed, dataDir string, lists *ownership) (Place, string) {
	switch {
	case wish == InPlace || wish == InData:
		return wish, "the configuration says so"
	case runtime.GOOS == "windows":
		return InPlace, "Windows replaces the installed binary"
	}
	if _, err := os.Lstat(activeRecord(dataDir)); err == nil {
		return InData, "the active binary is there"
	}
	target, err := filepath.EvalSymlinks(installed)
	if err != nil {
		return InPlace, "its path is unclear" // which preflight complains about
	}
	if owner := packageOwner(target, lists); owner != "" {
		return InData, owner
	}
	if obstacle := fixed(target); obstacle != "" {
		return InData, obstacle
	}
	if err := tryDir(filepath.Dir(target)); err != nil {
		return InData, err.Error()
	}
	return InPlace, "the installed binary can be replaced"
}

// distribution are the directories that belong to a system's packages.
var distribution = []string{"/usr", "/bin", "/sbin", "/lib", "/lib64", "/nix/store", "/gnu/store"}

// packageOwner says whose the file is, "" when it is nobody's. What lies under /usr
// belongs to the system's packages, /usr/local to who administers the host. The
// package manager's database is asked for the rest, where it can be read without
// running a program.
func packageOwner(path string, lists *ownership) string {
	if !within(path, "/usr/local") {
		for _, dir := range distribution {
			if within(path, dir) {
				return dir + " belongs to the system's packages"
			}
		}
	}
	if strings.Contains(path, "/Cellar/") {
		return "Homebrew owns " + path
	}
	if name := lists.dpkgOwner("/var/lib/dpkg/info", path, time.Now()); name != "" {
		return "package " + name + " owns " + path
	}
	return ""
}

func within(path, dir string) bool { return strings.HasPrefix(path, dir+"/") }

// maxListSize bounds what is read of one package's list of files.
const maxListSize = 32 << 20

// dpkgOwner looks for the Debian package that lists the path. A host may have a
// thousand lists, and waits for the answer in its turn.
func dpkgOwner(info, path string) string {
	entries, err := os.ReadDir(info)
	if err != nil {
		return ""
	}
	var text bytes.Buffer
	for _, e := range entries {
		name, isList := strings.CutSuffix(e.Name(), ".list")
		if isList && readList(&text, filepath.Join(info, e.Name())) && hasLine(text.Bytes(), path) {
			return name
		}
	}
	return ""
}

// readList reads a list of files; false: it cannot be read, or is too long.
func readList(into *bytes.Buffer, path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	into.Reset()
	_, err = into.ReadFrom(io.LimitReader(f, maxListSize+1))
	return err == nil && into.Len() <= maxListSize
}

func hasLine(text []byte, line string) bool {
	for rest := text; ; {
		at := bytes.Index(rest, []byte(line))
		if at < 0 {
			return false
		}
		end := at + len(line)
		if begin := len(text) - len(rest) + at; (begin == 0 || text[begin-1] == '\n') && (end == len(rest) || rest[end] == '\n') {
			return true
		}
		rest = rest[end:]
	}
}

// tryDir tells why files cannot be replaced in a directory.
func tryDir(dir string) error {
	f, err := os.CreateTemp(dir, tempPrefix+"*")
	if err != nil {
		var at *fs.PathError
		if errors.As(err, &at) {
			err = at.Err // without the temporary name
		}
		return fmt.Errorf("directory %s cannot be written (%w)", dir, err)
	}
	f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return fmt.Errorf("directory %s lets files be made but not removed: %w", dir, err)
	}
	return nil
}
