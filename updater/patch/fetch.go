package patch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"moult/mesh/identity"
	"moult/updater/artifact"
	"moult/updater/delta"
)

const (
	// DefaultStall is how long a peer may send nothing.
	DefaultStall = 10 * time.Second
	// maxAsked is how many peers of a class are asked: of a thousand that have the
	// artifact, perhaps none took it by this patch. maxTried is how many may have
	// sent one that came to nothing, before the whole artifact is the better way.
	maxAsked = 4
	maxTried = 3
	// minLimit: a patch may have this many bytes at least, however small the
	// artifact.
	minLimit = 4 << 10
)

// Request says what to fetch as a patch, and from whom.
type Request struct {
	Artifacts *artifact.Store
	Patches   *Store // keeps a patch that was good, to be served on; may be nil
	Old       string // sha256 of an artifact that the store opens: what this host runs
	New       string // sha256 that was signed
	Size      int64  // of the new artifact, as it was signed
	// Candidates lists who may have the patch; lower classes first, within one by
	// chance.
	Candidates []artifact.Peer
	HTTP       *http.Client  // reaches https://ADDR/patch/NAME; knows whom to believe
	Limiter    *rate.Limiter // of what is read; may be nil
	Stall      time.Duration // 0: DefaultStall
	Progress   func(n int64) // told of each n bytes that came in; may be nil
}

// Fetch gets the new artifact into the store as a patch of the old one, and
// returns who sent it, and how many bytes. On any error but ctx's nothing has
// changed, and the whole artifact is to be fetched.
//
// Errors: ErrNoPatch, with what the last peer said, and ErrBusy beside it when one
// was busy; artifact.ErrNotHeld for the old one; artifact.ErrDiskFull; ctx's.
func Fetch(ctx context.Context, req Request) (artifact.Source, error) {
	if !validName(Name(req.Old, req.New)) || req.Size <= 0 || req.Artifacts == nil || req.HTTP == nil {
		return artifact.Source{}, errors.New("fetch patch: two digests, a size, a store and an HTTP client are needed")
	}
	old, _, err := req.Artifacts.Open(req.Old)
	if err != nil {
		return artifact.Source{}, fmt.Errorf("open old artifact: %w", err)
	}
	defer old.Close()
	req.Stall = cmp.Or(req.Stall, DefaultStall)
	client := *req.HTTP
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	req.HTTP = &client
	peers := slices.Clone(req.Candidates)
	rand.Shuffle(len(peers), func(i, j int) { peers[i], peers[j] = peers[j], peers[i] })
	slices.SortStableFunc(peers, func(a, b artifact.Peer) int { return cmp.Compare(a.Class, b.Class) })
	last, tried := fmt.Errorf("%w: nobody who may have it is online", ErrNotHeld), 0
	var busy error
	asked := map[int]int{} // by class
	for _, p := range peers {
		if asked[p.Class]++; asked[p.Class] > maxAsked {
			continue
		}
		n, sent, err := req.from(ctx, &p, old)
		switch {
		case err == nil:
			return artifact.Source{Peer: p, Bytes: n}, nil
		case ctx.Err() != nil:
			return artifact.Source{}, ctx.Err()
		case errors.Is(err, artifact.ErrDiskFull):
			return artifact.Source{}, err
		case errors.Is(err, ErrBusy):
			busy = ErrBusy
		}
		last = fmt.Errorf("from %s: %w", cmp.Or(p.Name, p.HostID, p.Addr), err)
		if sent {
			tried++
		}
		if tried == maxTried {
			break
		}
	}
	if busy != nil && !errors.Is(last, ErrBusy) {
		last = fmt.Errorf("%w; another one: %w", last, busy)
	}
	return artifact.Source{}, fmt.Errorf("%w: %w", ErrNoPatch, last)
}

// ErrBusy is of a peer that has all its streams taken: later it may have one.
var ErrBusy = errors.New("it is busy serving others")

var (
	errStalled = errors.New("it sends nothing any more")
	errTooLong = errors.New("the patch is longer than is worth while")
)

// from gets the patch from one peer and applies it as it comes in. It tells how
// many bytes came, and whether the peer sent a patch at all.
func (r *Request) from(ctx context.Context, p *artifact.Peer, old io.ReaderAt) (n int64, sent bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(r.Stall, func() { cancel(errStalled) })
	defer stall.Stop()
	get, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+p.Addr+pathPrefix+Name(r.Old, r.New), nil)
	if err != nil {
		return 0, false, err
	}
	get.Header.Set("Accept-Encoding", "identity") // else the transport unpacks what a peer calls gzip
	resp, err := r.HTTP.Do(get)
	if err != nil {
		return 0, false, cause(ctx, err)
	}
	defer resp.Body.Close()
	if resp.TLS != nil { // its certificate says what people call it
		if id, err := identity.PeerIdentity(*resp.TLS); err == nil && id.HostID == p.HostID {
			p.Name = id.Name
		}
	}
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return 0, false, ErrNotHeld
	case http.StatusServiceUnavailable:
		return 0, false, ErrBusy
	default:
		return 0, false, fmt.Errorf("it answers %s", resp.Status)
	}
	in := &incoming{ctx: ctx, r: resp.Body, left: max(r.Size/worthPart, minLimit) + 1, limiter: r.Limiter, heard: func() { stall.Reset(r.Stall) }, progress: r.Progress}
	keep, err := r.temporary(in)
	if err != nil {
		return 0, false, err
	}
	defer keep.discard()
	applied, stored := r.rebuild(ctx, keep, old)
	switch {
	case stored == nil && applied == nil:
		keep.finish(Name(r.Old, r.New))
		return in.n, true, nil
	case stored == nil:
		return in.n, true, nil // the artifact is complete; the patch goes on, and is not passed on
	case errors.Is(stored, artifact.ErrNotWanted) && applied == nil:
		return in.n, true, errors.New("the patch makes bytes that do not have the signed digest")
	case applied != nil && !errors.Is(applied, io.ErrClosedPipe):
		return in.n, true, cause(ctx, applied)
	}
	return in.n, true, cause(ctx, stored)
}

// cause is why ctx ended, if it has; else err.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil {
		return c
	}
	return err
}

// rebuild makes the artifact of the old one and a patch. The store takes it only
// if it has the signed digest and length. It returns how applying the patch
// ended, and how storing what it made.
func (r *Request) rebuild(ctx context.Context, patch io.Reader, old io.ReaderAt) (applied, stored error) {
	out, in := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := delta.Apply(ctx, old, patch, delta.Target{OldDigest: r.Old, NewDigest: r.New, Length: r.Size}, in)
		in.CloseWithError(err)
		done <- err
	}()
	_, stored = r.Artifacts.Import(out, r.Size, func(digest string, size int64) bool { return digest == r.New && size == r.Size })
	out.CloseWithError(io.ErrClosedPipe) // ends Apply, when the store has no room for what it makes
	return <-done, stored
}

// incoming is what a peer sends, within bounds.
type incoming struct {
	ctx      context.Context
	r        io.Reader
	n        int64
	left     int64 // one more than it may send
	limiter  *rate.Limiter
	heard    func()
	progress func(n int64)
}

func (i *incoming) Read(b []byte) (int, error) {
	if i.left == 0 {
		return 0, errTooLong
	}
	b = b[:min(int64(len(b)), i.left, chunkLen)]
	if i.limiter != nil {
		b = b[:min(len(b), i.limiter.Burst())]
		if err := i.limiter.WaitN(i.ctx, len(b)); err != nil {
			return 0, err
		}
		i.heard() // waiting for the limiter is not the peer's silence
	}
	n, err := i.r.Read(b)
	i.n += int64(n)
	i.left -= int64(n)
	if n > 0 {
		i.heard()
		if i.progress != nil {
			i.progress(int64(n))
		}
	}
	return n, err
}

// kept is a patch that is written down while it is applied. Not to have it is no
// reason to fail: it is for others.
type kept struct {
	r     io.Reader
	store *Store
	f     *os.File
	err   error
}

func (r *Request) temporary(in io.Reader) (*kept, error) {
	k := &kept{r: in, store: r.Patches}
	if r.Patches == nil {
		return k, nil
	}
	var err error
	k.f, err = os.CreateTemp(r.Patches.dir, tempPattern)
	return k, err
}

func (k *kept) Read(b []byte) (int, error) {
	n, err := k.r.Read(b)
	if k.f != nil && k.err == nil && n > 0 {
		_, k.err = k.f.Write(b[:n])
	}
	return n, err
}

// finish gives the patch its name. A crash may lose it; it does not leave half.
func (k *kept) finish(name string) {
	if k.f == nil || k.err != nil || k.f.Sync() != nil || k.f.Close() != nil {
		return
	}
	if os.Rename(k.f.Name(), k.store.path(name)) == nil {
		k.f = nil
		_ = k.store.Prune(nil) // what is too much now goes with the next one
	}
}

func (k *kept) discard() {
	if k.f != nil {
		k.f.Close()
		os.Remove(k.f.Name())
	}
}
