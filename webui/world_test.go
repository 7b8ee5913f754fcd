package webui

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"moult/consensus/fleet"
	"moult/mesh/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(recordedM{m}) }

// world is a server as the UI sees it: a real replicated state with a log in
// memory, and hosts, servers and a store that tests arrange.
type world struct {
	tb      testing.TB
	state   *fleet.State
	log     *memoryLog
	roster  *roster
	servers *servers
	trust   *trustWorld
	tester  *tester
	backups *backups
	store   *store
	clock   *clockwork
	ready   error
	catchUp func(context.Context) error
	config  Config
	handler http.Handler
	agents  map[string]string // id by name
	enrolOS string            // of agents that are let in
}

const ownVersion = "1.0.0"

// The API tokens that StartWorld makes.
const (
	adminToken    = "moult_admin"
	operatorToken = "moult_operator"
	viewerToken   = "moult_viewer"
	adminPassword = "correct horse battery"
)

func StartWorld(tb testing.TB) *world {
	tb.Helper()
	return StartWorldWith(tb)
}

// StartWorldWith pins release keys.
func StartWorldWith(tb testing.TB, releaseKeys ...string) *world {
	tb.Helper()
	state := fleet.New()
	clock := &clockwork{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	w := &world{
		tb: tb, state: state, clock: clock, enrolOS: "linux", agents: map[string]string{},
		log:     &memoryLog{state: state, clock: clock},
		roster:  &roster{seen: map[string]Observation{}, changed: make(chan struct{})},
		servers: &servers{}, trust: &trustWorld{clock: clock, view: state.View, online: -1}, tester: &tester{status: 200}, backups: &backups{},
	}
	w.catchUp = func(context.Context) error { return nil }
	w.store = newStore(tb, w)
	w.config = Config{
		Version: ownVersion, Commit: "abc123",
		View: state.View, Subscribe: state.Subscribe, Proposer: w.log,
		Observed: w.roster.observed, Changed: w.roster.Changed,
		Servers: w.servers, Publisher: w.store, Trust: w.trust, CAs: &casWorld{view: state.View}, Binaries: w.store, Webhooks: w.tester, Backups: w.backups,
		Problems: func() []Problem {
			if w.ready != nil {
				return []Problem{{Code: "no_leader", Message: w.ready.Error(), Next: "wait", Failing: true}}
			}
			return nil
		},
		CatchUp: func(ctx context.Context) error { return w.catchUp(ctx) },
		Logger:  slog.New(slog.NewTextHandler(io.Discard, nil)), Now: clock.Now,
	}
	var err error
	if w.handler, err = New(w.config); err != nil {
		tb.Fatal(err)
	}
	ca, err := identity.NewCA("cluster-1", clock.Now())
	if err != nil {
		tb.Fatal(err)
	}
	hash, err := adminHash()
	if err != nil {
		tb.Fatal(err)
	}
	w.MustPropose("system", fleet.ClusterInitialized{
		Cluster: fleet.Cluster{ID: "cluster-1", CACert: ca.CertPEM(), CAKey: ca.KeyPEM(), ReleaseKeys: releaseKeys},
		Server:  fleet.Host{ID: "s1", Name: "server-1", Segment: "default", OS: "linux", Arch: "amd64", PeerAddr: "10.0.0.1:7947"},
		Admin:   fleet.User{ID: "u1", Name: "admin", PasswordHash: hash},
		Token:   fleet.APIToken{ID: "t1", Name: "bootstrap", Hash: hashSecret(adminToken)},
	})
	w.MustPropose("system", fleet.APITokenCreated{Token: fleet.APIToken{ID: "t2", Name: "op", Role: fleet.Operator, Hash: hashSecret(operatorToken)}})
	w.MustPropose("system", fleet.APITokenCreated{Token: fleet.APIToken{ID: "t3", Name: "view", Role: fleet.Viewer, Hash: hashSecret(viewerToken)}})
	w.servers.list = []ServerStatus{{ID: "s1", Name: "server-1", Address: "10.0.0.1:7947", Version: ownVersion, Leader: true, Voter: true, Healthy: true, CaughtUp: true}}
	w.roster.set("s1", Observation{Online: true, Version: ownVersion})
	return w
}

// adminHash is computed once: hashing is slow by design.
var adminHash = sync.OnceValues(func() (string, error) { return HashPassword(adminPassword) })

// MustEnrol lets an agent in; version "" leaves it unseen.
func (w *world) MustEnrol(name, version string, online bool) string {
	w.tb.Helper()
	return w.mustEnrol(name, fleet.RoleAgent, "default", version, online)
}

// mustEnrolOn lets an agent on another system in.
func (w *world) mustEnrolOn(name, os, version string) {
	w.tb.Helper()
	w.enrolOS = os
	w.MustEnrol(name, version, true)
	w.enrolOS = "linux"
}

func (w *world) mustEnrol(name string, role fleet.HostRole, segment, version string, online bool) string {
	w.tb.Helper()
	id, hash := "id-"+name, hashSecret("join "+name)
	key := sha256.Sum256([]byte(id + fmt.Sprint(w.log.index))) // a host that comes back has another one
	w.MustPropose("system", fleet.JoinTokenCreated{Token: fleet.JoinToken{ID: "j-" + name, Hash: hash, Role: role, Segment: segment, ExpiresAt: w.clock.Now().Add(time.Hour)}})
	w.MustPropose("host:"+name, fleet.HostEnrolled{TokenHash: hash, Host: fleet.Host{
		ID: id, Name: name, OS: w.enrolOS, Arch: "amd64", PublicKey: key[:], PeerAddr: "10.0.0.9:7947",
	}})
	if version != "" {
		w.roster.set(id, Observation{Online: online, Version: version, Phase: "idle", LastSeen: w.clock.Now()})
	}
	w.agents[name] = id
	return id
}

// MustServe serves the world's pages at an address of their own, known to the
// state as that of a server.
func (w *world) MustServe(name string) *httptest.Server {
	w.tb.Helper()
	srv := httptest.NewServer(w.handler)
	w.tb.Cleanup(srv.Close)
	id := "id-" + name
	if _, enrolled := w.state.View().Host(id); !enrolled {
		w.mustEnrol(name, fleet.RoleServer, "default", ownVersion, true)
	}
	w.MustPropose("host:"+name, fleet.HostAddressesChanged{HostID: id, PeerAddr: "10.0.0.9:7947", HTTPAddr: srv.Listener.Addr().String()})
	return srv
}

// MustServeWithout serves the world's pages but one path, which is not found.
func (w *world) MustServeWithout(path string) *httptest.Server {
	w.tb.Helper()
	return w.MustServeBut(path, http.NotFound)
}

// MustServeBut serves the world's pages, one path in another way.
func (w *world) MustServeBut(path string, serve http.HandlerFunc) *httptest.Server {
	w.tb.Helper()
	mux := http.NewServeMux()
	mux.Handle("/", w.handler)
	mux.Handle(path, serve)
	srv := httptest.NewServer(mux)
	w.tb.Cleanup(srv.Close)
	return srv
}

func (w *world) MustRelease(version string, number uint64) {
	w.tb.Helper()
	w.MustPropose("user:admin", fleet.ReleasePublished{Release: fleet.Release{
		Version: version, Number: number, Manifest: []byte(version), Signature: []byte("sig"),
		Artifacts: []fleet.Artifact{{OS: "linux", Arch: "amd64", Size: 3, SHA256: strings.Repeat("ab", 32)}},
	}})
}

func (w *world) MustPropose(actor string, c fleet.Change) {
	w.tb.Helper()
	if _, err := w.log.Propose(w.tb.Context(), actor, c); err != nil {
		w.tb.Fatalf("propose %s: %v", c.Kind(), err)
	}
}

// answer is what the server said.
type answer struct {
	*httptest.ResponseRecorder
	tb testing.TB
}

// Call sends a request with a bearer token ("" for none).
func (w *world) Call(token, method, path, body string) answer {
	w.tb.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return w.Do(r)
}

// Fragment asks for a page's live part, as htmx does.
func (w *world) Fragment(token, path string) answer {
	w.tb.Helper()
	r := httptest.NewRequest("GET", path, nil)
	r.Header.Set("HX-Request", "true")
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return w.Do(r)
}

func (w *world) Do(r *http.Request) answer {
	rec := httptest.NewRecorder()
	w.handler.ServeHTTP(rec, r)
	recorded.note(w.handler, r, rec)
	return answer{rec, w.tb}
}

// MustSession signs a user in without a password.
func (w *world) MustSession(tb testing.TB, userID string) *http.Cookie {
	tb.Helper()
	secret := rand.Text()
	w.MustPropose("user:x", fleet.SessionCreated{Session: fleet.Session{Hash: hashSecret(secret), UserID: userID, ExpiresAt: w.clock.Now().Add(time.Hour)}})
	return &http.Cookie{Name: sessionCookie, Value: secret}
}

// Admin is Call as admin.
func (w *world) Admin(method, path, body string) answer {
	w.tb.Helper()
	return w.Call(adminToken, method, path, body)
}

// OK decodes a 200 answer.
func (a answer) OK() map[string]any {
	a.tb.Helper()
	if a.Code != http.StatusOK {
		a.tb.Fatalf("status %d: %s", a.Code, a.Body)
	}
	var out map[string]any
	if err := json.Unmarshal(a.Body.Bytes(), &out); err != nil {
		a.tb.Fatalf("%v: %s", err, a.Body)
	}
	return out
}

// Refused checks a refusal and returns its message.
func (a answer) Refused(status int, code string) string {
	a.tb.Helper()
	var out errorJSON
	if err := json.Unmarshal(a.Body.Bytes(), &out); err != nil {
		a.tb.Fatalf("status %d, not a JSON error: %s", a.Code, a.Body)
	}
	if a.Code != status || out.Error.Code != code {
		a.tb.Fatalf("got %d %s (%s), want %d %s", a.Code, out.Error.Code, out.Error.Message, status, code)
	}
	if out.Error.Message == "" {
		a.tb.Fatal("the error has no message")
	}
	return out.Error.Message
}

// Refused403 checks a page's refusal.
func (a answer) Refused403() {
	a.tb.Helper()
	if a.Code != http.StatusForbidden {
		a.tb.Errorf("%d: %s", a.Code, a.Body)
	}
	a.Shows("this takes the role admin")
}

// column returns one field of each object of a list.
func column(list any, field string) []string {
	var out []string
	for _, e := range list.([]any) {
		out = append(out, fmt.Sprint(e.(map[string]any)[field]))
	}
	return out
}

// memoryLog applies what is proposed to the state at once.
type memoryLog struct {
	mu    sync.Mutex
	state *fleet.State
	clock *clockwork
	index uint64
	fail  error // returned instead of applying
	// refuse stands for a refusal by the leader, before the entry is appended.
	refuse func(fleet.Change) *fleet.Error

	before  func()        // called before a change is applied, if it is set
	entries []fleet.Entry // that were applied or refused
}

func (l *memoryLog) Propose(ctx context.Context, actor string, c fleet.Change) (fleet.Result, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		return fleet.Result{}, l.fail
	}
	if l.before != nil {
		l.before()
	}
	if ctx.Err() != nil {
		return fleet.Result{}, ctx.Err()
	}
	if l.refuse != nil {
		if refused := l.refuse(c); refused != nil {
			return fleet.Result{}, refused
		}
	}
	l.index++
	e, err := fleet.NewEntry(fmt.Sprint("p", l.index), actor, l.clock.Now(), c)
	if err != nil {
		return fleet.Result{}, err
	}
	e.From = fleet.Origin(ctx)
	l.entries = append(l.entries, e)
	result := l.state.Apply(l.index, e)
	if result.Err != nil {
		return result, result.Err
	}
	return result, nil
}

// tester plays the receiver of a webhook's test.
type tester struct {
	status int
	err    error
	wait   chan struct{} // nil: at once
	calls  atomic.Int32
}

func (t *tester) Test(ctx context.Context, _ fleet.Webhook) (int, error) {
	t.calls.Add(1)
	if t.wait != nil {
		select {
		case <-t.wait:
		case <-ctx.Done():
		}
	}
	return t.status, t.err
}

type clockwork struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clockwork) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clockwork) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

type roster struct {
	mu      sync.Mutex
	seen    map[string]Observation
	changed chan struct{}
}

func (r *roster) set(id string, o Observation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen[id] = o
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *roster) observed() map[string]Observation {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.seen)
}

func (r *roster) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

type servers struct {
	list        []ServerStatus
	removed     []string
	demoted     []string
	transferred atomic.Int64
	fail        error
}

func (s *servers) Servers(context.Context) []ServerStatus { return s.list }

func (s *servers) States(context.Context) (states []ServerState) {
	for _, srv := range s.list {
		states = append(states, ServerState{ID: srv.ID, Name: srv.Name, Index: 7, SHA256: strings.Repeat("a", 64)})
	}
	return states
}

func (s *servers) RemoveServer(_ context.Context, id string) error {
	if s.fail == nil {
		s.removed = append(s.removed, id)
	}
	return s.fail
}

func (s *servers) DemoteServer(_ context.Context, id string) error {
	if s.fail == nil {
		s.demoted = append(s.demoted, id)
	}
	return s.fail
}

func (s *servers) TransferLeadership(context.Context) error {
	s.transferred.Add(1)
	return s.fail
}

// store publishes releases for real: signed manifests, digests found by
// streaming, artifacts in files.
type store struct {
	w      *world
	dir    string
	public ed25519.PublicKey
	secret ed25519.PrivateKey

	mu       sync.Mutex
	received int64 // bytes of artifacts read so far
	aborted  int
}

type testManifest struct {
	Version   string           `json:"version"`
	Number    uint64           `json:"number"`
	Artifacts []fleet.Artifact `json:"artifacts"`
}

func newStore(tb testing.TB, w *world) *store {
	public, secret, err := ed25519.GenerateKey(nil)
	if err != nil {
		tb.Fatal(err)
	}
	return &store{w: w, dir: tb.TempDir(), public: public, secret: secret}
}

func (s *store) Begin(_ context.Context, manifest, signature []byte) (Upload, error) {
	if !ed25519.Verify(s.public, manifest, signature) {
		return nil, refuse(CodeBadSignature, "the manifest's signature is wrong")
	}
	var m testManifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return nil, badRequest("manifest: %v", err)
	}
	if _, exists := s.w.state.View().Release(m.Version); exists {
		return nil, refuse(fleet.CodeReleaseExists, "exists")
	}
	return &storeUpload{s: s, m: m, manifest: manifest, signature: signature, have: map[string]bool{}}, nil
}

type storeUpload struct {
	s                   *store
	m                   testManifest
	manifest, signature []byte
	have                map[string]bool
}

func (u *storeUpload) Artifact(_ context.Context, name string, r io.Reader) error {
	f, err := os.CreateTemp(u.s.dir, "unverified-")
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(f, sum, u.s), r); err != nil {
		return err
	}
	digest := hex.EncodeToString(sum.Sum(nil))
	for _, a := range u.m.Artifacts {
		if a.SHA256 == digest {
			u.have[digest] = true
			return os.Rename(f.Name(), u.s.dir+"/"+digest)
		}
	}
	return refuse(CodeDigestMismatch, name+" is not in the manifest")
}

// Write counts.
func (s *store) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.received += int64(len(p))
	return len(p), nil
}

func (s *store) seen() (received int64, aborted int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.received, s.aborted
}

func (u *storeUpload) Commit(ctx context.Context, actor string) error {
	for _, a := range u.m.Artifacts {
		if !u.have[a.SHA256] {
			return badRequest("artifact: %s/%s is missing", a.OS, a.Arch)
		}
	}
	_, err := u.s.w.log.Propose(ctx, actor, fleet.ReleasePublished{Release: fleet.Release{
		Version: u.m.Version, Number: u.m.Number, Artifacts: u.m.Artifacts, Manifest: u.manifest, Signature: u.signature,
	}})
	return err
}

func (u *storeUpload) Abort() {
	u.s.mu.Lock()
	defer u.s.mu.Unlock()
	u.s.aborted++
}

var ownBinary = []byte("\x7fELF this is the running program")

// Open serves the running program for linux/amd64.
func (s *store) Open(goos, arch string) (Binary, error) {
	switch goos + "/" + arch {
	case "linux/amd64":
		sum := sha256.Sum256(ownBinary)
		return Binary{Content: readSeekCloser{bytes.NewReader(ownBinary)}, Size: int64(len(ownBinary)), SHA256: hex.EncodeToString(sum[:]), Version: ownVersion}, nil
	case "linux/broken":
		return Binary{}, errors.New("disk on fire")
	}
	return Binary{}, ErrNoSuchBuild
}

type readSeekCloser struct{ io.ReadSeeker }

func (readSeekCloser) Close() error { return nil }
