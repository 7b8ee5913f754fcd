package artifact

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"
)

// MaxHops is how many hosts may wait for an artifact behind each other.
const MaxHops = 8

// Limits of what a host that has a relay get something believes and waits for.
const (
	// askPause is the least time from one question to the next. A relay that is at
	// work holds its answer back for longer by itself.
	askPause = 200 * time.Millisecond
	// pullRateShare: the rate asked of a relay that pulls is this much lower than
	// that of a peer that sends. Its link may be slow, and to go on to another relay
	// costs that one's link.
	pullRateShare = 4
	// completePatience is how many StallTimeouts a relay has from its last byte to
	// the artifact's being verified and on its disk.
	completePatience = 3
	// relayAttempts is how often one relay is gone on with after it broke off,
	// before another gets the artifact over another link.
	relayAttempts = 3
	maxPullAnswer = 8 << 10 // bytes
	maxHostID     = 64      // bytes, as relays name others
	maxPeerName   = 128     // bytes
)

// Why a relay does not get the artifact.
var (
	errNoWay      = errors.New("it cannot get the artifact now")
	errLoop       = fmt.Errorf("%w: it waits for this host itself", errNoWay)
	errImpossible = errors.New("it tells of a progress that cannot be")
	errServing    = fmt.Errorf("it got the artifact, but %w", errBusy)
)

// Pull says how to have relays get an artifact that no candidate has.
type Pull struct {
	HostID string // of this host
	// Manifest and Signature are the release's: a relay gets nothing else than what
	// a release key signed.
	Manifest, Signature []byte
	// Via are the host ids of those for whom this host gets it, the first one first.
	Via []string
	// Relays lists who may get the artifact for this host: members that it reaches
	// and that are none of those. The lower their class, the sooner they are asked;
	// within a class all hosts ask the same one first. Asked again in each round.
	Relays func(via []string) []Peer
	// Progress is told how far a relay is. Called as FetchRequest.Progress is. May
	// be nil.
	Progress func(PullProgress)
	// Old is the sha256 of what the first host in the row would patch: a relay that
	// holds it, too, gets the artifact as a patch of it where it can. May be empty.
	Old string
	// Patched takes it over as a patch; for FetchPatched. May be nil.
	Patched FetchPatch
}

// PullProgress is how far a relay is in getting an artifact for this host.
type PullProgress struct {
	Relay Peer
	From  string // name of the host that it gets it from; may be empty
	Done  int64  // bytes that it has
	Size  int64  // bytes of the artifact
	// Moved counts bytes on all links on the way to here, as far as relays were
	// asked in this fetch: it only grows while somebody gets on.
	Moved int64
}

func (p *Pull) setDefaults() error {
	if p.HostID == "" || p.Relays == nil {
		return errors.New("fetch artifact: to have relays get it, this host's id and the relays are needed")
	}
	if p.Progress == nil {
		p.Progress = func(PullProgress) {}
	}
	return nil
}

// via returns who waits for a relay that this host asks.
func (p *Pull) via() []string { return append(slices.Clone(p.Via), p.HostID) }

// pullAsk is the body of POST /artifact/<sha256>/pull.
type pullAsk struct {
	Manifest  []byte   `json:"manifest"`
	Signature []byte   `json:"signature"`
	Via       []string `json:"via"`           // host ids of those who wait, the asking one last
	Now       bool     `json:"now,omitempty"` // answer at once: the chunks are asked for next
	Old       string   `json:"old,omitempty"` // sha256 of what the first of them would patch
}

// pullAnswer answers it, with 200 when the artifact is held and 202 while it is
// being got.
type pullAnswer struct {
	Held    bool     `json:"held"`
	Whole   bool     `json:"whole,omitempty"`   // it comes in as a whole: no chunks are given before the end
	Done    int64    `json:"done"`              // bytes that the relay has
	Size    int64    `json:"size"`              // of the artifact
	Moved   int64    `json:"moved"`             // bytes on all links behind the relay, Done included
	From    string   `json:"from,omitempty"`    // name, or id, of the host that sends or gets it
	Through []string `json:"through,omitempty"` // host ids of the relays that it waits for, the nearest first
}

// believable holds an answer against what can be: a relay may say anything.
func (a pullAnswer) believable(size int64) bool {
	if a.Size != size || a.Done < 0 || a.Done > size || a.Moved < a.Done || len(a.Through) > MaxHops {
		return false
	}
	if len(a.From) > maxPeerName || strings.ContainsFunc(a.From, unicode.IsControl) { // it goes into the job's log
		return false
	}
	return !slices.ContainsFunc(a.Through, func(id string) bool { return id == "" || len(id) > maxHostID })
}

// orderRelays sorts the relays: by class, and within a class in an order that is
// the same on all hosts, so that the first one gets the artifact once for all of
// them. Those who were slow or are suspected come last.
func (f *fetch) orderRelays() []Peer {
	if len(f.Pull.Via) >= MaxHops {
		return nil
	}
	peers := f.trusted(f.Pull.Relays(f.Pull.via()))
	slices.SortStableFunc(peers, func(a, b Peer) int {
		return cmp.Or(cmp.Compare(f.rank(a), f.rank(b)), compareRelays(f.Digest, a, b))
	})
	return peers
}

func compareRelays(digest string, a, b Peer) int {
	return cmp.Or(cmp.Compare(a.Class, b.Class), cmp.Compare(rendezvous(digest, b), rendezvous(digest, a)))
}

// FirstRelay is whom all hosts that reach these relays ask first for an artifact; the
// zero Peer where there is none.
func FirstRelay(digest string, relays []Peer) Peer {
	if len(relays) == 0 {
		return Peer{}
	}
	return slices.MinFunc(relays, func(a, b Peer) int { return compareRelays(digest, a, b) })
}

// rendezvous is a relay's weight for an artifact (highest random weight hashing,
// Thaler and Ravishankar 1996): different artifacts go through different relays,
// and when one is lost only what went through it goes elsewhere.
func rendezvous(digest string, p Peer) uint64 {
	sum := sha256.Sum256([]byte(digest + " " + p.key()))
	return binary.BigEndian.Uint64(sum[:])
}

// pullThrough has a relay get the artifact, then takes it from there.
func (f *fetch) pullThrough(ctx context.Context, p Peer) error {
	if err := f.awaitPull(ctx, p); err != nil {
		return err
	}
	err := f.take(ctx, p, relayAttempts)
	if errors.Is(err, errBusy) {
		return errServing
	}
	return err
}

// awaitPull asks a relay for the artifact, again and again, until it has it.
func (f *fetch) awaitPull(ctx context.Context, p Peer) error {
	body, err := json.Marshal(pullAsk{Manifest: f.Pull.Manifest, Signature: f.Pull.Signature, Via: f.Pull.via(), Old: f.Pull.Old})
	if err != nil {
		return err
	}
	pace := pullPace{fetch: f, movedAt: time.Now(), windowStart: time.Now()}
	for {
		asked := time.Now()
		a, err := f.askRelay(ctx, &p, body, f.learnName)
		if err != nil {
			return err
		}
		if a.Held {
			return nil
		}
		if slices.Contains(a.Through, f.Pull.HostID) {
			return errLoop
		}
		if err := pace.hold(f.pulledBy(p, a), a.Done == a.Size); err != nil {
			return err
		}
		if err := sleep(ctx, askPause-time.Since(asked)); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// askRelay asks once, in bounded time.
func (f *fetch) askRelay(ctx context.Context, p *Peer, body []byte, learn func(*http.Response, *Peer)) (pullAnswer, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(f.StallTimeout, func() { cancel(errStalled) })
	defer stall.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+p.Addr+pathPrefix+f.Digest+pullSuffix, bytes.NewReader(body))
	if err != nil {
		return pullAnswer{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := f.HTTP.Do(req)
	if err != nil {
		return pullAnswer{}, cause(ctx, err)
	}
	defer resp.Body.Close()
	learn(resp, p)
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxPullAnswer))
	if err != nil {
		return pullAnswer{}, cause(ctx, err)
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusAccepted:
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusLoopDetected:
		// Links come back, and pulls end: worth to be asked again.
		return pullAnswer{}, fmt.Errorf("%w: it answers %.40q: %.300q", errNoWay, resp.Status, bytes.TrimSpace(text))
	default:
		return pullAnswer{}, fmt.Errorf("it answers %.40q: %.300q", resp.Status, bytes.TrimSpace(text))
	}
	var a pullAnswer
	if err := json.Unmarshal(text, &a); err != nil || a.Held != (resp.StatusCode == http.StatusOK) || !a.believable(f.Size) {
		return pullAnswer{}, fmt.Errorf("%w: %.100q", errImpossible, text)
	}
	return a, nil
}

// pulledBy takes note of how far a relay is and returns by how many bytes that
// is further than ever before. What counts is bounded for each relay, so that
// none keeps a fetch alive for ever by words.
func (f *fetch) pulledBy(p Peer, a pullAnswer) (more int64) {
	moved := min(a.Moved, int64(MaxHops)*f.Size)
	more = max(0, moved-f.pulled[p.key()])
	f.pulled[p.key()] += more
	now := PullProgress{Relay: p, From: a.From, Done: a.Done, Size: f.Size, Moved: f.totalPulled()}
	through := append([]string{p.HostID}, a.Through...)
	through = through[:min(len(through), MaxHops)]
	f.flight.update(func(s *flightState) { s.pull, s.through = now, through })
	f.Pull.Progress(now)
	return more
}

func (f *fetch) totalPulled() (n int64) {
	for _, moved := range f.pulled {
		n += moved
	}
	return n
}

// pullPace holds a relay's progress against what is asked of it.
type pullPace struct {
	*fetch
	movedAt     time.Time // when it last got on
	windowStart time.Time
	window      int64 // bytes since then
}

// hold takes an answer that brought so many bytes.
func (p *pullPace) hold(more int64, complete bool) error {
	now := time.Now()
	if more > 0 {
		p.movedAt = now
		p.window += more
	}
	patience := p.StallTimeout
	if complete { // it verifies and syncs, of which nothing shows
		patience *= completePatience
	}
	if now.Sub(p.movedAt) >= patience {
		return errStalled
	}
	elapsed := now.Sub(p.windowStart)
	if elapsed < p.StallTimeout {
		return nil
	}
	rate := float64(p.window) / elapsed.Seconds()
	if least := p.leastRate() / pullRateShare; !complete && least > 0 && rate < float64(least) {
		return fmt.Errorf("%w: it gets %.0f bytes per second", errTooSlow, rate)
	}
	p.windowStart, p.window = now, 0
	return nil
}
