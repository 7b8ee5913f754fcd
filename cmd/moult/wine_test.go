//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

// The tests of Windows run on a machine of Wine's: a directory with a registry, a
// service manager and programs of windows/amd64.

// winePatience bounds one command there.
const winePatience = time.Minute

// wineMachine is on until the test ends.
type wineMachine struct {
	t       *testing.T
	program string
	prefix  string
	hold    io.WriteCloser // while it is open, the machine stays on
}

// needWine skips the test where it was not asked for, and fails it where a tool is
// missing.
func needWine(t *testing.T) (program string) {
	t.Helper()
	if os.Getenv("MOULT_WINE") == "" {
		t.Skip("it takes a minute or two and Wine: run it by `make e2e-windows`")
	}
	if _, err := exec.LookPath("x86_64-w64-mingw32-gcc"); err != nil {
		t.Fatalf("%v; install the package gcc-mingw-w64-x86-64", err)
	}
	for _, name := range []string{"wine64", "/usr/lib/wine/wine64", "wine"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Fatal("Wine is not installed; install the package wine64")
	return ""
}

// startWine makes a machine and turns it on.
func startWine(t *testing.T) *wineMachine {
	t.Helper()
	program := needWine(t)
	prefix, err := os.MkdirTemp("", "moult-wine-")
	if err != nil {
		t.Fatal(err)
	}
	m := &wineMachine{t: t, program: program, prefix: prefix}
	t.Cleanup(m.end)
	m.run("wineboot", "--init")
	m.off() // or the next program would meet services that are just ending
	m.provideRandomness()
	m.on()
	return m
}

// on turns the machine on, with the services that start with it. They end with the
// last program that somebody has started, so one is held.
func (m *wineMachine) on() {
	m.t.Helper()
	hold := m.command(context.Background(), "cmd.exe", "/c", "set /p line=")
	var err error
	if m.hold, err = hold.StdinPipe(); err != nil {
		m.t.Fatal(err)
	}
	if err := hold.Start(); err != nil {
		m.t.Fatal(err)
	}
	go func() { _ = hold.Wait() }()
	m.await(winePatience, "the machine to have started", func() error {
		if state := m.serviceState("nsiproxy"); state != "RUNNING" {
			return fmt.Errorf("nsiproxy is %q", state)
		}
		return nil
	})
}

func (m *wineMachine) await(patience time.Duration, what string, ready func() error) {
	m.t.Helper()
	(&testCluster{t: m.t}).await(patience, what, ready)
}

// provideRandomness gives an old Wine the library that Go's programs need.
func (m *wineMachine) provideRandomness() {
	m.t.Helper()
	library := m.unixPath(`C:\windows\system32\bcryptprimitives.dll`)
	if _, err := os.Stat(library); err == nil {
		return
	}
	mustRun(m.t, ".", "x86_64-w64-mingw32-gcc", "-shared", "-O2", "-s", "-o", library, "../../testdata/wine/bcryptprimitives.c", "-ladvapi32")
}

func (m *wineMachine) env() []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return strings.HasPrefix(name, "MOULT_") || strings.HasPrefix(name, "WINE") || name == "DISPLAY" || name == "HOME"
	})
	return append(env, "WINEPREFIX="+m.prefix, "HOME="+m.prefix, "WINEDEBUG=-all", "WINEDLLOVERRIDES=mscoree,mshtml=;winemenubuilder.exe=d")
}

func (m *wineMachine) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, m.program, args...)
	cmd.Env = m.env()
	return cmd
}

// try runs a program and returns what it prints.
func (m *wineMachine) try(args ...string) (string, error) {
	m.t.Helper()
	return m.tryIn("", args...)
}

// tryIn is try in a directory of this machine.
func (m *wineMachine) tryIn(dir string, args ...string) (string, error) {
	m.t.Helper()
	// A file, because services that the command starts would hold a pipe.
	out, err := os.CreateTemp(m.t.TempDir(), "output-")
	if err != nil {
		m.t.Fatal(err)
	}
	defer out.Close()
	ctx, cancel := context.WithTimeout(context.Background(), winePatience)
	defer cancel()
	cmd := m.command(ctx, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, out, out
	err = cmd.Run()
	text, _ := os.ReadFile(out.Name())
	return strings.ReplaceAll(string(text), "\r", ""), err
}

func (m *wineMachine) run(args ...string) string {
	m.t.Helper()
	out, err := m.try(args...)
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// unixPath is where a file of the machine's drive C is on this one.
func (m *wineMachine) unixPath(path string) string {
	return filepath.Join(m.prefix, "drive_c", strings.ReplaceAll(strings.TrimPrefix(path, `C:\`), `\`, "/"))
}

// winePath is what the machine calls a file of this one.
func winePath(path string) string { return `Z:` + strings.ReplaceAll(path, "/", `\`) }

// end turns the machine off and removes it, with all that runs on it.
func (m *wineMachine) end() {
	m.off()
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		left := m.processes("")
		if len(left) == 0 {
			break
		}
		if time.Since(began) > 10*time.Second {
			m.t.Errorf("processes are left: %v", left)
			for pid := range left {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			break
		}
	}
	if err := os.RemoveAll(m.prefix); err != nil {
		m.t.Error(err)
	}
}

// off turns the machine off as a power cut does.
func (m *wineMachine) off() {
	if m.hold != nil {
		defer m.hold.Close() // not before, or services would be asked to stop
	}
	server, err := exec.LookPath("wineserver")
	if err != nil {
		server = "/usr/lib/wine/wineserver"
	}
	for _, how := range [][]string{{"-k"}, {"-w"}} {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		cmd := exec.CommandContext(ctx, server, how...)
		cmd.Env = m.env()
		_ = cmd.Run() // it fails when the machine is off already
		cancel()
	}
}

// processes are those of the machine whose command line has a word in it.
func (m *wineMachine) processes(word string) map[int]string {
	found := map[int]string{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		env, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err != nil || !bytes.Contains(env, []byte("WINEPREFIX="+m.prefix+"\x00")) {
			continue
		}
		line, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if text := strings.ReplaceAll(string(line), "\x00", " "); strings.Contains(text, word) {
			found[pid] = text
		}
	}
	return found
}

// serviceState is RUNNING, STOPPED…, or "" when there is no such service.
func (m *wineMachine) serviceState(name string) string {
	m.t.Helper()
	out, err := m.try("sc.exe", "query", name)
	if err != nil {
		return ""
	}
	for line := range strings.SplitSeq(out, "\n") {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "STATE" {
			words := strings.Fields(value)
			return words[len(words)-1]
		}
	}
	return ""
}

// buildForWine builds a command for the machine.
func buildForWine(t *testing.T, pkg, ldflags string) string {
	t.Helper()
	dir := t.TempDir()
	out := filepath.Join(dir, "program.exe")
	cmd := exec.Command("go", "build", "-trimpath", "-overlay", wineOverlay(t), "-ldflags", "-s -w "+ldflags, "-o", out, pkg)
	cmd.Env = append(os.Environ(), "GOOS=windows", "GOARCH=amd64", "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s for Windows: %v\n%s", pkg, err, text)
	}
	return out
}

// wineOverlay has Go's own library do without two calls that Wine 8 does not know,
// and Windows does: ignoring unreachable networks on UDP sockets, and deleting files
// with POSIX semantics, which has a fallback for other old systems.
func wineOverlay(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	root := strings.TrimSpace(string(mustRun(t, ".", "go", "env", "GOROOT")))
	replace := map[string]string{}
	for file, change := range map[string]struct{ after, old, new string }{
		"net/fd_windows.go": {"SIO_UDP_NETRESET", "if err != nil {", "if err != nil && err != syscall.Errno(10045) {"},
		"internal/syscall/windows/at_windows.go": {
			"FileDispositionInformationEx", "case STATUS_INVALID_INFO_CLASS,", "case NTStatus(0xC0000002), STATUS_INVALID_INFO_CLASS,",
		},
	} {
		path := filepath.Join(root, "src", file)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		head, tail, found := strings.Cut(string(text), change.after)
		if !found || !strings.Contains(tail, change.old) {
			t.Fatalf("%s is not what this test knows; look whether Wine still needs the change", path)
		}
		changed := filepath.Join(dir, filepath.Base(file))
		if err := os.WriteFile(changed, []byte(head+change.after+strings.Replace(tail, change.old, change.new, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		replace[path] = changed
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// holdOpen has a program on the machine hold a file, as a virus scanner does, until
// release.
func (m *wineMachine) holdOpen(program, path string) (release func()) {
	m.t.Helper()
	const longest = 5 * time.Minute
	cmd := m.command(context.Background(), program, path, longest.String())
	out, err := os.CreateTemp(m.t.TempDir(), "held-")
	if err != nil {
		m.t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait()
		out.Close()
	}()
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		text, _ := os.ReadFile(out.Name())
		if strings.Contains(string(text), "held") {
			break
		}
		if time.Since(began) > 20*time.Second {
			m.t.Fatalf("%s is not held: %s", path, text)
		}
	}
	return func() {
		m.t.Helper()
		m.await(20*time.Second, path+" to be free", func() error {
			holders := m.processes(path + " " + longest.String())
			for pid := range holders {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			if len(holders) > 0 {
				return errNotYet
			}
			return nil
		})
	}
}

var errNotYet = errors.New("not yet")

func (m *wineMachine) awaitService(name, state string) {
	m.t.Helper()
	m.await(30*time.Second, "service "+name+" to be "+state, func() error {
		if got := m.serviceState(name); got != state {
			return fmt.Errorf("%w: it is %q", errNotYet, got)
		}
		return nil
	})
}
