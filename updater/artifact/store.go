// Package artifact keeps release binaries by their sha256, fetches them from
// peers, and serves them to peers.
//
// Bytes that are not verified lie under a name that says so,
// "unverified-<sha256>", mode 0600, and get their final name, "<sha256>", mode
// 0700, only after every byte of the signed length was hashed and is on disk.
// Nobody is trusted for them: a peer that serves bad bytes costs its bytes.
//
// An agent calls Fetch with the digest and length that a signed manifest names;
// a server takes uploads with Store.Import; both serve what they hold, and the
// binary they run, with Handler:
//
//	GET /artifact/<sha256>   the bytes; ranges, HEAD; Repr-Digest (RFC 9530)
//	503 with Retry-After     all streams are taken: ask another peer
//	404                      not held here
//
// An artifact whose manifest signs its chunks is passed on while it comes in, each
// chunk after it has been verified; DESIGN.md says who takes what from whom:
//
//	GET /artifact/<sha256>/chunks?chunk=N   the chunk list: the sha256 of each, 32 bytes
//	GET /artifact/<sha256>/stripe?chunk=N&first=I&of=K&count=C
//	                         the chunks I, I+K, I+2K…, C of them, each when it is here
//
// Both wait a moment for a fetch that has not begun, unless now=1 is given: then
// 404 is the answer where the first chunk is not here yet.
//
// A relay, and a server, also gets what it lacks for hosts that reach nobody who
// holds it: see Puller.
//
//	POST /artifact/<sha256>/pull   get it, by this signed manifest; how far it is
//
// Nothing in the package holds an artifact in memory. Safe for concurrent use.
package artifact

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"moult/updater/internal/durable"
)

const (
	unverifiedPrefix = "unverified-"
	importPattern    = unverifiedPrefix + "import-*"
)

var (
	// ErrNotHeld: the store does not hold these bytes.
	ErrNotHeld = errors.New("the artifact is not held here")
	// ErrNotWanted: imported bytes are none of those expected.
	ErrNotWanted = errors.New("the bytes are not those expected")
	// ErrDamaged: an artifact on disk no longer has its digest.
	ErrDamaged = errors.New("the artifact was damaged on disk")
	// ErrLength: an artifact that is held is not of the length that was signed.
	ErrLength = errors.New("the artifact is not of the signed length")
	// ErrDiskFull: there is no room for the artifact.
	ErrDiskFull = errors.New("the disk is full")
	// ErrNoPeer: no peer gave the artifact.
	ErrNoPeer = errors.New("no peer gave the artifact")
)

// Store is a directory of verified artifacts, mode 0700. Besides them it serves
// the running binary. Safe for concurrent use by one process.
type Store struct {
	dir     string
	running running
	fetched atomic.Int64
	limit   atomic.Int64 // see SetLimit
	besides Besides      // see CountBesides

	mu       sync.Mutex
	fetching map[string]*flight // by digest
	pinned   string             // see Pin
	kept     []string           // see Keep
	began    chan struct{}      // closed with the next one that is shared

	telling sync.Mutex // or the older of two lists would be told last
	changed func([]string)
}

// OpenStore opens or makes the directory. The running executable is held too,
// under its digest, for as long as the file at runningPath is the one that is
// there now; with an empty digest there is none.
func OpenStore(dir, runningDigest, runningPath string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make artifact store: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("close artifact store to others: %w", err)
	}
	// What a stopped import left has no name to be resumed by.
	leftovers, err := filepath.Glob(filepath.Join(dir, importPattern))
	if err != nil {
		return nil, err
	}
	for _, path := range leftovers {
		os.Remove(path)
	}
	return &Store{dir: dir, running: newRunning(runningDigest, runningPath), fetching: map[string]*flight{}, began: make(chan struct{})}, nil
}

// ValidDigest tells whether s is a sha256 as 64 lower-case hex digits.
func ValidDigest(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == sha256.Size && strings.ToLower(s) == s
}

// Path is where a verified artifact lies, whether it does yet or not.
func (s *Store) Path(digest string) string { return filepath.Join(s.dir, digest) }

func (s *Store) partialPath(digest string) string {
	return filepath.Join(s.dir, unverifiedPrefix+digest)
}

// Fetched counts the bytes that peers sent for this store since it was opened,
// those of fetches that failed in the end among them.
func (s *Store) Fetched() int64 { return s.fetched.Load() }

// FreeBytes returns how many bytes may still be written where the store is; false
// where that is not known.
func (s *Store) FreeBytes() (int64, bool) { return freeSpace(s.dir) }

// Has tells whether the store holds an artifact of its own, verified. The
// running binary does not count: Path would not lead to it.
func (s *Store) Has(digest string) bool {
	if !ValidDigest(digest) {
		return false
	}
	st, err := os.Stat(s.Path(digest))
	return err == nil && st.Mode().IsRegular()
}

// Open opens an artifact, or the running binary, for reading, and returns its
// length. The caller closes it. Returns ErrNotHeld.
func (s *Store) Open(digest string) (*os.File, int64, error) {
	if !ValidDigest(digest) {
		return nil, 0, ErrNotHeld
	}
	f, err := os.Open(s.Path(digest))
	if errors.Is(err, fs.ErrNotExist) && digest == s.running.digest {
		f, err = s.running.open()
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, ErrNotHeld
	}
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}

// Verify reads an artifact again. One that no longer has its digest is deleted,
// so that the next Fetch gets it anew, and the error is ErrDamaged.
func (s *Store) Verify(digest string) error {
	if !s.Has(digest) {
		return ErrNotHeld
	}
	f, err := os.Open(s.Path(digest))
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return fmt.Errorf("read artifact: %w", err)
	}
	if hex.EncodeToString(h.Sum(nil)) == digest {
		return nil
	}
	f.Close() // Windows deletes no open file
	return errors.Join(fmt.Errorf("%w: %s", ErrDamaged, s.Path(digest)), ignoreMissing(os.Remove(s.Path(digest))))
}

// checkLength holds a verified artifact against the signed length.
func (s *Store) checkLength(digest string, size int64) error {
	st, err := os.Stat(s.Path(digest))
	if err != nil {
		return err
	}
	if st.Size() != size {
		return fmt.Errorf("%w: %.12s… is %d bytes, the manifest says %d; correct the manifest and publish the release again", ErrLength, digest, st.Size(), size)
	}
	return nil
}

// List returns the digests of the verified artifacts, sorted.
func (s *Store) List() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if ValidDigest(e.Name()) {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// Watch has f told of the digests of the verified artifacts, the newest first:
// now, and whenever one may have come or gone. Call it before the store is used.
func (s *Store) Watch(f func(digests []string)) {
	s.changed = f
	s.tell()
}

func (s *Store) tell() {
	if s.changed == nil {
		return
	}
	s.telling.Lock()
	defer s.telling.Unlock()
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return // those who ask for what is not here are told so
	}
	var digests []string
	for _, e := range newestFirst(entries) {
		if ValidDigest(e.Name()) {
			digests = append(digests, e.Name())
		}
	}
	s.changed(digests)
}

// Remove deletes an artifact and what was fetched of it, unless it is being
// fetched. What has the running binary's digest it keeps, without an error: on
// trial that is the running binary, and the only copy of it.
func (s *Store) Remove(digest string) error {
	if !ValidDigest(digest) || digest == s.running.digest {
		return nil
	}
	defer s.tell()
	s.mu.Lock()
	defer s.mu.Unlock()
	err := ignoreMissing(os.Remove(s.Path(digest)))
	if _, busy := s.fetching[digest]; busy {
		return err
	}
	return errors.Join(err, ignoreMissing(os.Remove(s.partialPath(digest))))
}

// dropPartial gives the disk its room back.
func (s *Store) dropPartial(digest string) error {
	return ignoreMissing(os.Remove(s.partialPath(digest)))
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Pin makes Prune keep an artifact until another one is pinned: what this host
// is to run must not make room for what it pulls for others.
func (s *Store) Pin(digest string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pinned = digest
}

// Prune deletes all artifacts but those named, the pinned one, those of Keep, and
// the newest of the others, at most spare, and partial files that nobody is fetching.
// What has the running binary's digest is always kept.
func (s *Store) Prune(spare int, keep ...string) error {
	defer s.tell()
	// Under the lock no fetch can begin, so none loses the file it resumes.
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.prune(spare, keep)
}

func (s *Store) prune(spare int, keep []string) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range newestFirst(entries) {
		if !s.deletable(e.Name(), keep) {
			continue
		}
		if ValidDigest(e.Name()) && spare > 0 {
			spare--
			continue
		}
		errs = append(errs, ignoreMissing(os.Remove(filepath.Join(s.dir, e.Name()))))
	}
	return errors.Join(errs...)
}

func newestFirst(entries []os.DirEntry) []os.DirEntry {
	written := make(map[string]time.Time, len(entries))
	for _, e := range entries {
		if info, err := e.Info(); err == nil { // else it was deleted meanwhile
			written[e.Name()] = info.ModTime()
		}
	}
	slices.SortStableFunc(entries, func(a, b os.DirEntry) int { return written[b.Name()].Compare(written[a.Name()]) })
	return entries
}

// Import stores bytes whose digest is not known before: an upload. Wanted is
// asked with the digest and length found; on false they are dropped and the
// error is ErrNotWanted. At most limit bytes are kept, one more is read.
func (s *Store) Import(r io.Reader, limit int64, wanted func(digest string, size int64) bool) (string, error) {
	f, err := os.CreateTemp(s.dir, importPattern)
	if err != nil {
		return "", describeDiskError(s.dir, err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(r, limit))
	if err != nil {
		return "", describeDiskError(s.dir, err)
	}
	if more, _ := io.CopyN(io.Discard, r, 1); more > 0 {
		return "", ErrNotWanted
	}
	digest := hex.EncodeToString(h.Sum(nil))
	if !wanted(digest, n) {
		return "", ErrNotWanted
	}
	return digest, s.adopt(f, digest)
}

// adopt gives a file whose bytes were all verified its final name, on disk, and
// closes it.
func (s *Store) adopt(f *os.File, digest string) error {
	if err := f.Chmod(0o700); err != nil { // it may be executed on trial
		return err
	}
	if err := f.Sync(); err != nil {
		return describeDiskError(s.dir, err)
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := durable.Rename(f.Name(), s.Path(digest)); err != nil {
		// Windows replaces no file that is being served; the same bytes are as good.
		if s.Verify(digest) != nil {
			return err
		}
		return os.Remove(f.Name())
	}
	if err := durable.SyncDir(s.dir); err != nil {
		return err
	}
	s.tell()
	return nil
}
