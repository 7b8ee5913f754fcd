package artifact

import (
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"os"
	"sync"
	"time"
)

const (
	// fetchBuffer is how many bytes are written and hashed at once. A partial file
	// has two buffers: one fills while the other is hashed.
	fetchBuffer = 256 << 10
	// flushEvery bounds how long bytes of a slow peer wait for their buffer to
	// fill, and so how late progress is told and how much a crash costs.
	flushEvery = 200 * time.Millisecond
	// writebackEvery is how many bytes are written before the disk is asked to
	// begin with them, so that the sync at the end finds little left to do.
	writebackEvery = 4 << 20
)

// partial is an artifact's file on its way to be complete, under its unverified
// name. Owned by one goroutine.
type partial struct {
	file *os.File
	dir  string
	size int64 // signed
	done int64 // bytes in the file that count; all of them are or will be hashed

	hash    hash.Hash // of the first done bytes, once hashing is over
	hashing sync.WaitGroup

	buffers  [2][]byte
	current  int
	waiting  int // bytes in the current buffer, not in the file yet
	lastOut  time.Time
	unpushed int64 // bytes written since the disk was asked to begin
}

// openPartial opens or makes the file and hashes what an earlier fetch left in
// it. No more than the signed length may count: what lies beyond it would follow
// the verified bytes to the final name.
func openPartial(dir, path string, size int64) (*partial, error) {
	file, err := openUnverified(dir, path)
	if err != nil {
		return nil, err
	}
	p := &partial{file: file, dir: dir, size: size, hash: sha256.New(), lastOut: time.Now()}
	if err := p.resume(); err != nil {
		file.Close()
		return nil, err
	}
	return p, nil
}

func (p *partial) resume() error {
	n, err := io.Copy(p.hash, io.LimitReader(p.file, p.size))
	if err != nil {
		return p.restart()
	}
	if err := p.file.Truncate(n); err != nil {
		return &localError{err}
	}
	p.done = n
	return nil
}

// restart drops all bytes.
func (p *partial) restart() error {
	p.hashing.Wait()
	p.hash.Reset()
	p.done, p.waiting, p.unpushed = 0, 0, 0
	if err := p.file.Truncate(0); err != nil {
		return &localError{err}
	}
	return nil
}

// close ends the use of the file.
func (p *partial) close() {
	p.hashing.Wait()
	p.file.Close()
}

// discard gives the disk its room back.
func (p *partial) discard() error {
	p.close()
	return ignoreMissing(os.Remove(p.file.Name()))
}

// missing is how many bytes are yet to come.
func (p *partial) missing() int64 { return p.size - p.done - int64(p.waiting) }

// room returns where the next bytes belong, at least one and no more than are
// missing: there is nowhere to put a byte beyond the signed length.
func (p *partial) room() []byte {
	if p.buffers[0] == nil {
		p.buffers[0], p.buffers[1] = make([]byte, fetchBuffer), make([]byte, fetchBuffer)
	}
	free := p.buffers[p.current][p.waiting:]
	return free[:min(int64(len(free)), p.missing())]
}

// add counts bytes that were read into room, and flushes when it is time to. It
// tells whether it did.
func (p *partial) add(n int) (flushed bool, err error) {
	p.waiting += n
	if p.waiting < fetchBuffer && p.missing() > 0 && time.Since(p.lastOut) < flushEvery {
		return false, nil
	}
	return true, p.flush()
}

// flush writes what waits, and hashes it while the next bytes come in.
func (p *partial) flush() error {
	p.lastOut = time.Now()
	if p.waiting == 0 {
		return nil
	}
	b := p.buffers[p.current][:p.waiting]
	p.current, p.waiting = 1-p.current, 0
	p.hashing.Wait() // the other buffer, which is filled next
	p.hashing.Go(func() { p.hash.Write(b) })
	if _, err := p.file.WriteAt(b, p.done); err != nil {
		return &localError{describeDiskError(p.dir, err)}
	}
	p.done += int64(len(b))
	if p.unpushed += int64(len(b)); p.unpushed >= writebackEvery {
		beginWriteback(p.file)
		p.unpushed = 0
	}
	return nil
}

// sum is the sha256 of the file, in hex.
func (p *partial) sum() string {
	p.hashing.Wait()
	return hex.EncodeToString(p.hash.Sum(nil))
}
