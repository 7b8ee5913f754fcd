package release

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
)

// Bounds of a chunk's length in bytes; it is a power of two between them.
const (
	MinChunkBytes = 16 << 10
	MaxChunkBytes = 256 << 10
	// chunksWanted: a host passes a chunk on when it has all of it, so each host in a
	// row adds the time of one. With so many in an artifact that is little.
	chunksWanted = 512
)

// Chunks is how a manifest authorises parts of an artifact, so that they can be
// passed on before the whole is there: a chunk list is the sha256 of each chunk in
// order, 32 raw bytes each, and the manifest signs the sha256 of the list. The zero
// value means that only the whole is authorised.
type Chunks struct {
	Size int64  // bytes of each chunk but the last
	List string // sha256 of the chunk list, 64 lower-case hex digits
}

// ErrChunkList: a chunk list is not the one that was signed.
var ErrChunkList = errors.New("the chunk list is not the signed one")

// Chunks returns how the artifact is cut; the zero value when it is not.
func (a Artifact) Chunks() Chunks { return Chunks{Size: a.ChunkSize, List: a.ChunkList} }

// Signed tells whether there are chunks at all.
func (c Chunks) Signed() bool { return c.Size != 0 }

// Count returns of how many chunks an artifact of size bytes is.
func (c Chunks) Count(size int64) int { return int((size + c.Size - 1) / c.Size) }

// Open splits a chunk list that is of an artifact of size bytes, if it is the
// signed one. Returns ErrChunkList.
func (c Chunks) Open(list []byte, size int64) ([][sha256.Size]byte, error) {
	sum := sha256.Sum256(list)
	if len(list) != c.Count(size)*sha256.Size || hex.EncodeToString(sum[:]) != c.List {
		return nil, ErrChunkList
	}
	out := make([][sha256.Size]byte, c.Count(size))
	for i := range out {
		copy(out[i][:], list[i*sha256.Size:])
	}
	return out, nil
}

func (c Chunks) validate() error {
	switch {
	case c == (Chunks{}):
		return nil
	case !ValidChunkSize(c.Size):
		return fmt.Errorf("chunk_size is %d; give a power of two from %d to %d, or leave chunk_size and chunk_list out", c.Size, MinChunkBytes, MaxChunkBytes)
	case !validDigest(c.List):
		return errors.New("chunk_list is not 64 lower-case hex digits")
	}
	return nil
}

// ValidChunkSize tells whether chunks may be of n bytes.
func ValidChunkSize(n int64) bool {
	return n >= MinChunkBytes && n <= MaxChunkBytes && n&(n-1) == 0
}

// ChunkSizeFor returns the length of the chunks of an artifact of size bytes.
func ChunkSizeFor(size int64) int64 {
	n := int64(MinChunkBytes)
	for n < MaxChunkBytes && n*chunksWanted < size {
		n *= 2
	}
	return n
}

// ChunkLister makes the chunk list of what is written to it.
type ChunkLister struct {
	size    int64
	hash    hash.Hash
	pending int64 // bytes in hash
	list    bytes.Buffer
}

// NewChunkLister returns a lister for chunks of a size that ValidChunkSize takes.
func NewChunkLister(size int64) *ChunkLister {
	return &ChunkLister{size: size, hash: sha256.New()}
}

func (l *ChunkLister) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		part := b[:min(int64(len(b)), l.size-l.pending)]
		l.hash.Write(part)
		l.pending += int64(len(part))
		b = b[len(part):]
		if l.pending == l.size {
			l.cut()
		}
	}
	return n, nil
}

func (l *ChunkLister) cut() {
	l.list.Write(l.hash.Sum(nil))
	l.hash.Reset()
	l.pending = 0
}

// List ends the last chunk and returns the list.
func (l *ChunkLister) List() []byte {
	if l.pending > 0 {
		l.cut()
	}
	return l.list.Bytes()
}

// Chunks ends the last chunk and returns what a manifest says of the list.
func (l *ChunkLister) Chunks() Chunks {
	sum := sha256.Sum256(l.List())
	return Chunks{Size: l.size, List: hex.EncodeToString(sum[:])}
}

// listChunks reads the chunk list of an artifact.
func listChunks(r io.Reader, size int64) (Chunks, error) {
	l := NewChunkLister(size)
	_, err := io.Copy(l, r)
	return l.Chunks(), err
}
