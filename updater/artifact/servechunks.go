package artifact

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"moult/updater/release"
)

const (
	listSuffix   = "/chunks"
	stripeSuffix = "/stripe"
	// flightStreamsPerPeer is how many streams one peer gets of an artifact that is
	// coming in: one a stripe.
	flightStreamsPerPeer = Stripes
	// unbegunPatience is how long who is named as a parent keeps a child waiting that
	// asks before it has itself begun, and maxWaiting how many may wait so.
	unbegunPatience = 2 * time.Second
	maxWaiting      = 8
	// maxStripes is how many ways an artifact may be split.
	maxStripes = 16
	// keptLists is how many chunk lists of held artifacts are kept in memory, each at
	// most 2 MiB.
	keptLists = 4
)

// stripeAsk is the query of GET /artifact/<sha256>/stripe: count of the chunks
// first, first+of, first+2·of… With now, only from who has the first one already. With
// list, the chunk list comes before them.
type stripeAsk struct {
	chunk            int64 // bytes
	first, of, count int
	now, list        bool
}

func (a stripeAsk) String() string {
	q := fmt.Sprintf("chunk=%d&first=%d&of=%d&count=%d", a.chunk, a.first, a.of, a.count)
	if a.now {
		q += "&now=1"
	}
	if a.list {
		q += "&list=1"
	}
	return q
}

// listAsk is the query of GET /artifact/<sha256>/chunks.
type listAsk struct {
	chunk int64
	now   bool
}

func (a listAsk) String() string {
	q := fmt.Sprintf("chunk=%d", a.chunk)
	if a.now {
		q += "&now=1"
	}
	return q
}

func parseStripe(q url.Values) (a stripeAsk, err error) {
	for name, into := range map[string]*int{"first": &a.first, "of": &a.of, "count": &a.count} {
		if *into, err = strconv.Atoi(q.Get(name)); err != nil {
			return a, fmt.Errorf("%s: %.20q is not a number", name, q.Get(name))
		}
	}
	if a.chunk, err = parseChunkSize(q); err != nil {
		return a, err
	}
	a.now, a.list = q.Get("now") != "", q.Get("list") != ""
	switch maxCount := int(release.MaxArtifactBytes / a.chunk); {
	case a.of < 1 || a.of > maxStripes:
		return a, fmt.Errorf("of: it is %d; give 1 to %d", a.of, maxStripes)
	case a.first < 0 || a.first >= maxCount || a.count < 1 || a.count > maxCount:
		return a, fmt.Errorf("first, count: no artifact has %d chunks from chunk %d on", a.count, a.first)
	}
	return a, nil
}

func parseChunkSize(q url.Values) (int64, error) {
	n, err := strconv.ParseInt(q.Get("chunk"), 10, 64)
	if err != nil || !release.ValidChunkSize(n) {
		return 0, fmt.Errorf("chunk: %.20q is not the length of a chunk", q.Get("chunk"))
	}
	return n, nil
}

// last is the last chunk that is asked for.
func (a stripeAsk) last() int { return a.first + (a.count-1)*a.of }

// bytes is how long the answer is, of an artifact of a size that has these chunks.
func (a stripeAsk) bytes(size int64) int64 {
	n := int64(a.count-1)*a.chunk + min(a.chunk, size-int64(a.last())*a.chunk)
	if a.list {
		n += (size + a.chunk - 1) / a.chunk * sha256.Size
	}
	return n
}

// chunkPath splits the path of a request for chunks.
func chunkPath(path string) (digest, suffix string, ok bool) {
	rest, ok := strings.CutPrefix(path, pathPrefix)
	if !ok {
		return "", "", false
	}
	for _, suffix := range []string{listSuffix, stripeSuffix} {
		if digest, ok := strings.CutSuffix(rest, suffix); ok {
			return digest, suffix, true
		}
	}
	return "", "", false
}

// source is where chunks are served from: a held artifact, or one that is coming in.
type source struct {
	flight *flight
	coming *chunkFile // nil: held
	held   *os.File
	size   int64
	chunk  int64
}

func (s *source) close() {
	if s.held != nil {
		s.held.Close()
	}
}

// openSource returns ErrNotHeld when neither is here, cut in this way.
func (s *Store) openSource(digest string, chunk int64) (*source, error) {
	f, size, err := s.Open(digest)
	if err == nil {
		return &source{held: f, size: size, chunk: chunk}, nil
	}
	if !errors.Is(err, ErrNotHeld) {
		return nil, err
	}
	flight, coming := s.coming(digest)
	if coming == nil || coming.chunks.Size != chunk {
		return nil, ErrNotHeld
	}
	return &source{flight: flight, coming: coming, size: coming.size, chunk: chunk}, nil
}

// awaitSource opens a source; unless it is wanted now, one that has not begun yet
// is waited for.
func (s *Server) awaitSource(ctx context.Context, digest string, chunk int64, now bool) (*source, error) {
	src, err := s.store.openSource(digest, chunk)
	if now || !errors.Is(err, ErrNotHeld) || !ValidDigest(digest) {
		return src, err
	}
	if s.waiting.Add(1) > maxWaiting {
		s.waiting.Add(-1)
		return nil, ErrNotHeld
	}
	defer s.waiting.Add(-1)
	patience := time.NewTimer(unbegunPatience)
	defer patience.Stop()
	for {
		news := s.store.nextSource()
		src, err := s.store.openSource(digest, chunk)
		if !errors.Is(err, ErrNotHeld) {
			return src, err
		}
		select {
		case <-ctx.Done():
			return nil, ErrNotHeld
		case <-patience.C:
			return nil, ErrNotHeld
		case <-news:
		}
	}
}

// length is how many bytes a chunk has; not above 0: there is none.
func (s *source) length(i int) int { return int(min(s.chunk, s.size-int64(i)*s.chunk)) }

// read waits for a chunk. When the fetch ends meanwhile it goes on with what was
// fetched.
func (s *source) read(ctx context.Context, store *Store, digest string, i int, b []byte) error {
	if s.coming != nil {
		err := s.coming.read(ctx, i, b)
		if !errors.Is(err, errEnded) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.flight.ended:
		}
		if s.held, _, err = store.Open(digest); err != nil {
			return err
		}
		s.coming = nil
	}
	_, err := s.held.ReadAt(b, int64(i)*s.chunk)
	return err
}

// serveChunks answers for the chunk list and for stripes.
func (s *Server) serveChunks(w http.ResponseWriter, r *http.Request, digest, suffix string) {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", "GET")
		http.Error(w, "chunks are only read: use GET", http.StatusMethodNotAllowed)
		return
	}
	var err error
	if suffix == listSuffix {
		err = s.serveList(w, r, digest)
	} else {
		err = s.serveStripe(w, r, digest)
	}
	switch {
	case err == nil:
	case errors.Is(err, ErrNotHeld):
		http.Error(w, err.Error(), http.StatusNotFound)
	case errors.Is(err, errBusy):
		w.Header().Set("Retry-After", retryAfter)
		http.Error(w, "all streams are taken; ask another peer, or again later", http.StatusServiceUnavailable)
	case errors.Is(err, errBroken):
		panic(http.ErrAbortHandler) // or the end would look like one
	default:
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
}

// errBroken: an answer ended after its header was sent.
var errBroken = errors.New("the stream broke")

func (s *Server) serveList(w http.ResponseWriter, r *http.Request, digest string) error {
	chunk, err := parseChunkSize(r.URL.Query())
	if err != nil {
		return err
	}
	src, err := s.awaitSource(r.Context(), digest, chunk, r.URL.Query().Get("now") != "")
	if err != nil {
		return err
	}
	defer src.close()
	list, err := s.lists.of(digest, src)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(list)))
	_, _ = w.Write(list)
	return nil
}

// serveStripe sends chunks in order, each when it is here.
func (s *Server) serveStripe(w http.ResponseWriter, r *http.Request, digest string) error {
	ask, err := parseStripe(r.URL.Query())
	if err != nil {
		return err
	}
	src, err := s.awaitSource(r.Context(), digest, ask.chunk, ask.now)
	if err != nil {
		return err
	}
	defer src.close()
	if src.length(ask.last()) <= 0 {
		return fmt.Errorf("first, count: the artifact has no chunk %d", ask.last())
	}
	limits := s.current()
	perPeer := limits.StreamsPerPeer
	if src.coming != nil {
		perPeer = min(perPeer, flightStreamsPerPeer)
		if ask.now && !src.coming.holds(ask.first) {
			return ErrNotHeld
		}
		src.flight.readers.Add(1)
		defer src.flight.readers.Add(-1)
	}
	peer := peerOf(r)
	if !s.enter(peer, limits.Streams, perPeer) {
		return errBusy
	}
	defer s.leave(peer)
	var list []byte
	if ask.list {
		if list, err = s.lists.of(digest, src); err != nil {
			return err
		}
	}
	out := s.meter(w, r, src.size)
	out.Header().Set("Content-Type", "application/octet-stream")
	out.Header().Set("Content-Length", strconv.FormatInt(ask.bytes(src.size), 10))
	out.ResponseWriter.WriteHeader(http.StatusOK)
	if _, err := out.Write(list); err != nil {
		return errBroken
	}
	out.status = http.StatusOK                  // from here on it counts as served
	if err := out.control.Flush(); err != nil { // who asks learns that it has a parent
		return errBroken
	}
	buf := make([]byte, ask.chunk)
	for i := ask.first; i <= ask.last(); i += ask.of {
		b := buf[:src.length(i)]
		if err := src.read(r.Context(), s.store, digest, i, b); err != nil {
			return errBroken
		}
		if _, err := out.Write(b); err != nil {
			return errBroken
		}
		if err := out.control.Flush(); err != nil {
			return errBroken
		}
	}
	return nil
}

// lists keeps the chunk lists of held artifacts, which are computed once. Safe for
// concurrent use.
type lists struct {
	mu   sync.Mutex
	kept []keptList // newest last
}

type keptList struct {
	digest string
	chunk  int64
	list   []byte
}

// of returns the chunk list of a source.
func (l *lists) of(digest string, src *source) ([]byte, error) {
	if src.coming != nil {
		return src.coming.list, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock() // one is computed at a time: it takes a core
	for _, k := range l.kept {
		if k.digest == digest && k.chunk == src.chunk {
			return k.list, nil
		}
	}
	list, err := chunkList(io.NewSectionReader(src.held, 0, src.size), src.chunk)
	if err != nil {
		return nil, err
	}
	l.kept = append(l.kept, keptList{digest, src.chunk, list})
	if len(l.kept) > keptLists {
		l.kept = l.kept[1:]
	}
	return list, nil
}
