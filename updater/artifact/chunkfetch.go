package artifact

import (
	"context"
	"crypto/sha256"
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

// fillStripe gets the chunks of a stripe that are missing. It asks one peer after the
// other: parents, who may have nothing yet, then those who have what is asked for now,
// then relays. The first peer of any stripe that answers gives the chunk list.
func (c *chunkFetch) fillStripe(ctx context.Context, stripe int) error {
	begun := time.Now()
	wait := askAgainFirst
	var last error
	for idle, waited := 0, 0; ; {
		progress, early, busy := false, false, false
		for i, p := range c.orderFor(stripe) {
			if !c.lacks(stripe) {
				return nil
			}
			if p.kind == relay && busy && !c.Brief {
				break // what is on this side of a link is worth waiting for
			}
			err := c.takeStripe(ctx, p, stripe)
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case isLocal(err):
				return err
			case err == nil:
				progress = true
			default:
				last = fmt.Errorf("from %s: %w", c.named(p.Peer), err)
				busy = busy || errors.Is(err, errBusy)
				c.judge(p.Peer, err)
			}
			if progress {
				break // the nearest first again
			}
			// The first parent is waited for; who waits for it waits, too.
			if i == 0 && p.kind == parent && errors.Is(err, errLacks) && time.Since(begun) < parentPatience {
				early = true
				break
			}
		}
		switch {
		case !c.lacks(stripe):
			return nil
		case progress:
			idle, wait = 0, askAgainFirst
			continue
		case busy && !c.Brief && waited%busyRounds != busyRounds-1:
			waited++ // it is worth waiting for
		case !early:
			idle, waited = idle+1, 0
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

// lacks tells whether chunks of a stripe are missing.
func (c *chunkFetch) lacks(stripe int) bool {
	if c.begun() == nil {
		return stripe < c.Chunks.Count(c.Size)
	}
	_, n := c.file.missing(stripe, c.stripes)
	return n > 0
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

func (c *chunkFetch) named(p Peer) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fetch.named(p)
}

// learn is learnName for stripes, which run at the same time.
func (c *chunkFetch) learn(resp *http.Response, p *Peer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.learnName(resp, p)
}

// judge takes down why a peer gave nothing more.
func (c *chunkFetch) judge(p Peer, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if errors.Is(err, errCorrupt) || errors.Is(err, errImpossible) {
		c.ban(p, err)
	} else if !errors.Is(err, errLacks) {
		c.failed[p.key()] = time.Now()
	}
}

// chunkPeer is who may have chunks.
type chunkPeer struct {
	Peer
	kind    chunkPeerKind
	place   int // of a parent: 0 is the one named first, the others take its place
	ancient int // of a parent: how many are behind it
}

type chunkPeerKind int

const (
	parent chunkPeerKind = iota // gets them itself, perhaps
	holder                      // has what it has now
	relay                       // gets them when asked to
)

// orderFor sorts who is asked for a stripe: its parents, then who holds the artifact,
// then who may get it for this host; but those last who failed just now.
func (c *chunkFetch) orderFor(stripe int) []chunkPeer {
	var peers []chunkPeer
	if parents := c.parents(); stripe < len(parents) {
		for i, p := range parents[stripe] {
			peers = append(peers, chunkPeer{p, parent, i, len(parents[stripe]) - i})
		}
	}
	holders := c.Candidates()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.order(holders) {
		if !slices.ContainsFunc(peers, func(known chunkPeer) bool { return known.key() == p.key() }) {
			peers = append(peers, chunkPeer{Peer: p, kind: holder})
		}
	}
	if c.Pull != nil {
		for _, p := range c.orderRelays() {
			peers = append(peers, chunkPeer{Peer: p, kind: relay})
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

// askList gets the chunk list from one peer.
func (c *chunkFetch) askList(ctx context.Context, p chunkPeer) error {
	want := int64(c.Chunks.Count(c.Size)) * sha256.Size
	return c.open(ctx, &p, listSuffix, listAsk{c.Chunks.Size, p.kind == holder}.String(), want, c.readList)
}

// readList reads the chunk list, which is believed by its signed digest, and begins.
func (c *chunkFetch) readList(body *patientReader) error {
	list := make([]byte, c.Chunks.Count(c.Size)*sha256.Size)
	if _, err := io.ReadFull(body, list); err != nil {
		return err
	}
	if _, err := c.Chunks.Open(list, c.Size); err != nil {
		return err
	}
	return c.begin(list)
}

// takeStripe reads chunks of a stripe from one peer. It returns nil when any came.
func (c *chunkFetch) takeStripe(ctx context.Context, p chunkPeer, stripe int) error {
	if p.kind == relay {
		if err := c.askToPull(ctx, &p); err != nil {
			return err
		}
	}
	ask := stripeAsk{chunk: c.Chunks.Size, of: c.stripes, now: p.kind == holder}
	if c.begun() == nil && c.Store.partialSize(c.Digest) == 0 {
		// All is missing, so nothing has to be known for the question: one less, and a
		// way there and back less, for each host in the row.
		ask.list, ask.first, ask.count = true, stripe, (c.Chunks.Count(c.Size)-stripe+c.stripes-1)/c.stripes
	} else {
		if c.begun() == nil {
			if err := c.askList(ctx, p); err != nil {
				return err
			}
		}
		if ask.first, ask.count = c.file.missing(stripe, c.stripes); ask.count == 0 {
			return nil
		}
	}
	got := 0
	err := c.open(ctx, &p, stripeSuffix, ask.String(), ask.bytes(c.Size), func(body *patientReader) error {
		if ask.list {
			if err := c.readList(body); err != nil {
				return err
			}
		}
		t := c.newTaker(p, stripe)
		buf := make([]byte, ask.chunk)
		for i := ask.first; i <= ask.last(); i += ask.of {
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
		c.judge(p.Peer, err)
		return nil
	}
	return err
}

// open asks a peer and has an answer of exactly want bytes read. Each read may keep
// it waiting for as long as stallOf says.
func (c *chunkFetch) open(ctx context.Context, p *chunkPeer, suffix, query string, want int64, read func(*patientReader) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	patience := c.stallOf(*p)
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
	c.learn(resp, &p.Peer)
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

// checkChunks refuses chunks that no manifest can have signed.
func checkChunks(c release.Chunks) error {
	if c.Signed() && (!release.ValidChunkSize(c.Size) || !ValidDigest(c.List)) {
		return fmt.Errorf("fetch artifact: chunks of %d bytes by the list %.12q are malformed", c.Size, c.List)
	}
	return nil
}
