package webui

import (
	"bytes"
	"context"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"

	"moult/consensus/fleet"
)

// Limits of a release upload, in bytes.
const (
	maxManifest  = 256 << 10
	maxSignature = 16 << 10
	maxArtifact  = 1 << 30
	maxArtifacts = 64
	// maxDrain is how much of a refused upload is read and dropped, so that a client
	// that is still sending gets to read why. drainTimeout bounds it in time.
	maxDrain     = 256 << 20
	drainTimeout = 10 * time.Second
)

// releaseJSON is a release as the API shows it.
type releaseJSON struct {
	Version     string           `json:"version"`
	Number      uint64           `json:"number"`
	Available   bool             `json:"available"`
	Staged      bool             `json:"staged"` // hosts fetch it ahead of their turn
	PublishedAt time.Time        `json:"published_at"`
	PublishedBy string           `json:"published_by"`
	Artifacts   []fleet.Artifact `json:"artifacts"`
	// Staging is how far the hosts are with a release that all of them stage.
	Staging *releaseStagingJSON `json:"staging,omitempty"`
}

func showRelease(r fleet.Release) releaseJSON {
	return releaseJSON{
		Version: r.Version, Number: r.Number, Available: !r.Withdrawn, Staged: r.StageIndex != 0,
		PublishedAt: r.PublishedAt, PublishedBy: r.PublishedBy, Artifacts: list(r.Artifacts),
	}
}

func (u *ui) listReleases(w http.ResponseWriter, _ *http.Request) error {
	p, all := u.picture(), []releaseJSON{}
	for _, r := range p.Releases() {
		all = append(all, p.release(r))
	}
	return ok(w, map[string]any{"releases": all})
}

// release is a release as the lists show it.
func (p picture) release(r fleet.Release) releaseJSON {
	out := showRelease(r)
	out.Staging = p.releaseStaging(r)
	return out
}

func (u *ui) withdrawRelease(w http.ResponseWriter, r *http.Request) error {
	if err := noBody(w, r); err != nil {
		return err
	}
	if err := u.propose(r, fleet.ReleaseWithdrawn{Version: chi.URLParam(r, "version")}); err != nil {
		return err
	}
	return done(w)
}

// stageRelease has all hosts fetch a release ahead of their turn.
func (u *ui) stageRelease(w http.ResponseWriter, r *http.Request) error {
	if err := noBody(w, r); err != nil {
		return err
	}
	if err := u.propose(r, fleet.ReleaseStaged{Version: chi.URLParam(r, "version")}); err != nil {
		return err
	}
	return done(w)
}

// publishRelease takes multipart/form-data in this order: a part "manifest", a
// part "signature", then a part "artifact" for each artifact that the manifest
// names. Artifacts are passed on as they arrive, never held.
func (u *ui) publishRelease(w http.ResponseWriter, r *http.Request) error {
	manifest, err := u.receiveRelease(r)
	if err != nil {
		drain(w, r)
		return err
	}
	for _, rel := range u.View().Releases() {
		if bytes.Equal(rel.Manifest, manifest) {
			return ok(w, showRelease(rel))
		}
	}
	return done(w)
}

func (u *ui) receiveRelease(r *http.Request) (manifest []byte, err error) {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "multipart/form-data" {
		return nil, badRequest("Content-Type: send multipart/form-data with the parts manifest, signature and artifact")
	}
	parts, err := r.MultipartReader()
	if err != nil {
		return nil, badRequest("Content-Type: %v", err)
	}
	if manifest, err = readPart(parts, "manifest", maxManifest); err != nil {
		return nil, err
	}
	signature, err := readPart(parts, "signature", maxSignature)
	if err != nil {
		return nil, err
	}
	upload, err := u.Publisher.Begin(r.Context(), manifest, signature)
	if err != nil {
		return nil, err
	}
	if err := receiveArtifacts(r.Context(), parts, upload); err != nil {
		upload.Abort()
		return nil, err
	}
	if err := upload.Commit(r.Context(), callerOf(r).Actor); err != nil {
		upload.Abort()
		return nil, unavailableUnlessRefused(err)
	}
	return manifest, nil
}

// receiveArtifacts passes all remaining parts on.
func receiveArtifacts(ctx context.Context, parts *multipart.Reader, upload Upload) error {
	for n := 0; ; n++ {
		part, err := parts.NextPart()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return badRequest("artifact: the upload broke off (%v); send it again", err)
		case part.FormName() != "artifact":
			return badRequest("%s: after manifest and signature come parts called artifact", quoted(part.FormName()))
		case n == maxArtifacts:
			return badRequest("artifact: more than %d of them", maxArtifacts)
		}
		if err := receiveArtifact(ctx, part, upload); err != nil {
			return err
		}
	}
}

// receiveArtifact passes one part on. What the upload's reader meets on the way,
// a broken connection or the size limit, is the client's error, not this server's.
func receiveArtifact(ctx context.Context, part *multipart.Part, upload Upload) error {
	name := part.FileName()
	if name == "" {
		name = "artifact"
	}
	content := &limitedReader{r: part, left: maxArtifact}
	err := upload.Artifact(ctx, name, content)
	switch {
	case content.exceeded:
		return refuse(codeTooLarge, "artifact "+quoted(name)+" is larger than 1 GiB")
	case content.broken != nil:
		return badRequest("artifact: the upload of %s broke off (%v); send it again", quoted(name), content.broken)
	}
	return err
}

// readPart reads the next part whole, which must have the name.
func readPart(parts *multipart.Reader, name string, limit int64) ([]byte, error) {
	part, err := parts.NextPart()
	if err != nil {
		return nil, badRequest("%s: the part is missing (%v)", name, err)
	}
	if part.FormName() != name {
		return nil, badRequest("%s: expected this part here, got %s; the order is manifest, signature, artifacts", name, quoted(part.FormName()))
	}
	content, err := io.ReadAll(io.LimitReader(part, limit+1))
	switch {
	case err != nil:
		return nil, badRequest("%s: the upload broke off (%v)", name, err)
	case int64(len(content)) > limit:
		return nil, refuse(codeTooLarge, name+" is larger than this server takes")
	case len(content) == 0:
		return nil, badRequest("%s: the part is empty", name)
	}
	return content, nil
}

var errTooLong = errors.New("longer than allowed")

// limitedReader fails once more than left bytes are there to be read, and
// remembers what its source failed with.
type limitedReader struct {
	r        io.Reader
	left     int64
	exceeded bool
	broken   error
}

func (l *limitedReader) Read(p []byte) (int, error) {
	if l.left < 0 {
		l.exceeded = true
		return 0, errTooLong
	}
	if int64(len(p)) > l.left+1 {
		p = p[:l.left+1]
	}
	n, err := l.r.Read(p)
	l.left -= int64(n)
	if l.left < 0 {
		l.exceeded = true
		return 0, errTooLong
	}
	if err != nil && !errors.Is(err, io.EOF) {
		l.broken = err
	}
	return n, err
}

// drain reads on for a while what nobody wants any more.
func drain(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(drainTimeout)) // not supported by recorders in tests
	_, _ = io.CopyN(io.Discard, r.Body, maxDrain)        // whatever ends it, the answer is the error
	_ = rc.SetReadDeadline(time.Time{})
}
