package install

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"time"
)

// OpenVerified opens path and hashes it through the descriptor it returns, so
// that the verified file is the executed file. It returns ErrDigest when the
// bytes are others. The file is executable by its owner afterwards.
func OpenVerified(path, digest string) (*os.File, error) {
	return openVerified(path, digest, nil)
}

// openVerified is OpenVerified, and writes the very bytes that it hashes to a copy,
// unless that is nil.
func openVerified(path, digest string, to io.Writer) (*os.File, error) {
	f, err := openStaged(path)
	if err != nil {
		return nil, fmt.Errorf("open staged binary: %w", err)
	}
	if err := verify(f, digest, to); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := makeExecutable(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("make staged binary executable: %w", err)
	}
	return f, nil
}

func verify(f *os.File, digest string, to io.Writer) error {
	h := sha256.New()
	hashed := io.Writer(h)
	if to != nil {
		hashed = io.MultiWriter(to, h)
	}
	if _, err := io.Copy(hashed, f); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != digest {
		return fmt.Errorf("%w: sha256 is %s, want %s", ErrDigest, got, digest)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("rewind: %w", err)
	}
	return nil
}

// Digest returns the sha256 of the file at path, 64 hex digits.
func Digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// StartVerified starts a file from OpenVerified through its descriptor where
// the system can (Linux), else by its path. attr.Files must hold what the child
// inherits; the verified file is added to them where it is executed, and its
// number in the child is returned (-1 when it is executed by path).
//
// A fork elsewhere in this process can hold a just-written file open for
// writing for an instant, and the kernel then answers "text file busy"; that is
// tried again for up to two seconds.
func StartVerified(f *os.File, argv []string, attr *os.ProcAttr) (*os.Process, int, error) {
	path, inherited := f.Name(), -1
	if byDescriptor {
		inherited = len(attr.Files)
		attr.Files = append(attr.Files, f)
		path = fmt.Sprintf("/proc/self/fd/%d", inherited)
	}
	for began := time.Now(); ; {
		p, err := os.StartProcess(path, argv, attr)
		if err == nil {
			return p, inherited, nil
		}
		if !isTextBusy(err) || time.Since(began) > 2*time.Second {
			return nil, -1, fmt.Errorf("start %s: %w", f.Name(), err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
