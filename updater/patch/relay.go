package patch

import (
	"context"
	"errors"
	"net/http"
	"time"

	"golang.org/x/time/rate"

	"moult/updater/artifact"
)

// busyPause is how long a busy peer is left alone where a relay waits for it.
const busyPause = time.Second

// Fetcher returns how a relay, or a host behind one, gets an artifact as a patch:
// by Fetch, and again while somebody is only busy, until ctx ends. What was good
// is kept in patches, and served on. The limiter may be nil.
func Fetcher(artifacts *artifact.Store, patches *Store, client *http.Client, limiter *rate.Limiter) artifact.FetchPatch {
	return func(ctx context.Context, want artifact.PatchWanted) (artifact.Source, error) {
		for {
			source, err := Fetch(ctx, Request{
				Artifacts: artifacts, Patches: patches, Old: want.Old, New: want.New, Size: want.Size,
				Candidates: want.From, HTTP: client, Limiter: limiter, Progress: want.Progress,
			})
			if !errors.Is(err, ErrBusy) {
				return source, err
			}
			select {
			case <-ctx.Done():
				return artifact.Source{}, err
			case <-time.After(busyPause):
			}
		}
	}
}
