package webui

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"moult/consensus/fleet"
)

// makeRelease returns a signed release of one artifact.
func (s *store) makeRelease(t *testing.T, version string, number uint64) (manifest, signature, artifact []byte) {
	t.Helper()
	artifact = bytes.Repeat([]byte("moult "+version+"\n"), 100_000)
	sum := sha256.Sum256(artifact)
	manifest, err := json.Marshal(testManifest{Version: version, Number: number, Artifacts: []fleet.Artifact{
		{OS: "linux", Arch: "amd64", Size: int64(len(artifact)), SHA256: hex.EncodeToString(sum[:])},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return manifest, ed25519.Sign(s.secret, manifest), artifact
}

type part struct {
	name    string
	content []byte
}

func setParts(r *http.Request, parts ...part) {
	var b bytes.Buffer
	m := multipart.NewWriter(&b)
	for _, p := range parts {
		f, _ := m.CreateFormFile(p.name, p.name+".bin") // a bytes.Buffer does not fail
		f.Write(p.content)
	}
	m.Close()
	r.Body, r.ContentLength = io.NopCloser(&b), int64(b.Len())
	r.Header.Set("Content-Type", m.FormDataContentType())
}

func (w *world) Upload(parts ...part) answer {
	r := httptest.NewRequest("POST", "/api/releases", nil)
	r.Header.Set("Authorization", "Bearer "+adminToken)
	setParts(r, parts...)
	return w.Do(r)
}

func TestReleaseIsPublishedAndWithdrawn(t *testing.T) {
	w := StartWorld(t)
	manifest, signature, artifact := w.store.makeRelease(t, "2.0.0", 2)
	rel := w.Upload(part{"manifest", manifest}, part{"signature", signature}, part{"artifact", artifact}).OK()
	if rel["version"] != "2.0.0" || rel["available"] != true || rel["published_by"] != "token:bootstrap" {
		t.Errorf("%v", rel)
	}
	digest := column(rel["artifacts"], "sha256")[0]
	if stored, err := os.ReadFile(w.store.dir + "/" + digest); err != nil || !bytes.Equal(stored, artifact) {
		t.Errorf("stored %d bytes, %v", len(stored), err)
	}
	w.Upload(part{"manifest", manifest}, part{"signature", signature}, part{"artifact", artifact}).Refused(409, "release_exists")
	w.Admin("DELETE", "/api/releases/2.0.0", "").OK()
	if got := column(w.Admin("GET", "/api/releases", "").OK()["releases"], "available"); got[0] != "false" {
		t.Errorf("withdrawn: %v", got)
	}
	w.Admin("DELETE", "/api/releases/2.0.0", "").Refused(404, "release_not_found")
}

func TestUploadsAreRefusedByNameAndLeaveNothing(t *testing.T) {
	w := StartWorld(t)
	manifest, signature, artifact := w.store.makeRelease(t, "2.0.0", 2)
	m, s, a := part{"manifest", manifest}, part{"signature", signature}, part{"artifact", artifact}
	for name, c := range map[string]struct {
		parts  []part
		status int
		code   string
		names  string
		began  bool
	}{
		"forged signature": {[]part{m, {"signature", make([]byte, 64)}, a}, 400, "bad_signature", "signature", false},
		"changed manifest": {[]part{{"manifest", append([]byte(" "), manifest...)}, s, a}, 400, "bad_signature", "signature", false},
		"other bytes":      {[]part{m, s, {"artifact", []byte("evil")}}, 400, "digest_mismatch", "artifact", true},
		"no artifact":      {[]part{m, s}, 400, "bad_request", "artifact", true},
		"no signature":     {[]part{m, a}, 400, "bad_request", "signature", false},
		"wrong order":      {[]part{s, m, a}, 400, "bad_request", "manifest", false},
		"unknown part":     {[]part{m, s, {"extra", nil}}, 400, "bad_request", "extra", true},
		"empty manifest":   {[]part{{"manifest", nil}, s, a}, 400, "bad_request", "manifest", false},
		"large manifest":   {[]part{{"manifest", make([]byte, maxManifest+1)}, s, a}, 413, "too_large", "manifest", false},
		"nothing":          {nil, 400, "bad_request", "manifest", false},
		"too many of them": {append([]part{m, s}, repeat(a, maxArtifacts+1)...), 400, "bad_request", "artifact", true},
	} {
		_, before := w.store.seen()
		if msg := w.Upload(c.parts...).Refused(c.status, c.code); !strings.Contains(msg, c.names) {
			t.Errorf("%s: %q does not name %s", name, msg, c.names)
		}
		if _, after := w.store.seen(); (after > before) != c.began {
			t.Errorf("%s: aborted %d times", name, after-before)
		}
	}
	w.Admin("POST", "/api/releases", `{}`).Refused(400, "bad_request")
	if got := w.state.View().Releases(); len(got) != 0 {
		t.Errorf("published %v", got)
	}
}

func repeat(p part, n int) []part {
	var out []part
	for range n {
		out = append(out, p)
	}
	return out
}

// slowUpload sends a release over a real connection; the test decides when the
// second half of the artifact is sent.
func slowUpload(t *testing.T, w *world) (send *io.PipeWriter, body *multipart.Writer, artifact io.Writer, content []byte, result <-chan answer) {
	t.Helper()
	srv := httptest.NewServer(w.handler)
	t.Cleanup(srv.Close)
	manifest, signature, content := w.store.makeRelease(t, "2.0.0", 2)
	read, send := io.Pipe()
	body = multipart.NewWriter(send)
	answers := make(chan answer, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, "POST", srv.URL+"/api/releases", read)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", body.FormDataContentType())
	r.Header.Set("Authorization", "Bearer "+adminToken)
	go func() {
		defer close(answers)
		resp, err := srv.Client().Do(r)
		if err != nil {
			return
		}
		defer resp.Body.Close()
		rec := httptest.NewRecorder()
		rec.Code = resp.StatusCode
		io.Copy(rec.Body, resp.Body)
		answers <- answer{rec, t}
	}()
	for _, p := range []part{{"manifest", manifest}, {"signature", signature}} {
		f, err := body.CreateFormField(p.name)
		if err != nil {
			t.Fatal(err)
		}
		f.Write(p.content)
	}
	artifact, err = body.CreateFormFile("artifact", "moult")
	if err != nil {
		t.Fatal(err)
	}
	return send, body, artifact, content, answers
}

func TestArtifactsArePassedOnAsTheyArrive(t *testing.T) {
	w := StartWorld(t)
	send, body, artifact, content, result := slowUpload(t, w)
	half := len(content) / 2
	if _, err := artifact.Write(content[:half]); err != nil {
		t.Fatal(err)
	}
	// The client has not sent the rest, and the publisher has most of this already.
	Await(t, "the publisher to get bytes", func() bool {
		received, _ := w.store.seen()
		return received >= int64(half)-128<<10
	})
	if _, err := artifact.Write(content[half:]); err != nil {
		t.Fatal(err)
	}
	body.Close()
	send.Close()
	if rel := (<-result).OK(); rel["version"] != "2.0.0" {
		t.Errorf("%v", rel)
	}
}

func TestUploadThatBreaksOffIsAborted(t *testing.T) {
	w := StartWorld(t)
	send, _, artifact, content, _ := slowUpload(t, w)
	if _, err := artifact.Write(content[:len(content)/2]); err != nil {
		t.Fatal(err)
	}
	send.CloseWithError(io.ErrUnexpectedEOF)
	Await(t, "the upload to be aborted", func() bool {
		_, aborted := w.store.seen()
		return aborted == 1
	})
	if got := w.state.View().Releases(); len(got) != 0 {
		t.Errorf("published %v", got)
	}
}

// Await waits for a condition for at most 10 s.
func Await(tb testing.TB, what string, condition func() bool) {
	tb.Helper()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline.C:
			tb.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestLimitedReaderStopsAtItsLimit(t *testing.T) {
	for size, exceeded := range map[int]bool{0: false, 9: false, 10: false, 11: true, 5000: true} {
		l := &limitedReader{r: strings.NewReader(strings.Repeat("x", size)), left: 10}
		n, err := io.Copy(io.Discard, l)
		if l.exceeded != exceeded || (err != nil) != exceeded || n > 10 {
			t.Errorf("%d bytes: read %d, exceeded %v, %v", size, n, l.exceeded, err)
		}
	}
}
