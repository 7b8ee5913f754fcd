package artifact

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"moult/updater/release"
)

// Peer is a host that may have an artifact.
type Peer struct {
	HostID string
	Name   string
	Role   string
	Addr   string // of its node port
	Class  int    // lower is nearer; for the order within a class see FetchRequest
}

// key tells peers apart.
func (p Peer) key() string { return cmp.Or(p.HostID, p.Addr) }

// Defaults of a fetch.
const (
	DefaultStallTimeout = 10 * time.Second
	DefaultMinRate      = 64 << 10 // bytes per second
	DefaultRounds       = 20
)

const (
	roundPause = time.Second // between rounds, half to one and a half of it
	// worthwhile is how many bytes a round must bring to count as progress. With
	// less a peer could keep a fetch alive for ever, a byte at a time.
	worthwhile = 16 << 10
	// busyRounds is how many rounds in which somebody was only busy, or nobody was
	// online who has the artifact, count as one without progress: a busy peer, and
	// servers that start again, are worth waiting for.
	busyRounds = 8
	// aloneAttempts is how often a peer may be returned to that must deliver all
	// by itself.
	aloneAttempts = 16
	// aloneRateShare: the rate asked of such a peer is this much lower, since to
	// leave it costs what it has sent.
	aloneRateShare = 16
)

// FetchRequest says what to fetch and from whom.
type FetchRequest struct {
	Store  *Store
	Digest string // sha256 that the bytes must have
	Size   int64  // bytes that the manifest signed; no more are read from anybody
	// Chunks are as the manifest signed them. With them what is here is passed on
	// while the rest comes in; the zero value fetches the whole.
	Chunks release.Chunks
	// Parents lists whom to take the chunks from, who get them at the same time: one
	// list for each stripe, in which each gets it from the next. Asked again and
	// again. May be nil, and is only a hint: who is not there is passed over.
	Parents func() [][]Peer
	// Candidates lists who may have the artifact. It is asked again in each round.
	// Within a class the order is drawn by chance.
	Candidates func() []Peer
	// Pull says how to have relays get the artifact when no candidate has it. May
	// be nil.
	Pull *Pull
	// Limiter paces what is read from peers, and may be shared. May be nil.
	Limiter *rate.Limiter
	// HTTP reaches https://ADDR/artifact/DIGEST and knows by itself whom to
	// believe. Redirects are not followed, whatever it says.
	HTTP *http.Client
	// Progress is told the bytes held so far and who is serving; after bad bytes
	// it starts again below. Called by one goroutine at a time. May be nil.
	Progress func(done int64, from Peer)
	// SetAside is told, once for each, of a peer that is asked no more in this
	// fetch, and why: it served bad bytes. Called as Progress is. May be nil.
	SetAside func(p Peer, why error)
	// StallTimeout is how long a peer may send nothing, its answer's header
	// included, before another is tried. 0: DefaultStallTimeout.
	StallTimeout time.Duration
	// MinRate is what a peer must send, in bytes per second over a StallTimeout,
	// lest another be tried and it come last from then on. 0: DefaultMinRate;
	// negative: any rate will do.
	MinRate int64
	// Rounds is how often all candidates are tried without progress before Fetch
	// gives up. 0: DefaultRounds.
	Rounds int
	// Brief makes Fetch give up soon when nobody has the artifact or a peer is
	// only busy, which it waits out else: who waits for it may know another way.
	Brief bool
}

// paced tells whether the limiter holds transfers back at present.
func (r *FetchRequest) paced() bool { return r.Limiter != nil && r.Limiter.Limit() < rate.Inf }

// leastRate is below what a peer is too slow. It is not slow for being read slowly;
// the limiter's shares are not quite equal.
func (r *FetchRequest) leastRate() int64 {
	if !r.paced() {
		return r.MinRate
	}
	return min(r.MinRate, int64(r.Limiter.Limit()/limitShare/2))
}

func (r *FetchRequest) setDefaults() error {
	if !ValidDigest(r.Digest) || r.Size <= 0 {
		return fmt.Errorf("fetch artifact %q of %d bytes: the digest or the size is malformed", r.Digest, r.Size)
	}
	if r.Store == nil || r.Candidates == nil || r.HTTP == nil {
		return errors.New("fetch artifact: a store, candidates and an HTTP client are needed")
	}
	if err := checkChunks(r.Chunks); err != nil {
		return err
	}
	r.StallTimeout = cmp.Or(r.StallTimeout, DefaultStallTimeout)
	r.MinRate = cmp.Or(r.MinRate, DefaultMinRate)
	r.Rounds = cmp.Or(r.Rounds, DefaultRounds)
	if r.Pull != nil {
		pull := *r.Pull
		if err := pull.setDefaults(); err != nil {
			return err
		}
		r.Pull = &pull
	}
	if r.Progress == nil {
		r.Progress = func(int64, Peer) {}
	}
	if r.SetAside == nil {
		r.SetAside = func(Peer, error) {}
	}
	client := *r.HTTP
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	r.HTTP = &client
	return nil
}

// Source tells how many verified bytes came from a peer.
type Source struct {
	Peer  Peer
	Bytes int64
}

// Fetch gets an artifact into the store and returns who served it; nobody, when
// the store held it or what an earlier Fetch left was complete. It resumes what
// an earlier Fetch left, changes the peer on an error, a stall or a slow
// transfer, and sets aside a peer that served bad bytes. It holds no more than a
// buffer in memory. A second Fetch of a digest waits for the first, and tells of
// its progress and sources as of its own.
//
// Errors: ErrDiskFull, after which nothing is left of the artifact; ErrNoPeer,
// with what the last peer said; ErrLength; ctx's.
func Fetch(ctx context.Context, req FetchRequest) ([]Source, error) {
	if err := req.setDefaults(); err != nil {
		return nil, err
	}
	own, watched, release, err := req.claim(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	switch err := req.Store.Verify(req.Digest); {
	case err == nil:
		return watched.sources, req.Store.checkLength(req.Digest, req.Size)
	case !errors.Is(err, ErrNotHeld) && !errors.Is(err, ErrDamaged):
		return nil, err
	}
	sources, err := newFetch(req, own).bring(ctx)
	if err == nil {
		own.update(func(s *flightState) { s.sources = sources })
	}
	return sources, err
}

// claim waits for other fetches of the digest, telling of the progress that they make,
// and returns the flight that is now this one's, and what the last of them came to.
func (r *FetchRequest) claim(ctx context.Context) (own *flight, watched flightState, release func(), err error) {
	own, release, err = r.Store.claim(ctx, r.Digest, func(s flightState) {
		r.tell(watched, s)
		watched = s
	})
	if err == nil {
		own.update(func(s *flightState) { s.size = r.Size })
	}
	return own, watched, release, err
}

func newFetch(req FetchRequest, own *flight) *fetch {
	return &fetch{
		FetchRequest: req, flight: own,
		names: map[string]string{}, banned: map[string]bool{}, slow: map[string]bool{}, suspect: map[string]bool{},
		pulled: map[string]int64{},
	}
}

// tell passes on what has come of another's fetch of the artifact.
func (r *FetchRequest) tell(before, now flightState) {
	if now.done != before.done {
		r.Progress(now.done, now.from)
	}
	if r.Pull != nil && now.pull != before.pull {
		r.Pull.Progress(now.pull)
	}
}

type fetch struct {
	FetchRequest
	flight  *flight
	partial *partial
	best    int64 // the most bytes that were here since the last ones proved bad
	sources []Source
	resumed bool // the file holds bytes of an earlier Fetch, of unknown origin

	names   map[string]string // of peers, from their certificates
	banned  map[string]bool   // served bad bytes; asked no more
	slow    map[string]bool   // sent too slowly once; asked last
	suspect map[string]bool   // had a part in bad bytes of several; asked after the others
	alone   bool              // after bad bytes of several: take all from one peer, to know whose they are
	pulled  map[string]int64  // by relay: the most bytes that it said it had moved
}

// bring gets the artifact chunk by chunk where that is possible, else as a whole:
// from hosts that know no chunks, and through relays.
func (f *fetch) bring(ctx context.Context) ([]Source, error) {
	if f.Chunks.Signed() {
		sources, err := f.runChunks(ctx)
		if !errors.Is(err, errNoChunks) {
			return sources, err
		}
	}
	f.flight.update(func(s *flightState) { s.whole = true })
	return f.run(ctx)
}

func (f *fetch) run(ctx context.Context) (_ []Source, err error) {
	f.partial, err = openPartial(f.Store.dir, f.Store.partialPath(f.Digest), f.Size)
	if err != nil {
		return nil, err
	}
	defer func() {
		f.partial.close()
		if errors.Is(err, ErrDiskFull) {
			// The host needs the room more than the fetch its bytes.
			err = errors.Join(err, f.partial.discard())
		}
	}()
	f.best, f.resumed = f.partial.done, f.partial.done > 0
	f.flight.update(func(s *flightState) { s.done = f.partial.done })
	if err := checkSpace(f.Store.dir, f.partial.missing()); err != nil {
		return nil, err
	}
	if f.partial.missing() == 0 {
		switch err := f.verify(); {
		case err == nil:
			return nil, f.Store.adopt(f.partial.file, f.Digest)
		case isLocal(err):
			return nil, err
		}
	}
	var last error
	for idle, busy := 0, 0; idle < f.Rounds; {
		r := f.round(ctx, busy%busyRounds == busyRounds-1)
		switch {
		case r.err == nil:
			return f.sources, f.Store.adopt(f.partial.file, f.Digest)
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case isLocal(r.err):
			return nil, r.err
		}
		last = r.err
		switch {
		case r.gained >= worthwhile:
			idle = 0
		case r.busy && !f.Brief && busy%busyRounds != busyRounds-1:
			busy++
		default:
			idle, busy = idle+1, 0
		}
		if idle < f.Rounds {
			pause(ctx)
		}
	}
	return nil, fmt.Errorf("%w %.12s…: %w", ErrNoPeer, f.Digest, last)
}

func pause(ctx context.Context) {
	t := time.NewTimer(roundPause/2 + rand.N(roundPause))
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// result is how a round ended; a nil err means with a verified artifact.
type result struct {
	err    error
	gained int64 // good bytes, as far as one knows
	busy   bool  // a peer was only busy, or there was none
}

var errNobody = errors.New("nobody who is online has it, as far as this host reaches; are the servers up, and a relay of its segment? See: moult status")

// round asks every candidate once, and then the relays, unless somebody who may
// have the artifact was only busy and patience is not over: what is on this side
// of a link is worth waiting for.
func (f *fetch) round(ctx context.Context, impatient bool) result {
	candidates := f.Candidates()
	r := result{err: errNobody, busy: len(candidates) == 0}
	lack := map[string]bool{} // who said so; relays among them can be asked to get it
	asked := map[string]bool{}
	waits := false
	for _, p := range f.order(candidates) {
		if ctx.Err() != nil {
			return r
		}
		err := f.take(ctx, p, 1)
		if f.settle(&r, p, err) {
			return r
		}
		asked[p.key()], lack[p.key()] = true, errors.Is(err, errLacks)
		waits = waits || errors.Is(err, errBusy)
	}
	if f.Pull == nil || waits && !impatient && !f.Brief {
		return r
	}
	relays := f.orderRelays()
	if len(relays) > 0 && len(candidates) == 0 {
		r.busy = false // they say how it stands
	}
	for _, p := range relays {
		if ctx.Err() != nil {
			return r
		}
		if asked[p.key()] && !lack[p.key()] {
			continue
		}
		err := f.pullThrough(ctx, p)
		// It has the artifact: to have another relay get it, too, would cost a link.
		if f.settle(&r, p, err) || errors.Is(err, errServing) {
			return r
		}
	}
	return r
}

// settle takes down how a peer did; it returns true when that ends the round.
func (f *fetch) settle(r *result, p Peer, err error) bool {
	if err == nil || isLocal(err) {
		r.err = err
		return true
	}
	r.gained += f.gained()
	switch {
	case errors.Is(err, errBusy), errors.Is(err, errNoWay):
		r.busy = true
	case errors.Is(err, errCorrupt):
		r.gained = 0
	case errors.Is(err, errTooSlow), errors.Is(err, errStalled), isTimeout(err):
		f.slow[p.key()] = true
	case errors.Is(err, errOtherBytes), errors.Is(err, errImpossible):
		f.ban(p, err)
	}
	r.err = fmt.Errorf("from %s: %w", f.named(p), err)
	return false
}

func (f *fetch) named(p Peer) string { return cmp.Or(f.names[p.key()], p.Name, p.HostID, p.Addr) }

// order sorts the candidates: nearest first and by chance within a class, but
// those last who were slow or are suspected.
func (f *fetch) order(candidates []Peer) []Peer {
	peers := f.trusted(candidates)
	rand.Shuffle(len(peers), func(i, j int) { peers[i], peers[j] = peers[j], peers[i] })
	slices.SortStableFunc(peers, func(a, b Peer) int {
		return cmp.Or(cmp.Compare(f.rank(a), f.rank(b)), cmp.Compare(a.Class, b.Class))
	})
	return peers
}

// trusted returns the peers that are not set aside.
func (f *fetch) trusted(peers []Peer) []Peer {
	return slices.DeleteFunc(slices.Clone(peers), func(p Peer) bool { return f.banned[p.key()] })
}

func (f *fetch) rank(p Peer) int {
	switch {
	case f.suspect[p.key()]:
		return 2
	case f.slow[p.key()]:
		return 1
	}
	return 0
}

// gained returns how many bytes there are more than ever before, here or, by
// what relays say, on their way to here. To count from the last peer's would let
// two bad ones keep a fetch alive for ever, one delivering a little, the other a
// little more.
func (f *fetch) gained() int64 {
	here := f.partial.done + f.totalPulled()
	more := max(0, here-f.best)
	f.best += more
	return more
}

// take reads what is missing from one peer, in so many attempts as long as each
// brings something; nil means the artifact is complete and verified.
func (f *fetch) take(ctx context.Context, p Peer, attempts int) error {
	if f.alone {
		attempts = aloneAttempts
		if err := f.restart(); err != nil {
			return err
		}
	}
	for range attempts {
		before := f.partial.done
		err := f.download(ctx, p)
		if isLocal(err) {
			return err
		}
		if f.partial.missing() == 0 {
			return f.verify()
		}
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		if f.partial.done == before || ctx.Err() != nil || attempts == 1 {
			return err
		}
	}
	return fmt.Errorf("it broke off %d times", attempts)
}

var errCorrupt = errors.New("the bytes do not have the signed digest")

// verify tells whether the complete file has the signed digest. If not, all of
// it is dropped. One source is to blame for its bytes; several are told apart by
// taking all from one peer at a time from then on.
func (f *fetch) verify() error {
	if f.partial.sum() == f.Digest {
		return nil
	}
	if len(f.sources) == 1 && !f.resumed {
		f.ban(f.sources[0].Peer, errCorrupt)
	} else {
		for _, s := range f.sources {
			f.alone = true
			f.suspect[s.Peer.key()] = true
		}
	}
	f.best = f.totalPulled()
	if err := f.restart(); err != nil {
		return err
	}
	return errCorrupt
}

func (f *fetch) ban(p Peer, why error) {
	if !f.banned[p.key()] {
		f.banned[p.key()] = true
		f.SetAside(p, why)
	}
}

// restart drops all bytes and whose they were.
func (f *fetch) restart() error {
	f.sources, f.resumed = nil, false
	return f.partial.restart()
}

// localError is this host's own trouble: no other peer helps.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }

// isTimeout tells of a peer that does not even take a connection. It costs
// seconds each time, so it is asked after the others from then on.
func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

func isLocal(err error) bool {
	var l *localError
	return errors.As(err, &l)
}
