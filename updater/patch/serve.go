package patch

import (
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/time/rate"
)

const (
	pathPrefix = "/patch/"
	// DefaultStreams are served at once; one more gets 503.
	DefaultStreams = 8
	retryAfter     = "1" // seconds
	// blockedTimeout: a reader that takes no chunk for so long is cut off.
	blockedTimeout = 30 * time.Second
	chunkLen       = 64 << 10
)

// Handler serves a store's patches: GET and HEAD /patch/<old>-<new>. The limiter
// paces all streams together, and may be nil; its burst is at least 64 KiB.
func Handler(s *Store, streams int, limiter *rate.Limiter) http.Handler {
	if streams <= 0 {
		streams = DefaultStreams
	}
	free := make(chan struct{}, streams)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "patches are only read: use GET or HEAD", http.StatusMethodNotAllowed)
			return
		}
		f, err := s.open(strings.TrimPrefix(r.URL.Path, pathPrefix))
		switch {
		case errors.Is(err, ErrNotHeld):
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		case err != nil:
			http.Error(w, "the patch cannot be read", http.StatusInternalServerError)
			return
		}
		defer f.Close()
		select {
		case free <- struct{}{}:
			defer func() { <-free }()
		default:
			w.Header().Set("Retry-After", retryAfter)
			http.Error(w, "all streams are taken; ask another peer, or again later", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, &pacedFile{f, r, http.NewResponseController(w), limiter})
	})
}

// pacedFile reads at the limiter's pace, and has whoever takes nothing cut off.
type pacedFile struct {
	f       *os.File
	r       *http.Request
	control *http.ResponseController
	limiter *rate.Limiter
}

func (p *pacedFile) Seek(off int64, whence int) (int64, error) { return p.f.Seek(off, whence) }

func (p *pacedFile) Read(b []byte) (int, error) {
	b = b[:min(len(b), chunkLen)]
	if p.limiter != nil {
		if err := p.limiter.WaitN(p.r.Context(), min(len(b), p.limiter.Burst())); err != nil {
			return 0, err
		}
	}
	_ = p.control.SetWriteDeadline(time.Now().Add(blockedTimeout)) // a recorder in a test has none
	return p.f.Read(b)
}

var _ io.ReadSeeker = (*pacedFile)(nil)
