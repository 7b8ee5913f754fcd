package artifact

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"golang.org/x/time/rate"

	"moult/mesh/identity"
)

const (
	// pacedRead is how many bytes are read at once under a Limiter, and limitBurst
	// how many may come at once.
	pacedRead  = 16 << 10
	limitBurst = 64 << 10
	// limitShare is how many transfers may share a Limiter, for what is asked of a
	// peer: a relay's pulls and its own fetch.
	limitShare = maxPulls + 1
)

// NewLimiter returns a FetchRequest.Limiter, to be shared by all fetches of a
// host, in bytes per second; rate.Inf is no limit. Its limit may be set anew while
// it is used.
func NewLimiter(bytesPerSecond rate.Limit) *rate.Limiter {
	return rate.NewLimiter(bytesPerSecond, limitBurst)
}

// Why a transfer ended before its end.
var (
	errBusy       = errors.New("it is busy serving others")
	errStalled    = errors.New("it sends nothing any more")
	errTooSlow    = errors.New("it sends too slowly")
	errOtherBytes = errors.New("what it has is not of the signed length")
	errLacks      = errors.New("it does not hold the artifact")
)

// download appends to the file what one peer sends, until the file is complete
// or the peer fails.
func (f *fetch) download(ctx context.Context, p Peer) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(f.StallTimeout, func() { cancel(errStalled) })
	defer stall.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+p.Addr+pathPrefix+f.Digest, nil)
	if err != nil {
		return err
	}
	// Else the transport asks for gzip, and unpacks what a peer calls gzip.
	req.Header.Set("Accept-Encoding", "identity")
	if f.partial.done > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", f.partial.done, f.Size-1))
	}
	resp, err := f.HTTP.Do(req)
	if err != nil {
		return cause(ctx, err)
	}
	defer resp.Body.Close()
	f.learnName(resp, &p)
	skip, err := f.readHeader(resp)
	if err != nil {
		return err
	}
	t := transfer{fetch: f, ctx: ctx, peer: p, stall: stall, windowStart: time.Now(), rateShare: 1}
	if f.alone {
		t.rateShare = aloneRateShare
	}
	before := f.partial.done
	err = cause(ctx, t.copy(resp.Body, skip))
	// What a peer sent before it failed is as good as what it sends before its end.
	if flushErr := t.flush(); flushErr != nil {
		err = flushErr
	}
	if got := f.partial.done - before; got > 0 {
		f.sources = addSource(f.sources, p, got)
		f.Store.fetched.Add(got)
	}
	return err
}

// learnName takes a peer's name from its certificate: who asks knows its address,
// people know its name.
func (f *fetch) learnName(resp *http.Response, p *Peer) {
	if resp.TLS == nil {
		return
	}
	if id, err := identity.PeerIdentity(*resp.TLS); err == nil && id.HostID == p.HostID {
		p.Name, f.names[p.key()] = id.Name, id.Name
	}
}

// readHeader refuses an answer that is not what was asked for, and returns how
// many bytes that are here already come before what is missing: a peer that does
// no ranges sends all.
func (f *fetch) readHeader(resp *http.Response) (skip int64, err error) {
	switch resp.StatusCode {
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		return 0, errBusy
	case http.StatusNotFound:
		return 0, errLacks
	case http.StatusOK, http.StatusPartialContent:
	default:
		return 0, fmt.Errorf("it answers %.40q", resp.Status)
	}
	if e := resp.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return 0, fmt.Errorf("it answers in the encoding %.40q", e)
	}
	expected := f.Size
	if resp.StatusCode == http.StatusPartialContent {
		expected -= f.partial.done
		if err := f.checkRange(resp.Header.Get("Content-Range")); err != nil {
			return 0, err
		}
	} else {
		skip = f.partial.done
	}
	if resp.ContentLength >= 0 && resp.ContentLength != expected {
		return 0, fmt.Errorf("%w: it offers %d bytes of %d", errOtherBytes, resp.ContentLength, expected)
	}
	return skip, nil
}

func (f *fetch) checkRange(header string) error {
	var first, last, total int64
	if _, err := fmt.Sscanf(header, "bytes %d-%d/%d", &first, &last, &total); err != nil {
		return fmt.Errorf("it answers with the range %.60q", header)
	}
	if total != f.Size {
		return fmt.Errorf("%w: it has %d bytes of %d", errOtherBytes, total, f.Size)
	}
	if first != f.partial.done || last != f.Size-1 {
		return fmt.Errorf("it answers with the range %.60q, not from %d on", header, f.partial.done)
	}
	return nil
}

// transfer is one answer's body on its way into the file.
type transfer struct {
	*fetch
	ctx   context.Context
	peer  Peer
	stall *time.Timer

	windowStart time.Time
	window      int64 // bytes since then
	rateShare   int64 // of the least rate that is asked for: one in so many
}

// copy drops skip bytes and appends what follows, to the signed length and not
// a byte beyond.
func (t *transfer) copy(body io.Reader, skip int64) error {
	for skip > 0 || t.partial.missing() > 0 {
		into := t.partial.room()
		if skip > 0 {
			into = into[:min(int64(len(into)), skip)]
		}
		if t.paced() {
			into = into[:min(len(into), pacedRead)]
		}
		n, err := body.Read(into)
		if waitErr := t.await(n); waitErr != nil {
			return waitErr
		}
		if skip > 0 {
			skip -= int64(n)
		} else if err := t.keep(n); err != nil {
			return err
		}
		if t.partial.missing() == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", t.Size-t.partial.missing(), t.Size, err)
		}
		if err := t.pace(n); err != nil {
			return err
		}
	}
	return nil
}

// await holds the transfer back to the limiter's rate. That is no stall of the
// peer's.
func (t *transfer) await(n int) error {
	if !t.paced() || n == 0 {
		return nil
	}
	t.stall.Stop()
	defer t.stall.Reset(t.StallTimeout)
	for n > 0 { // it may have been read before there was a limit, in one large piece
		piece := min(n, limitBurst)
		if err := t.Limiter.WaitN(t.ctx, piece); err != nil {
			return err
		}
		n -= piece
	}
	return nil
}

// keep counts bytes that came in as the artifact's.
func (t *transfer) keep(n int) error {
	if n == 0 {
		return nil
	}
	flushed, err := t.partial.add(n)
	if err == nil && flushed {
		t.arrived(t.peer)
	}
	return err
}

// flush brings to the file what is left in the buffer.
func (t *transfer) flush() error {
	before := t.partial.done
	err := t.partial.flush()
	if err == nil && t.partial.done > before {
		t.arrived(t.peer)
	}
	return err
}

// arrived tells those who ask and those who wait how far it is.
func (f *fetch) arrived(p Peer) {
	f.flight.update(func(s *flightState) { s.done, s.from, s.through = f.partial.done, p, nil })
	f.Progress(f.partial.done, p)
}

// pace puts the stall off and holds the last window against the least rate.
func (t *transfer) pace(n int) error {
	if n == 0 {
		return nil
	}
	t.stall.Reset(t.StallTimeout)
	t.window += int64(n)
	elapsed := time.Since(t.windowStart)
	if elapsed < t.StallTimeout {
		return nil
	}
	if rate, least := float64(t.window)/elapsed.Seconds(), t.leastRate()/t.rateShare; least > 0 && rate < float64(least) {
		return fmt.Errorf("%w: %.0f bytes per second", errTooSlow, rate)
	}
	t.windowStart, t.window = time.Now(), 0
	return nil
}

func addSource(list []Source, p Peer, n int64) []Source {
	for i := range list {
		if list[i].Peer.key() == p.key() {
			list[i].Bytes += n
			return list
		}
	}
	return append(list, Source{Peer: p, Bytes: n})
}

// cause names the stall behind an error that its cancellation made.
func cause(ctx context.Context, err error) error {
	if err != nil && !isLocal(err) && errors.Is(context.Cause(ctx), errStalled) {
		return errStalled
	}
	return err
}
