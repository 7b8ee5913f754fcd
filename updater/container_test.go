//go:build linux

package updater

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// As process 1 of a container the supervisor waits for what others left behind, and
// for its own agent as ever.
func TestProcessOneReapsOrphans(t *testing.T) {
	t.Parallel()
	unshare, err := exec.LookPath("unshare")
	if err != nil || os.Getuid() != 0 {
		t.Skipf("a process namespace takes root and unshare: %v", err)
	}
	s := newSite(t)
	s.variant(s.installed, "1.0.0", "orphans")
	s.wrap = []string{unshare, "--pid", "--fork", "--kill-child=SIGTERM", "--mount-proc"}
	s.start()
	s.awaitEvent("agent 1.0.0 pid")
	one := 0
	s.await("process 1", func() bool { one = childOf(s.cmd.Process.Pid); return one != 0 })
	s.await("an orphan", func() bool { return len(childrenOf(one)) > 1 })
	s.await("nobody but the agent", func() bool { return len(childrenOf(one)) == 1 })
	// Its own agent crashes, and is started again: it was waited for once, and told of.
	agent := childrenOf(one)[0]
	if err := exec.Command("kill", "-9", strconv.Itoa(agent)).Run(); err != nil {
		t.Fatal(err)
	}
	s.await("a new agent", func() bool { return strings.Count(s.events(), "agent 1.0.0 pid") == 2 })
	s.awaitOutput("signal: killed")
	// A stop reaches process 1, which has no default for a signal, and all end.
	if err := exec.Command("kill", "-TERM", strconv.Itoa(one)).Run(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.ended:
	case <-time.After(patience):
		t.Fatal("it does not stop")
	}
	if !strings.Contains(s.events(), "agent 1.0.0 stopped\nsupervisor ended\n") {
		t.Errorf("events:\n%s", s.events())
	}
}

func childOf(pid int) int {
	if c := childrenOf(pid); len(c) > 0 {
		return c[0]
	}
	return 0
}

// childrenOf are the processes whose parent it is, dead ones too.
func childrenOf(parent int) (pids []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if len(fields) < 2 || string(fields[1]) != fmt.Sprint(parent) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}
