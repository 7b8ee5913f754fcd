//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"moult/cmd/internal/nodekit"
)

func (c *testCluster) leader() string {
	c.t.Helper()
	name := ""
	c.await(time.Minute, "a leader", func() error {
		servers, err := c.client.servers(context.Background())
		if err != nil {
			return err
		}
		for _, s := range servers {
			if s.Leader && s.Healthy {
				name = s.Name
				return nil
			}
		}
		return errors.New("none")
	})
	return name
}

func (c *testCluster) pid(name string) int {
	c.t.Helper()
	pid, err := strconv.Atoi(strings.TrimSpace(c.read(name + "/pid")))
	if err != nil {
		c.t.Fatal(err)
	}
	return pid
}

// kill ends a process of the cluster with kill -9.
func (c *testCluster) kill(name string) {
	c.t.Helper()
	if err := syscall.Kill(c.pid(name), syscall.SIGKILL); err != nil {
		c.t.Fatalf("kill %s: %v", name, err)
	}
}

// starts counts how often an agent started in a version, by its log.
func (c *testCluster) starts(name, version string) int {
	c.t.Helper()
	n := 0
	for line := range strings.SplitSeq(c.read(name+"/log"), "\n") {
		if strings.Contains(line, `msg="agent is up"`) && strings.Contains(line, "version="+version+" ") {
			n++
		}
	}
	return n
}

// allOn fails unless each agent runs a version, was started in it once, and
// has it installed.
func (c *testCluster) allOn(version string) {
	c.t.Helper()
	for name := range c.hosts() {
		c.awaitHost(name, runs(version)) // the server that is asked may hear of it after the leader
		c.startedOnce(name, version)
		c.installedIs(name, version)
	}
}

// startedOnce fails unless an agent was started exactly once in a version. Its log
// is written by its supervisor, a moment after the mesh knows.
func (c *testCluster) startedOnce(name, version string) {
	c.t.Helper()
	c.await(30*time.Second, name+" to say in its log that it is up", func() error {
		if c.starts(name, version) == 0 {
			return errors.New("it does not yet")
		}
		return nil
	})
	if n := c.starts(name, version); n != 1 {
		c.t.Errorf("%s started %d times in %s, want once", name, n, version)
	}
}

// installedIs fails unless a version's binary is the one that is installed.
func (c *testCluster) installedIs(name, version string) {
	c.t.Helper()
	path, published := c.published[version]
	if !published {
		path = binary(c.t, version)
	}
	want, err := nodekit.FileDigest(path)
	if err != nil {
		c.t.Fatal(err)
	}
	if got, err := nodekit.FileDigest(filepath.Join(c.dir, name, "moult")); err != nil || got != want {
		c.t.Errorf("%s: the installed binary is not %s (%v)", name, version, err)
	}
}

// argv is the command line that a process of the cluster was started with.
func (c *testCluster) argv(name string) []string {
	c.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", c.pid(name)))
	if err != nil {
		c.t.Skipf("the command line of a process cannot be read on this system: %v", err)
	}
	return strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
}

// killForRestart kills a process with -9 and returns what starts it again, with
// the same command line, until the test ends.
func (c *testCluster) killForRestart(name string) (restart func()) {
	c.t.Helper()
	argv, pid := c.argv(name), c.pid(name)
	c.kill(name)
	return func() {
		c.t.Helper()
		c.awaitEnd(pid)
		c.startAgain(name, argv)
	}
}

// awaitEnd waits for the end of a process that was killed: one that waits for the disk
// takes its time, and a service manager waits for it, too.
func (c *testCluster) awaitEnd(pid int) {
	c.t.Helper()
	c.await(time.Minute, fmt.Sprintf("process %d to end", pid), func() error {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			return errors.New("it is still there")
		}
		return nil
	})
}

// startAgain starts a process that has ended, until the test ends.
func (c *testCluster) startAgain(name string, argv []string) {
	c.t.Helper()
	log, err := os.OpenFile(filepath.Join(c.dir, name, "log"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), c.env...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		c.t.Fatalf("start %s again: %v", name, err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // at once: a dead child would keep its id
		close(ended)
	}()
	c.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
	})
	pid := fmt.Appendf(nil, "%d\n", cmd.Process.Pid)
	if err := nodekit.WriteFileAtomic(filepath.Join(c.dir, name, "pid"), pid, 0o600); err != nil {
		c.t.Fatal(err)
	}
}

func (c *testCluster) awaitOffline(name string) {
	c.t.Helper()
	c.await(30*time.Second, name+" to be offline", func() error {
		if c.hosts()[name].Online {
			return errors.New("it is online")
		}
		return nil
	})
}

// corrupt replaces a file by one that differs in a byte in the middle.
func (c *testCluster) corrupt(name string) {
	c.t.Helper()
	path := filepath.Join(c.dir, name)
	text, err := os.ReadFile(path)
	if err != nil {
		c.t.Fatal(err)
	}
	text[len(text)/2] ^= 0xff
	if err := nodekit.WriteFileAtomic(path, text, 0o700); err != nil {
		c.t.Fatal(err)
	}
}

// age makes files look as if they were written a month ago.
func (c *testCluster) age(pattern string) {
	c.t.Helper()
	paths, err := filepath.Glob(filepath.Join(c.dir, pattern))
	if err != nil || len(paths) == 0 {
		c.t.Fatalf("nothing is there as %s, %v", pattern, err)
	}
	then := time.Now().Add(-30 * 24 * time.Hour)
	for _, path := range paths {
		if err := os.Chtimes(path, then, then); err != nil {
			c.t.Fatal(err)
		}
	}
}

// mountSmallDisk puts a file system of a size below the cluster's directory.
func (c *testCluster) mountSmallDisk(name, size string) {
	c.t.Helper()
	mount(c.t, filepath.Join(c.dir, name), "size="+size)
}

// mount mounts a tmpfs until the test ends, after the cluster did.
func mount(t testing.TB, path, options string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", options, "tmpfs", path).CombinedOutput(); err != nil {
		t.Skipf("no file system can be mounted here (it takes root): %s", bytes.TrimSpace(out))
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", path).CombinedOutput(); err != nil {
			t.Errorf("unmount %s: %s", path, out)
		}
	})
}

// nothingHalfWritten fails when an update left something behind.
func (c *testCluster) nothingHalfWritten(name string) {
	c.t.Helper()
	for _, pattern := range []string{"data/artifacts/unverified-*", "data/trial.json", "moult.*", ".moult*"} {
		if found, _ := filepath.Glob(filepath.Join(c.dir, name, pattern)); len(found) > 0 {
			c.t.Errorf("left behind: %v", found)
		}
	}
}
