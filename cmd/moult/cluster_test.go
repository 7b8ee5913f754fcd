//go:build unix

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The end-to-end tests run real processes: `moult dev` with binaries that were
// built for the purpose. The verbs of this file are what the stories are told in.

const (
	versionA = "1.0.0"
	versionB = "2.0.0"
)

// builtAnything tells whether there is something to remove at the end.
var builtAnything atomic.Bool

// binariesOnce builds the versions, once for all tests.
var binariesOnce = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "moult-e2e-bin-")
	if err != nil {
		return "", err
	}
	for _, v := range []string{versionA, versionB} {
		if err := build(dir, v, "."); err != nil {
			return "", err
		}
	}
	return dir, nil
})

// removeBinaries ends what binary began.
func removeBinaries() {
	if builtAnything.Load() {
		if dir, err := binariesOnce(); err == nil {
			os.RemoveAll(dir)
		}
	}
}

func build(dir, version, pkg string) error {
	out := filepath.Join(dir, "moult-"+version)
	args := []string{"build", "-trimpath", "-ldflags", "-s -w -X main.version=" + version + " -X main.commit=test", "-o", out}
	cmd := exec.Command("go", append(args, pkg)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as the Makefile does
	if longForm() {
		cmd = exec.Command("go", append(args, "-race", pkg)...)
	}
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", version, err, text)
	}
	return nil
}

// longForm tells whether `make test-long` runs: binaries with the race detector,
// and more repetitions.
func longForm() bool { return os.Getenv("MOULT_LONG") != "" }

// binary returns the path of the binary of a version.
func binary(t testing.TB, version string) string {
	t.Helper()
	builtAnything.Store(true)
	dir, err := binariesOnce()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "moult-"+version)
}

// testCluster is a running `moult dev`.
type testCluster struct {
	t      testing.TB
	dir    string
	dev    *exec.Cmd
	done   chan struct{}
	client *client
	out    *bytes.Buffer
	within []string // what a client command is run by; nil: nothing

	program string   // what the processes run; "": the binary of version A
	env     []string // theirs, on top of the test's

	commandEnv []string // of client commands, on top of the test's

	published map[string]string // version: the binary that was published as it
}

// longReason has servers wait long for a host's own reason, for tests of what it says:
// on a busy machine it may come later than people want to wait.
const longReason = "--server-arg=--reason=20s"

// longSoak has trials last long enough to be met in the middle, also by who stood still
// for a moment.
const longSoak = "--agent-arg=--soak=4s"

// startCluster runs `moult dev` on version A until the test ends.
func startCluster(t testing.TB, servers, agents int, args ...string) *testCluster {
	t.Helper()
	c := newCluster(t)
	c.up(servers, agents, args...)
	return c
}

// newCluster is a cluster that is not up yet: a test may prepare its directories.
func newCluster(t testing.TB) *testCluster {
	t.Helper()
	return &testCluster{t: t, dir: filepath.Join(t.TempDir(), "cluster")}
}

func (c *testCluster) up(servers, agents int, args ...string) {
	c.t.Helper()
	c.t.Cleanup(func() {
		c.stop()
		c.noRaces()
		if c.t.Failed() {
			c.dumpLogs()
		}
	})
	c.start(append([]string{
		"--servers", strconv.Itoa(servers), "--agents", strconv.Itoa(agents), "--http", loopback() + ":0", "--data", c.dir,
		"--agent-arg=--soak=500ms",
	}, args...))
}

func (c *testCluster) start(args []string) {
	c.t.Helper()
	c.out = &bytes.Buffer{}
	var mu sync.Mutex
	program := c.program
	if program == "" {
		program = binary(c.t, versionA)
	}
	c.dev = exec.Command(program, append([]string{"dev"}, args...)...)
	c.dev.Env = append(os.Environ(), c.env...)
	w := &lockedBuffer{mu: &mu, b: c.out}
	c.dev.Stdout, c.dev.Stderr = w, w
	if err := c.dev.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.done = make(chan struct{})
	go func() {
		_ = c.dev.Wait()
		close(c.done)
	}()
	c.await(2*time.Minute, "the cluster to come up", func() error {
		select {
		case <-c.done:
			c.t.Fatalf("moult dev ended: %s", w.String())
		default:
		}
		if !strings.Contains(w.String(), "Ctrl-C ends it") {
			return errors.New(w.String())
		}
		return nil
	})
	addresses := c.read("addresses")
	c.client = &client{addrs: strings.Fields(addresses), token: strings.TrimSpace(c.read("admin.token")), http: &http.Client{Timeout: 20 * time.Second}}
}

type lockedBuffer struct {
	mu *sync.Mutex
	b  *bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// stop ends the cluster as Ctrl-C does.
func (c *testCluster) stop() {
	if c.dev == nil {
		return
	}
	_ = c.dev.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.done:
	case <-time.After(40 * time.Second):
		c.t.Error("moult dev does not end on SIGTERM")
		_ = c.dev.Process.Kill()
		<-c.done
	}
	c.dev = nil
}

// noRaces fails when the race detector, which the long form builds in, found one
// in any process.
func (c *testCluster) noRaces() {
	c.t.Helper()
	logs, _ := filepath.Glob(filepath.Join(c.dir, "*", "log"))
	for _, path := range logs {
		if text, _ := os.ReadFile(path); bytes.Contains(text, []byte("DATA RACE")) {
			c.t.Errorf("a data race is told of in %s:\n%s", path, text)
		}
	}
}

func (c *testCluster) dumpLogs() {
	logs, _ := filepath.Glob(filepath.Join(c.dir, "*", "log"))
	for _, path := range logs {
		text, _ := os.ReadFile(path)
		lines := strings.Split(string(text), "\n")
		c.t.Logf("--- %s\n%s", path, strings.Join(lines[max(0, len(lines)-40):], "\n"))
	}
}

func (c *testCluster) read(name string) string {
	c.t.Helper()
	text, err := os.ReadFile(filepath.Join(c.dir, name))
	if err != nil {
		c.t.Fatal(err)
	}
	return string(text)
}

// await polls until ready returns nil.
func (c *testCluster) await(patience time.Duration, what string, ready func() error) {
	c.t.Helper()
	deadline := time.Now().Add(patience)
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := ready()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("gave up waiting for %s: %v", what, err)
		}
		<-ticker.C
	}
}

// try calls the API; the cluster may just be losing a server.
func (c *testCluster) try(method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return c.client.call(ctx, method, path, in, out)
}

func (c *testCluster) get(path string, out any) {
	c.t.Helper()
	c.await(20*time.Second, "GET "+path, func() error { return c.try(http.MethodGet, path, nil, out) })
}

// refused calls the API and wants this refusal.
func (c *testCluster) refused(status int, code, method, path string, in any) {
	c.t.Helper()
	err := c.try(method, path, in, nil)
	var e *apiError
	if !errors.As(err, &e) || e.Status != status || e.Code != code {
		c.t.Errorf("%s %s: got %v, want %d %s", method, path, err, status, code)
	}
}

func (c *testCluster) hosts() map[string]apiHost {
	c.t.Helper()
	var out struct{ Hosts []apiHost }
	c.get("/api/hosts", &out)
	byName := map[string]apiHost{}
	for _, h := range out.Hosts {
		byName[h.Name] = h
	}
	return byName
}

// publish makes a release of a binary and publishes it with the command line.
func (c *testCluster) publish(version, path string) {
	c.t.Helper()
	c.publishSigned(version, path, filepath.Join(c.dir, "release.key"))
}

func (c *testCluster) publishSigned(version, path, key string) {
	c.t.Helper()
	dir := filepath.Join(c.t.TempDir(), "release-"+version)
	c.moult("release", "create", "--version", version, "--key", key, "--out", dir, runtime.GOOS+"/"+runtime.GOARCH+"="+path)
	c.moult("release", "publish", dir)
	if c.published == nil {
		c.published = map[string]string{}
	}
	c.published[version] = path
}

// moult runs a client command and returns its standard output.
func (c *testCluster) moult(args ...string) string {
	c.t.Helper()
	argv := slices.Concat(c.within, []string{binary(c.t, versionA)}, args)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = slices.Concat(os.Environ(), c.commandEnv, []string{"MOULT_ADDR=" + strings.Join(c.client.addrs, ","), "MOULT_TOKEN=" + c.client.token})
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		c.t.Fatalf("moult %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}

// startFleetUpdate starts one and returns its id.
func (c *testCluster) startFleetUpdate(body map[string]any) string {
	c.t.Helper()
	var out struct {
		ID string `json:"fleet_update_id"`
	}
	c.await(time.Minute, "a server to have heard of all hosts", func() error {
		err := c.try(http.MethodPost, "/api/fleet/update", body, &out)
		if refused := new(apiError); errors.As(err, &refused) && refused.Code == "hosts_unheard" {
			return err // it was just started; it says to try again
		}
		if err != nil {
			c.t.Fatalf("start fleet update: %v", err)
		}
		return nil
	})
	return out.ID
}

func (c *testCluster) fleetUpdate(id string) apiFleetUpdate {
	c.t.Helper()
	var u apiFleetUpdate
	c.get("/api/fleet-updates/"+id, &u)
	return u
}

// awaitFleetUpdate waits for a fleet update's end and returns it.
func (c *testCluster) awaitFleetUpdate(id, status string, patience time.Duration) apiFleetUpdate {
	c.t.Helper()
	var u apiFleetUpdate
	c.await(patience, "fleet update to be "+status, func() error {
		if err := c.try(http.MethodGet, "/api/fleet-updates/"+id, nil, &u); err != nil {
			return err
		}
		if u.Status != status {
			text, _ := json.Marshal(u)
			if u.Status != "running" {
				c.t.Fatalf("fleet update is %s, want %s: %s", u.Status, status, text)
			}
			return errors.New(string(text))
		}
		return nil
	})
	return u
}

// awaitTurn waits until a host's turn is in a state.
func (c *testCluster) awaitTurn(id string, position int, status string) apiTurn {
	c.t.Helper()
	var turn apiTurn
	c.await(time.Minute, fmt.Sprintf("turn %d to be %s", position, status), func() error {
		turn = c.fleetUpdate(id).Hosts[position-1]
		if turn.Status != status {
			return fmt.Errorf("turn is %s %s", turn.Status, turn.FailedReason)
		}
		return nil
	})
	return turn
}

// awaitPhase waits until a host shows a phase.
func (c *testCluster) awaitPhase(name string, phases ...string) {
	c.t.Helper()
	c.await(time.Minute, name+" to be in phase "+strings.Join(phases, " or "), func() error {
		h := c.hosts()[name]
		if slices.Contains(phases, h.Phase) {
			return nil
		}
		return fmt.Errorf("%+v", h)
	})
}

// badRelease publishes a release whose binary misbehaves.
func (c *testCluster) badRelease(version, mode string) {
	c.t.Helper()
	path := filepath.Join(c.t.TempDir(), "bad-"+mode)
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-X main.version="+version+" -X main.mode="+mode, "-o", path, "moult/testdata/badagent")
	if text, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("build the bad release: %v\n%s", err, text)
	}
	c.publish(version, path)
}

// buildVersion builds moult in a version of its own.
func buildVersion(t testing.TB, version string) string {
	t.Helper()
	dir := t.TempDir()
	if err := build(dir, version, "."); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "moult-"+version)
}

func (c *testCluster) openAlerts() int {
	c.t.Helper()
	var alerts apiAlerts
	c.get("/api/alerts", &alerts)
	open := 0
	for _, a := range alerts.Alerts {
		if a.Status == "open" {
			open++
		}
	}
	return open
}

// freeAddress is one that nobody listens on, and nobody else will.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := listenOnNodePort(loopback())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

var loopbacks atomic.Uint32

// loopback is an address of loopback for one cluster or node: its ports stay its
// own while it restarts, however many tests run beside it.
func loopback() string {
	if runtime.GOOS != "linux" {
		return "127.0.0.1" // elsewhere the others need to be set up first
	}
	n := loopbacks.Add(1)
	return fmt.Sprintf("127.%d.%d.%d", 1+os.Getpid()%250, 1+n/250, 1+n%250)
}
