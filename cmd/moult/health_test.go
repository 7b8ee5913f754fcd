package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"moult/consensus"
	"moult/consensus/fleet"
	"moult/mesh/identity"
	"moult/updater/artifact"
	"moult/webui"
)

// TestAllTellTheSameOfAServersHealth holds /readyz, `moult status`, the metrics and
// the page of servers to each other in each situation, by the real judge, handlers
// and command.
func TestAllTellTheSameOfAServersHealth(t *testing.T) {
	now := time.Now()
	year := 365 * 24 * time.Hour
	for _, tt := range []struct {
		name    string
		facts   serverFacts
		code    string // "": nothing is wrong
		failing bool
		says    string // among the rest
		next    string
	}{
		{"all is well", serverFacts{Asked: true, Voters: 3, Answering: 3, OthersAnswer: 2, OthersInMesh: 2, FreeBytes: 1 << 40, FreeKnown: true, CertFrom: now.Add(-year / 2), CertEnds: now.Add(year / 2)}, "", false, "", ""},
		{"no leader", serverFacts{Ready: consensus.ErrLeaderless, Asked: true, Voters: 3, Answering: 3}, problemNoLeader, true, "no leader", "one is elected within seconds"},
		{"lost quorum", serverFacts{Ready: consensus.ErrLeaderless, Asked: true, Voters: 3, Answering: 1}, problemNoQuorum, true, "no leader", "1 of 3 that vote answer this one, 2 are needed"},
		{"lost quorum of four", serverFacts{Ready: consensus.ErrLeaderless, Asked: true, Voters: 4, Answering: 2}, problemNoQuorum, true, "no leader", "2 of 4 that vote answer this one, 3 are needed"},
		{"not caught up", serverFacts{Ready: consensus.ErrBehind}, problemBehind, true, "catching up", "wait"},
		{"disk stalled", serverFacts{Ready: fmt.Errorf("%w: a write has been waiting for 5s", consensus.ErrDiskStalled)}, problemDiskStalled, true, "waiting for 5s", "look at the disk"},
		{"disk full", serverFacts{Ready: fmt.Errorf("%w: %w", consensus.ErrDiskFailed, syscall.ENOSPC)}, problemDiskFailed, true, "no space left", "make room"},
		{"disk nearly full", serverFacts{FreeBytes: 10 << 20, FreeKnown: true}, problemDiskLow, false, "10 MiB left", "free some space"},
		{"cut from the mesh", serverFacts{Asked: true, Voters: 3, Answering: 3, OthersAnswer: 2}, problemMesh, false, "the mesh shows none of them", "gossip port"},
		{"clock ahead", serverFacts{Asked: true, ClockOff: time.Hour}, problemClock, false, "1h0m0s ahead of", "set it"},
		{"clock behind", serverFacts{Asked: true, ClockOff: -year}, problemClock, false, "8760h0m0s behind", "set it"},
		{"certificate about to end", serverFacts{CertFrom: now.Add(-year), CertEnds: now.Add(24 * time.Hour), Now: now}, problemCertificate, false, "ends in 24h0m0s", "not renewed yet"},
		{"certificate ended", serverFacts{CertFrom: now.Add(-year), CertEnds: now.Add(-time.Hour), Now: now}, problemCertificate, false, "ended 1h0m0s ago", "not renewed yet"},
		{"clock stepped", serverFacts{Ready: errors.New("this server's clock was stepped by 1h0m0s")}, problemUnfit, true, "was stepped by 1h0m0s", "does not lead"},
		{"removed", serverFacts{Ready: consensus.ErrRemoved}, problemRemoved, true, "was removed from the cluster", "with an empty data directory and a new token"},
		{"not added yet", serverFacts{Ready: consensus.ErrNotMember}, problemNotMember, true, "does not belong to a cluster yet", "its log"},
		{"stopping", serverFacts{Ready: consensus.ErrClosed}, problemStopping, true, "closed", "about to end"},
		{"silent", serverFacts{Silent: errors.New("connection refused")}, problemSilent, true, "connection refused", "start it again"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.facts.Now.IsZero() {
				tt.facts.Now = now
			}
			found := judge(tt.facts)
			switch {
			case tt.code == "" && len(found) > 0:
				t.Fatalf("found %+v", found)
			case tt.code != "" && (len(found) != 1 || found[0].Code != tt.code || found[0].Failing != tt.failing || !strings.Contains(found[0].Message, tt.says) || !strings.Contains(found[0].Next, tt.next)):
				t.Fatalf("found %+v, want %s (failing: %v): %q; %q", found, tt.code, tt.failing, tt.says, tt.next)
			}
			mustAgree(t, found)
		})
	}
}

// What keeps a server from serving comes first, so /readyz names it; the others tell
// of the rest, too.
func TestMoreThanOneProblemIsTold(t *testing.T) {
	found := judge(serverFacts{
		Ready: consensus.ErrLeaderless, Asked: true, Voters: 3, Answering: 1, FreeKnown: true, ClockOff: time.Hour, Now: time.Now(),
	})
	if len(found) != 3 || !found[0].Failing || found[1].Failing || found[2].Failing {
		t.Fatalf("found %+v", found)
	}
	mustAgree(t, found)
}

// mustAgree asks a server with these problems in all four ways.
func mustAgree(t *testing.T, problems []webui.Problem) {
	t.Helper()
	srv := serverWith(t, problems)
	failing := isFailing(problems)

	status, readyz := fetch(t, srv, "/readyz")
	if (status == http.StatusServiceUnavailable) != failing || (status == http.StatusOK) == failing {
		t.Errorf("/readyz answers %d", status)
	}
	_, metrics := fetch(t, srv, "/metrics")
	if want := fmt.Sprintf("\nmoult_ready %d\n", map[bool]int{true: 0, false: 1}[failing]); !strings.Contains(metrics, want) {
		t.Errorf("the metrics lack %q", want)
	}
	if got := len(regexp.MustCompile(`(?m)^moult_server_problem\{.*\} 1$`).FindAllString(metrics, -1)); got != len(problems) {
		t.Errorf("the metrics tell of %d problems, want %d", got, len(problems))
	}
	if got := strings.Count(metrics, "\nmoult_server_problem{"); got != len(problemCodes) {
		t.Errorf("the metrics know %d codes, want %d", got, len(problemCodes))
	}
	_, page := fetch(t, srv, "/settings/servers")
	if want := map[bool]string{true: ">unhealthy<", false: ">healthy<"}[failing]; !strings.Contains(page, want) {
		t.Errorf("the page lacks %q", want)
	}
	page = strings.Join(strings.Fields(html.UnescapeString(regexp.MustCompile(`<[^>]*>`).ReplaceAllString(page, " "))), " ")
	said, code := statusOfServer(t, srv)
	if (code == 0) != (len(problems) == 0) {
		t.Errorf("moult status exits with %d", code)
	}
	if want := map[bool]string{true: "servers  0 of 1 healthy", false: "servers  1 of 1 healthy"}[failing]; !strings.Contains(said, want) {
		t.Errorf("moult status lacks %q:\n%s", want, said)
	}
	for i, p := range problems {
		sentence := p.String()
		if i == 0 || !failing { // an error has one reason
			if !strings.Contains(readyz, jsonText(t, p.Message)) || !strings.Contains(readyz, jsonText(t, p.Next)) {
				t.Errorf("/readyz does not say %q: %s", sentence, readyz)
			}
		}
		if want := fmt.Sprintf("moult_server_problem{code=%q,failing=\"%v\"} 1", p.Code, p.Failing); !strings.Contains(metrics, want) {
			t.Errorf("the metrics lack %s", want)
		}
		if !strings.Contains(page, sentence) {
			t.Errorf("the page does not say %q: %s", sentence, page)
		}
		if want := "problem  server s1: " + sentence + "\n"; !strings.Contains(said, want) {
			t.Errorf("moult status does not say %q:\n%s", want, said)
		}
	}
}

func jsonText(t *testing.T, s string) string {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Trim(string(b), `"`)
}

const healthToken = "moult_health"

// noTrust is of a cluster that removed nobody and keeps its gossip keys.
type noTrust struct{ webui.Trust }

func (noTrust) Rotations() []webui.Rotation { return nil }
func (noTrust) DeniedBehind() []string      { return nil }

// noCAs is of a cluster whose CA nobody changes.
type noCAs struct{ webui.CAs }

func (noCAs) Hosts() []webui.CAHost { return nil }

// serverWith serves the UI of the only server of a cluster, which has problems.
func serverWith(t *testing.T, problems []webui.Problem) *httptest.Server {
	t.Helper()
	state := fleet.New()
	hash := sha256.Sum256([]byte(healthToken))
	ca, err := identity.NewCA("c1", time.Now())
	must(t, err)
	entry, err := fleet.NewEntry("first", "system", time.Now(), fleet.ClusterInitialized{
		Cluster: fleet.Cluster{ID: "c1", CACert: ca.CertPEM(), CAKey: ca.KeyPEM()},
		Server:  fleet.Host{ID: "h1", Name: "s1", Segment: "default", OS: "linux", Arch: "amd64", PeerAddr: "10.0.0.1:7947"},
		Admin:   fleet.User{ID: "u1", Name: "admin", PasswordHash: "x"},
		Token:   fleet.APIToken{ID: "t1", Name: "t", Hash: hex.EncodeToString(hash[:])},
	})
	if err != nil {
		t.Fatal(err)
	}
	if res := state.Apply(1, entry); res.Err != nil {
		t.Fatal(res.Err)
	}
	self := nodeStatus{Version: "1", AppliedIndex: 1, Ready: !isFailing(problems), Problems: problems}
	handler, err := webui.New(webui.Config{
		Version: "1", Commit: "c", View: state.View, Subscribe: state.Subscribe, Proposer: noProposer{},
		Observed: func() map[string]webui.Observation { return nil }, Changed: func() <-chan struct{} { return nil },
		Servers: oneServer{self}, Publisher: &publisher{}, Trust: noTrust{}, CAs: noCAs{}, Binaries: &binaries{}, Webhooks: &webhookTester{}, Backups: &backups{store: &artifact.Store{}},
		Problems: func() []webui.Problem { return problems }, ProblemCodes: problemCodes, CatchUp: func(context.Context) error { return nil },
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(handler)
	t.Cleanup(srv.Close)
	return srv
}

type noProposer struct{}

func (noProposer) Propose(context.Context, string, fleet.Change) (fleet.Result, error) {
	return fleet.Result{}, consensus.ErrNoLeader
}

// oneServer is the list of servers as it is made of what one of them answers.
type oneServer struct{ answer nodeStatus }

func (o oneServer) Servers(context.Context) []webui.ServerStatus {
	return []webui.ServerStatus{o.answer.Show(webui.ServerStatus{ID: "h1", Name: "s1", Leader: true, Voter: true}, nil)}
}
func (oneServer) RemoveServer(context.Context, string) error       { return consensus.ErrNoLeader }
func (oneServer) DemoteServer(context.Context, string) error       { return consensus.ErrNoLeader }
func (oneServer) TransferLeadership(context.Context) error         { return consensus.ErrNoLeader }
func (oneServer) States(context.Context) (all []webui.ServerState) { return nil }

func fetch(t *testing.T, srv *httptest.Server, path string) (status int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+healthToken)
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// statusOfServer runs `moult status`.
func statusOfServer(t *testing.T, srv *httptest.Server) (out string, code int) {
	t.Helper()
	cmd := newStatusCommand()
	var stdout bytes.Buffer
	cmd.SetOut(&stdout)
	cmd.SetErr(io.Discard)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs([]string{"--addr", srv.URL, "--token", healthToken})
	err := cmd.ExecuteContext(t.Context())
	var exit *exitError
	switch {
	case errors.As(err, &exit):
		return stdout.String(), exit.code
	case err != nil:
		t.Fatal(err)
	}
	return stdout.String(), 0
}

func TestWhoseClockIsOff(t *testing.T) {
	const hour = time.Hour
	for _, tt := range []struct {
		others []time.Duration // their clocks against this one's
		want   time.Duration   // this clock against theirs
	}{
		{nil, 0},
		{[]time.Duration{hour}, -hour}, // of two each says so
		{[]time.Duration{-hour}, hour},
		{[]time.Duration{0, hour}, 0}, // of three the odd one does
		{[]time.Duration{hour, hour}, -hour},
		{[]time.Duration{0, 0, hour, hour}, 0},
	} {
		if got := -median(append([]time.Duration{0}, tt.others...)); got != tt.want {
			t.Errorf("others at %v: this clock is off by %v, want %v", tt.others, got, tt.want)
		}
	}
}

// An answer of an older server, which tells no problems, still has a reason.
func TestOlderServersHealth(t *testing.T) {
	if got := (nodeStatus{Version: "1"}).Show(webui.ServerStatus{}, nil); got.Healthy || len(got.Problems) != 1 || !got.Problems[0].Failing {
		t.Errorf("not ready: %+v", got)
	}
	if got := (nodeStatus{Version: "1", Ready: true}).Show(webui.ServerStatus{}, nil); !got.Healthy || len(got.Problems) != 0 {
		t.Errorf("ready: %+v", got)
	}
	if got := (nodeStatus{}).Show(webui.ServerStatus{}, context.DeadlineExceeded); got.Healthy || got.Problems[0].Code != problemSilent {
		t.Errorf("silent: %+v", got)
	}
}
