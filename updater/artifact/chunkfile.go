package artifact

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"moult/updater/release"
)

// errEnded: the file of a fetch is no longer there under its unverified name.
var errEnded = errors.New("the fetch has ended")

// chunkFile is an artifact's file on its way to be complete, under its unverified
// name, filled chunk by chunk in any order. A chunk is written after it has proved
// to be the signed one, and only then given to others. Safe for concurrent use.
type chunkFile struct {
	dir    string
	size   int64 // signed
	chunks release.Chunks
	sums   [][sha256.Size]byte
	list   []byte // the chunk list that sums are of

	unpushed atomic.Int64 // bytes written since the disk was asked to begin

	mu    sync.RWMutex
	file  *os.File // nil: ended
	have  []bool
	count int           // of them
	news  chan struct{} // closed with the next chunk, or the end
}

// openChunkFile opens or makes the file. What an earlier fetch left in it counts
// as far as it is chunks that are signed.
func openChunkFile(dir, path string, size int64, chunks release.Chunks, list []byte) (*chunkFile, error) {
	sums, err := chunks.Open(list, size)
	if err != nil {
		return nil, err
	}
	file, err := openUnverified(dir, path)
	if err != nil {
		return nil, err
	}
	c := &chunkFile{dir: dir, size: size, chunks: chunks, sums: sums, list: list, file: file, have: make([]bool, len(sums)), news: make(chan struct{})}
	if err := c.resume(); err != nil {
		file.Close()
		return nil, &localError{err}
	}
	return c, nil
}

// openUnverified opens or makes a file that nobody may execute.
func openUnverified(dir, path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("begin the artifact's file: %w; check that %s exists and can be written, then start the update again", describeDiskError(dir, err), dir)
	}
	// A stop between the last two steps of an adoption leaves it executable.
	if err := file.Chmod(0o600); err != nil {
		file.Close()
		return nil, &localError{err}
	}
	return file, nil
}

func (c *chunkFile) resume() error {
	st, err := c.file.Stat()
	if err != nil {
		return err
	}
	if st.Size() > c.size { // what lies beyond would follow the verified bytes
		if err := c.file.Truncate(c.size); err != nil {
			return err
		}
	}
	buf := make([]byte, c.chunks.Size)
	for i := range c.sums {
		b := buf[:c.length(i)]
		if c.offset(i) >= st.Size() {
			return nil
		}
		// What cannot be read is fetched.
		if _, err := c.file.ReadAt(b, c.offset(i)); err == nil && c.signed(i, b) {
			c.have[i] = true
			c.count++
		}
	}
	return nil
}

func (c *chunkFile) offset(i int) int64 { return int64(i) * c.chunks.Size }

func (c *chunkFile) length(i int) int { return int(min(c.chunks.Size, c.size-c.offset(i))) }

// signed tells whether these bytes are the chunk.
func (c *chunkFile) signed(i int, b []byte) bool { return sha256.Sum256(b) == c.sums[i] }

// put takes a chunk's bytes, verified or not: errCorrupt says that they are others.
func (c *chunkFile) put(i int, b []byte) error {
	if !c.signed(i, b) {
		return errCorrupt
	}
	c.mu.RLock()
	if c.file == nil {
		c.mu.RUnlock()
		return errEnded
	}
	_, err := c.file.WriteAt(b, c.offset(i))
	if err == nil && c.unpushed.Add(int64(len(b))) >= writebackEvery {
		c.unpushed.Store(0)
		beginWriteback(c.file)
	}
	c.mu.RUnlock()
	if err != nil {
		return &localError{describeDiskError(c.dir, err)}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.have[i] {
		c.have[i] = true
		c.count++
		c.tell()
	}
	return nil
}

// tell wakes who waits. The lock is held.
func (c *chunkFile) tell() {
	close(c.news)
	c.news = make(chan struct{})
}

// holds tells whether a chunk is here.
func (c *chunkFile) holds(i int) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.have[i]
}

// next is closed when the next chunk is here, or the end.
func (c *chunkFile) next() <-chan struct{} {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.news
}

// read reads a chunk, as soon as it is here, into b, which is as long as it.
// Returns errEnded.
func (c *chunkFile) read(ctx context.Context, i int, b []byte) error {
	for {
		c.mu.RLock()
		file, here, news := c.file, c.have[i], c.news
		if file != nil && here {
			_, err := file.ReadAt(b, c.offset(i))
			c.mu.RUnlock()
			return err
		}
		c.mu.RUnlock()
		if file == nil {
			return errEnded
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-news:
		}
	}
}

// missing returns the first run of chunks that are missing of those of a stripe;
// n is 0 when none is.
func (c *chunkFile) missing(stripe, of int) (first, n int) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for i := stripe; i < len(c.have); i += of {
		switch {
		case c.have[i] && n > 0:
			return first, n
		case !c.have[i] && n == 0:
			first, n = i, 1
		case !c.have[i]:
			n++
		}
	}
	return first, n
}

// done is how many bytes are here.
func (c *chunkFile) done() int64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	n := int64(c.count) * c.chunks.Size
	if last := len(c.have) - 1; c.have[last] {
		n -= c.chunks.Size - int64(c.length(last))
	}
	return n
}

// sum reads the whole in order, each chunk as soon as it is here, and returns its
// sha256 in hex.
func (c *chunkFile) sum(ctx context.Context) (string, error) {
	h := sha256.New()
	buf := make([]byte, c.chunks.Size)
	for i := range c.sums {
		b := buf[:c.length(i)]
		if err := c.read(ctx, i, b); err != nil {
			return "", err
		}
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// end takes the file out of use by others and returns it.
func (c *chunkFile) end() *os.File {
	c.mu.Lock()
	defer c.mu.Unlock()
	file := c.file
	c.file = nil
	c.tell()
	return file
}

// cut ends the use of the file and leaves of it what whoever fetches the whole can
// go on with: the first bytes without a gap.
func (c *chunkFile) cut() error {
	file := c.end()
	if file == nil {
		return nil
	}
	defer file.Close()
	n := 0
	for n < len(c.have) && c.have[n] {
		n++
	}
	st, err := file.Stat()
	if err != nil || st.Size() <= c.offset(n) {
		return err
	}
	return file.Truncate(min(c.offset(n), c.size))
}

// CheckChunks tells whether a held artifact is cut as a manifest says: ErrChunkList
// if not. Nothing is said of one that is not cut.
func (s *Store) CheckChunks(digest string, chunks release.Chunks) error {
	if !chunks.Signed() {
		return nil
	}
	f, size, err := s.Open(digest)
	if err != nil {
		return err
	}
	defer f.Close()
	list, err := chunkList(f, chunks.Size)
	if err == nil {
		_, err = chunks.Open(list, size)
	}
	return err
}

// chunkList reads the chunk list of an artifact that is held.
func chunkList(r io.Reader, chunkSize int64) ([]byte, error) {
	l := release.NewChunkLister(chunkSize)
	_, err := io.Copy(l, r)
	return l.List(), err
}
