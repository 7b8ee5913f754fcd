package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"moult/mesh/identity"
)

// What a host that has nothing to do may take, agent and supervisor together.
const (
	maxIdleResident = 24e6 // bytes
	maxIdlePrivate  = 10e6
	maxIdleCPU      = 0.3 // per cent of a core, in a pool of idlePool
	maxIdleGrowth   = 1e6 // bytes of private memory between the parts of a soak
	idlePool        = 200
)

// idleRow is one line of what `make bench-idle` prints. Memory is in bytes, the
// median of a minute.
type idleRow struct {
	Program   string
	Few, Many memory  // alone or with one neighbour; in a pool of idlePool
	CPU       float64 // per cent of a core, in the pool
	Switches  float64 // context switches a second, in the pool
	Packets   float64 `json:",omitempty"` // of both ways, a second, in the pool
}

// idleReport is build/bench-idle.json.
type idleReport struct {
	Members int
	Window  string
	Rows    []idleRow
	Soak    soakReport
	Goals   map[string]string
	Missed  []string
}

// TestBenchIdle measures what the processes of a host at rest take: memory, time,
// wake-ups, packets, and whether any of it grows; in a pool of real members and, in
// the same run, beside the smallest program that gossips and listens with TLS, and
// Prometheus' node exporter. `make bench-idle` runs it.
func TestBenchIdle(t *testing.T) {
	out := os.Getenv("MOULT_BENCH_IDLE")
	if out == "" {
		t.Skip("run by make bench-idle")
	}
	window := durationSetting(t, "MOULT_IDLE_WINDOW", time.Minute)
	soak := durationSetting(t, "MOULT_IDLE_SOAK", 5*time.Minute)
	bare := filepath.Join(t.TempDir(), "bareagent")
	if text, err := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bare, "moult/testdata/bareagent").CombinedOutput(); err != nil {
		t.Fatalf("build bareagent: %v\n%s", err, text)
	}
	c := newCluster(t)
	c.up(1, 1, fmt.Sprintf("--server-arg=--hosts-per-address=%d", manyHosts), fmt.Sprintf("--agent-arg=--hosts-per-address=%d", manyHosts))
	agent := c.idleHost("agent-1")
	rival := exec.Command(bare)
	addr := startUntilUp(t, rival)
	watched := []*idleProcess{
		{idleRow: idleRow{Program: "moult agent"}, pid: agent.child, ports: agent.ports},
		{idleRow: idleRow{Program: "its supervisor"}, pid: agent.supervisor},
		{idleRow: idleRow{Program: "memberlist and TLS"}, pid: rival.Process.Pid, ports: []int{portOf(t, addr)}},
	}
	if exporter := startExporter(t); exporter != 0 {
		watched = append(watched, &idleProcess{idleRow: idleRow{Program: "node_exporter, never scraped"}, pid: exporter})
	}

	t.Log("few members")
	for i, m := range medianMemory(t, watched, window) {
		watched[i].Few = m
	}
	t.Logf("%d members join", idlePool)
	startCrowd(c, idlePool-2)
	startUntilUp(t, exec.Command(bare, "-members", strconv.Itoa(idlePool-1), "-join", addr))
	c.await(2*time.Minute, "all to be members", func() error {
		if alive, _ := agent.asks(t); alive != idlePool-1 {
			return fmt.Errorf("the agent sees %d", alive)
		}
		return nil
	})
	settle(window) // what their joining took is given back
	t.Log("many members")
	before := make([]activity, len(watched))
	for i, p := range watched {
		before[i] = activityOf(t, p.pid)
	}
	began := time.Now()
	for i, m := range medianMemory(t, watched, window) {
		watched[i].Many = m
	}
	for i, p := range watched {
		now, took := activityOf(t, p.pid), time.Since(began).Seconds()
		p.CPU = 100 * (now.cpu - before[i].cpu).Seconds() / took
		p.Switches = (now.switches - before[i].switches) / took
	}
	countPackets(t, watched, window/3)
	report := idleReport{Members: idlePool, Window: window.String(), Soak: runSoak(t, agent, soak), Goals: map[string]string{
		"resident": "≤ 24 MB", "private": "≤ 10 MB", "CPU": "< 0.3 %", "growth": "none",
	}}
	both := idleRow{Program: "moult, both"}
	for i, p := range watched {
		if i < 2 {
			both.Few, both.Many = both.Few.plus(p.Few), both.Many.plus(p.Many)
			both.CPU, both.Switches, both.Packets = both.CPU+p.CPU, both.Switches+p.Switches, both.Packets+p.Packets
		}
		report.Rows = append(report.Rows, p.idleRow)
	}
	report.Rows = slices.Insert(report.Rows, 2, both)
	report.judge(both)
	report.print()
	text, err := json.MarshalIndent(report, "", "  ")
	must(t, err)
	must(t, os.MkdirAll(filepath.Dir(out), 0o755))
	must(t, os.WriteFile(out, append(text, '\n'), 0o644))
	for _, missed := range report.Missed {
		t.Error(missed)
	}
}

// durationSetting is what a variable of the environment says, or the usual.
func durationSetting(t *testing.T, name string, usual time.Duration) time.Duration {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return usual
	}
	d, err := time.ParseDuration(text)
	must(t, err)
	return d
}

// idleHost is an agent and its supervisor.
type idleHost struct {
	supervisor, child int // process ids
	ports             []int
	creds             identity.Credentials
	peer              string
}

func (c *testCluster) idleHost(name string) idleHost {
	c.t.Helper()
	var plan devPlan
	must(c.t, json.Unmarshal([]byte(c.read("dev.json")), &plan))
	ids, err := identity.OpenStore(filepath.Join(c.dir, name, "data", "identity"))
	must(c.t, err)
	creds, err := ids.Load()
	must(c.t, err)
	h := idleHost{supervisor: c.pid(name), child: childOf(c.pid(name)), creds: creds}
	for _, n := range plan.Agents {
		if n.Name == name {
			h.peer, h.ports = n.Peer, []int{portOf(c.t, n.Gossip), portOf(c.t, n.Peer)}
		}
	}
	return h
}

// asks has the agent tell how many members it sees and how many goroutines it has.
func (h idleHost) asks(t *testing.T) (alive, goroutines int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	self, err := askSelf(ctx, h.creds, h.peer)
	must(t, err)
	return self.Survey.Pools[0].Alive, self.Goroutines
}

func portOf(t testing.TB, addr string) int {
	t.Helper()
	_, text, err := net.SplitHostPort(addr)
	must(t, err)
	port, err := strconv.Atoi(text)
	must(t, err)
	return port
}

// startExporter returns the process id of Prometheus' node exporter; 0: it is not
// installed.
func startExporter(t *testing.T) int {
	t.Helper()
	path, err := exec.LookPath("prometheus-node-exporter")
	if err != nil {
		t.Logf("node_exporter is not measured: %v; it is Debian's package prometheus-node-exporter", err)
		return 0
	}
	cmd := exec.Command(path, "--web.listen-address="+freeAddress(t))
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd.Process.Pid
}

// idleProcess is a process that is looked at, and what it was found to take.
type idleProcess struct {
	idleRow
	pid   int
	ports []int // that it gossips and listens on
}

func settle(d time.Duration) { <-time.After(d) }

// medianMemory looks at all processes again and again.
func medianMemory(t *testing.T, watched []*idleProcess, window time.Duration) []memory {
	t.Helper()
	const looks = 20
	seen := make([][]memory, len(watched))
	for range looks {
		settle(window / looks)
		for i, p := range watched {
			seen[i] = append(seen[i], memoryOf(t, p.pid))
		}
	}
	medians := make([]memory, len(watched))
	for i, all := range seen {
		slices.SortFunc(all, func(a, b memory) int { return int(a.Resident - b.Resident) })
		medians[i] = all[looks/2]
	}
	return medians
}

// countPackets counts, by a socket that sees all of loopback, which needs root.
func countPackets(t *testing.T, watched []*idleProcess, window time.Duration) {
	t.Helper()
	const allProtocols = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, allProtocols)
	if err != nil {
		t.Logf("packets are not counted: %v", err)
		return
	}
	defer unix.Close(fd)
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}))
	owner := map[uint16]*idleProcess{}
	for _, p := range watched {
		for _, port := range p.ports {
			owner[uint16(port)] = p
		}
	}
	buf := make([]byte, 128)
	for end := time.Now().Add(window); time.Now().Before(end); {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			continue // nothing came
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if !ok || link.Pkttype != unix.PACKET_OUTGOING || n < 24 || buf[0]>>4 != 4 {
			continue // loopback shows each packet a second time, as it comes in
		}
		header := int(buf[0]&15) * 4
		source, target := uint16(buf[header])<<8|uint16(buf[header+1]), uint16(buf[header+2])<<8|uint16(buf[header+3])
		for _, port := range []uint16{source, target} {
			if p := owner[port]; p != nil {
				p.Packets += 1 / window.Seconds()
				break
			}
		}
	}
}

// judge notes which goals were missed.
func (r *idleReport) judge(both idleRow) {
	miss := func(missed bool, format string, args ...any) {
		if missed {
			r.Missed = append(r.Missed, fmt.Sprintf(format, args...))
		}
	}
	for _, pool := range []struct {
		name string
		memory
	}{{"few members", both.Few}, {fmt.Sprintf("%d members", idlePool), both.Many}} {
		miss(pool.Resident > maxIdleResident, "%s: %.1f MB resident", pool.name, pool.Resident/1e6)
		miss(pool.Private > maxIdlePrivate, "%s: %.1f MB private", pool.name, pool.Private/1e6)
	}
	miss(both.CPU >= maxIdleCPU, "%.2f %% of a core", both.CPU)
	miss(r.Soak.Grown > maxIdleGrowth, "private memory grew by %.1f MB", r.Soak.Grown/1e6)
	miss(r.Soak.GoroutinesGrown > 0, "%d goroutines more", r.Soak.GoroutinesGrown)
	miss(r.Soak.FilesGrown > 0, "%d open files more", r.Soak.FilesGrown)
}

func (r *idleReport) print() {
	var b strings.Builder
	fmt.Fprintf(&b, "\n| MB | few members: resident | proportional | private | of it anonymous | %d members: resident | proportional | private | of it anonymous | CPU, %% of a core | switches/s | packets/s |\n", r.Members)
	b.WriteString("|---|" + strings.Repeat("---:|", 11) + "\n")
	for _, row := range r.Rows {
		fmt.Fprintf(&b, "| %s |", row.Program)
		for _, m := range []memory{row.Few, row.Many} {
			fmt.Fprintf(&b, " %.1f | %.1f | %.1f | %.1f |", m.Resident/1e6, m.Proportional/1e6, m.Private/1e6, m.Anonymous/1e6)
		}
		packets := "–"
		if row.Packets > 0 {
			packets = fmt.Sprintf("%.1f", row.Packets)
		}
		fmt.Fprintf(&b, " %.2f | %.0f | %s |\n", row.CPU, row.Switches, packets)
	}
	fmt.Fprintf(&b, "\nSoak of %s: %s\n", r.Soak.Took, r.Soak)
	fmt.Fprintf(&b, "To be, both together: resident ≤ 24 MB, private ≤ 10 MB, CPU < 0.3 %%, no growth. Missed: %s\n", cmp.Or(strings.Join(r.Missed, "; "), "none"))
	fmt.Print(b.String())
}
