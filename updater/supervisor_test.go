//go:build linux

package updater

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"moult/updater/install"
)

// buildAgent builds testdata/agent once per test run.
var buildAgent = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "moult-agent-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "agent")
	if out, err := exec.Command("go", "build", "-o", path, "./testdata/agent").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	return os.ReadFile(path)
})

// patience is how long is waited for what has to come, on a machine that has much else to
// do.
const patience = time.Minute

// site is a host with a supervised agent of version 1.0.0.
type site struct {
	t         *testing.T
	data      string
	installed string
	env       []string
	wrap      []string // what runs the program; nil: nothing
	cmd       *exec.Cmd
	output    *syncBuffer
	print     *os.File // instead of output, when it is set
	ended     chan struct{}
}

func newSite(t *testing.T, env ...string) *site {
	t.Helper()
	dir := t.TempDir()
	s := &site{t: t, data: filepath.Join(dir, "data"), installed: filepath.Join(dir, "bin", "moult"), env: env, output: &syncBuffer{}}
	for _, d := range []string{s.data, filepath.Dir(s.installed)} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s.variant(s.installed, "1.0.0", "good")
	return s
}

// variant writes an agent of a version that behaves in a way; its digest.
func (s *site) variant(path, version, behave string) string {
	s.t.Helper()
	binary, err := buildAgent()
	if err != nil {
		s.t.Fatalf("build agent: %v", err)
	}
	content := fmt.Appendf(bytes.Clone(binary), "\nMOULT-TEST {\"version\":%q,\"behave\":%q}\n", version, behave)
	// What is forked while it is written holds it open until it executes: it is busy then.
	syscall.ForkLock.RLock()
	err = os.WriteFile(path, content, 0o700)
	syscall.ForkLock.RUnlock()
	if err != nil {
		s.t.Fatal(err)
	}
	return mustDigest(s.t, path)
}

func mustDigest(t *testing.T, path string) string {
	t.Helper()
	d, err := install.Digest(path)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// command starts the site's program as a service manager does.
func (s *site) command(env ...string) *exec.Cmd {
	argv := append(slices.Clone(s.wrap), s.installed, "agent")
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(append(os.Environ(), "TEST_DATA="+s.data, "TEST_INSTALLED="+s.installed), append(s.env, env...)...)
	cmd.Stdout, cmd.Stderr = s.output, s.output
	if s.print != nil {
		cmd.Stdout, cmd.Stderr = s.print, s.print
	}
	return cmd
}

// start runs the supervisor and waits for its agent.
func (s *site) start(env ...string) {
	s.t.Helper()
	before := strings.Count(s.events(), "agent ")
	deadline := time.Now().Add(patience)
	for {
		s.cmd = s.command(env...)
		err := s.cmd.Start()
		if err == nil {
			break
		}
		// What another test forks in the moment of the copy holds the file open until it executes.
		if !errors.Is(err, syscall.ETXTBSY) || time.Now().After(deadline) {
			s.t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	cmd, ended := s.cmd, make(chan struct{})
	s.ended = ended
	go func() { _ = cmd.Wait(); close(ended) }()
	s.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(patience):
			_ = cmd.Process.Kill()
			<-ended
			s.t.Error("the supervisor does not stop on SIGTERM")
		}
		if s.t.Failed() {
			s.t.Logf("events:\n%s\noutput:\n%s", s.events(), s.output)
		}
	})
	s.await("the agent's start", func() bool { return strings.Count(s.events(), "agent ") > before })
}

// stage writes a marker for a new binary and makes the agent exit for it.
func (s *site) stage(version, behave string) install.Marker {
	s.t.Helper()
	m := install.Marker{
		JobID: "job-1", Attempt: 1, Index: 7, Version: version, Number: 2, State: install.Staged,
		StagedPath: filepath.Join(s.data, "staged-"+version+"-"+behave), FromVersion: "1.0.0", FromDigest: mustDigest(s.t, s.installed),
	}
	m.Digest = s.variant(m.StagedPath, version, behave)
	s.restart(m)
	return m
}

func (s *site) restart(m install.Marker) {
	s.t.Helper()
	if err := install.SaveMarker(s.data, m); err != nil {
		s.t.Fatal(err)
	}
	s.touch("restart", "")
}

// touch makes a file appear in the data directory at once, with its content.
func (s *site) touch(name, content string) {
	s.t.Helper()
	if err := install.WriteFile(filepath.Join(s.data, name), []byte(content)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) events() string {
	b, err := os.ReadFile(filepath.Join(s.data, "events"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.t.Fatal(err)
	}
	return string(b)
}

func (s *site) await(what string, condition func() bool) {
	s.t.Helper()
	awaitCondition(s.t, what, condition)
}

func awaitCondition(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited too long for %s", what)
		}
	}
}

func (s *site) awaitEvent(event string) {
	s.t.Helper()
	s.await("event "+strconv.Quote(event), func() bool { return strings.Contains(s.events(), event) })
}

// awaitOutput waits for what is printed, which comes here in its own time.
func (s *site) awaitOutput(text string) {
	s.t.Helper()
	s.await("the output "+strconv.Quote(text), func() bool { return strings.Contains(s.output.String(), text) })
}

// awaitOutcome waits for the end of the trial.
func (s *site) awaitOutcome(want install.Result) install.Outcome {
	s.t.Helper()
	var o install.Outcome
	s.await("an outcome", func() bool {
		var err error
		o, err = install.LoadOutcome(s.data)
		_, markerErr := os.Stat(install.MarkerPath(s.data))
		return err == nil && errors.Is(markerErr, os.ErrNotExist)
	})
	if o.Result != want {
		s.t.Fatalf("outcome is %s (%s), want %s", o.Result, o.Reason, want)
	}
	return o
}

// installedVersion runs the installed binary.
func (s *site) installedVersion() string {
	s.t.Helper()
	out, err := exec.Command(s.installed, "version").CombinedOutput()
	if err != nil {
		s.t.Fatalf("the installed binary does not run: %v: %s", err, out)
	}
	return strings.TrimSpace(strings.TrimPrefix(string(out), `{"version":`))
}

func (s *site) mustRun(version string) {
	s.t.Helper()
	if got := s.installedVersion(); got != strconv.Quote(version)+"}" {
		s.t.Fatalf("installed is %s, want %s", got, version)
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// agentPID returns the process id in the last "agent VERSION pid N" event.
func (s *site) agentPID(version string) int {
	s.t.Helper()
	all := s.events()
	_, after, found := strings.Cut(all[max(0, strings.LastIndex(all, "agent "+version+" pid ")):], " pid ")
	if !found {
		s.t.Fatalf("no agent %s in\n%s", version, all)
	}
	pid, err := strconv.Atoi(strings.FieldsFunc(after, func(r rune) bool { return r < '0' || r > '9' })[0])
	if err != nil {
		s.t.Fatal(err)
	}
	return pid
}

func (s *site) gone(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || bytes.Contains(stat, []byte(") Z "))
}

func TestTrialCommitsAndHandsOver(t *testing.T) {
	s := newSite(t)
	s.start()
	old := mustDigest(t, s.installed)
	m := s.stage("1.1.0", "good")
	s.awaitEvent("agent 1.1.0 committed")
	o := s.awaitOutcome(install.Committed)
	if o.JobID != m.JobID || o.Number != m.Number || o.Digest != m.Digest {
		t.Errorf("outcome is %+v", o)
	}
	s.mustRun("1.1.0")
	if got := mustDigest(t, s.installed+".old"); got != old {
		t.Errorf(".old is %s, want the old binary %s", got, old)
	}
	// The new binary's supervisor has the same process id, and the same child.
	s.awaitEvent("supervisor 1.1.0")
	pid := s.agentPID("1.1.0")
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil || !strings.Contains(string(status), fmt.Sprintf("PPid:\t%d\n", s.cmd.Process.Pid)) {
		t.Fatalf("agent %d is not the supervisor's (%d) child: %v", pid, s.cmd.Process.Pid, err)
	}
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", s.cmd.Process.Pid)); err != nil || exe != s.installed {
		t.Errorf("the supervisor runs %s, %v; want %s", exe, err, s.installed)
	}
	// What the adopted child prints still gets through, and its end is noticed.
	s.touch("print", "hello from the adopted child")
	s.awaitOutput("hello from the adopted child")
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.await("a new agent", func() bool { return strings.Count(s.events(), "agent 1.1.0 pid") == 2 })
	if n := strings.Count(s.events(), "agent 1.1.0 pid"); n != 2 {
		t.Errorf("version 1.1.0 was started %d times, want 2 (its trial, and after the kill)", n)
	}
}

func TestSecondUpdateAfterHandover(t *testing.T) {
	s := newSite(t)
	s.start()
	s.stage("1.1.0", "good")
	s.awaitEvent("supervisor 1.1.0")
	m := s.stage("1.2.0", "good")
	s.awaitEvent("agent 1.2.0 committed")
	s.awaitEvent("supervisor 1.2.0")
	s.mustRun("1.2.0")
	if o := s.awaitOutcome(install.Committed); o.Digest != m.Digest {
		t.Errorf("outcome is %+v", o)
	}
}

func TestTrialRollsBack(t *testing.T) {
	for _, tt := range []struct {
		behave, reason, output string
		starts                 int
		env                    string
	}{
		{"crash", "exit status 3: panic: cannot find libmoult", "panic: cannot find libmoult", 3, ""},
		{"joins-and-dies", "exit status 4: out of cheese", "out of cheese", 3, "TEST_SOAK=10s"},
		{"fails-slowly", "exit status 5: no database", "no database", 3, "TEST_SOAK=2500ms"},
		{"silent", "no commit within 5s (it had not joined the mesh): waiting for a peer", "waiting for a peer that never answers", 1, "TEST_TRIAL_TIMEOUT=5s"},
		{"hang", "no commit within 5s", "waiting for a peer that never answers", 1, "TEST_TRIAL_TIMEOUT=5s"},
		{"lie", `says it is version "9.9.9", the release is "1.1.0"`, "", 1, ""},
	} {
		t.Run(tt.behave, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, tt.env)
			s.start()
			m := s.stage("1.1.0", tt.behave)
			o := s.awaitOutcome(install.RolledBack)
			if !strings.Contains(o.Reason, tt.reason) {
				t.Errorf("reason is %q, want %q in it", o.Reason, tt.reason)
			}
			if tt.output != "" && (len(o.LastOutput) == 0 || o.LastOutput[len(o.LastOutput)-1] != tt.output) {
				t.Errorf("last output is %q, want %q", o.LastOutput, tt.output)
			}
			if f, ok := install.FailedBefore(s.data, m.JobID, m.Digest); !ok || f.Reason != o.Reason {
				t.Errorf("the failed digest is not remembered: %+v, %v", f, ok)
			}
			s.await("the old agent's return", func() bool { return strings.Count(s.events(), "agent 1.0.0 pid") == 2 })
			if n := strings.Count(s.events(), "agent 1.1.0 pid"); n != tt.starts {
				t.Errorf("the trial was started %d times, want %d", n, tt.starts)
			}
			s.mustRun("1.0.0")
			if !s.gone(s.agentPID("1.1.0")) {
				t.Error("the trial still runs")
			}
		})
	}
}

func TestRolledBackDigestIsNotTriedAgainInItsJob(t *testing.T) {
	s := newSite(t)
	s.start()
	m := s.stage("1.1.0", "crash")
	s.awaitOutcome(install.RolledBack)
	s.await("the old agent's return", func() bool { return strings.Count(s.events(), "agent 1.0.0 pid") == 2 })
	s.restart(m)
	s.await("the old agent's return", func() bool { return strings.Count(s.events(), "agent 1.0.0 pid") == 3 })
	if n := strings.Count(s.events(), "agent 1.1.0 pid"); n != 3 {
		t.Errorf("the trial was started %d times, want the 3 of its first trial", n)
	}
}

func TestSwappedStagedFileIsNotStarted(t *testing.T) {
	s := newSite(t)
	s.start()
	m := install.Marker{JobID: "job-1", Version: "1.1.0", State: install.Staged, StagedPath: filepath.Join(s.data, "staged")}
	m.Digest = s.variant(m.StagedPath, "1.1.0", "good")
	s.variant(m.StagedPath, "6.6.6", "good")
	s.restart(m)
	o := s.awaitOutcome(install.RolledBack)
	if !strings.Contains(o.Reason, "does not match its digest") {
		t.Errorf("reason is %q", o.Reason)
	}
	if strings.Contains(s.events(), "agent 6.6.6") {
		t.Error("a file that was not verified was started")
	}
	s.mustRun("1.0.0")
}

func TestTrialOfAScript(t *testing.T) {
	s := newSite(t)
	s.start()
	m := install.Marker{JobID: "job-1", Version: "2.0.0", State: install.Staged, StagedPath: filepath.Join(s.data, "staged.sh")}
	script := "#!/bin/sh\necho 'agent 2.0.0 pid' $$ >>\"$TEST_DATA/events\"\n" +
		"echo '{\"event\":\"joined\",\"version\":\"2.0.0\",\"unknown\":1}' >&4\n" +
		"read answer <&3\necho \"script heard $answer\" >>\"$TEST_DATA/events\"\n"
	if err := os.WriteFile(m.StagedPath, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	m.Digest = mustDigest(t, m.StagedPath)
	s.restart(m)
	s.awaitEvent(`script heard {"event":"committed"}`)
	s.awaitOutcome(install.Committed)
	if got := mustDigest(t, s.installed); got != m.Digest {
		t.Errorf("installed is %s, want the script %s", got, m.Digest)
	}
}

func TestCorruptMarkerKeepsWhatRuns(t *testing.T) {
	s := newSite(t)
	s.start()
	m := install.Marker{JobID: "job-1", Version: "1.1.0", State: install.Staged, StagedPath: filepath.Join(s.data, "staged")}
	m.Digest = s.variant(m.StagedPath, "1.1.0", "good")
	if err := install.SaveMarker(s.data, m); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(install.MarkerPath(s.data))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(install.MarkerPath(s.data), bytes.Replace(b, []byte("1.1.0"), []byte("1.1.1"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	s.touch("restart", "")
	s.await("the agent's return", func() bool { return strings.Count(s.events(), "agent 1.0.0 pid") == 2 })
	if strings.Contains(s.events(), "agent 1.1.0") {
		t.Error("a corrupt marker led to a trial")
	}
	if _, err := os.Stat(install.MarkerPath(s.data) + ".corrupt"); err != nil {
		t.Errorf("the corrupt marker was not set aside: %v", err)
	}
}

func TestPowerCutInTrial(t *testing.T) {
	s := newSite(t, "TEST_SOAK=15s")
	s.start()
	s.stage("1.1.0", "good")
	s.awaitEvent("agent 1.1.0 pid")
	trial := s.agentPID("1.1.0")
	_ = s.cmd.Process.Kill()
	<-s.ended
	s.await("the trial's end with its parent", func() bool { return s.gone(trial) })
	s.mustRun("1.0.0")
	s.start()
	if o := s.awaitOutcome(install.Interrupted); !strings.Contains(o.Reason, "interrupted") {
		t.Errorf("reason is %q", o.Reason)
	}
	s.mustRun("1.0.0")
}

// TestKilledAtEachStepOfTheSwap cuts the power before each step of the commit's
// swap. Whatever happened, the next start runs a complete binary, and the record
// agrees with the disk.
func TestKilledAtEachStepOfTheSwap(t *testing.T) {
	for _, step := range []string{"create", "copy", "owner", "mode", "attributes", "sync", "close", "keep", "sync-keep", "rename", "sync-directory", "done"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.start("TEST_KILL_AT=" + step)
			s.stage("1.1.0", "good")
			select {
			case <-s.ended:
			case <-time.After(patience):
				t.Fatalf("the supervisor never came to step %s", step)
			}
			want, version := install.Interrupted, "1.0.0"
			if step == "sync-directory" || step == "done" { // after the rename
				want, version = install.Committed, "1.1.0"
			}
			s.mustRun(version)
			s.start()
			s.awaitOutcome(want)
			s.mustRun(version)
			left, err := filepath.Glob(filepath.Join(filepath.Dir(s.installed), ".moult-*"))
			if err != nil || len(left) > 0 {
				t.Errorf("leftovers %v, %v", left, err)
			}
			s.stage("1.2.0", "good")
			s.awaitEvent("agent 1.2.0 committed")
			s.mustRun("1.2.0")
		})
	}
}

func TestCrashedAgentIsStartedAgain(t *testing.T) {
	s := newSite(t)
	s.start()
	first := s.agentPID("1.0.0")
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.await("another start", func() bool { return strings.Count(s.events(), "agent 1.0.0 pid") == 2 })
	if s.agentPID("1.0.0") == first {
		t.Error("the same process twice")
	}
}

// The agent ends with its supervisor by the end of the pipe; a deaf one, which
// does not look at it, by the kernel.
func TestKilledSupervisorEndsTheAgent(t *testing.T) {
	for _, behave := range []string{"good", "deaf"} {
		t.Run(behave, func(t *testing.T) {
			s := newSite(t)
			s.variant(s.installed, "1.0.0", behave)
			s.start()
			_ = s.cmd.Process.Kill()
			<-s.ended
			pid := s.agentPID("1.0.0")
			s.await("the agent's end", func() bool { return s.gone(pid) })
		})
	}
}

func TestTermStopsTheAgentGracefully(t *testing.T) {
	s := newSite(t)
	s.start()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-s.ended
	if !strings.Contains(s.events(), "agent 1.0.0 stopped\nsupervisor ended\n") {
		t.Errorf("events:\n%s", s.events())
	}
}

func TestAgentThatGivesUpEndsTheSupervisor(t *testing.T) {
	s := newSite(t)
	s.variant(s.installed, "1.0.0", "gives-up")
	s.start()
	<-s.ended
	if code := s.cmd.ProcessState.ExitCode(); code != ExitGiveUp {
		t.Errorf("exit code %d, want %d", code, ExitGiveUp)
	}
}

// A supervisor that is asked to stop while it hands over to the new binary stops: a
// signal that the old program has caught is not forgotten by the new one.
func TestStopIsHeededInTheHandover(t *testing.T) {
	for i := range 8 {
		t.Run(fmt.Sprintf("%d ms after the commit", 5*i), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.start()
			s.stage("1.1.0", "good")
			s.awaitEvent("agent 1.1.0 committed")
			time.Sleep(time.Duration(5*i) * time.Millisecond)
			if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			select {
			case <-s.ended:
			case <-time.After(patience):
				t.Error("the supervisor goes on")
			}
			s.mustRun("1.1.0")
		})
	}
}
