//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"moult/consensus"
)

// lateServer is a server that is no child of `moult dev`.
type lateServer struct {
	name, data, peer, http string

	cmd *exec.Cmd
	log *os.File
}

// newServer chooses free ports for a server that is started later.
func (c *testCluster) newServer(name string) *lateServer {
	c.t.Helper()
	s := &lateServer{name: name, data: filepath.Join(c.dir, name, "data")}
	for _, addr := range []*string{&s.peer, &s.http} {
		*addr = freeAddress(c.t)
	}
	if err := os.MkdirAll(filepath.Dir(s.data), 0o700); err != nil {
		c.t.Fatal(err)
	}
	return s
}

// launch starts the server until the test ends, and waits until it is ready.
func (c *testCluster) launch(s *lateServer, gossip string, args ...string) {
	c.t.Helper()
	c.launchWithoutWaiting(s, gossip, args...)
	c.await(time.Minute, s.name+" to be ready", func() error { return httpOK(c.t.Context(), "http://"+s.http+"/readyz") })
}

func (c *testCluster) launchWithoutWaiting(s *lateServer, gossip string, args ...string) {
	c.t.Helper()
	log, err := os.OpenFile(filepath.Join(filepath.Dir(s.data), "log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	argv := append([]string{"server", "--data", s.data, "--name", s.name, "--gossip", gossip, "--peer", s.peer, "--http", s.http}, args...)
	s.log, s.cmd = log, exec.Command(binary(c.t, versionA), argv...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { s.stop() })
}

func (s *lateServer) stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	_ = s.cmd.Wait()
	s.log.Close()
	s.cmd = nil
}

// at returns the cluster as another server shows it.
func (c *testCluster) at(addr string) *testCluster {
	other := *c
	other.client = &client{addrs: []string{"http://" + addr}, token: c.client.token, http: &http.Client{Timeout: 20 * time.Second}}
	return &other
}

// refusedCommand runs a command that must fail, and returns what it said.
func (c *testCluster) refusedCommand(args ...string) string {
	c.t.Helper()
	cmd := exec.Command(binary(c.t, versionA), args...)
	cmd.Env = append(os.Environ(), "MOULT_ADDR="+strings.Join(c.client.addrs, ","), "MOULT_TOKEN="+c.client.token)
	out, err := cmd.CombinedOutput()
	if err == nil {
		c.t.Fatalf("moult %s succeeded: %s", strings.Join(args, " "), out)
	}
	return string(out)
}

func (c *testCluster) awaitHost(name string, want func(apiHost) error) {
	c.t.Helper()
	c.await(time.Minute, name, func() error {
		h, ok := c.hosts()[name]
		if !ok {
			return errors.New("it is not known")
		}
		return want(h)
	})
}

// update updates one host and returns how its job ended.
func (c *testCluster) update(name, version string) apiJob {
	c.t.Helper()
	var started struct {
		JobID string `json:"job_id"`
	}
	if err := c.try(http.MethodPost, "/api/hosts/"+c.hosts()[name].ID+"/update", map[string]string{"target_version": version}, &started); err != nil {
		c.t.Fatal(err)
	}
	var job apiJob
	c.await(2*time.Minute, "the end of the job", func() error {
		if err := c.try(http.MethodGet, "/api/jobs/"+started.JobID, nil, &job); err != nil {
			return err
		}
		if job.Status == "queued" || job.Status == "running" {
			return fmt.Errorf("it is %s", job.Status)
		}
		return nil
	})
	return job
}

func runs(version string) func(apiHost) error {
	return func(h apiHost) error {
		if !h.Online || h.AgentVersion != version {
			return fmt.Errorf("online %t in %s", h.Online, h.AgentVersion)
		}
		return nil
	}
}

// The servers are lost and their cluster is restored from a backup without
// release bytes, on another address. The agents, which went on after the backup
// and have seen higher indexes, find it, give it the bytes back and take its
// orders; those of the old servers, which come back later, they take no more.
func TestE2ERestore(t *testing.T) {
	t.Parallel()
	const versionC = "3.0.0"
	c := startCluster(t, 3, 2, "--server-arg=--no-sign=5s", "--agent-arg=--soak=2s")
	c.publish(versionB, binary(t, versionB))
	id := c.startFleetUpdate(map[string]any{"target_version": versionB}) // which two soaks keep from ending before it is paused
	if err := c.try(http.MethodPost, "/api/fleet-updates/"+id+"/pause", nil, nil); err != nil {
		t.Fatal(err)
	}
	c.publish(versionC, buildVersion(t, versionC))

	phrase, file := filepath.Join(t.TempDir(), "passphrase"), filepath.Join(t.TempDir(), "moult.backup")
	if err := os.WriteFile(phrase, []byte("correct horse battery\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.moult("server", "backup", file, "--passphrase-file", phrase)
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the backup's mode: %v, %v", st.Mode(), err)
	}
	// After the backup the agents go on: whoever restores it does not know.
	if err := c.try(http.MethodPost, "/api/fleet-updates/"+id+"/resume", nil, nil); err != nil {
		t.Fatal(err)
	}
	c.awaitFleetUpdate(id, "completed", 2*time.Minute)
	if job := c.update("agent-1", versionC); job.Status != "succeeded" {
		t.Fatalf("the update after the backup: %+v", job)
	}
	var restart []func()
	for _, name := range []string{"server-1", "server-2", "server-3"} {
		restart = append(restart, c.killForRestart(name))
	}

	s := c.newServer("restored")
	gossip := freeAddress(t)
	place := []string{"--data", s.data, "--name", s.name, "--gossip", gossip, "--peer", s.peer, "--http", s.http}
	refuseDamaged(t, c, file, phrase, place)
	c.moult(append([]string{"server", "restore", file, "--passphrase-file", phrase}, place...)...)
	if out := c.refusedCommand(append([]string{"server", "restore", file, "--passphrase-file", phrase}, place...)...); !strings.Contains(out, "is not empty") {
		t.Errorf("a second restore into the same directory: %s", out)
	}
	c.launch(s, gossip)
	r := c.at(s.http)
	r.awaitHost("agent-1", runs(versionC))
	r.awaitHost("agent-2", runs(versionB))
	if u := r.fleetUpdate(id); u.Status != "halted" || !strings.Contains(u.HaltedReason, "restored from a backup") {
		t.Errorf("the fleet update is %s: %s", u.Status, u.HaltedReason)
	}
	servers, err := r.client.servers(t.Context())
	if err != nil || len(servers) != 1 || servers[0].Name != "restored" {
		t.Errorf("servers %+v, %v", servers, err)
	}
	// agent-1 alone has the bytes of C, agent-2 gets them from whoever has them.
	r.await(time.Minute, "the bytes of the releases to come back from the agents", func() error {
		held, err := filepath.Glob(filepath.Join(s.data, "artifacts", strings.Repeat("[0-9a-f]", 64)))
		if err == nil && len(held) < 2 {
			err = fmt.Errorf("%d are here", len(held))
		}
		return err
	})
	if job := r.update("agent-2", versionC); job.Status != "succeeded" {
		t.Fatalf("the restored cluster's update of agent-2: %+v", job)
	}
	r.awaitHost("agent-2", runs(versionC))

	// The lost servers come back, with a majority and all they knew.
	for _, again := range restart {
		again()
	}
	c.leader()
	c.publish("4.0.0", buildVersion(t, "4.0.0"))
	c.awaitHost("agent-2", runs(versionC))
	if job := c.update("agent-2", "4.0.0"); job.Status == "succeeded" {
		t.Errorf("agent-2 took an order of the lost timeline: %+v", job)
	}
	r.awaitHost("agent-2", runs(versionC))
	if !strings.Contains(c.read("agent-2/log"), "older than one that was accepted before") {
		t.Error("agent-2 does not say that it refused the order")
	}
	if n := c.starts("agent-2", "4.0.0"); n != 0 {
		t.Errorf("agent-2 ran 4.0.0 %d times", n)
	}
	if servers, err := r.client.servers(t.Context()); err != nil || len(servers) != 1 || !servers[0].Healthy {
		t.Errorf("servers beside the lost ones: %+v, %v", servers, err)
	}
}

// refuseDamaged restores files that are not whole, or with the wrong passphrase:
// nothing is made.
func refuseDamaged(t *testing.T, c *testCluster, file, phrase string, place []string) {
	t.Helper()
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	wrong := filepath.Join(dir, "wrong")
	altered := bytes.Clone(whole)
	altered[len(altered)-100] ^= 1
	for name, content := range map[string][]byte{"cut": whole[:len(whole)-1], "altered": altered, "wrong": []byte("another passphrase\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, try := range []struct{ file, phrase, says string }{
		{filepath.Join(dir, "cut"), phrase, "damaged"},
		{filepath.Join(dir, "altered"), phrase, "damaged"},
		{file, wrong, "does not open"},
	} {
		out := c.refusedCommand(append([]string{"server", "restore", try.file, "--passphrase-file", try.phrase}, place...)...)
		if !strings.Contains(out, try.says) {
			t.Errorf("restore %s: %s", try.file, out)
		}
		if _, err := os.Stat(place[1]); !os.IsNotExist(err) {
			t.Errorf("restore %s left %s behind", try.file, place[1])
		}
	}
}

// Who breaks the asking off has not learned that nobody is up.
func TestRecoveryThatIsBrokenOffChangesNothing(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer silent.Close()
	r := &recovery{stopped: consensus.Stopped{Servers: []consensus.ServerStatus{{ID: "other", Address: silent.Addr().String(), Voter: true}}}}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if err := r.ask(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("asking ended with %v", err)
	}
}

// Of three servers two are lost for good. The third goes on alone when it is told
// to, and only then; a new server joins it, and the agents take its orders.
func TestE2ERecover(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, 1)
	c.publish(versionB, binary(t, versionB))
	data := func(name string) string { return filepath.Join(c.dir, name, "data") }
	c.await(30*time.Second, "server-3 to have the bytes, which a majority of the others may have alone", func() error {
		held, err := filepath.Glob(filepath.Join(data("server-3"), "artifacts", strings.Repeat("[0-9a-f]", 64)))
		if err == nil && len(held) == 0 {
			err = errors.New("it has none")
		}
		return err
	})
	if out := c.refusedCommand("server", "recover", "--data", data("server-3")); !strings.Contains(out, "in use by another moult") {
		t.Errorf("while it runs: %s", out)
	}
	restart := c.killForRestart("server-3")
	c.await(10*time.Second, "server-3 to end", func() error { // the lock ends with the process
		if out := c.refusedCommand("server", "recover", "--data", data("server-3"), "--"+recoverFlag); !strings.Contains(out, "which is a majority") {
			return errors.New(out)
		}
		return nil
	})
	c.kill("server-2")
	up := c.pid("server-1") // and stands still for a moment
	must(t, syscall.Kill(up, syscall.SIGSTOP))
	time.AfterFunc(2*time.Second, func() { _ = syscall.Kill(up, syscall.SIGCONT) })
	if out := c.refusedCommand("server", "recover", "--data", data("server-3"), "--"+recoverFlag); !strings.Contains(out, "start this server instead") {
		t.Errorf("with one of the others up: %s", out)
	}
	c.kill("server-1")
	c.await(20*time.Second, "the dry run", func() error {
		out := c.refusedCommand("server", "recover", "--data", data("server-3"))
		if !strings.Contains(out, "nothing was changed") || !strings.Contains(out, "does not answer") || !strings.Contains(out, "last index") {
			return errors.New(out)
		}
		return nil
	})
	c.moult("server", "recover", "--data", data("server-3"), "--"+recoverFlag)
	restart()
	alone := c.at(strings.TrimPrefix(c.client.addrs[2], "http://"))
	alone.await(time.Minute, "server-3 to be ready", func() error { return httpOK(t.Context(), alone.client.addrs[0]+"/readyz") })
	servers, err := alone.client.servers(t.Context())
	if err != nil || len(servers) != 1 || servers[0].Name != "server-3" || !servers[0].Leader {
		t.Fatalf("servers %+v, %v", servers, err)
	}
	alone.awaitHost("agent-1", runs(versionA))
	if job := alone.update("agent-1", versionB); job.Status != "succeeded" {
		t.Errorf("the update after the recovery: %+v", job)
	}
	if out := alone.moult("servers"); strings.Contains(out, "server-1") {
		t.Errorf("servers: %s", out)
	}
}
