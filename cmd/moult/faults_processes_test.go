//go:build linux

package main

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"moult/testdata/faultsuite"
)

// Faults of processes: killed, stopped, started again.

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
	if faultsuite.Long() {
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
	mend := f.trace(name, "inject=fsync,fdatasync:delay_enter=15s")
	f.c.await(slowDiskLimit, "another server to lead", func() error { return f.ledByAnother(name) })
	mend()
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
