package artifact

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"moult/mesh/nodeport"
)

// Limits bound what a host serves.
type Limits struct {
	Streams        int // at once; one more gets 503. Not above 0: 8
	StreamsPerPeer int // of them to one host; not above 0: half of Streams
	BytesPerSecond int // over all streams; 0: no limit
}

// DefaultLimits are the limits when nothing else is said.
var DefaultLimits = Limits{Streams: 8, StreamsPerPeer: 4}

const (
	pathPrefix = "/artifact/"
	retryAfter = "1"       // seconds, told to those who come at a busy time
	rateBurst  = 256 << 10 // bytes
	chunkLen   = 128 << 10 // bytes that are paced and timed at once
	// A reader that takes nothing for blockedTimeout is cut off, and so is one
	// that in all keeps a stream waiting for longer than that and the time its
	// bytes take at slowestReader: it would hold a stream for nothing.
	blockedTimeout = time.Minute
	slowestReader  = 16 << 10 // bytes per second
)

// Server serves a store's artifacts: GET and HEAD /artifact/<sha256>, with
// ranges, and their chunks. Safe for concurrent use.
type Server struct {
	store   *Store
	limiter *rate.Limiter
	served  atomic.Int64
	lists   lists
	waiting atomic.Int32 // who ask for what has not begun

	mu      sync.Mutex
	limits  Limits
	streams int
	byPeer  map[string]int // streams by host ID, of those who have one
}

// Handler returns a server of the store's artifacts. Who asks is read from the
// request's context, where the node port puts it.
func Handler(store *Store, limits Limits) *Server {
	s := &Server{store: store, limiter: rate.NewLimiter(rate.Inf, rateBurst), byPeer: map[string]int{}}
	s.SetLimits(limits)
	return s
}

// SetLimits changes the limits. Streams that are open go on, at the new rate.
func (s *Server) SetLimits(limits Limits) {
	if limits.Streams <= 0 {
		limits.Streams = DefaultLimits.Streams
	}
	if limits.StreamsPerPeer <= 0 {
		limits.StreamsPerPeer = (limits.Streams + 1) / 2
	}
	pace := rate.Inf
	if limits.BytesPerSecond > 0 {
		pace = rate.Limit(limits.BytesPerSecond)
	}
	s.limiter.SetLimit(pace)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limits = limits
}

// current are the limits that are in force.
func (s *Server) current() Limits {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.limits
}

// Served returns how many bytes of artifacts were served since the start.
func (s *Server) Served() int64 { return s.served.Load() }

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if digest, suffix, ok := chunkPath(r.URL.Path); ok {
		s.serveChunks(w, r, digest, suffix)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "artifacts are only read: use GET or HEAD", http.StatusMethodNotAllowed)
		return
	}
	digest, ok := strings.CutPrefix(r.URL.Path, pathPrefix)
	if !ok {
		http.NotFound(w, r)
		return
	}
	f, size, err := s.store.Open(digest)
	if errors.Is(err, ErrNotHeld) {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	if err != nil {
		http.Error(w, "the artifact cannot be read", http.StatusInternalServerError)
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Repr-Digest", ReprDigest(digest))
	w.Header().Set("ETag", `"`+digest+`"`)
	if r.Method == http.MethodHead {
		http.ServeContent(w, r, "", time.Time{}, content{f})
		return
	}
	peer := peerOf(r)
	limits := s.current()
	if !s.enter(peer, limits.Streams, limits.StreamsPerPeer) {
		for _, name := range []string{"Repr-Digest", "ETag"} {
			w.Header().Del(name) // they speak of the artifact, not of this answer
		}
		w.Header().Set("Retry-After", retryAfter)
		http.Error(w, "all streams are taken; ask another peer, or again later", http.StatusServiceUnavailable)
		return
	}
	defer s.leave(peer)
	http.ServeContent(s.meter(w, r, size), r, "", time.Time{}, content{f})
}

// peerOf is the host that asks; empty where nobody has to say who it is.
func peerOf(r *http.Request) string { return nodeport.PeerFrom(r.Context()).HostID }

// meter bounds an answer of at most size bytes.
func (s *Server) meter(w http.ResponseWriter, r *http.Request, size int64) *meteredWriter {
	return &meteredWriter{
		ResponseWriter: w, ctx: r.Context(), control: http.NewResponseController(w), server: s,
		patience: blockedTimeout + time.Duration(float64(size)/slowestReader*float64(time.Second)),
	}
}

// content hides the file's other methods, which would lead the bytes past the
// meter.
type content struct{ f *os.File }

func (c content) Read(b []byte) (int, error)                { return c.f.Read(b) }
func (c content) Seek(off int64, whence int) (int64, error) { return c.f.Seek(off, whence) }

var _ io.ReadSeeker = content{}

// enter takes one of so many streams, of which the peer may have perPeer.
func (s *Server) enter(peer string, streams, perPeer int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams >= streams || peer != "" && s.byPeer[peer] >= perPeer {
		return false
	}
	s.streams++
	if peer != "" {
		s.byPeer[peer]++
	}
	return true
}

func (s *Server) leave(peer string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams--
	if peer == "" {
		return
	}
	if s.byPeer[peer]--; s.byPeer[peer] == 0 {
		delete(s.byPeer, peer)
	}
}

// ReprDigest is the value of the Repr-Digest header (RFC 9530) for a sha256.
func ReprDigest(digest string) string {
	raw, err := hex.DecodeString(digest)
	if err != nil {
		return ""
	}
	return "sha-256=:" + base64.StdEncoding.EncodeToString(raw) + ":"
}

var errReaderTooSlow = errors.New("the reader takes the artifact too slowly")

// meteredWriter counts, paces and bounds in time what a stream takes.
type meteredWriter struct {
	http.ResponseWriter
	ctx      context.Context
	control  *http.ResponseController
	server   *Server
	status   int
	patience time.Duration // how long the reader may yet keep writes waiting
}

func (w *meteredWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *meteredWriter) Write(b []byte) (int, error) {
	total := 0
	for len(b) > 0 {
		n, err := w.writeChunk(b[:min(len(b), chunkLen)])
		total += n
		if err != nil {
			return total, err
		}
		b = b[n:]
	}
	return total, nil
}

// ReadFrom is how http.ServeContent hands over a body: in chunks of its own, as
// the 32 KiB of io.Copy cost more calls.
func (w *meteredWriter) ReadFrom(r io.Reader) (total int64, err error) {
	buf := chunks.Get().(*[chunkLen]byte)
	defer chunks.Put(buf)
	for {
		n, readErr := r.Read(buf[:])
		written, err := w.Write(buf[:n])
		total += int64(written)
		switch {
		case err != nil:
			return total, err
		case errors.Is(readErr, io.EOF):
			return total, nil
		case readErr != nil:
			return total, readErr
		}
	}
}

var chunks = sync.Pool{New: func() any { return new([chunkLen]byte) }}

func (w *meteredWriter) writeChunk(b []byte) (int, error) {
	if err := w.server.limiter.WaitN(w.ctx, len(b)); err != nil {
		return 0, err
	}
	if w.patience <= 0 {
		return 0, errReaderTooSlow
	}
	start := time.Now()
	_ = w.control.SetWriteDeadline(start.Add(min(blockedTimeout, w.patience))) // a recorder in a test has none
	n, err := w.ResponseWriter.Write(b)
	w.patience -= time.Since(start)
	if w.status == http.StatusOK || w.status == http.StatusPartialContent {
		w.server.served.Add(int64(n))
	}
	return n, err
}
