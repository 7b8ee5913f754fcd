package order

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"moult/updater/internal/durable"
)

// maxFenceBytes is more than a fence file ever has.
const maxFenceBytes = 4 << 10

// Fence remembers on disk the highest epoch and index accepted, and the job. It is what
// makes delivery at least once into running at most once. Safe for concurrent
// use; one Fence per file.
type Fence struct {
	path string

	mu      sync.Mutex
	last    mark
	damaged error // set: every order is refused
}

// mark is the content of a fence file. The cluster is in it because a host that
// was moved to another cluster meets a log whose indices begin anew; the old
// cluster's orders are refused by Open, whose verifier knows the new one only.
// The epoch has a sum of its own, and both are absent while it is 0: programs from
// before there were epochs read the file, and it reads theirs.
type mark struct {
	Cluster  string `json:"cluster"`
	Index    uint64 `json:"index"`
	JobID    string `json:"job_id"`
	Sum      string `json:"sum"` // sha256 of the fields above
	Epoch    uint64 `json:"epoch,omitempty"`
	EpochSum string `json:"epoch_sum,omitempty"` // sha256 of the epoch and the fields above
}

func (m mark) sum() string {
	h := sha256.Sum256(fmt.Appendf(nil, "%q %d %q", m.Cluster, m.Index, m.JobID))
	return hex.EncodeToString(h[:])
}

func (m mark) epochSum() string {
	if m.Epoch == 0 {
		return ""
	}
	h := sha256.Sum256(fmt.Appendf(nil, "%q %d %q %d", m.Cluster, m.Index, m.JobID, m.Epoch))
	return hex.EncodeToString(h[:])
}

// below tells whether an order comes after all that the mark stands for.
func (m mark) below(o Order) bool {
	return cmp.Or(cmp.Compare(m.Epoch, o.Epoch), cmp.Compare(m.Index, o.Index)) < 0
}

// OpenFence reads the file, which need not exist yet. It always returns a fence.
// With an error, which wraps ErrFenceDamaged, that fence refuses every order: to
// take a damaged file for an empty one would let old orders in. The host can run
// on all the same, and takes orders again once the file was deleted.
func OpenFence(path string) (*Fence, error) {
	f := &Fence{path: path}
	f.last, f.damaged = readMark(path)
	return f, f.damaged
}

// readMark reads a fence file; the zero mark when there is none.
func readMark(path string) (m mark, err error) {
	defer func() {
		if err != nil {
			m, err = mark{}, fmt.Errorf("%w: %s: %w; orders live at most %s: when none was sent to this host for so long, delete the file", ErrFenceDamaged, path, err, MaxLifetime)
		}
	}()
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return m, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxFenceBytes))
	if err != nil {
		return m, err
	}
	if err := decode(text, &m); err != nil {
		return m, err
	}
	if m.Sum != m.sum() || m.EpochSum != m.epochSum() {
		return m, errors.New("its checksum is wrong")
	}
	return m, nil
}

// Check tells whether an opened order comes after all that were accepted, and
// remembers nothing: for what may be repeated, and must not keep out an order with
// a lower index that follows it. Errors are as Accept's; never ErrRepeated.
func (f *Fence) Check(o Order) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.damaged != nil {
		return f.damaged
	}
	if o.Cluster == f.last.Cluster && !f.last.below(o) {
		return fmt.Errorf("%w (epoch %d, index %d; accepted %d, %d)", ErrStale, o.Epoch, o.Index, f.last.Epoch, f.last.Index)
	}
	return nil
}

// Accept lets an opened order through once. When it returns nil, the order is
// remembered on disk. It returns ErrRepeated for the job that was accepted
// last, ErrStale for an epoch and index that are not above that job's, ErrFenceDamaged while
// the file cannot be read, all wrapped; any other error means that the order could not be remembered and must not be
// carried out.
func (f *Fence) Accept(o Order) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.damaged != nil {
		// Perhaps somebody has deleted it since.
		if f.last, f.damaged = readMark(f.path); f.damaged != nil {
			return f.damaged
		}
	}
	if o.Cluster == f.last.Cluster {
		switch {
		case o.JobID == f.last.JobID:
			return fmt.Errorf("%w (job %s, index %d)", ErrRepeated, o.JobID, f.last.Index)
		case !f.last.below(o):
			return fmt.Errorf("%w (epoch %d, index %d; accepted %d, %d)", ErrStale, o.Epoch, o.Index, f.last.Epoch, f.last.Index)
		}
	}
	next := mark{Cluster: o.Cluster, Epoch: o.Epoch, Index: o.Index, JobID: o.JobID}
	next.Sum, next.EpochSum = next.sum(), next.epochSum()
	text, err := json.Marshal(next)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(f.path, 0o600, text); err != nil {
		return fmt.Errorf("remember the order, so that it cannot run twice: %w", err)
	}
	f.last = next
	return nil
}
