//go:build linux

package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"moult/cmd/internal/nodekit"
)

// machineCluster is a cluster of machines: three servers and five agents, all from the
// package but the last agent, which has the bare binary.
type machineCluster struct {
	*segmentedNet
	servers, agents []*machine
	deb             string
}

const bareAgent = "agent-5"

func (c *machineCluster) all() []*machine {
	return append(append([]*machine{}, c.servers...), c.agents...)
}

// hosts are those that the cluster shows, by name.
func (c *machineCluster) hosts() map[string]apiHost { return c.testCluster.hosts() }

// role of a machine.
func (c *machineCluster) role(m *machine) string {
	role, _, _ := strings.Cut(m.name, "-")
	return role
}

// each does the same on machines side by side.
func each(machines []*machine, do func(m *machine)) {
	var all sync.WaitGroup
	for _, m := range machines {
		all.Go(func() { do(m) })
	}
	all.Wait()
}

// mustPackage builds the deb of a version and returns its path.
func mustPackage(t *testing.T, version string) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("make", "-s", "packages", "VERSION="+version, "COMMIT=test", "DIST="+dir, "KINDS=deb")
	cmd.Dir = filepath.Join("..", "..")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make packages: %v\n%s", err, out)
	}
	debs, err := filepath.Glob(filepath.Join(dir, "moult_"+version+"_*.deb"))
	if err != nil || len(debs) != 1 {
		t.Fatalf("make packages made %q, %v", debs, err)
	}
	return debs[0]
}

// startMachines has the packages installed and the cluster joined, by the commands
// that moult prints.
func startMachines(t *testing.T) *machineCluster {
	needMachines(t)
	base := debian(t)
	network := newSegmentedNet(t, "default")
	sweepMachines(t)
	c := &machineCluster{segmentedNet: network, deb: mustPackage(t, versionA)}
	for i := 1; i <= 3; i++ {
		c.servers = append(c.servers, c.machine(base, fmt.Sprintf("server-%d", i)))
	}
	for i := 1; i <= 5; i++ {
		c.agents = append(c.agents, c.machine(base, fmt.Sprintf("agent-%d", i)))
	}
	began := time.Now()
	each(c.all(), (*machine).boot)
	t.Logf("8 machines booted in %v", time.Since(began).Round(time.Second))
	each(c.all(), func(m *machine) {
		if m.name == bareAgent {
			m.take(binary(t, versionA))
			return
		}
		m.run("dpkg", "--install", m.take(c.deb))
	})

	first := c.servers[0]
	key := filepath.Join(c.dir, "release.key")
	mustRun(t, ".", binary(t, versionA), "key", "generate", "--no-password", "--out", key)
	at := func(m *machine) string { return m.addr("default") }
	first.run("moult", "install", "server", "--bootstrap", "--release-key", first.take(key+".pub"), "--http", at(first)+":8480", "--advertise", at(first), "--soak", "1s")
	first.mustBeWell(roleServer)
	c.follow(first)
	c.within = []string{"ip", "netns", "exec", first.namespace()}
	for _, m := range c.servers[1:] {
		m.join(c.moult("token", "create", "--role", "server"), "--http", at(m)+":8480", "--soak", "1s")
	}
	c.await(time.Minute, "three voters", func() error { return c.voters(3) })
	var adding sync.Mutex
	each(c.agents, func(m *machine) {
		adding.Lock()
		command := c.moult("token", "create")
		adding.Unlock()
		m.join(command, "--soak", "1s", "--trial-timeout", "30s")
	})
	return c
}

// follow makes the client speak with the servers, from the first one's network.
func (c *machineCluster) follow(first *machine) {
	c.t.Helper()
	ca, err := os.ReadFile(filepath.Join(first.root, "var/lib/moult/ui-ca.pem"))
	if err != nil {
		c.t.Fatal(err)
	}
	token, err := os.ReadFile(filepath.Join(first.root, "var/lib/moult/admin.token"))
	if err != nil {
		c.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	var addrs []string
	for _, m := range c.servers {
		addrs = append(addrs, "https://"+m.addr("default")+":8480")
	}
	path := filepath.Join(c.dir, "ui-ca.pem")
	if err := os.WriteFile(path, ca, 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.commandEnv = []string{"MOULT_CA=" + path}
	c.client = &client{addrs: addrs, token: strings.TrimSpace(string(token)), http: first.httpClient(roots)}
}

// join runs the command that `moult token create` prints, with the one word more
// that makes a service of it.
func (m *machine) join(command string, flags ...string) {
	m.n.t.Helper()
	env, rest, _ := strings.Cut(strings.TrimSpace(command), " ")
	args := strings.Fields(rest)
	if args[0] != "moult" {
		m.n.t.Fatalf("the join command is %q", command)
	}
	if m.name == bareAgent {
		args[0] = "/root/moult-" + versionA
	}
	m.runWith([]string{env}, append(append([]string{args[0], "install"}, args[1:]...), flags...)...)
}

func (c *machineCluster) voters(n int) error {
	servers, err := c.client.servers(c.t.Context())
	voters := 0
	for _, s := range servers {
		if s.Voter && s.Healthy {
			voters++
		}
	}
	if err == nil && voters != n {
		err = fmt.Errorf("%d voters", voters)
	}
	return err
}

// pids are the main processes, by machine.
func (c *machineCluster) pids() map[string]string {
	pids := map[string]string{}
	for _, m := range c.all() {
		pids[m.name] = c.mustBeWellAs(m).pid
	}
	return pids
}

func (c *machineCluster) mustBeWellAs(m *machine) service {
	c.t.Helper()
	role := c.role(m)
	s := m.mustBeWell(role)
	want := 1
	if role == roleAgent {
		want = 2
	}
	if p := m.processes(role); len(p) != want {
		c.t.Errorf("%s has the processes %v, want %d", m.name, p, want)
	}
	return s
}

// runs waits until a host shows a version.
func (c *machineCluster) runs(name, version string) {
	c.t.Helper()
	c.await(time.Minute, name+" to run "+version, func() error {
		for _, h := range c.hosts() {
			if h.Name == name && h.Online && h.AgentVersion == version {
				return nil
			}
		}
		return fmt.Errorf("%+v", c.hosts()[name])
	})
}

// The story of packages on systemd: three servers and five agents on machines of
// their own are installed, joined, updated, given a bad release, cut off from power
// in the middle of a trial, upgraded by package, and removed.
func TestE2ESystemd(t *testing.T) {
	c := startMachines(t)
	step := func(name string) {
		t.Helper()
		t.Logf("== %s", name)
	}
	step("joined, each unit active and started once")
	for _, m := range c.agents {
		c.runs(m.name, versionA)
		if status := m.property(roleAgent, "StatusText"); !strings.Contains(status, versionA) {
			t.Errorf("%s: the status is %q", m.name, status)
		}
		if _, err := os.Stat(filepath.Join(m.root, "var/lib/moult", nodekit.JoinTokenFile)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the join token is left: %v", m.name, err)
		}
		if again := m.run(c.program(m), "install", "agent"); strings.Contains(again, "+ ") {
			t.Errorf("installing once more changes something:\n%s", again)
		}
	}
	before := c.pids()
	c.journalIsClean()

	step("a fleet update with the servers: the same main processes run the new version")
	c.publish(versionB, binary(t, versionB))
	id := strings.TrimSpace(c.moult("fleet", "update", "--servers", "--yes"))
	c.awaitFleetUpdate(id, "completed", 4*time.Minute)
	c.awaitServersOn(versionB)
	for _, m := range c.agents {
		c.runs(m.name, versionB)
	}
	c.samePids(before)
	for _, m := range c.all() {
		if m.name == bareAgent {
			continue
		}
		if out := m.tried("dpkg", "--verify", "moult"); strings.Contains(out, "/usr/bin/moult") {
			t.Errorf("%s: what the package manager owns was changed: %s", m.name, out)
		}
	}

	step("a bad release: one host goes back, and no unit failed")
	c.badRelease("6.6.6", "exit")
	c.awaitFleetUpdate(c.startFleetUpdate(nil), "halted", time.Minute)
	for _, m := range c.agents {
		c.runs(m.name, versionB)
	}
	c.samePids(before)

	step("power cut in the middle of a trial")
	third := buildVersion(t, "7.0.0")
	c.publish("7.0.0", third)
	victim := c.agents[1]
	victim.run("moult", "install", "agent", "--soak", "25s")
	c.runs(victim.name, versionB)
	id = c.startFleetUpdate(map[string]any{"host_ids": []string{c.hosts()[victim.name].ID}})
	c.awaitPhase(victim.name, "trial")
	victim.powerCut()
	victim.boot()
	victim.mustBeWell(roleAgent)
	c.runs(victim.name, versionB)
	u := c.awaitFleetUpdate(id, "halted", 2*time.Minute)
	if !strings.Contains(u.Hosts[0].FailedReason, "interrupted") {
		t.Errorf("the reason is %q", u.Hosts[0].FailedReason)
	}
	c.mustBeWellAs(victim)

	step("what is killed comes back; what hangs is killed")
	c.killedAndHung(c.agents[2], c.agents[3])

	step("a newer package: restarted once, and it runs")
	upgraded := c.agents[0]
	upgraded.run("dpkg", "--install", upgraded.take(mustPackage(t, "8.0.0")))
	c.runs(upgraded.name, "8.0.0")
	c.mustBeWellAs(upgraded)

	step("removal keeps data, purge leaves nothing")
	c.removed(c.agents[0], c.servers[2])
	bare := c.agents[4]
	bare.run("/usr/local/bin/moult", "uninstall", "agent", "--purge")
	c.nothingIsLeft(bare)
}

// program is what a machine has of moult.
func (c *machineCluster) program(m *machine) string {
	if m.name == bareAgent {
		return "/usr/local/bin/moult"
	}
	return "/usr/bin/moult"
}

// samePids wants that the service manager saw no process end.
func (c *machineCluster) samePids(before map[string]string) {
	c.t.Helper()
	for name, pid := range c.pids() {
		if pid != before[name] {
			c.t.Errorf("%s: the main process was %s and is %s", name, before[name], pid)
		}
	}
}

// journalIsClean looks at how lines are in the journal: with their priority, without
// a time of their own, and without secrets.
func (c *machineCluster) journalIsClean() {
	c.t.Helper()
	for _, m := range []*machine{c.servers[0], c.agents[0]} {
		out := m.run("journalctl", "--no-pager", "-o", "cat", "-u", unitName(c.role(m)))
		if !strings.Contains(out, `is up"`) {
			c.t.Errorf("%s does not tell that it is up:\n%s", m.name, out)
		}
		// At the head of a line: raft tells a time of its own within some.
		if lines := regexp.MustCompile(`(?m)^(time=|level=|<[0-7]>).*`).FindAllString(out, 5); lines != nil {
			c.t.Errorf("%s logs what the journal has of its own: %q", m.name, lines)
		}
		if warnings := m.run("journalctl", "--no-pager", "-o", "cat", "-p", "err", "-u", unitName(c.role(m))); strings.Contains(warnings, "is up") {
			c.t.Errorf("%s: what is information passes for an error:\n%s", m.name, warnings)
		}
	}
	password, err := os.ReadFile(filepath.Join(c.servers[0].root, "var/lib/moult", adminPasswordFile))
	if err != nil {
		c.t.Fatal(err)
	}
	if out := c.servers[0].run("journalctl", "--no-pager"); strings.Contains(out, strings.TrimSpace(string(password))) {
		c.t.Error("the first password is in the journal")
	}
}

// killedAndHung has an agent reload, kills it, then its supervisor, and has another
// one hang.
func (c *machineCluster) killedAndHung(killed, hung *machine) {
	c.t.Helper()
	// Four times quicker than what is usual: a watchdog that is told in time stays quiet.
	drop := filepath.Join(hung.root, "etc/systemd/system", unitName(roleAgent)+".d")
	if err := os.MkdirAll(drop, 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(drop, "quick.conf"), []byte("[Service]\nWatchdogSec=15s\n"), 0o644); err != nil {
		c.t.Fatal(err)
	}
	hung.run("systemctl", "daemon-reload")
	hung.run("systemctl", "restart", unitName(roleAgent))
	main := hung.mustBeWell(roleAgent).pid
	hung.run("pkill", "-STOP", "-P", main)

	main = killed.service(roleAgent).pid
	killed.run("systemctl", "reload", unitName(roleAgent))
	if s := killed.mustBeWell(roleAgent); s.pid != main || s.restarts != "0" {
		c.t.Errorf("after a reload: %+v, was %s", s, main)
	}
	killed.run("pkill", "-KILL", "-P", main)
	c.await(30*time.Second, "the supervisor to start its agent again", func() error {
		if p := killed.processes(roleAgent); len(p) != 2 {
			return fmt.Errorf("processes %v", p)
		}
		return nil
	})
	if s := killed.mustBeWell(roleAgent); s.pid != main {
		c.t.Errorf("the supervisor was %s and is %s", main, s.pid)
	}
	killed.run("kill", "-KILL", main)
	c.restarted(killed)
	c.restarted(hung)
}

// restarted waits until systemd has started an agent's unit once more.
func (c *machineCluster) restarted(m *machine) {
	c.t.Helper()
	c.await(time.Minute, m.name+" to be started again", func() error {
		s := m.service(roleAgent)
		if s.active != "active" || s.restarts != "1" || len(m.processes(roleAgent)) != 2 {
			return fmt.Errorf("%+v %v", s, m.processes(roleAgent))
		}
		return nil
	})
	if state := m.state(); state != "running" {
		c.t.Errorf("%s is %s: %s", m.name, state, m.failedUnits())
	}
}

// removed takes the package away, has it come back, and purges it.
func (c *machineCluster) removed(agent, server *machine) {
	c.t.Helper()
	agent.run("dpkg", "--remove", "moult")
	if p := agent.tried("pgrep", "-x", "moult"); p != "" {
		c.t.Errorf("processes are left: %s", p)
	}
	if _, err := os.Stat(filepath.Join(agent.root, "var/lib/moult/identity")); err != nil {
		c.t.Errorf("removal did not keep the data: %v", err)
	}
	if state := agent.state(); state != "running" {
		c.t.Errorf("after removal %s is %s: %s", agent.name, state, agent.failedUnits())
	}
	agent.run("dpkg", "--install", agent.take(c.deb))
	agent.run("moult", "install", "agent")
	c.await(time.Minute, "the host to come back as the one it was", func() error {
		if h := c.hosts()[agent.name]; !h.Online {
			return fmt.Errorf("%+v", h)
		}
		return nil
	})
	c.mustBeWellAs(agent)
	for _, m := range []*machine{agent, server} {
		m.run("dpkg", "--purge", "moult")
		c.nothingIsLeft(m)
	}
	c.await(time.Minute, "the others to go on", func() error { return c.voters(2) })
}

// nothingIsLeft looks for what bears the name: files, processes, units, the account.
func (c *machineCluster) nothingIsLeft(m *machine) {
	c.t.Helper()
	found := m.run("find", "/", "-xdev", "-iname", "*moult*", "-not", "-path", "/proc/*", "-not", "-path", "/root/*", "-not", "-path", "/run/*", "-not", "-path", "/sys/*")
	if strings.TrimSpace(found) != "" {
		c.t.Errorf("%s: left behind:\n%s", m.name, found)
	}
	if out := m.tried("pgrep", "-a", "moult"); out != "" {
		c.t.Errorf("%s: processes are left: %s", m.name, out)
	}
	if out := m.tried("systemctl", "list-units", "--all", "--no-legend", "moult*"); out != "" {
		c.t.Errorf("%s: units are left: %s", m.name, out)
	}
	if out := m.tried("getent", "passwd", "moult"); out != "" {
		c.t.Errorf("%s: the account is left: %s", m.name, out)
	}
	if out := m.tried("getent", "group", "moult"); out != "" {
		c.t.Errorf("%s: the group is left: %s", m.name, out)
	}
	if state := m.state(); state != "running" {
		c.t.Errorf("%s is %s: %s", m.name, state, m.failedUnits())
	}
}
