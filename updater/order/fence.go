package order

import (
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

// Fence remembers on disk the highest index accepted, and its job. It is what
// makes delivery at least once into running at most once. Safe for concurrent
// use; one Fence per file.
type Fence struct {
	path string

	mu   sync.Mutex
	last mark
}

// mark is the content of a fence file. The cluster is in it because a host that
// was moved to another cluster meets a log whose indices begin anew; the old
// cluster's orders are refused by Open, whose verifier knows the new one only.
type mark struct {
	Cluster string `json:"cluster"`
	Index   uint64 `json:"index"`
	JobID   string `json:"job_id"`
	Sum     string `json:"sum"` // sha256 of the other fields
}

func (m mark) sum() string {
	h := sha256.Sum256(fmt.Appendf(nil, "%q %d %q", m.Cluster, m.Index, m.JobID))
	return hex.EncodeToString(h[:])
}

// OpenFence reads the file, which need not exist yet. A damaged one is an
// error: to take it for empty would let old orders in.
func OpenFence(path string) (*Fence, error) {
	f := &Fence{path: path}
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open order fence: %w", err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxFenceBytes))
	if err != nil {
		return nil, fmt.Errorf("read order fence: %w", err)
	}
	if err := json.Unmarshal(text, &f.last); err != nil || f.last.Sum != f.last.sum() {
		return nil, fmt.Errorf("%s is damaged, so this host cannot tell a replayed order from a new one; orders live at most %s: when no update was ordered for this host for so long, delete the file and start the agent again", path, MaxLifetime)
	}
	return f, nil
}

// Accept lets an opened order through once. When it returns nil, the order is
// remembered on disk. It returns ErrRepeated for the job that was accepted
// last, ErrStale for an index that is not above that job's, both wrapped;
// any other error means that the order could not be remembered and must not be
// carried out.
func (f *Fence) Accept(o Order) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if o.Cluster == f.last.Cluster {
		switch {
		case o.JobID == f.last.JobID:
			return fmt.Errorf("%w (job %s, index %d)", ErrRepeated, o.JobID, f.last.Index)
		case o.Index <= f.last.Index:
			return fmt.Errorf("%w (index %d, accepted %d)", ErrStale, o.Index, f.last.Index)
		}
	}
	next := mark{Cluster: o.Cluster, Index: o.Index, JobID: o.JobID}
	next.Sum = next.sum()
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
