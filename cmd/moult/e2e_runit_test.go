//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// runit runs one service from a directory of its own.
type runit struct {
	*outsider
	service string // its directory
}

// startRunit has runsvdir run a script, as on Debian with runit.
func startRunit(t testing.TB, o *outsider, script string) *runit {
	t.Helper()
	if _, err := exec.LookPath("runsvdir"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("runit is not installed: apt-get install runit")
	}
	services := filepath.Join(t.TempDir(), "service")
	r := &runit{outsider: o, service: filepath.Join(services, "moult")}
	must(t, os.MkdirAll(r.service, 0o755))
	must(t, os.WriteFile(filepath.Join(r.service, "run"), []byte(script), 0o755))
	cmd := exec.Command("runsvdir", "-P", services)
	log := &lockedBuffer{mu: new(sync.Mutex), b: &bytes.Buffer{}}
	cmd.Stdout, cmd.Stderr = log, log
	must(t, cmd.Start())
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGHUP) // ends what it runs, then itself
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Error("runsvdir does not end")
			_ = cmd.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("runit:\n%s", log)
		}
	})
	return r
}

// sv runs runit's command for the service.
func (r *runit) sv(command ...string) string {
	r.t.Helper()
	out, err := exec.Command("sv", append(command, r.service)...).CombinedOutput()
	if err != nil {
		r.t.Errorf("sv %s: %v: %s", strings.Join(command, " "), err, out)
	}
	return string(out)
}

var runitUp = regexp.MustCompile(`^run: .*\(pid (\d+)\)`)

// servicePID is the process that runit takes for the service.
func (r *runit) servicePID() (pid int) {
	r.t.Helper()
	r.await(20*time.Second, "the service to run", func() error {
		out, err := exec.Command("sv", "status", r.service).CombinedOutput()
		m := runitUp.FindSubmatch(out)
		if err != nil || m == nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		pid, err = strconv.Atoi(string(m[1]))
		return err
	})
	return pid
}

// Under runit the service's process stays the same through an update and a roll
// back, and all of it ends with the service.
func TestE2ERunit(t *testing.T) {
	t.Parallel()
	for _, place := range []string{"installed", "data"} {
		t.Run(place, func(t *testing.T) {
			t.Parallel()
			c := startCluster(t, 1, 0)
			o := c.outsider(t, "served")
			dir := t.TempDir()
			program, data := filepath.Join(dir, "moult"), filepath.Join(dir, "data")
			must(t, copyExecutable(binary(t, versionA), program))
			words := append([]string{program}, o.arguments(data)...)
			r := startRunit(t, o, "#!/bin/sh\nexec 2>&1\nexec "+strings.Join(words, " ")+" --install-to "+place+"\n")
			r.awaitVersion(versionA)
			pid := r.servicePID()

			c.publish(versionB, binary(t, versionB))
			r.update("succeeded")
			r.awaitVersion(versionB)
			c.badRelease("6.6.6", "exit")
			if job := r.update("failed"); !strings.Contains(job.Error, "the frobnicator is missing") {
				t.Errorf("the job says %q", job.Error)
			}
			r.awaitVersion(versionB)
			if now := r.servicePID(); now != pid {
				t.Errorf("the service's process was %d and is %d: runit has started it again", pid, now)
			}
			agents := children(pid)
			if len(agents) != 1 {
				t.Errorf("the service has %d children, want the agent", len(agents))
			}

			r.sv("-w", "20", "restart")
			if now := r.servicePID(); now == pid {
				t.Error("sv restart did not start it again")
			}
			r.awaitVersion(versionB)
			agents = append(agents, children(r.servicePID())...)
			r.sv("-w", "20", "stop")
			for _, agent := range agents {
				c.awaitEnd(agent)
			}
			c.awaitOffline(r.name)
		})
	}
}
