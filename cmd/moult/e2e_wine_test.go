//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/updater/install"
)

const (
	wineService = "moult-agent"
	wineProgram = `C:\Program Files\moult\moult.exe`
	wineData    = `C:\Program Data\moult agent\data`
	wineLog     = `C:\ProgramData\moult\moult-agent.log`

	wineRestartLog = `C:\ProgramData\moult\moult-agent.restart.log`
)

// windowsHost is a Windows machine with an agent in a cluster on Linux.
type windowsHost struct {
	*wineMachine
	c *testCluster
}

// TestE2EWindows tells the life of a Windows host: the service is installed, joins,
// is updated, goes back from a bad release, copes with files that somebody holds,
// and is removed without a trace.
func TestE2EWindows(t *testing.T) {
	m := startWine(t)
	a := buildForWine(t, ".", "-X main.version="+versionA)
	b := buildForWine(t, ".", "-X main.version="+versionB)
	c := startCluster(t, 1, 0)
	w := &windowsHost{m, c}
	t.Cleanup(func() {
		for _, log := range []string{wineLog, wineRestartLog} {
			if text, err := os.ReadFile(w.unixPath(log)); t.Failed() && err == nil {
				t.Logf("--- %s\n%s", log, text)
			}
		}
	})

	w.install(a)
	w.awaitVersion(versionA)
	w.isRunning()

	// A running .exe is replaced, and the supervisor too.
	before := w.supervisor()
	w.update(versionB, b, "completed", time.Minute)
	w.awaitVersion(versionB)
	w.isRunning()
	w.installedIs(b)
	if after := w.supervisor(); after == before {
		t.Errorf("the supervisor is still process %d, of version %s", before, versionA)
	}
	if aside := w.aside(); len(aside) != 1 {
		t.Errorf("set aside are %v, want the last good one", aside)
	}

	bad := buildForWine(t, "moult/testdata/badagent", "-X main.version=3.0.0 -X main.mode=exit")
	u := w.update("3.0.0", bad, "halted", time.Minute)
	if !strings.Contains(u.Hosts[0].FailedReason, "the frobnicator is missing") {
		t.Errorf("the reason is %q", u.Hosts[0].FailedReason)
	}
	w.awaitVersion(versionB)
	w.isRunning()
	w.installedIs(b)

	text, err := os.ReadFile(w.unixPath(wineLog))
	if err != nil || !strings.Contains(string(text), "component=supervisor") {
		t.Errorf("the service's log is %q, %v", text, err)
	}

	w.scannedFiles(b)
	w.failedStart()
	w.agentEndsWithItsSupervisor()

	// A power cut: the service starts with the machine.
	w.off()
	w.on()
	w.awaitOnline(true)
	w.isRunning()

	// Stop and start by the system's own means.
	began := time.Now()
	w.run("sc.exe", "stop", wineService)
	w.awaitService(wineService, "STOPPED")
	if d := time.Since(began); d > 15*time.Second {
		t.Errorf("the stop took %v", d)
	}
	w.awaitOnline(false)
	w.run("sc.exe", "start", wineService)
	w.awaitOnline(true)

	w.run(a, "uninstall", "agent", "--purge")
	if state := w.serviceState(wineService); state != "" {
		t.Errorf("after uninstalling the service is %s", state)
	}
	for _, path := range []string{wineProgram, `C:\Program Files\moult`, wineData, `C:\ProgramData\moult`} {
		if _, err := os.Stat(w.unixPath(path)); err == nil {
			t.Errorf("uninstalling left %s", path)
		}
	}
}

// TestE2EWindowsPackages runs the tests of the packages that differ on Windows.
func TestE2EWindowsPackages(t *testing.T) {
	m := startWine(t)
	for pkg, which := range map[string]string{
		"mesh/identity": "Store|Crash|Damaged|Denied", "updater/internal/durable": "Test",
		"updater/install": "Swap|TheVerifiedFile|Marker|Outcome",
	} {
		t.Run(pkg, func(t *testing.T) {
			program := filepath.Join(t.TempDir(), "test.exe")
			cmd := exec.Command("go", "test", "-c", "-overlay", wineOverlay(t), "-o", program, "moult/"+pkg)
			cmd.Env = append(os.Environ(), "GOOS=windows", "GOARCH=amd64", "CGO_ENABLED=0")
			if text, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("build the tests of %s for Windows: %v\n%s", pkg, err, text)
			}
			out, err := m.tryIn(filepath.Join("..", "..", pkg), program, "-test.v", "-test.run", which)
			if passed := strings.Count(out, "--- PASS"); err != nil || passed == 0 {
				t.Errorf("%v, %d passed:\n%s", err, passed, out)
			}
		})
	}
}

// install makes the agent a service of which each path has a space in it.
func (w *windowsHost) install(program string) {
	w.t.Helper()
	var made struct{ Token, Command string }
	if err := json.Unmarshal([]byte(w.c.moult("token", "create", "--json")), &made); err != nil {
		w.t.Fatal(err)
	}
	token := filepath.Join(w.t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(made.Token), 0o600); err != nil {
		w.t.Fatal(err)
	}
	words := strings.Fields(made.Command)
	args := []string{
		program, "install", "agent", "--join", words[len(words)-1], "--token-file", winePath(token), "--name", "win-1",
		"--data", wineData, "--gossip", freeOnAny(w.t), "--peer", freeOnAny(w.t), "--soak", "1s",
	}
	if out := w.run(append(args, "--dry-run")...); !strings.Contains(out, "~ service "+wineService) {
		w.t.Errorf("a dry run says:\n%s", out)
	}
	if state := w.serviceState(wineService); state != "" {
		w.t.Errorf("after a dry run the service is %s", state)
	}
	open := w.t.TempDir() // below a directory that everybody may write to
	if out, err := w.try(append(args, "--no-start", "--binary", winePath(open)+`\moult.exe`)...); err == nil || !strings.Contains(out, "can be changed by Everyone") {
		w.t.Errorf("a program in %s is not refused: %v\n%s", open, err, out)
	}
	out := w.run(args...)
	if !strings.Contains(out, "+ start "+wineService) {
		w.t.Errorf("installing says:\n%s", out)
	}
	w.awaitOnline(true)
	again := w.run(args...)
	for _, unchanged := range []string{"= program " + wineProgram, "= service " + wineService, "= start " + wineService} {
		if !strings.Contains(again, unchanged) {
			w.t.Errorf("installing again does not say %q:\n%s", unchanged, again)
		}
	}
}

// freeOnAny is an address of loopback with a port that is free on all of them: Wine
// binds UDP sockets to the interface.
func freeOnAny(t *testing.T) string {
	t.Helper()
	l, err := listenOnNodePort("0.0.0.0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := strings.Cut(l.Addr().String(), ":")
	return "127.0.0.1:" + port[strings.LastIndex(port, ":")+1:]
}

func (w *windowsHost) awaitOnline(online bool) {
	w.t.Helper()
	w.await(30*time.Second, fmt.Sprintf("win-1 to be online: %v", online), func() error {
		if h, ok := w.c.hosts()["win-1"]; !ok || h.Online != online {
			return fmt.Errorf("%w: %+v", errNotYet, h)
		}
		return nil
	})
}

func (w *windowsHost) awaitVersion(version string) {
	w.t.Helper()
	w.await(30*time.Second, "win-1 to run "+version, func() error {
		if h := w.c.hosts()["win-1"]; !h.Online || h.AgentVersion != version {
			return fmt.Errorf("%w: %+v", errNotYet, h)
		}
		return nil
	})
}

func (w *windowsHost) isRunning() {
	w.t.Helper()
	w.awaitService(wineService, "RUNNING")
}

// supervisor is the process of the service: the one that was there first.
func (w *windowsHost) supervisor() (pid int) {
	w.t.Helper()
	for p := range w.processes("agent --config") {
		if pid == 0 || p < pid {
			pid = p
		}
	}
	if pid == 0 {
		w.t.Fatal("there is no agent")
	}
	return pid
}

// update publishes a release and updates the fleet to it.
func (w *windowsHost) update(version, program, status string, patience time.Duration) apiFleetUpdate {
	w.t.Helper()
	return w.c.awaitFleetUpdate(w.startUpdate(version, program), status, patience)
}

// startUpdate publishes a release and starts the fleet update to it.
func (w *windowsHost) startUpdate(version, program string) (id string) {
	w.t.Helper()
	dir := filepath.Join(w.t.TempDir(), "release")
	w.c.moult("release", "create", "--version", version, "--key", filepath.Join(w.c.dir, "release.key"), "--out", dir, "windows/amd64="+program)
	w.c.moult("release", "publish", dir)
	return w.c.startFleetUpdate(map[string]any{"target_version": version})
}

func (w *windowsHost) installedIs(program string) {
	w.t.Helper()
	want, err := nodekit.FileDigest(program)
	if err != nil {
		w.t.Fatal(err)
	}
	if got, err := nodekit.FileDigest(w.unixPath(wineProgram)); err != nil || got != want {
		w.t.Errorf("the installed binary is another one: %s, %v; want %s", got, err, want)
	}
}

func (w *windowsHost) aside() []string {
	w.t.Helper()
	found, err := filepath.Glob(w.unixPath(wineProgram) + ".old-*")
	if err != nil {
		w.t.Fatal(err)
	}
	return found
}

// scannedFiles has somebody hold the installed binary: for too long, and then until
// the service has been stopped for the swap. That a moment is waited out is a test
// of package install.
func (w *windowsHost) scannedFiles(last string) {
	w.t.Helper()
	holder := buildForWine(w.t, "moult/testdata/wine/holdopen", "")
	c := buildForWine(w.t, ".", "-X main.version=4.0.0")
	d := buildForWine(w.t, ".", "-X main.version=5.0.0")

	release := w.holdOpen(holder, wineProgram)
	u := w.update("4.0.0", c, "halted", 90*time.Second)
	reason := u.Hosts[0].FailedReason
	if !strings.Contains(reason, wineProgram) || !strings.Contains(reason, "virus scanner") {
		w.t.Errorf("the reason does not name the file and what to do: %q", reason)
	}
	w.awaitVersion(versionB)
	w.isRunning()
	w.installedIs(last)

	release()
	w.awaitRestarted()

	release = w.holdOpen(holder, wineProgram)
	id := w.startUpdate("5.0.0", d)
	w.await(90*time.Second, "the binary to be swapped while the service restarts", func() error {
		text, err := os.ReadFile(w.unixPath(wineRestartLog))
		if err == nil && !strings.Contains(string(text), "swapping "+wineProgram+" for version 5.0.0") {
			err = fmt.Errorf("%w: the helper says %q", errNotYet, text)
		}
		return err
	})
	release()
	w.c.awaitFleetUpdate(id, "completed", 90*time.Second)
	w.awaitVersion("5.0.0")
	w.isRunning()
	w.installedIs(d)
	w.awaitRestarted()
}

// awaitRestarted waits for the end of the helper that restarts the service: a service
// that is stopped while it still looks whether the new one stays is started again,
// with the binary before.
func (w *windowsHost) awaitRestarted() {
	w.t.Helper()
	w.await(time.Minute, "the helper that restarts the service to be done", func() error {
		text, err := os.ReadFile(w.unixPath(wineRestartLog))
		if err != nil {
			return err
		}
		if !strings.Contains(string(text), wineService+" runs") {
			return fmt.Errorf("%w: it says %q", errNotYet, text)
		}
		return nil
	})
}

// failedStart puts a program in place that is no service, as if an update had done
// it: whoever restarts the service goes back.
func (w *windowsHost) failedStart() {
	w.t.Helper()
	good, err := nodekit.FileDigest(w.unixPath(wineProgram))
	if err != nil {
		w.t.Fatal(err)
	}
	bad := buildForWine(w.t, "moult/testdata/badagent", "-X main.version=6.0.0 -X main.mode=exit")
	digest, err := nodekit.FileDigest(bad)
	if err != nil {
		w.t.Fatal(err)
	}
	data := w.unixPath(wineData)
	o, err := install.LoadOutcome(data)
	if err != nil {
		w.t.Fatal(err)
	}
	w.run("sc.exe", "stop", wineService)
	w.awaitService(wineService, "STOPPED")
	if err := os.Rename(w.unixPath(wineProgram), w.unixPath(wineProgram)+".old-"+fmt.Sprint(time.Now().UnixNano())); err != nil {
		w.t.Fatal(err)
	}
	if err := copyExecutable(bad, w.unixPath(wineProgram)); err != nil {
		w.t.Fatal(err)
	}
	o.Version, o.Digest, o.Result = "6.0.0", digest, install.Committed
	if err := install.SaveOutcome(data, o); err != nil {
		w.t.Fatal(err)
	}
	w.run(w.aside()[len(w.aside())-1], restartCommandLine, "--service", wineService, "--data", wineData, "--binary", wineProgram)
	w.isRunning()
	if got, err := nodekit.FileDigest(w.unixPath(wineProgram)); err != nil || got != good {
		w.t.Errorf("the good binary is not back: %v", err)
	}
	o, err = install.LoadOutcome(data)
	if err != nil || o.Result != install.RolledBack || !strings.Contains(o.Reason, "did not start with version 6.0.0") {
		w.t.Errorf("the outcome is %+v, %v", o, err)
	}
	w.awaitOnline(true)
}

// restartCommandLine is the helper's name, which supervisors of other versions use.
const restartCommandLine = "service-restart"

// agentEndsWithItsSupervisor kills the supervisor: an agent that went on would hold
// the next one's ports.
func (w *windowsHost) agentEndsWithItsSupervisor() {
	w.t.Helper()
	supervisor := w.supervisor()
	if len(w.processes("agent --config")) != 2 {
		w.t.Fatalf("supervisor and agent are %v", w.processes("agent --config"))
	}
	p, err := os.FindProcess(supervisor)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		w.t.Fatal(err)
	}
	w.await(15*time.Second, "the agent to end", func() error {
		if left := w.processes("agent --config"); len(left) > 0 {
			return fmt.Errorf("%w: %v", errNotYet, left)
		}
		return nil
	})
}
