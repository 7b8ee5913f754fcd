package artifact

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"moult/updater/release"
)

const (
	// parentPatience is how long a parent may take to begin with its own fetch,
	// before those behind it are asked: not all hosts hear at the same moment.
	parentPatience = 3 * time.Second
	askAgainFirst  = 10 * time.Millisecond // then twice as long each time
	askAgainMost   = 250 * time.Millisecond
	// chunkRounds is how often all who may have chunks are asked in vain before the
	// whole is fetched instead.
	chunkRounds = 4
	// Who waits for a parent that waits for its own is patient for longer, so that
	// the one next to the trouble finds a way around it: a share of StallTimeout, and
	// so much more for each ancestor.
	stallShare      = 3
	stallPerAncient = 4
	// A stripe for which others were held back for half of lagPatience is taken from
	// another peer, at most maxLagMoves times.
	lagPatience = 3 * time.Second
	maxLagMoves = 3
	// stripeLead is how many chunks a stripe may be ahead of another one: whoever sends
	// them has one link for all, and those behind this host need all stripes alike.
	// Waiting for a stripe that does not get on ends after leadPatience.
	stripeLead   = 16
	leadPatience = time.Second
	// coolOff is how long who failed is asked after the others.
	coolOff = 10 * time.Second
)

var errNoChunks = errors.New("nobody passes on chunks of it")

// chunkFetch gets an artifact chunk by chunk, a stripe from each parent at a time.
type chunkFetch struct {
	*fetch
	stripes int
	opened  chan struct{} // closed when there is a file

	mu     sync.Mutex // fetch's own fields, too, while stripes run
	file   *chunkFile // set once
	failed map[string]time.Time
	blamed []time.Duration // how long others were held back for a stripe, by stripe
	moves  []int           // how often a stripe was taken from elsewhere for that
}

// runChunks returns errNoChunks, wrapped, when the whole has to be fetched instead;
// the partial file is left fit for that.
func (f *fetch) runChunks(ctx context.Context) ([]Source, error) {
	stripes := max(1, len(f.parents()))
	c := &chunkFetch{
		fetch: f, stripes: stripes, opened: make(chan struct{}),
		failed: map[string]time.Time{}, blamed: make([]time.Duration, stripes), moves: make([]int, stripes),
	}
	sum, err := c.fill(ctx)
	f.flight.share(nil)
	if c.file == nil {
		return nil, err
	}
	switch {
	case err == nil && sum == f.Digest:
		return f.sources, f.Store.adopt(c.file.end(), f.Digest)
	case err == nil:
		// All chunks are the signed ones: the manifest contradicts itself.
		err = fmt.Errorf("%w: the signed chunks do not make the signed artifact", errNoChunks)
		fallthrough
	case errors.Is(err, errNoChunks):
		f.sources = nil
		return nil, errors.Join(err, c.file.cut())
	}
	c.file.end().Close()
	if errors.Is(err, ErrDiskFull) {
		// The host needs the room more than the fetch its bytes.
		err = errors.Join(err, f.Store.dropPartial(f.Digest))
	}
	return nil, err
}

// parents returns who was named to take stripes from, by stripe; none when nobody
// was.
func (f *fetch) parents() [][]Peer {
	if f.Parents == nil {
		return nil
	}
	parents := f.Parents()
	return parents[:min(len(parents), maxStripes)]
}

// fill gets what is missing, and returns the sha256 of the whole.
func (c *chunkFetch) fill(ctx context.Context) (sum string, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var running sync.WaitGroup
	for stripe := range c.stripes {
		running.Go(func() {
			if err := c.fillStripe(ctx, stripe); err != nil {
				cancel(err)
			}
		})
	}
	select {
	case <-ctx.Done():
	case <-c.opened:
		if sum, err = c.file.sum(ctx); err != nil {
			cancel(&localError{err})
		}
	}
	running.Wait()
	return sum, context.Cause(ctx)
}

// fillStripe gets the chunks of a stripe that are missing. The first peer of any
// stripe that answers gives the chunk list.
func (c *chunkFetch) fillStripe(ctx context.Context, stripe int) error {
	return c.each(ctx, stripe, func() bool {
		if c.begun() == nil {
			return true
		}
		_, n := c.file.missing(stripe, c.stripes)
		return n > 0
	}, func(p Peer, now bool, patience time.Duration) error {
		if c.begun() == nil {
			list, err := c.askList(ctx, p, now, patience)
			if err != nil {
				return err
			}
			if err := c.begin(list); err != nil {
				return err
			}
		}
		return c.takeStripe(ctx, p, stripe, now, patience)
	})
}

// begun is the file, once there is one.
func (c *chunkFetch) begun() *chunkFile {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.file
}

// begin opens the file, by the signed chunk list, unless another stripe did.
func (c *chunkFetch) begin(list []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file != nil {
		return nil
	}
	file, err := openChunkFile(c.Store.dir, c.Store.partialPath(c.Digest), c.Size, c.Chunks, list)
	if err != nil {
		return &localError{err}
	}
	done := file.done()
	if err := checkSpace(c.Store.dir, c.Size-done); err != nil {
		file.end().Close()
		return &localError{errors.Join(err, c.Store.dropPartial(c.Digest))}
	}
	c.file = file
	c.flight.update(func(s *flightState) { s.done = done })
	c.flight.share(file)
	c.Store.announceSources()
	close(c.opened)
	return nil
}

// each asks one peer after the other, while more is wanted: parents, who may have
// nothing yet, and then those who have what is asked for now. An ask that returns
// nil brought something.
func (c *chunkFetch) each(ctx context.Context, stripe int, wanted func() bool, ask func(p Peer, now bool, patience time.Duration) error) error {
	begun := time.Now()
	wait := askAgainFirst
	var last error
	for idle := 0; ; {
		progress, early := false, false
		for i, p := range c.orderFor(stripe) {
			if !wanted() {
				return nil
			}
			err := ask(p.Peer, !p.parent, c.stallOf(p))
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case isLocal(err):
				return err
			case err == nil:
				progress = true
			default:
				last = fmt.Errorf("from %s: %w", c.named(p.Peer), err)
				c.judge(p.Peer, err)
			}
			if progress {
				break // the nearest first again
			}
			// The first parent is waited for; who waits for it waits, too.
			if i == 0 && p.parent && errors.Is(err, errLacks) && time.Since(begun) < parentPatience {
				early = true
				break
			}
		}
		switch {
		case !wanted():
			return nil
		case progress:
			idle, wait = 0, askAgainFirst
			continue
		case !early:
			idle++
		}
		if idle >= chunkRounds {
			return fmt.Errorf("%w: %w", errNoChunks, errors.Join(last, ctx.Err()))
		}
		if err := sleep(ctx, wait); err != nil {
			return context.Cause(ctx)
		}
		wait = min(2*wait, askAgainMost)
	}
}

func (c *chunkFetch) named(p Peer) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fetch.named(p)
}

// judge takes down why a peer gave nothing more.
func (c *chunkFetch) judge(p Peer, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if errors.Is(err, errCorrupt) {
		c.ban(p, err)
	} else if !errors.Is(err, errLacks) {
		c.failed[p.key()] = time.Now()
	}
}

// chunkPeer is who may have chunks.
type chunkPeer struct {
	Peer
	parent  bool // gets them itself, perhaps
	ancient int  // parents that it has behind itself
}

// orderFor sorts who is asked for a stripe: its parents, then who holds the
// artifact; but those last who failed just now.
func (c *chunkFetch) orderFor(stripe int) []chunkPeer {
	var peers []chunkPeer
	parents := c.parents()
	if stripe < len(parents) {
		for i, p := range parents[stripe] {
			peers = append(peers, chunkPeer{p, true, len(parents[stripe]) - i})
		}
	}
	holders := c.Candidates()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.order(holders) {
		if !slices.ContainsFunc(peers, func(known chunkPeer) bool { return known.key() == p.key() }) {
			peers = append(peers, chunkPeer{Peer: p})
		}
	}
	peers = slices.DeleteFunc(peers, func(p chunkPeer) bool { return c.banned[p.key()] })
	slices.SortStableFunc(peers, func(a, b chunkPeer) int { return c.recent(a.key()) - c.recent(b.key()) })
	return peers
}

// recent is 1 for who failed just now.
func (c *chunkFetch) recent(key string) int {
	if at, ok := c.failed[key]; ok && time.Since(at) < coolOff {
		return 1
	}
	return 0
}

func (c *chunkFetch) stallOf(p chunkPeer) time.Duration {
	if !p.parent {
		return c.StallTimeout
	}
	d := c.StallTimeout / stallShare
	return d + time.Duration(p.ancient)*d/stallPerAncient
}

// askList gets the chunk list from one peer.
func (c *chunkFetch) askList(ctx context.Context, p Peer, now bool, patience time.Duration) ([]byte, error) {
	want := int64(c.Chunks.Count(c.Size)) * 32
	list := make([]byte, want)
	err := c.open(ctx, &p, listSuffix, listAsk{c.Chunks.Size, now}.String(), want, patience, func(body *patientReader) error {
		if _, err := io.ReadFull(body, list); err != nil {
			return err
		}
		_, err := c.Chunks.Open(list, c.Size)
		return err
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// takeStripe reads chunks of a stripe from one peer. It returns nil when any came.
func (c *chunkFetch) takeStripe(ctx context.Context, p Peer, stripe int, now bool, patience time.Duration) error {
	first, n := c.file.missing(stripe, c.stripes)
	if n == 0 {
		return nil
	}
	ask := stripeAsk{chunk: c.Chunks.Size, first: first, of: c.stripes, count: n, now: now}
	want := int64(n-1)*ask.chunk + int64(c.file.length(ask.last()))
	got := 0
	err := c.open(ctx, &p, stripeSuffix, ask.String(), want, patience, func(body *patientReader) error {
		t := stripeTaker{blamedBefore: c.blame(stripe), chunkFetch: c, peer: p, stripe: stripe, minRate: c.MinRate / int64(c.stripes), window: time.Now(), begun: time.Now()}
		buf := make([]byte, ask.chunk)
		for i := first; i <= ask.last(); i += ask.of {
			if err := c.awaitOthers(ctx, i/c.stripes, stripe, body.hold); err != nil {
				return err
			}
			b := buf[:c.file.length(i)]
			if _, err := io.ReadFull(body, b); err != nil {
				return err
			}
			if err := c.file.put(i, b); err != nil {
				return err
			}
			got++
			t.arrived(len(b))
			if err := t.pace(len(b)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil && !isLocal(err) && got > 0 && ctx.Err() == nil {
		c.judge(p, err)
		return nil
	}
	return err
}

// open asks a peer and has an answer of exactly want bytes read. Each read may keep
// it waiting for patience.
func (c *chunkFetch) open(ctx context.Context, p *Peer, suffix, query string, want int64, patience time.Duration, read func(*patientReader) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(patience, func() { cancel(errStalled) })
	defer stall.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+p.Addr+pathPrefix+c.Digest+suffix+"?"+query, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept-Encoding", "identity")
	resp, err := c.HTTP.Do(req)
	if err != nil {
		return cause(ctx, err)
	}
	defer resp.Body.Close()
	c.mu.Lock()
	c.learnName(resp, p)
	c.mu.Unlock()
	switch {
	case resp.StatusCode == http.StatusServiceUnavailable || resp.StatusCode == http.StatusTooManyRequests:
		return errBusy
	case resp.StatusCode == http.StatusNotFound:
		return errLacks
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("it answers %.40q", resp.Status)
	case resp.ContentLength != want:
		return fmt.Errorf("%w: it offers %d bytes of chunks, not %d", errOtherBytes, resp.ContentLength, want)
	}
	body := &patientReader{body: io.LimitReader(resp.Body, want), ctx: ctx, stall: stall, patience: patience, fetch: c.fetch}
	return cause(ctx, read(body))
}

// patientReader puts the stall off with each read that brings something, and holds
// reads back to the limiter's rate.
type patientReader struct {
	*fetch
	body     io.Reader
	ctx      context.Context
	stall    *time.Timer
	patience time.Duration
}

func (r *patientReader) Read(b []byte) (int, error) {
	if r.Limiter != nil {
		b = b[:min(len(b), pacedRead)]
	}
	n, err := r.body.Read(b)
	if n > 0 && r.Limiter != nil {
		if waitErr := r.hold(func() error { return r.Limiter.WaitN(r.ctx, n) }); waitErr != nil {
			return n, waitErr
		}
	}
	if n > 0 {
		r.stall.Reset(r.patience)
	}
	return n, err
}

// hold waits for something else than the peer, which is no stall of the peer's.
func (r *patientReader) hold(wait func() error) error {
	r.stall.Stop()
	defer r.stall.Reset(r.patience)
	return wait()
}

// awaitOthers holds a stripe back that is too far ahead of another one.
func (c *chunkFetch) awaitOthers(ctx context.Context, at, stripe int, hold func(func() error) error) error {
	behind := func() bool {
		for other := range c.stripes {
			if first, n := c.file.missing(other, c.stripes); other != stripe && n > 0 && first/c.stripes+stripeLead < at {
				return true
			}
		}
		return false
	}
	if !behind() {
		return nil
	}
	patience := time.NewTimer(leadPatience)
	defer patience.Stop()
	began := time.Now()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for other := range c.stripes {
			if other != stripe {
				c.blamed[other] += time.Since(began)
			}
		}
	}()
	return hold(func() error {
		for {
			news := c.file.next()
			if !behind() {
				return nil
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-patience.C:
				return nil
			case <-news:
			}
		}
	})
}

// blame is how long others were held back for a stripe.
func (c *chunkFetch) blame(stripe int) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.blamed[stripe]
}

// stripeTaker holds what one peer sends against what is asked of it.
type stripeTaker struct {
	*chunkFetch
	peer    Peer
	stripe  int
	minRate int64 // bytes per second; not above 0: any
	window  time.Time
	bytes   int64 // since then
	begun   time.Time
	// blamedBefore is how long others had waited for the stripe by begun.
	blamedBefore time.Duration
}

// arrived counts a verified chunk and tells how far it is.
func (t *stripeTaker) arrived(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	done := t.file.done()
	t.sources = addSource(t.sources, t.peer, int64(n))
	t.Store.fetched.Add(int64(n))
	t.flight.update(func(s *flightState) { s.done, s.from, s.through = done, t.peer, nil })
	t.Progress(done, t.peer)
}

// pace: a peer that is slow, or by which its stripe lags behind the others, is left
// for another one.
func (t *stripeTaker) pace(n int) error {
	t.bytes += int64(n)
	if elapsed := time.Since(t.window); elapsed >= t.StallTimeout {
		if rate := float64(t.bytes) / elapsed.Seconds(); t.minRate > 0 && rate < float64(t.minRate) {
			return fmt.Errorf("%w: %.0f bytes per second", errTooSlow, rate)
		}
		t.window, t.bytes = time.Now(), 0
	}
	if time.Since(t.begun) < lagPatience {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	waited := t.blamed[t.stripe] - t.blamedBefore
	t.begun, t.blamedBefore = time.Now(), t.blamed[t.stripe]
	if waited < lagPatience/2 || t.moves[t.stripe] >= maxLagMoves {
		return nil
	}
	t.moves[t.stripe]++
	return fmt.Errorf("%w: others waited for it for %s", errTooSlow, waited.Round(time.Millisecond))
}

// checkChunks refuses chunks that no manifest can have signed.
func checkChunks(c release.Chunks) error {
	if c.Signed() && (!release.ValidChunkSize(c.Size) || !ValidDigest(c.List)) {
		return fmt.Errorf("fetch artifact: chunks of %d bytes by the list %.12q are malformed", c.Size, c.List)
	}
	return nil
}
