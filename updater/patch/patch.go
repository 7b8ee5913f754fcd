// Package patch makes, keeps, serves and fetches patches between artifacts. A
// host that runs one takes the next as a patch where it can, and by package
// artifact where it cannot.
//
// A server makes the patches from the versions that the fleet runs, with
// Store.Make; every node serves what it keeps, with Handler:
//
//	GET /patch/<old sha256>-<new sha256>   the patch; ranges
//	404                                    not held here
//	503 with Retry-After                   all streams are taken: ask another peer
//
// Fetch asks peers for the patch of what this host runs, applies it as it comes
// in, and puts what came of it into the artifact store, which verifies the signed
// digest as of any bytes. Only then does the host keep the patch and serve it on:
// a patch is not signed, so nobody passes on one that he has not seen to be good.
package patch

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"

	"moult/updater/artifact"
	"moult/updater/delta"
	"moult/updater/internal/durable"
)

// Limits.
const (
	// MaxMakeLen is the longest artifact that a server makes patches of, in bytes:
	// it takes six times that much memory, and 64 MiB.
	MaxMakeLen = 64 << 20
	// makeSpare is what has to stay free of memory while one is made, in bytes.
	makeSpare = 64 << 20
	// MaxHeld is how many bytes of patches a node keeps; the oldest make room.
	MaxHeld = 256 << 20
	// worthPart: a patch that is not smaller than the artifact by this factor is
	// no use.
	worthPart = 2
)

const (
	unverifiedPrefix = "unverified-"
	tempPattern      = unverifiedPrefix + "*"
	digestsLen       = 64 + 1 + 64
)

var (
	// ErrNotHeld: the patch is not here.
	ErrNotHeld = errors.New("the patch is not held here")
	// ErrNotWorth: a patch would not save enough.
	ErrNotWorth = errors.New("the patch is not worth its while")
	// ErrNoMemory: to make a patch would take more memory than is free.
	ErrNoMemory = errors.New("there is not enough memory free to make a patch")
	// ErrNoPatch: no peer gave a patch that is good. The whole artifact is needed.
	ErrNoPatch = errors.New("no peer gave a patch")
)

// Make makes a patch and applies it once, so that a fault in it is found here.
// Errors: ErrNotWorth, also of equal files; those of delta.Make.
func Make(ctx context.Context, old, new []byte) ([]byte, delta.Header, error) {
	if bytes.Equal(old, new) {
		return nil, delta.Header{}, fmt.Errorf("%w: it is the same file", ErrNotWorth)
	}
	var made bytes.Buffer
	if err := delta.Make(ctx, old, new, &made); err != nil {
		return nil, delta.Header{}, err
	}
	if made.Len() > len(new)/worthPart {
		return nil, delta.Header{}, fmt.Errorf("%w: it would have %d bytes, the whole file has %d", ErrNotWorth, made.Len(), len(new))
	}
	h, err := delta.ReadHeader(bytes.NewReader(made.Bytes()))
	if err != nil {
		return nil, delta.Header{}, err
	}
	want := delta.Target{OldDigest: h.OldDigest, NewDigest: h.NewDigest, Length: int64(len(new))}
	again := &expected{new}
	if err := delta.Apply(ctx, bytes.NewReader(old), bytes.NewReader(made.Bytes()), want, again); err != nil {
		return nil, delta.Header{}, fmt.Errorf("try the patch: %w", err)
	}
	if len(again.rest) > 0 {
		return nil, delta.Header{}, fmt.Errorf("try the patch: %w", errOtherFile)
	}
	return made.Bytes(), h, nil
}

var errOtherFile = errors.New("it makes another file; go without it, and report this")

// expected takes no other bytes than those that are left of a file.
type expected struct{ rest []byte }

func (e *expected) Write(b []byte) (int, error) {
	if !bytes.HasPrefix(e.rest, b) {
		return 0, errOtherFile
	}
	e.rest = e.rest[len(b):]
	return len(b), nil
}

// Name is what a patch is called, in directories and in URLs.
func Name(old, new string) string { return old + "-" + new }

// validName tells whether a name is that of a patch.
func validName(name string) bool {
	return len(name) == digestsLen && name[64] == '-' && artifact.ValidDigest(name[:64]) && artifact.ValidDigest(name[65:])
}

// Store is a directory of patches, mode 0700. Safe for concurrent use by one
// process.
type Store struct {
	dir    string
	free   func() int64 // bytes of memory
	making sync.Mutex   // held while a patch is made: each takes much memory
	mu     sync.Mutex   // held while the directory is pruned
}

// OpenStore opens or makes the directory, and sweeps what a stopped process left.
func OpenStore(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make patch store: %w", err)
	}
	leftovers, err := filepath.Glob(filepath.Join(dir, tempPattern))
	if err != nil {
		return nil, err
	}
	for _, path := range leftovers {
		os.Remove(path)
	}
	return &Store{dir: dir, free: freeMemory}, nil
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

// Has tells whether a patch is held.
func (s *Store) Has(old, new string) bool {
	name := Name(old, new)
	st, err := os.Stat(s.path(name))
	return validName(name) && err == nil && st.Mode().IsRegular()
}

// open opens a patch, or returns ErrNotHeld.
func (s *Store) open(name string) (*os.File, error) {
	if !validName(name) {
		return nil, ErrNotHeld
	}
	f, err := os.Open(s.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotHeld
	}
	return f, err
}

// Make makes the patch between two artifacts that the store has, if it is not
// held yet: one at a time, since each takes memory of six times the artifact's
// length, which it gives back. Errors: artifact.ErrNotHeld, delta.ErrTooLarge,
// ErrNoMemory, ErrNotWorth, delta.ErrTooDifferent.
func (s *Store) Make(ctx context.Context, artifacts *artifact.Store, old, new string) error {
	s.making.Lock()
	defer s.making.Unlock()
	if s.Has(old, new) {
		return nil
	}
	from, err := openArtifact(artifacts, old)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := openArtifact(artifacts, new)
	if err != nil {
		return err
	}
	defer to.Close()
	if need, free := delta.MakeMemory(from.size, to.size)+makeSpare, s.free(); need > free {
		return fmt.Errorf("%w: %d MiB of %d", ErrNoMemory, free>>20, need>>20)
	}
	defer debug.FreeOSMemory()
	a, err := from.read()
	if err != nil {
		return err
	}
	b, err := to.read()
	if err != nil {
		return err
	}
	made, h, err := Make(ctx, a, b)
	if err != nil {
		return err
	}
	if h.OldDigest != old || h.NewDigest != new {
		return fmt.Errorf("make patch: %w", artifact.ErrDamaged)
	}
	if err := durable.WriteFile(s.path(Name(old, new)), 0o600, made); err != nil {
		return fmt.Errorf("keep patch: %w", err)
	}
	return s.Prune(nil)
}

// opened is an artifact that a patch is made of.
type opened struct {
	*os.File
	digest string
	size   int64
}

func openArtifact(artifacts *artifact.Store, digest string) (opened, error) {
	f, size, err := artifacts.Open(digest)
	if err != nil {
		return opened{}, fmt.Errorf("open artifact %.12s…: %w", digest, err)
	}
	if size > MaxMakeLen {
		f.Close()
		return opened{}, fmt.Errorf("%w: %.12s… has %d bytes, patches are made up to %d", delta.ErrTooLarge, digest, size, MaxMakeLen)
	}
	return opened{f, digest, size}, nil
}

func (o opened) read() ([]byte, error) {
	b := make([]byte, o.size)
	if _, err := io.ReadFull(o.File, b); err != nil {
		return nil, fmt.Errorf("read artifact %.12s…: %w", o.digest, err)
	}
	return b, nil
}

// Prune deletes the patches to artifacts that are not wanted (nil: all are), and
// the oldest of the others that exceed MaxHeld bytes in all.
func (s *Store) Prune(wanted func(new string) bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	var held []fs.FileInfo
	var errs []error
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !validName(e.Name()) {
			continue // gone meanwhile, or coming in
		}
		if _, new, _ := strings.Cut(e.Name(), "-"); wanted != nil && !wanted(new) {
			errs = append(errs, ignoreMissing(os.Remove(s.path(e.Name()))))
			continue
		}
		held = append(held, info)
	}
	slices.SortFunc(held, func(a, b fs.FileInfo) int {
		return cmp.Or(b.ModTime().Compare(a.ModTime()), cmp.Compare(a.Name(), b.Name()))
	})
	total := int64(0)
	for _, info := range held {
		if total += info.Size(); total > MaxHeld {
			errs = append(errs, ignoreMissing(os.Remove(s.path(info.Name()))))
		}
	}
	return errors.Join(errs...)
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
