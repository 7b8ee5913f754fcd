//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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

// The tests of packages and units run on machines: Debian with systemd as its first
// process, in a container of systemd-nspawn each, with a disk (an overlay over one
// installation that all share), a network namespace and cgroups of its own.

// machineTools are what that takes, and the Debian packages that have it.
var machineTools = map[string]string{
	"debootstrap": "debootstrap", "systemd-nspawn": "systemd-container", "nsenter": "util-linux", "ip": "iproute2", "mount": "mount",
}

// commandPatience bounds one command on a machine.
const commandPatience = 2 * time.Minute

// needMachines skips the test where machines cannot be had, and fails it in CI.
func needMachines(t *testing.T) {
	t.Helper()
	if os.Getenv("MOULT_SYSTEMD") == "" {
		t.Skip("it takes minutes and root: run it by `make e2e-systemd`")
	}
	if os.Geteuid() != 0 {
		t.Fatal("machines take root")
	}
	for tool, pkg := range machineTools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v; install the package %s", err, pkg)
		}
	}
}

// debian returns the directory of a Debian with systemd. It is made once, by
// debootstrap, and kept in the user's cache, or where MOULT_SYSTEMD_BASE says.
func debian(t *testing.T) string {
	t.Helper()
	base := os.Getenv("MOULT_SYSTEMD_BASE")
	if base == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		base = filepath.Join(cache, "moult-e2e", "debian-bookworm")
	}
	if _, err := os.Stat(filepath.Join(base, "etc", "debian_version")); err == nil {
		return base
	}
	if err := os.MkdirAll(filepath.Dir(base), 0o755); err != nil {
		t.Fatal(err)
	}
	making, err := os.MkdirTemp(filepath.Dir(base), "making-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(making)
	began := time.Now()
	mirror := os.Getenv("MOULT_SYSTEMD_MIRROR")
	if mirror == "" {
		mirror = "http://deb.debian.org/debian"
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "debootstrap", "--variant=minbase", "--include=systemd,systemd-sysv,dbus,procps", "bookworm", making, mirror).CombinedOutput()
	if err != nil {
		t.Fatalf("debootstrap: %v\n%s", err, out)
	}
	// Each machine gets an id of its own.
	if err := os.WriteFile(filepath.Join(making, "etc", "machine-id"), nil, 0o444); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(making, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(making, base); err != nil {
		if _, made := os.Stat(filepath.Join(base, "etc", "debian_version")); made != nil { // by nobody else meanwhile
			t.Fatal(err)
		}
	}
	t.Logf("made a Debian in %v", time.Since(began).Round(time.Second))
	return base
}

// machine is a booted Debian.
type machine struct {
	*segmentedHost
	root    string // of its file system, as this test sees it
	cgroups []string
	nspawn  *exec.Cmd
	gone    chan struct{} // closed when nspawn has ended
	init    int           // process id of its systemd
}

// machine makes one, not yet booted, until the test ends.
func (n *segmentedNet) machine(base, name string) *machine {
	n.t.Helper()
	m := &machine{segmentedHost: n.host(name, n.segments[0])}
	dir := filepath.Join(n.dir, name)
	m.root = filepath.Join(dir, "root")
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, d := range []string{m.root, upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			n.t.Fatal(err)
		}
	}
	mustMount := func(args ...string) {
		if out, err := exec.Command("mount", args...).CombinedOutput(); err != nil {
			n.t.Fatalf("mount %s: %s", strings.Join(args, " "), out)
		}
	}
	mustMount("-t", "overlay", "overlay", "-o", fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", base, upper, work), m.root)
	for _, hierarchy := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"} {
		if _, err := os.Stat(filepath.Join(hierarchy, "cgroup.procs")); err == nil {
			m.cgroups = append(m.cgroups, filepath.Join(hierarchy, m.namespace()))
		}
	}
	n.t.Cleanup(m.remove)
	for path, text := range map[string]string{"etc/hostname": name + "\n", "etc/hosts": "127.0.0.1 localhost " + name + "\n"} {
		if err := os.WriteFile(filepath.Join(m.root, path), []byte(text), 0o644); err != nil {
			n.t.Fatal(err)
		}
	}
	return m
}

// boot starts it and waits until systemd says that all is up.
func (m *machine) boot() {
	t := m.n.t
	t.Helper()
	script := ""
	for _, dir := range m.cgroups {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		script += "echo $$ >" + dir + "/cgroup.procs\n"
	}
	console, err := os.OpenFile(filepath.Join(m.n.dir, m.name, "console"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer console.Close()
	script += "exec systemd-nspawn --quiet --register=no --keep-unit --boot --console=pipe --link-journal=no --resolv-conf=off --timezone=off" +
		" --directory=" + m.root + " --machine=" + m.namespace() + " --hostname=" + m.name + " --network-namespace-path=/run/netns/" + m.namespace()
	m.nspawn = exec.Command("sh", "-ec", script)
	m.nspawn.Stdout, m.nspawn.Stderr = console, console
	if err := m.nspawn.Start(); err != nil {
		t.Fatal(err)
	}
	nspawn, gone := m.nspawn, make(chan struct{})
	m.gone = gone
	go func() {
		_ = nspawn.Wait()
		close(gone)
	}()
	m.n.await(time.Minute, m.name+" to boot", func() error {
		select {
		case <-gone:
			text, _ := os.ReadFile(console.Name())
			t.Fatalf("%s does not boot: %s", m.name, text)
		default:
		}
		if m.init = childOf(nspawn.Process.Pid); m.init == 0 {
			return errors.New("nothing runs in it")
		}
		if state := m.state(); state != "running" {
			return fmt.Errorf("it is %q: %s", state, m.failedUnits())
		}
		return nil
	})
}

// powerCut ends all that runs on it at once.
func (m *machine) powerCut() {
	m.n.t.Helper()
	if err := syscall.Kill(m.init, syscall.SIGKILL); err != nil {
		m.n.t.Fatalf("kill %s: %v", m.name, err)
	}
	select {
	case <-m.gone:
	case <-time.After(30 * time.Second):
		m.n.t.Fatalf("%s outlives its first process", m.name)
	}
	m.nspawn = nil
}

// remove ends it and takes away what it is made of.
func (m *machine) remove() {
	if m.nspawn != nil {
		if m.n.t.Failed() {
			for _, role := range []string{roleAgent, roleServer} {
				if out := m.tried("journalctl", "--no-pager", "-n", "60", "-u", unitName(role)); strings.Contains(out, "moult") {
					m.n.t.Logf("--- %s\n%s", m.name, out)
				}
			}
		}
		_ = syscall.Kill(m.init, syscall.SIGKILL)
		select {
		case <-m.gone:
		case <-time.After(20 * time.Second):
			_ = m.nspawn.Process.Kill()
			<-m.gone
		}
	}
	if out, err := exec.Command("umount", m.root).CombinedOutput(); err != nil {
		m.n.t.Errorf("umount %s: %s", m.root, out)
	}
	for _, dir := range m.cgroups {
		removeCgroup(m.n.t, dir)
	}
}

// removeCgroup removes a cgroup and those below it; processes that were killed may
// take a moment to leave.
func removeCgroup(t testing.TB, dir string) {
	var dirs []string
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	slices.Reverse(dirs)
	for _, d := range dirs {
		deadline := time.Now().Add(10 * time.Second)
		for err := syscall.Rmdir(d); err != nil && !errors.Is(err, syscall.ENOENT); err = syscall.Rmdir(d) {
			if time.Now().After(deadline) {
				t.Errorf("remove cgroup %s: %v", d, err)
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// command is one that runs on the machine, as root.
func (m *machine) command(ctx context.Context, env []string, args ...string) *exec.Cmd {
	argv := slices.Concat([]string{"--target", strconv.Itoa(m.init), "--mount", "--uts", "--ipc", "--net", "--pid", "--wd=/root", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin", "HOME=/root", "DEBIAN_FRONTEND=noninteractive"}, env, args)
	return exec.CommandContext(ctx, "nsenter", argv...)
}

// run runs a command on the machine and returns its output.
func (m *machine) run(args ...string) string {
	m.n.t.Helper()
	return m.runWith(nil, args...)
}

func (m *machine) runWith(env []string, args ...string) string {
	m.n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandPatience)
	defer cancel()
	out, err := m.command(ctx, env, args...).CombinedOutput()
	if err != nil {
		m.n.t.Fatalf("%s: %s: %v\n%s", m.name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// tried runs a command that may fail.
func (m *machine) tried(args ...string) string {
	ctx, cancel := context.WithTimeout(context.Background(), commandPatience)
	defer cancel()
	out, _ := m.command(ctx, nil, args...).CombinedOutput()
	return strings.TrimSpace(string(out))
}

// take copies a file to the machine's /root.
func (m *machine) take(path string) string {
	m.n.t.Helper()
	to := filepath.Join("/root", filepath.Base(path))
	if err := copyExecutable(path, filepath.Join(m.root, to)); err != nil {
		m.n.t.Fatal(err)
	}
	return to
}

func (m *machine) state() string { return m.tried("systemctl", "is-system-running") }

func (m *machine) failedUnits() string { return m.tried("systemctl", "--failed", "--no-legend") }

// property is one of a unit's, as systemctl shows it.
func (m *machine) property(role, name string) string {
	m.n.t.Helper()
	return strings.TrimSpace(m.run("systemctl", "show", "--value", "--property="+name, unitName(role)))
}

// service is how systemd sees a role's unit.
type service struct {
	active, sub, pid, restarts, result string
}

func (m *machine) service(role string) (s service) {
	m.n.t.Helper()
	for line := range strings.Lines(m.run("systemctl", "show", "--property=ActiveState,SubState,MainPID,NRestarts,Result", unitName(role))) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "ActiveState":
			s.active = value
		case "SubState":
			s.sub = value
		case "MainPID":
			s.pid = value
		case "NRestarts":
			s.restarts = value
		case "Result":
			s.result = value
		}
	}
	return s
}

// mustBeWell wants a unit that was never restarted, and nothing that failed.
func (m *machine) mustBeWell(role string) service {
	m.n.t.Helper()
	s := m.service(role)
	if s.active != "active" || s.sub != "running" || s.result != "success" || s.restarts != "0" {
		m.n.t.Errorf("%s: the unit is %+v", m.name, s)
	}
	if state := m.state(); state != "running" {
		m.n.t.Errorf("%s is %s: %s", m.name, state, m.failedUnits())
	}
	return s
}

// processes are those of a role's unit, by the kernel's list for its cgroup.
func (m *machine) processes(role string) []string {
	m.n.t.Helper()
	cgroup := m.property(role, "ControlGroup")
	for _, dir := range m.cgroups {
		for _, path := range []string{filepath.Join(dir, cgroup), filepath.Join(dir, "payload", cgroup)} {
			if text, err := os.ReadFile(filepath.Join(path, "cgroup.procs")); err == nil && len(bytes.TrimSpace(text)) > 0 {
				return strings.Fields(string(text))
			}
		}
	}
	return nil
}
