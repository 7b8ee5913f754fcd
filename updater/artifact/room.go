package artifact

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// DefaultLimit is how many bytes an agent keeps of releases, when nothing else is
// said: room for the largest artifact beside those of ordinary size.
const DefaultLimit = 2_000_000_000

// ErrLimit: an artifact has no room within the store's limit.
var ErrLimit = errors.New("there is no room for it within the limit of what is kept of releases")

// Besides is what is kept of releases elsewhere, and counts towards the limit.
type Besides interface {
	// Used counts its bytes.
	Used() int64
	// Drop deletes the oldest until that many bytes are free, or nothing is left.
	Drop(bytes int64) error
}

// SetLimit bounds what the store, and besides, may take of the disk, in bytes; 0:
// no limit. It holds from the next MakeRoom on.
func (s *Store) SetLimit(bytes int64) { s.limit.Store(bytes) }

// CountBesides has the limit hold for something else too. Call it before the store
// is used.
func (s *Store) CountBesides(b Besides) { s.besides = b }

// Keep has no Prune and no MakeRoom delete these artifacts until others are named:
// what this host can go back to.
func (s *Store) Keep(digests ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept = digests
}

// Used counts the bytes of artifacts, parts of them, and what is kept besides.
func (s *Store) Used() int64 {
	used := s.besidesUsed()
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return used
	}
	for _, e := range entries {
		used += sizeOf(e)
	}
	return used
}

func (s *Store) besidesUsed() int64 {
	if s.besides == nil {
		return 0
	}
	return s.besides.Used()
}

func sizeOf(e os.DirEntry) int64 {
	info, err := e.Info()
	if err != nil || !info.Mode().IsRegular() {
		return 0 // it was deleted meanwhile
	}
	return info.Size()
}

// MakeRoom prunes, as Prune does, for an artifact of size bytes that is to come;
// and then further, the oldest first, until it has room within the limit, beside
// what is being fetched already. Where what has to be kept takes too much of it, the
// error is ErrLimit.
func (s *Store) MakeRoom(digest string, size int64, spare int, keep ...string) error {
	defer s.tell()
	s.mu.Lock()
	defer s.mu.Unlock()
	keep = append(keep, digest)
	if err := s.prune(spare, keep); err != nil {
		return err
	}
	limit := s.limit.Load()
	if limit <= 0 {
		return nil
	}
	over := s.Used() + s.toCome(digest, size) - limit
	freed, err := s.drop(over, keep)
	over -= freed
	if over > 0 && s.besides != nil {
		before := s.besides.Used()
		err = errors.Join(err, s.besides.Drop(over))
		over -= before - s.besides.Used()
	}
	if err == nil && over > 0 {
		err = fmt.Errorf("%w: %d MB are allowed, what has to be kept and what is to come exceed that by %.1f MB; raise store_limit (--store-limit)", ErrLimit, limit/1e6, float64(over)/1e6)
	}
	return err
}

// toCome counts the bytes that are still missing of an artifact and of those that
// are being fetched.
func (s *Store) toCome(digest string, size int64) (missing int64) {
	sizes := map[string]int64{digest: size}
	for d, f := range s.fetching {
		sizes[d] = max(sizes[d], f.now().size)
	}
	for d, size := range sizes {
		if !s.Has(d) {
			missing += max(0, size-s.partialSize(d))
		}
	}
	return missing
}

// drop deletes artifacts and parts of them, the oldest first, until so many bytes
// are free, but none that is kept. The caller holds the lock.
func (s *Store) drop(bytes int64, keep []string) (freed int64, err error) {
	if bytes <= 0 {
		return 0, nil
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return 0, err
	}
	entries = newestFirst(entries)
	slices.Reverse(entries)
	var errs []error
	for _, e := range entries {
		if freed >= bytes {
			break
		}
		if !s.deletable(e.Name(), keep) {
			continue
		}
		size := sizeOf(e)
		if err := ignoreMissing(os.Remove(filepath.Join(s.dir, e.Name()))); err != nil {
			errs = append(errs, err)
			continue
		}
		freed += size
	}
	return freed, errors.Join(errs...)
}

// deletable tells whether a file may be deleted to make room: an artifact or a part
// of one that does not run, is not to run, is nothing to go back to, is not being
// fetched and is none of keep. The caller holds the lock.
func (s *Store) deletable(name string, keep []string) bool {
	digest := strings.TrimPrefix(name, unverifiedPrefix)
	if !ValidDigest(digest) || digest == s.running.digest || digest == s.pinned {
		return false
	}
	_, busy := s.fetching[digest]
	return !busy && !slices.Contains(keep, digest) && !slices.Contains(s.kept, digest)
}
