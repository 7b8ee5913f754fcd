package artifact

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"moult/mesh/nodeport"
	"moult/updater/release"
)

// Limits of what a relay gets for others.
const (
	// KeptByRelay is how many artifacts a relay keeps for others besides the one it
	// runs and the one it is to run: as many as a record announces.
	KeptByRelay = 4
	// MinPullRate is the least Limiter of a relay, in bytes per second: below, those
	// who wait would take it for stuck.
	MinPullRate = 100_000

	maxPulls    = 3               // at once, of different artifacts
	pullReserve = 64 << 20        // bytes that stay free beyond what is got for others
	pullRounds  = 2               // without progress, before those who wait are told
	answerAfter = time.Second     // an answer is held back this long for news
	failedFor   = 3 * time.Second // how long a pull that failed is not begun again
	unaskedFor  = time.Minute     // a pull that nobody asks for any more ends
	maxPullBody = 512 << 10       // bytes: manifest and signature, in base64
	pullSuffix  = "/pull"
)

// PullerConfig is what a Puller needs.
type PullerConfig struct {
	HostID string // of this host
	Store  *Store
	HTTP   *http.Client
	// ReleaseKeys are those that this host believes now.
	ReleaseKeys func() release.KeySet
	// Candidates and Relays are as in FetchRequest and Pull.
	Candidates func(digest string) []Peer
	Relays     func(via []string) []Peer
	// Active tells whether this host gets artifacts for others: a relay or a server.
	Active func() bool
	// Prune drops old artifacts to make room, at most KeptByRelay of those that
	// were got for others stay. A server keeps what the releases name instead.
	Prune   bool
	Limiter *rate.Limiter // may be nil
	// Patched is as in Pull; may be nil.
	Patched FetchPatch
	// StallTimeout is as in FetchRequest, for pulls that a host asks for that waits
	// for itself only; each host that waits behind it takes a quarter of it off, so
	// that who is nearest to the trouble finds another way first.
	StallTimeout time.Duration
	Logger       *slog.Logger
}

// Puller gets artifacts for hosts that reach nobody who holds them: POST
// /artifact/<sha256>/pull. It fetches, verifies and keeps the artifact, which is
// then served as any other; bytes that are not verified are served to nobody.
// However many ask, an artifact is fetched once. Where it comes in by chunks, those that
// are verified are served while the rest comes in.
//
// The body carries the release's manifest and its signature. Before a byte is
// fetched the signature must be by a pinned release key and the manifest name the
// digest: nobody makes a relay get anything else, nor more of it than was signed.
// It may name what the first host that waits would patch. A relay that holds that,
// too, gets the artifact as a patch of it where somebody has one, which verifies
// the patch by what it makes, and serves the patch on. Nothing else is got for
// that name, and it is kept under the limits of patches.
//
// It carries also who waits for it; who is among them refuses, and so does who
// would be the ninth, so that no circle of relays waits for itself.
//
//	200  held: GET it
//	202  being got; how far it is. The answer comes after a second, or with news; at
//	     once with "now"
//	400  the body does not parse, or names another host as the one that asks
//	403  the manifest does not allow it
//	404  this host is no relay
//	502  nobody gave it; why. Begun again when it is asked for again
//	503  too many artifacts are being got at once
//	507  there is no room for it
//	508  this host waits for it itself, or too many do
//
// It takes no stream of those that Limits bounds. Safe for concurrent use.
type Puller struct {
	cfg  PullerConfig
	ctx  context.Context
	stop context.CancelFunc
	runs sync.WaitGroup

	refused atomic.Int64
	pulled  atomic.Int64

	checking sync.Mutex
	checked  map[string]bool // by digest: read again since the start

	mu     sync.Mutex
	closed bool
	pulls  map[string]*pull // by digest: those that run, and those that failed just now
}

// pull is one artifact on its way to here.
type pull struct {
	size   int64
	chunks release.Chunks
	unask  *time.Timer  // ends it when nobody asks, or reads what comes in
	patch  atomic.Int64 // bytes of patches that came in
	ended  chan struct{}
	err    error     // once ended
	failed time.Time // once ended
}

func (p *pull) running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// goOn has a pull that runs go on for who asks, and tells whether it runs.
func (p *pull) goOn() bool {
	if !p.running() {
		return false
	}
	p.unask.Reset(unaskedFor)
	return true
}

// NewPuller returns a Puller; Close ends its work.
func NewPuller(cfg PullerConfig) (*Puller, error) {
	if cfg.HostID == "" || cfg.Store == nil || cfg.HTTP == nil || cfg.ReleaseKeys == nil || cfg.Candidates == nil || cfg.Relays == nil || cfg.Active == nil {
		return nil, errors.New("pull artifacts for others: host id, store, HTTP client, release keys, candidates, relays and whether it does have to be given")
	}
	cfg.StallTimeout = cmp.Or(cfg.StallTimeout, DefaultStallTimeout)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Puller{cfg: cfg, pulls: map[string]*pull{}, checked: map[string]bool{}}
	p.ctx, p.stop = context.WithCancel(context.Background())
	return p, nil
}

// Close ends all pulls, what they brought stays for the next start, and waits
// until they have ended.
func (p *Puller) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.stop()
	p.runs.Wait()
}

// Refused counts the requests that no signed manifest allowed.
func (p *Puller) Refused() int64 { return p.refused.Load() }

// Pulled counts the artifacts that were got for others.
func (p *Puller) Pulled() int64 { return p.pulled.Load() }

// refusal is why a request is not met.
type refusal struct {
	status int
	why    string
}

func (r *refusal) Error() string { return r.why }

func refuse(status int, format string, args ...any) error {
	return &refusal{status, fmt.Sprintf(format, args...)}
}

// ServeHTTP answers one request for an artifact.
func (p *Puller) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer, err := p.serve(w, r)
	var no *refusal
	switch {
	case errors.As(err, &no):
		if no.status == http.StatusBadGateway || no.status == http.StatusServiceUnavailable {
			w.Header().Set("Retry-After", retryAfter)
		}
		http.Error(w, no.why, no.status)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		w.Header().Set("Content-Type", "application/json")
		if !answer.Held {
			w.WriteHeader(http.StatusAccepted)
		}
		_ = json.NewEncoder(w).Encode(answer) // who asked is gone if this errs
	}
}

func (p *Puller) serve(w http.ResponseWriter, r *http.Request) (pullAnswer, error) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return pullAnswer{}, refuse(http.StatusMethodNotAllowed, "use POST with the release's manifest")
	}
	if !p.cfg.Active() {
		return pullAnswer{}, refuse(http.StatusNotFound, "this host is in one segment only and gets nothing for others; ask a relay or a server")
	}
	path, ok := strings.CutPrefix(r.URL.Path, pathPrefix)
	digest, isPull := strings.CutSuffix(path, pullSuffix)
	if !ok || !isPull || !ValidDigest(digest) {
		return pullAnswer{}, refuse(http.StatusNotFound, "the path is not %s<sha256>%s", pathPrefix, pullSuffix)
	}
	ask, err := p.read(w, r)
	if err != nil {
		return pullAnswer{}, err
	}
	a, err := p.authorize(ask, digest)
	if err != nil {
		p.refused.Add(1)
		p.cfg.Logger.Warn("artifact not got for another host", "host", ask.Via[len(ask.Via)-1], "digest", digest, "error", err)
		return pullAnswer{}, err
	}
	// First what runs: the patch by which the artifact came is kept after it, and is what
	// is asked for next.
	work := p.underWay(digest)
	if work == nil && p.holds(digest) {
		return pullAnswer{Held: true, Done: a.Size, Size: a.Size, Moved: a.Size}, nil
	}
	if work == nil {
		if work, err = p.join(a, ask); err != nil {
			return pullAnswer{}, err
		}
	}
	return p.await(r.Context(), work, digest, ask.Now)
}

// underWay returns the pull of an artifact that runs, which goes on for who asks; nil: none
// does.
func (p *Puller) underWay(digest string) *pull {
	p.mu.Lock()
	defer p.mu.Unlock()
	if work, ok := p.pulls[digest]; ok && !p.closed && work.goOn() {
		return work
	}
	return nil
}

// read parses the body and refuses those who wait for themselves.
func (p *Puller) read(w http.ResponseWriter, r *http.Request) (pullAsk, error) {
	var ask pullAsk
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxPullBody))
	if err == nil {
		err = json.Unmarshal(text, &ask)
	}
	if err != nil {
		return ask, refuse(http.StatusBadRequest, "the body does not parse: %v", err)
	}
	if len(ask.Via) == 0 || slices.ContainsFunc(ask.Via, func(id string) bool { return id == "" || len(id) > maxHostID }) {
		return ask, refuse(http.StatusBadRequest, "via: name the hosts that wait, the asking one last, each by 1 to %d bytes", maxHostID)
	}
	// Identity comes from the certificate.
	if id := nodeport.PeerFrom(r.Context()).HostID; id != "" && ask.Via[len(ask.Via)-1] != id {
		return ask, refuse(http.StatusBadRequest, "via: it ends with %.64q, but host %s asks", ask.Via[len(ask.Via)-1], id)
	}
	if ask.Old != "" && !ValidDigest(ask.Old) {
		return ask, refuse(http.StatusBadRequest, "old: %.80q is no sha256", ask.Old)
	}
	if slices.Contains(ask.Via, p.cfg.HostID) {
		return ask, refuse(http.StatusLoopDetected, "this host waits for the artifact itself; ask another relay")
	}
	if len(ask.Via) > MaxHops {
		return ask, refuse(http.StatusLoopDetected, "%d hosts wait for the artifact behind each other, at most %d may; ask another relay", len(ask.Via), MaxHops)
	}
	return ask, nil
}

// authorize returns the artifact, if a release key signed it.
func (p *Puller) authorize(ask pullAsk, digest string) (release.Artifact, error) {
	m, err := release.Verify(p.cfg.ReleaseKeys(), ask.Manifest, ask.Signature)
	if err != nil {
		return release.Artifact{}, refuse(http.StatusForbidden, "the manifest is refused: %v", err)
	}
	for _, a := range m.Artifacts {
		if a.SHA256 == digest {
			return a, nil
		}
	}
	return release.Artifact{}, refuse(http.StatusForbidden, "release %s has no artifact with the sha256 %s", m.Version, digest)
}

// holds tells whether the artifact can be served. The first time it is read
// again: a relay whose disk has damaged it may be the only one there is.
func (p *Puller) holds(digest string) bool {
	p.checking.Lock()
	if !p.checked[digest] {
		err := p.cfg.Store.Verify(digest)
		if errors.Is(err, ErrDamaged) {
			p.cfg.Logger.Warn("get an artifact anew", "digest", digest, "error", err)
		}
		p.checked[digest] = err == nil
	}
	p.checking.Unlock()
	f, _, err := p.cfg.Store.Open(digest)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// join returns the pull of an artifact: the one that runs, or failed just now, or
// a new one.
func (p *Puller) join(a release.Artifact, ask pullAsk) (*pull, error) {
	digest, size := a.SHA256, a.Size
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, refuse(http.StatusServiceUnavailable, "this host is stopping; ask another relay")
	}
	running := 0
	for d, other := range p.pulls {
		switch {
		case other.running():
			running++
		case d != digest || time.Since(other.failed) > failedFor:
			delete(p.pulls, d)
		}
	}
	if known, ok := p.pulls[digest]; ok {
		known.goOn()
		return known, nil
	}
	if running >= maxPulls {
		return nil, refuse(http.StatusServiceUnavailable, "%d artifacts are being got already; ask another relay, or again later", running)
	}
	if err := p.makeRoom(digest, size); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(p.ctx)
	work := &pull{size: size, chunks: a.Chunks(), ended: make(chan struct{})}
	work.unask = time.AfterFunc(unaskedFor, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.cfg.Store.isRead(digest) {
			work.unask.Reset(unaskedFor)
			return
		}
		cancel()
	})
	p.pulls[digest] = work
	p.runs.Go(func() {
		defer cancel()
		p.run(ctx, work, digest, ask)
	})
	return work, nil
}

// makeRoom drops what is old and refuses what would fill the disk: this host
// needs room for its own updates.
func (p *Puller) makeRoom(digest string, size int64) error {
	var running []string
	need := size + pullReserve
	for d, other := range p.pulls {
		if other.running() {
			running = append(running, d)
			need += max(0, other.size-p.cfg.Store.partialSize(d))
		}
	}
	if p.cfg.Prune {
		err := p.cfg.Store.MakeRoom(digest, size, KeptByRelay-1, running...)
		if errors.Is(err, ErrLimit) {
			return refuse(http.StatusInsufficientStorage, "%v", err)
		}
		if err != nil {
			p.cfg.Logger.Warn("prune old artifacts", "error", err)
		}
	}
	if err := checkSpace(p.cfg.Store.dir, need-p.cfg.Store.partialSize(digest)); err != nil {
		return refuse(http.StatusInsufficientStorage, "%v", err)
	}
	return nil
}

// partialSize is how much is here of an artifact that is not complete.
func (s *Store) partialSize(digest string) int64 {
	st, err := os.Stat(s.partialPath(digest))
	if err != nil {
		return 0
	}
	return st.Size()
}

func (p *Puller) run(ctx context.Context, work *pull, digest string, ask pullAsk) {
	logger := p.cfg.Logger.With("digest", digest)
	logger.Info("getting an artifact for another host", "host", ask.Via[len(ask.Via)-1], "bytes", work.size)
	req := FetchRequest{
		Store: p.cfg.Store, Digest: digest, Size: work.size, Chunks: work.chunks, HTTP: p.cfg.HTTP, Limiter: p.cfg.Limiter,
		Candidates: func() []Peer { return p.cfg.Candidates(digest) },
		Pull: &Pull{
			HostID: p.cfg.HostID, Manifest: ask.Manifest, Signature: ask.Signature, Via: ask.Via, Relays: p.cfg.Relays,
			Old: ask.Old, Patched: p.cfg.Patched,
		},
		SetAside: func(peer Peer, why error) {
			logger.Warn("peer is asked no more for the artifact", "peer", peer.HostID, "error", why)
		},
		StallTimeout: patience(p.cfg.StallTimeout, len(ask.Via)), Rounds: pullRounds, Brief: true,
	}
	sources, err := p.patched(ctx, work, req)
	if err != nil {
		sources, err = Fetch(ctx, req)
	}
	work.unask.Stop()
	if err != nil {
		logger.Warn("artifact not got for another host", "error", err)
	} else {
		p.pulled.Add(1)
		for _, s := range sources {
			logger.Info("got an artifact for another host", "peer", s.Peer.HostID, "bytes", s.Bytes)
		}
	}
	p.mu.Lock()
	work.err, work.failed = err, time.Now()
	if err == nil {
		delete(p.pulls, digest)
	}
	close(work.ended)
	p.mu.Unlock()
}

// patience is a quarter less for each host that waits.
func patience(d time.Duration, waiting int) time.Duration {
	for range waiting {
		d -= d / 4
	}
	return d
}

// await tells how far a pull is: at once when it ends or is asked for now, else after
// a while.
func (p *Puller) await(ctx context.Context, work *pull, digest string, now bool) (pullAnswer, error) {
	patience := answerAfter
	if now {
		patience = 0
	}
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-work.ended:
	case <-t.C:
	case <-ctx.Done():
	}
	if !work.running() {
		if work.err != nil {
			return pullAnswer{}, refuse(http.StatusBadGateway, "%v", work.err)
		}
		return pullAnswer{Held: true, Done: work.size, Size: work.size, Moved: work.size}, nil
	}
	s := p.cfg.Store.flying(digest)
	s.done = min(s.done, work.size)
	a := pullAnswer{
		Done: s.done, Size: work.size, Moved: work.patch.Load() + s.moved(),
		Through: s.through, Whole: s.whole, From: nameOf(s.from),
	}
	if len(s.through) > 0 {
		a.From = nameOf(s.pull.Relay)
	}
	return a, nil
}

// nameOf is a peer's name for people, within what a name may be.
func nameOf(p Peer) string {
	name := cmp.Or(p.Name, p.HostID)
	return strings.ToValidUTF8(name[:min(len(name), maxPeerName)], "")
}
