package identity_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"moult/mesh/identity"
	"moult/mesh/nodeport"
)

// door is a server that takes hosts in, on a real node port.
type door struct {
	addr string
	ca   *identity.CA

	mu      sync.Mutex
	asked   int
	tokens  map[string]*tokenState                                 // by the secret's hash
	seen    identity.JoinRequest                                   // the last one
	spoil   func(*identity.Enrolment)                              // lies with it; may be nil
	instead func(identity.JoinRequest) (identity.Enrolment, error) // answers by it; may be nil
}

type tokenState struct {
	expires time.Time
	usedBy  string
	key     []byte
}

func refusal(code, message string) error {
	return &identity.CodedError{Code: code, Message: message, Status: http.StatusForbidden}
}

// enroll has the rules of the replicated state.
func (d *door) enroll(_ context.Context, req identity.JoinRequest, secretHash string) (identity.Enrolment, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked++
	d.seen = req
	if d.instead != nil {
		return d.instead(req)
	}
	k, ok := d.tokens[secretHash]
	switch {
	case !ok:
		return identity.Enrolment{}, refusal("token_invalid", "the join token is not known here; make a new one with: moult token create")
	case k.usedBy != "" && (k.usedBy != req.HostID || !bytes.Equal(k.key, req.PublicKey)):
		return identity.Enrolment{}, refusal("token_used", "the join token was used already; make a new one with: moult token create")
	case k.usedBy == "" && time.Now().After(k.expires):
		return identity.Enrolment{}, refusal("token_expired", "the join token expired; make a new one with: moult token create")
	}
	k.usedBy, k.key = req.HostID, req.PublicKey
	id := identity.Identity{Cluster: clusterID, HostID: req.HostID, Name: req.Name, Role: identity.RoleAgent}
	cert, err := d.ca.Issue(id, req.PublicKey, time.Now(), time.Hour)
	if err != nil {
		return identity.Enrolment{}, err
	}
	e := identity.Enrolment{
		Identity: id, CertPEM: cert, CAPEM: d.ca.CertPEM(), Segment: "default",
		GossipKeys: [][]byte{bytes.Repeat([]byte{7}, 32)}, ReleaseKeys: []string{"RWQ"}, Servers: []string{d.addr},
	}
	if d.spoil != nil {
		d.spoil(&e)
	}
	return e, nil
}

func (d *door) token(t testing.TB, ttl time.Duration) identity.Token {
	t.Helper()
	text, hash := mustToken(t, d.ca)
	d.mu.Lock()
	d.tokens[hash] = &tokenState{expires: time.Now().Add(ttl)}
	d.mu.Unlock()
	tok, err := identity.ParseToken(text)
	must(t, err)
	return tok
}

func (d *door) timesAsked() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked
}

// open serves joining with what the credentials show.
func open(t testing.TB, ca *identity.CA, shown identity.Credentials, logger *slog.Logger) *door {
	t.Helper()
	d := &door{ca: ca, tokens: map[string]*tokenState{}}
	p, err := nodeport.Listen("127.0.0.1:0", func() (identity.Credentials, bool) { return shown, true }, nil, logger)
	must(t, err)
	t.Cleanup(func() { must(t, p.Close(context.Background())) })
	p.ServeHTTP(nodeport.Handlers{Peer: http.NotFoundHandler(), Join: identity.JoinHandler(d.enroll)})
	d.addr = p.Addr().String()
	return d
}

func openDoor(t testing.TB) *door {
	ca := mustCA(t, clusterID, time.Now())
	return open(t, ca, credentials(t, ca, server("s1")), slog.New(slog.DiscardHandler))
}

func newcomer() identity.JoinRequest {
	return identity.JoinRequest{Name: "web-1", OS: "linux", Arch: "amd64", Version: "1.0.0", GossipAddr: "10.0.0.5:7946", PeerAddr: ":7947"}
}

func newDir(t testing.TB) string { return filepath.Join(t.TempDir(), "identity") }

func TestJoin(t *testing.T) {
	d := openDoor(t)
	dir := newDir(t)
	s := mustStore(t, dir)
	tok := d.token(t, time.Minute)
	creds, err := identity.Join(t.Context(), d.addr, tok, s, newcomer())
	must(t, err)
	host, key, err := s.HostKey()
	must(t, err)
	if creds.HostID != host || creds.Role != identity.RoleAgent || !creds.Key.Equal(key) || creds.Segment != "default" || len(creds.GossipKeys) != 1 {
		t.Errorf("joined as %#v", creds)
	}
	loaded, err := mustStore(t, dir).Load()
	must(t, err)
	if !reflect.DeepEqual(loaded, creds) {
		t.Errorf("loaded %#v", loaded)
	}
	d.mu.Lock()
	seen := d.seen
	d.mu.Unlock()
	// The handler passes on neither secret nor signature, and fills in the address.
	if seen.Secret != "" || seen.Signature != nil || seen.HostID != host || seen.GossipAddr != "10.0.0.5:7946" || seen.PeerAddr != "127.0.0.1:7947" {
		t.Errorf("enroll saw %+v", seen)
	}
	// The answer was lost, so the host asks again: the same host.
	must(t, os.Remove(filepath.Join(dir, "cluster.json")))
	again, err := identity.Join(t.Context(), d.addr, tok, mustStore(t, dir), newcomer())
	must(t, err)
	if again.Identity != creds.Identity || !again.Key.Equal(creds.Key) {
		t.Errorf("joined again as %v", again)
	}
}

// Every refusal says what to do next, reaches the person as the server said it,
// and leaves the directory free to join with another token.
func TestRefusedTokens(t *testing.T) {
	d := openDoor(t)
	used := d.token(t, time.Minute)
	_, err := identity.Join(t.Context(), d.addr, used, mustStore(t, newDir(t)), newcomer())
	must(t, err)
	unknownText, _ := mustToken(t, d.ca)
	unknown, err := identity.ParseToken(unknownText)
	must(t, err)
	for code, tok := range map[string]identity.Token{
		"token_used": used, "token_expired": d.token(t, -time.Second), "token_invalid": unknown,
	} {
		s := mustStore(t, newDir(t))
		_, err := identity.Join(t.Context(), d.addr, tok, s, newcomer())
		var coded *identity.CodedError
		if !errors.As(err, &coded) || coded.Code != code || coded.Status != http.StatusForbidden || !strings.Contains(err.Error(), "moult token create") {
			t.Errorf("%s: %v", code, err)
		}
		if s.Enrolled() {
			t.Errorf("%s: counts as joined", code)
		}
		if _, err := identity.Join(t.Context(), d.addr, d.token(t, time.Minute), s, newcomer()); err != nil {
			t.Errorf("after %s with a good token: %v", code, err)
		}
	}
	if _, err := identity.Join(t.Context(), d.addr, identity.Token{}, mustStore(t, newDir(t)), newcomer()); err == nil || !strings.Contains(err.Error(), "moult token create") {
		t.Errorf("no token: %v", err)
	}
}

// Who is not a server of the token's cluster never sees the secret.
func TestJoinTrustsTheTokensCluster(t *testing.T) {
	ca, foreign := mustCA(t, clusterID, time.Now()), mustCA(t, clusterID, time.Now())
	quiet := slog.New(slog.DiscardHandler)
	own := credentials(t, foreign, server("s1"))
	between := own // shows the cluster's CA beside a certificate of its own making
	between.CAPEM = ca.CertPEM()
	expired := credentials(t, ca, server("s1"))
	expired.CertPEM = mustIssue(t, ca, expired.Identity, expired.Key, time.Now().Add(-3*time.Hour), time.Hour)
	for name, tc := range map[string]struct {
		shown identity.Credentials
		says  string
	}{
		"another CA":            {own, "this is another cluster"},
		"somebody in between":   {between, "verify certificate"},
		"an agent":              {credentials(t, ca, agent("a1")), "is not a server, and passes on to none now"},
		"a server that expired": {expired, "clocks"},
	} {
		d := open(t, ca, tc.shown, quiet)
		s := mustStore(t, newDir(t))
		_, err := identity.Join(t.Context(), d.addr, d.token(t, time.Minute), s, newcomer())
		if !errors.Is(err, identity.ErrUntrustedServer) || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), "secret was not sent") {
			t.Errorf("%s: %v", name, err)
		}
		if d.timesAsked() != 0 || s.Enrolled() {
			t.Errorf("%s: it was asked all the same", name)
		}
	}
}

func TestJoinAtTheWrongAddress(t *testing.T) {
	d := openDoor(t)
	tok := d.token(t, time.Minute)
	ui := httptest.NewServer(http.NotFoundHandler())
	defer ui.Close()
	website := httptest.NewUnstartedServer(http.NotFoundHandler())
	website.Config.ErrorLog = log.New(io.Discard, "", 0) // it has something to say about our protocol
	website.StartTLS()
	defer website.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	closed.Close()
	for name, tc := range map[string]struct{ addr, says string }{
		"no port":        {"127.0.0.1", "HOST:PORT"},
		"a URL":          {"https://127.0.0.1:7947", "HOST:PORT"},
		"empty":          {"", "HOST:PORT"},
		"a path":         {d.addr + "/join", "HOST:PORT"},
		"the UI's port":  {ui.Listener.Addr().String(), "node port (7947 by default)"},
		"a website":      {website.Listener.Addr().String(), "node port (7947 by default)"},
		"nobody listens": {closed.Addr().String(), "node port (7947 by default)"},
	} {
		_, err := identity.Join(t.Context(), tc.addr, tok, mustStore(t, newDir(t)), newcomer())
		if err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := identity.Join(ctx, d.addr, tok, mustStore(t, newDir(t)), newcomer()); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
}

// A store of another cluster is found out before the token is spent.
func TestJoinWithADirectoryOfAnotherCluster(t *testing.T) {
	dir, s, _ := joined(t)
	before := read(t, dir)
	d := openDoor(t)
	_, err := identity.Join(t.Context(), d.addr, d.token(t, time.Minute), s, newcomer())
	if !errors.Is(err, identity.ErrOtherCluster) || !strings.Contains(err.Error(), filepath.Dir(dir)) || !strings.Contains(err.Error(), "--data") {
		t.Errorf("error %v", err)
	}
	if d.timesAsked() != 0 || !reflect.DeepEqual(read(t, dir), before) {
		t.Error("it asked, or the directory changed")
	}
	// A damaged one: whose it is cannot be told, so nobody is asked.
	must(t, os.WriteFile(filepath.Join(dir, "cluster.json"), []byte("{"), 0o600))
	if _, err := identity.Join(t.Context(), d.addr, d.token(t, time.Minute), s, newcomer()); err == nil || d.timesAsked() != 0 || !strings.Contains(err.Error(), "move it away") {
		t.Errorf("damaged: %v", err)
	}
}

// What a broken or lying server answers makes nobody a member.
func TestBadAnswers(t *testing.T) {
	d := openDoor(t)
	foreign := mustCA(t, clusterID, time.Now())
	answers := map[string]struct {
		spoil   func(*identity.Enrolment)
		instead func(identity.JoinRequest) (identity.Enrolment, error)
		says    string
	}{
		"another CA": {spoil: func(e *identity.Enrolment) { e.CAPEM = foreign.CertPEM() }, says: "another CA than the join token's"},
		"no CA":      {spoil: func(e *identity.Enrolment) { e.CAPEM = nil }, says: "another CA than the join token's"},
		"another host's certificate": {spoil: func(e *identity.Enrolment) {
			key := mustKey(t)
			e.Identity = agent(hostID)
			e.CertPEM = mustIssue(t, d.ca, e.Identity, key, time.Now(), time.Hour)
		}, says: "the certificate is of host"},
		"a role that the certificate lacks": {spoil: func(e *identity.Enrolment) { e.Role = identity.RoleServer }, says: "the certificate says"},
		"no gossip key":                     {spoil: func(e *identity.Enrolment) { e.GossipKeys = nil }, says: "gossip_keys"},
		"too long":                          {spoil: func(e *identity.Enrolment) { e.ReleaseKeys = []string{strings.Repeat("x", 1<<19)} }, says: "longer than"},
		"an internal error": {instead: func(identity.JoinRequest) (identity.Enrolment, error) {
			return identity.Enrolment{}, errors.New("open /secret/path: no space left")
		}, says: "try again, or join through another server"},
		"a refusal of a strange status": {instead: func(identity.JoinRequest) (identity.Enrolment, error) {
			return identity.Enrolment{}, &identity.CodedError{Code: "odd", Message: "do this next", Status: 200}
		}, says: "do this next"},
	}
	for name, tc := range answers {
		d.mu.Lock()
		d.spoil, d.instead = tc.spoil, tc.instead
		d.mu.Unlock()
		s := mustStore(t, newDir(t))
		_, err := identity.Join(t.Context(), d.addr, d.token(t, time.Minute), s, newcomer())
		if err == nil || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "/secret/path") {
			t.Errorf("%s: %v", name, err)
		}
		if s.Enrolled() {
			t.Errorf("%s: counts as joined", name)
		}
	}
}

// The secret of a join, good or refused, is in no log line of the server, and no
// error shows it.
func TestJoinLogsNoSecret(t *testing.T) {
	var mu sync.Mutex
	var b bytes.Buffer
	logger := slog.New(slog.NewTextHandler(lockedWriter{&mu, &b}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	ca := mustCA(t, clusterID, time.Now())
	d := open(t, ca, credentials(t, ca, server("s1")), logger)
	text, hash := mustToken(t, ca)
	tok, err := identity.ParseToken(text)
	must(t, err)
	_, refused := identity.Join(t.Context(), d.addr, tok, mustStore(t, newDir(t)), newcomer())
	if refused == nil {
		t.Fatal("an unknown token was taken")
	}
	d.mu.Lock()
	d.tokens[hash] = &tokenState{expires: time.Now().Add(time.Minute)}
	d.mu.Unlock()
	_, err = identity.Join(t.Context(), d.addr, tok, mustStore(t, newDir(t)), newcomer())
	must(t, err)
	mu.Lock()
	defer mu.Unlock()
	secret := text[strings.LastIndex(text, ".")+1:]
	if strings.Contains(b.String(), secret) || strings.Contains(refused.Error(), secret) {
		t.Errorf("the secret is in %q or %q", b.String(), refused)
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	b  *bytes.Buffer
}

func (w lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}
