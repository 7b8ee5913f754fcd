//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The fault suite: a cluster of real processes updates its fleet again and again
// to a new release while something is done to it, and writes go on all the
// time. Each cycle ends with the same questions:
//
//   - did the fleet update complete, and in what time
//   - did each agent start exactly once in the new release
//   - does every server have every write that was acknowledged
//   - are the states of all servers equal at the same index
//
// `make test` runs a cycle or two of each fault, `make faults` as many as the
// table says. MOULT_FAULTS_SEED repeats a run's choices, as far as processes
// allow that at all.
type fault struct {
	name    string
	cycles  int // of `make faults`
	short   int // of `make test`
	inflict func(f *faultRun)
}

var faults = []fault{
	{"kill -9 of a server", 200, 2, (*faultRun).killServer},
	{"SIGSTOP of the leader", 100, 1, (*faultRun).stopLeader},
	{"slow fsync on the leader", 20, 1, (*faultRun).slowLeaderDisk},
	{"kill -9 of an agent and its supervisor", 500, 2, (*faultRun).killAgent},
	{"restart of all agents at once", 50, 1, (*faultRun).restartAgents},
	{"restart of all servers at once", 50, 1, (*faultRun).restartServers},
}

// Limits of a cycle.
const (
	faultAgents     = 3
	cyclePatience   = 3 * time.Minute  // for one fleet update
	failoverLimit   = 10 * time.Second // without a write acknowledged, for kill -9
	catchUpLimit    = time.Minute      // until each server has each write
	slowDiskLimit   = 25 * time.Second // the same, for a disk that hangs
	faultMomentSpan = 3 * time.Second  // within which of the start the fault comes
)

func TestFaults(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("MOULT_FAULTS_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("MOULT_FAULTS_SEED: %v", err)
		}
	}
	c := startCluster(t, 3, faultAgents)
	f := &faultRun{t: t, c: c, rng: rand.New(rand.NewPCG(seed, 0)), writer: &ackedWriter{c: c}, pattern: patternBinary(t)}
	t.Logf("seed %d", seed)
	t.Logf("%-40s %6s %8s %5s %9s %12s %10s", "fault", "cycles", "acked", "lost", "divergent", "longest gap", "longest update")
	for _, ft := range faults {
		f.run(ft)
		if t.Failed() {
			return // what comes after says nothing
		}
	}
}

// longFaults tells whether `make faults` runs.
func longFaults() bool { return os.Getenv("MOULT_FAULTS") != "" }

// faultRun is a cluster under faults.
type faultRun struct {
	t       *testing.T
	c       *testCluster
	rng     *rand.Rand
	writer  *ackedWriter
	pattern []byte
	release int
	// mayFail: the fault hits hosts, so that an update of one may fail, if with a
	// true reason. How often an agent starts then says nothing.
	mayFail  bool
	gapLimit time.Duration // 0: none

	done, lost, divergent     int
	longestGap, longestUpdate time.Duration
}

// run does the cycles of one fault and prints its row.
func (f *faultRun) run(ft fault) {
	cycles := ft.short
	if longFaults() {
		cycles = ft.cycles
	}
	f.done, f.lost, f.divergent, f.longestGap, f.longestUpdate, f.writer.total = 0, 0, 0, 0, 0, 0
	defer func() {
		f.t.Logf("%-40s %6d %8d %5d %9d %12v %10v", ft.name, f.done, f.writer.total, f.lost, f.divergent,
			f.longestGap.Round(time.Millisecond), f.longestUpdate.Round(time.Millisecond))
	}()
	for f.done < cycles && !f.t.Failed() {
		f.cycle(ft)
		f.done++
	}
}

func (f *faultRun) cycle(ft fault) {
	f.t.Helper()
	f.mayFail, f.gapLimit = false, 0
	version := f.publishNext()
	f.allSeen()
	f.writer.start()
	start := time.Now()
	id := f.c.startFleetUpdate(nil)
	if hosts := len(f.c.fleetUpdate(id).Hosts); hosts != faultAgents {
		f.t.Fatalf("the fleet update has %d hosts, want %d", hosts, faultAgents)
	}
	time.Sleep(time.Duration(f.rng.Int64N(int64(faultMomentSpan))))
	ft.inflict(f)
	u := f.end(id)
	f.longestUpdate = max(f.longestUpdate, time.Since(start))
	gap := f.writer.stop()
	f.longestGap = max(f.longestGap, gap)
	if f.gapLimit > 0 && gap > f.gapLimit {
		f.t.Errorf("no write was acknowledged for %v, want at most %v", gap, f.gapLimit)
	}
	if u.Status == "completed" {
		f.allRun(version)
	} else {
		f.failedTruly(u, version)
	}
	f.nothingLost()
	f.statesEqual()
	f.withdrawOthers(version)
}

// allSeen waits until every server sees every agent: one that has just started
// leaves out of a fleet update whom it has not heard of yet.
func (f *faultRun) allSeen() {
	f.t.Helper()
	for _, addr := range f.c.client.addrs {
		one := &client{addrs: []string{addr}, token: f.c.client.token, http: f.c.client.http}
		f.c.await(time.Minute, addr+" to see all agents", func() error {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			hosts, err := one.hosts(ctx, "?status=online")
			if err == nil && len(hosts) < faultAgents {
				err = fmt.Errorf("it sees %d", len(hosts))
			}
			return err
		})
	}
}

// end waits for the end of a fleet update. One that the fault has halted is as
// good, if hosts were hit; what is left is then updated.
func (f *faultRun) end(id string) apiFleetUpdate {
	f.t.Helper()
	var u apiFleetUpdate
	f.c.await(cyclePatience, "the fleet update to end", func() error {
		if err := f.c.try("GET", "/api/fleet-updates/"+id, nil, &u); err != nil {
			return err
		}
		if u.Status == "running" {
			return fmt.Errorf("%+v", u)
		}
		return nil
	})
	if u.Status != "completed" && !f.mayFail {
		f.t.Fatalf("the fleet update is %s: %+v", u.Status, u)
	}
	return u
}

// allRun fails unless each agent is online in the version and was started in it
// exactly once.
func (f *faultRun) allRun(version string) {
	f.t.Helper()
	f.c.await(time.Minute, "all agents to be online in "+version, func() error {
		for name, h := range f.c.hosts() {
			if h.AgentVersion != version || !h.Online {
				return fmt.Errorf("%s runs %s, online %v", name, h.AgentVersion, h.Online)
			}
		}
		return nil
	})
	for i := range faultAgents {
		name := fmt.Sprintf("agent-%d", i+1)
		if !f.mayFail {
			f.c.startedOnce(name, version)
		}
	}
}

// failedTruly fails unless the verdict on the failed host is true: it does not
// run the version. The next cycle updates it to a newer one.
func (f *faultRun) failedTruly(u apiFleetUpdate, version string) {
	f.t.Helper()
	f.c.await(time.Minute, "all agents to be online again", func() error {
		for name, h := range f.c.hosts() {
			if !h.Online {
				return fmt.Errorf("%s is offline", name)
			}
		}
		return nil
	})
	hosts := f.c.hosts()
	for _, turn := range u.Hosts {
		if turn.Status == "failed" && hosts[turn.Name].AgentVersion == version {
			f.t.Logf("%s was failed (%s) and came to run %s after all", turn.Name, turn.FailedReason, version)
		}
		if turn.Status == "succeeded" && hosts[turn.Name].AgentVersion != version {
			f.t.Errorf("%s succeeded and runs %s, want %s", turn.Name, hosts[turn.Name].AgentVersion, version)
		}
	}
}

// nothingLost fails unless every server comes to have every acknowledged write.
func (f *faultRun) nothingLost() {
	f.t.Helper()
	for _, addr := range f.c.client.addrs {
		one := &client{addrs: []string{addr}, token: f.c.client.token, http: f.c.client.http}
		var missing []string
		var err error
		for deadline := time.Now().Add(catchUpLimit); ; time.Sleep(100 * time.Millisecond) {
			missing, err = f.missingOn(one)
			if err == nil && len(missing) == 0 || time.Now().After(deadline) {
				break
			}
		}
		if err != nil || len(missing) > 0 {
			f.lost += len(missing)
			f.t.Errorf("%s lacks %d acknowledged writes: %v (%v)", addr, len(missing), missing, err)
		}
	}
	f.writer.forget()
}

// missingOn returns the acknowledged writes that a server does not have.
func (f *faultRun) missingOn(server *client) ([]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var got struct{ Tokens []struct{ Name string } }
	if err := server.call(ctx, "GET", "/api/tokens", nil, &got); err != nil {
		return nil, err
	}
	have := map[string]bool{}
	for _, tok := range got.Tokens {
		have[tok.Name] = true
	}
	return slices.DeleteFunc(slices.Clone(f.writer.acked), func(name string) bool { return have[name] }), nil
}

// statesEqual fails unless the states of all servers are equal.
func (f *faultRun) statesEqual() {
	f.t.Helper()
	var answer struct {
		Verdict string
		Servers []map[string]any
	}
	f.c.await(time.Minute, "the states to be comparable", func() error {
		if err := f.c.try("GET", "/api/servers/state", nil, &answer); err != nil {
			return err
		}
		if answer.Verdict == "undecided" {
			return fmt.Errorf("%v", answer.Servers)
		}
		return nil
	})
	if answer.Verdict != "equal" {
		f.divergent++
		f.t.Errorf("the states %s: %v", answer.Verdict, answer.Servers)
	}
}

// publishNext publishes a release that there was not yet: the same program under
// the next version.
func (f *faultRun) publishNext() string {
	f.t.Helper()
	f.release++
	version := fmt.Sprintf("2.0.%05d", f.release)
	path := filepath.Join(f.t.TempDir(), "moult-"+version)
	text := strings.ReplaceAll(string(f.pattern), patternVersion, version)
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		f.t.Fatal(err)
	}
	defer os.Remove(path)
	f.c.publish(version, path)
	return version
}

// withdrawOthers keeps the disk from filling up with releases.
func (f *faultRun) withdrawOthers(version string) {
	f.t.Helper()
	var out struct{ Releases []struct{ Version string } }
	f.c.get("/api/releases", &out)
	for _, r := range out.Releases {
		if r.Version != version {
			f.c.await(30*time.Second, "withdraw "+r.Version, func() error {
				err := f.c.try("DELETE", "/api/releases/"+r.Version, nil, nil)
				var refused *apiError
				if errors.As(err, &refused) && refused.Status < 500 {
					return nil // it is gone, or some host's update still names it
				}
				return err
			})
		}
	}
}

// patternVersion stands in the pattern binary, to be replaced by another version
// of the same length.
const patternVersion = "2.0.99999"

func patternBinary(t *testing.T) []byte {
	t.Helper()
	text, err := os.ReadFile(buildVersion(t, patternVersion))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), patternVersion) {
		t.Fatal("the version is not in the binary as it is")
	}
	return text
}

func (f *faultRun) killServer() {
	f.gapLimit = failoverLimit
	name := fmt.Sprintf("server-%d", 1+f.rng.IntN(3))
	if f.rng.IntN(2) == 0 {
		name = f.c.leader()
	}
	restart := f.c.killForRestart(name)
	time.Sleep(time.Duration(f.rng.Int64N(int64(3 * time.Second))))
	restart()
}

func (f *faultRun) stopLeader() {
	pid := f.c.pid(f.c.leader())
	longest := 3 * time.Second
	if longFaults() {
		longest = 30 * time.Second
	}
	f.signal(pid, syscall.SIGSTOP)
	defer f.signal(pid, syscall.SIGCONT)
	time.Sleep(2*time.Second + time.Duration(f.rng.Int64N(int64(longest-2*time.Second))))
}

func (f *faultRun) signal(pid int, sig syscall.Signal) {
	f.t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		f.t.Errorf("signal %v to process %d: %v", sig, pid, err)
	}
}

// slowLeaderDisk has every fsync of the leader take 15 s. Another server has to
// lead meanwhile.
func (f *faultRun) slowLeaderDisk() {
	f.gapLimit = slowDiskLimit
	if _, err := exec.LookPath("strace"); err != nil {
		f.t.Fatalf("this fault takes strace: %v", err)
	}
	name := f.c.leader()
	cmd := exec.Command("strace", "-f", "-qq", "-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:delay_enter=15s", "-o", os.DevNull,
		"-p", strconv.Itoa(f.c.pid(name)))
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	f.c.await(slowDiskLimit, "another server to lead", func() error {
		for _, addr := range f.c.client.addrs { // what the stalled server says is old
			one := &client{addrs: []string{addr}, token: f.c.client.token, http: &http.Client{Timeout: 3 * time.Second}}
			servers, err := one.servers(context.Background())
			if err != nil {
				continue
			}
			for _, s := range servers {
				if s.Leader && s.Healthy && s.Name != name {
					return nil
				}
			}
		}
		return errors.New("none")
	})
	_ = cmd.Process.Signal(os.Interrupt) // strace detaches; calls that it holds up end
	_ = cmd.Wait()
}

// killAgent kills an agent's supervisor or its child, whatever either is doing.
// The supervisor is started again, as a service manager does it.
func (f *faultRun) killAgent() {
	f.mayFail = true
	name := fmt.Sprintf("agent-%d", 1+f.rng.IntN(faultAgents))
	if f.rng.IntN(2) == 0 {
		if child := childOf(f.c.pid(name)); child != 0 {
			_ = syscall.Kill(child, syscall.SIGKILL) // it may just have ended by itself
			return
		}
	}
	restart := f.c.killForRestart(name)
	time.Sleep(time.Duration(f.rng.Int64N(int64(time.Second))))
	restart()
}

// childOf returns a child of a process, 0 when it has none.
func childOf(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0
	}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, path := range tasks {
		if more, err := os.ReadFile(path); err == nil {
			text = append(text, more...)
		}
	}
	first, _, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	child, _ := strconv.Atoi(first)
	return child
}

func (f *faultRun) restartAgents() {
	f.mayFail = true
	f.restartAll("agent", faultAgents)
}

func (f *faultRun) restartServers() { f.restartAll("server", 3) }

func (f *faultRun) restartAll(kind string, n int) {
	var restarts []func()
	for i := range n {
		restarts = append(restarts, f.c.killForRestart(fmt.Sprintf("%s-%d", kind, i+1)))
	}
	for _, restart := range restarts {
		restart()
	}
	f.c.await(time.Minute, "all to be back", func() error {
		if kind == "agent" {
			for name, h := range f.c.hosts() {
				if !h.Online {
					return fmt.Errorf("%s is offline", name)
				}
			}
			return nil
		}
		servers, err := f.c.client.servers(context.Background())
		if err != nil {
			return err
		}
		if i := slices.IndexFunc(servers, func(s apiServer) bool { return !s.Healthy }); i >= 0 || len(servers) < n {
			return fmt.Errorf("%d servers, %v", len(servers), servers)
		}
		return nil
	})
}

// ackedWriter makes API tokens, one after the other and through one server after
// the other, and notes those whose making was acknowledged.
type ackedWriter struct {
	c      *testCluster
	next   int
	acked  []string
	total  int
	gap    time.Duration
	ended  chan struct{}
	cancel context.CancelFunc
}

const (
	writePause   = 50 * time.Millisecond
	writeTimeout = 2 * time.Second
)

func (w *ackedWriter) start() {
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel, w.ended, w.gap = cancel, make(chan struct{}), 0
	go func() {
		defer close(w.ended)
		last := time.Now()
		for ; ctx.Err() == nil; w.next++ {
			name := fmt.Sprintf("w-%d", w.next)
			addr := w.c.client.addrs[w.next%len(w.c.client.addrs)]
			one := &client{addrs: []string{addr}, token: w.c.client.token, http: w.c.client.http}
			call, done := context.WithTimeout(ctx, writeTimeout)
			err := one.call(call, "POST", "/api/tokens", map[string]string{"name": name, "role": "viewer"}, nil)
			done()
			if err == nil {
				w.acked = append(w.acked, name)
				w.gap, last = max(w.gap, time.Since(last)), time.Now()
			}
			select {
			case <-ctx.Done():
			case <-time.After(writePause):
			}
		}
		w.gap = max(w.gap, time.Since(last))
	}()
}

// stop ends the writing and returns the longest time without an acknowledgement.
func (w *ackedWriter) stop() time.Duration {
	w.cancel()
	<-w.ended
	w.total += len(w.acked)
	return w.gap
}

// forget revokes the tokens: the state takes only so many.
func (w *ackedWriter) forget() {
	w.acked = nil
	var got struct{ Tokens []struct{ ID, Name string } }
	w.c.get("/api/tokens", &got)
	for _, tok := range got.Tokens {
		if strings.HasPrefix(tok.Name, "w-") {
			w.c.await(30*time.Second, "revoke "+tok.Name, func() error {
				err := w.c.try("DELETE", "/api/tokens/"+tok.ID, nil, nil)
				var refused *apiError
				if errors.As(err, &refused) && refused.Status == 404 {
					return nil
				}
				return err
			})
		}
	}
}
