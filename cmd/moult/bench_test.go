//go:build linux

package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// BenchmarkAtRest reports what the processes of a host that has nothing to do take
// of the memory, and beside it, in the same run, the smallest program that gossips
// and listens with TLS (testdata/bareagent). Resident counts the pages of the
// binary that lie in memory; private is what the process has for itself.
func BenchmarkAtRest(b *testing.B) {
	bare := filepath.Join(b.TempDir(), "bareagent")
	if out, err := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bare, "moult/testdata/bareagent").CombinedOutput(); err != nil {
		b.Fatalf("build bareagent: %v\n%s", err, out)
	}
	for b.Loop() {
		c := startCluster(b, 1, 2)
		alternative := startBare(b, bare)
		awaitQuiet(c, "agent-1")
		supervisor := c.pid("agent-1")
		var agent memory
		for _, child := range children(supervisor) {
			agent = agent.plus(memoryOf(b, child))
		}
		both := agent.plus(memoryOf(b, supervisor))
		other := memoryOf(b, alternative)
		b.ReportMetric(both.resident/1e6, "host-resident-MB")
		b.ReportMetric(both.private/1e6, "host-private-MB")
		b.ReportMetric(agent.private/1e6, "agent-private-MB")
		b.ReportMetric(memoryOf(b, c.pid("server-1")).resident/1e6, "server-resident-MB")
		b.ReportMetric(other.private/1e6, "bare-private-MB")
		b.ReportMetric(both.private/other.private, "private-÷-bare")
		st, err := os.Stat(binary(b, versionA))
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(st.Size())/1e6, "binary-MB")
		c.stop()
	}
	b.ReportMetric(0, "ns/op")
}

// startBare starts the program that an agent is compared with.
func startBare(b *testing.B, path string) (pid int) {
	b.Helper()
	cmd := exec.Command(path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "up\n" {
		b.Fatalf("bareagent does not come up: %q, %v", line, err)
	}
	return cmd.Process.Pid
}

// awaitQuiet waits until a host's memory no longer changes: it has joined, and
// the garbage of that has been collected or will stay.
func awaitQuiet(c *testCluster, name string) {
	c.t.Helper()
	var last float64
	since := time.Now()
	c.await(time.Minute, name+" to come to rest", func() error {
		now := memoryOf(c.t, c.pid(name)).resident
		for _, child := range children(c.pid(name)) {
			now += memoryOf(c.t, child).resident
		}
		if now != last {
			last, since = now, time.Now()
		}
		if quiet := time.Since(since); quiet < 3*time.Second {
			return fmt.Errorf("%.1f MB since %v", now/1e6, quiet)
		}
		return nil
	})
}

// memory is in bytes.
type memory struct{ resident, private float64 }

func (m memory) plus(n memory) memory { return memory{m.resident + n.resident, m.private + n.private} }

func memoryOf(t testing.TB, pid int) (m memory) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var name string
		var kB float64
		if _, err := fmt.Sscanf(line, "%s %f kB", &name, &kB); err != nil {
			continue
		}
		switch name {
		case "Rss:":
			m.resident = kB * 1024
		case "Private_Clean:", "Private_Dirty:":
			m.private += kB * 1024
		}
	}
	return m
}
