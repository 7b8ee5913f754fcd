//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"moult/testdata/faultsuite"
)

// Faults of disks: the servers' data and one agent's data and program are on file
// systems of their own, which fill up, turn read-only or forbid execution; what no
// file system does when asked, strace makes: I/O errors.

// diskFault is one. An agent that has it must run on in its old version and tell
// one of the reasons; a server may stop leading, or end.
type diskFault struct {
	name    string
	reasons []string // of an agent's failure; nil: the fault is a server's
	leader  bool     // the server leads
	strikes func(f *diskRun, name string) (mend func())
}

var diskFaults = []diskFault{
	{"leader's disk: I/O errors", nil, true, (*diskRun).failSyncs},
	{"agent's data disk full", []string{"free ", "no space left"}, false, (*diskRun).fillAgent},
	{"agent's data disk read-only", []string{"read-only"}, false, func(f *diskRun, name string) func() { return f.remount(name+"/data", "ro") }},
	{"leader's disk full", nil, true, func(f *diskRun, name string) func() { return f.fill(name+"/"+serverData, 0) }},
	{"agent's data disk without execution", []string{"noexec"}, false, func(f *diskRun, name string) func() { return f.remount(name+"/data", "noexec") }},
	{"follower's disk: I/O errors", nil, false, (*diskRun).failSyncs},
	{"program's disk full", []string{"free ", "no space left"}, false, func(f *diskRun, name string) func() { return f.fill(name+"/bin", 64<<10) }},
	{"follower's disk full", nil, false, func(f *diskRun, name string) func() { return f.fill(name+"/"+serverData, 0) }},
	{"program's disk read-only", []string{"cannot be written", "read-only"}, false, func(f *diskRun, name string) func() { return f.remount(name+"/bin", "ro") }},
	{"agent's disk: I/O errors", []string{"input/output error"}, false, (*diskRun).failSyncs},
}

// The sizes of the file systems: room for some releases.
const (
	serverData  = "data/raft" // the log and the snapshots
	serverDisk  = "64m"
	dataDisk    = "300m"
	programDisk = "160m"
	sickAgent   = "agent-1"
)

func TestFaultsDisks(t *testing.T) {
	t.Parallel()
	row := faultsuite.Row{Name: "disk full, read-only, no-exec, I/O error", Long: 50, Short: 1}
	row.MustBeChosen(t)
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skipf("%v; install the package strace to have I/O errors", err)
	}
	c := newCluster(t)
	for i := range 3 {
		c.mountSmallDisk(filepath.Join(fmt.Sprintf("server-%d", i+1), serverData), serverDisk)
	}
	c.mountSmallDisk(filepath.Join(sickAgent, "data"), dataDisk)
	c.mountSmallDisk(filepath.Join(sickAgent, "bin"), programDisk)
	c.up(3, faultAgents)
	f := &diskRun{faultRun: newFaultRun(t, c)}
	f.moveProgram()
	f.runAll([]fault{{Row: row, before: func(*faultRun) { f.before() }, inflict: func(*faultRun) { f.inflict() }, atOnce: true}})
}

// diskRun is a faultRun with disks of its own.
type diskRun struct {
	*faultRun
	fault diskFault
	mend  func() // nil: nothing is broken
}

// moveProgram has the sick agent run from its own file system.
func (f *diskRun) moveProgram() {
	f.t.Helper()
	moved := filepath.Join(f.c.dir, sickAgent, "bin", "moult")
	if err := copyExecutable(binary(f.t, versionA), moved); err != nil {
		f.t.Fatal(err)
	}
	argv := f.c.argv(sickAgent)
	argv[0] = moved
	for i, a := range argv {
		if strings.HasPrefix(a, "--binary=") {
			argv[i] = "--binary=" + moved
		} else if a == "--binary" {
			argv[i+1] = moved
		}
	}
	if !slices.ContainsFunc(argv, func(a string) bool { return strings.HasPrefix(a, "--binary") }) {
		argv = append(argv, "--binary="+moved)
	}
	pid := f.c.pid(sickAgent)
	f.c.kill(sickAgent)
	f.c.awaitEnd(pid)
	f.c.startAgain(sickAgent, argv)
}

// before breaks an agent's disk, so that the fleet update meets it broken.
func (f *diskRun) before() {
	f.fault = diskFaults[f.count.Cycles%len(diskFaults)]
	f.noteMoment(f.fault.name)
	f.mayFail = f.fault.reasons != nil
	if f.mayFail {
		f.mend = f.strike(sickAgent)
	}
}

func (f *diskRun) inflict() {
	if f.fault.reasons == nil {
		f.breakServer()
		return
	}
	f.gapLimit = failoverLimit
	u := f.end(f.update)
	i := slices.IndexFunc(u.Hosts, func(turn apiTurn) bool { return turn.Name == sickAgent })
	told := func(reason string) bool { return strings.Contains(u.Hosts[i].FailedReason, reason) }
	if u.Status != "halted" || u.Hosts[i].Status != "failed" || !slices.ContainsFunc(f.fault.reasons, told) {
		f.t.Errorf("%s: the fleet update is %s, %s %s: %q; want one of the reasons %q", f.fault.name, u.Status, sickAgent, u.Hosts[i].Status, u.Hosts[i].FailedReason, f.fault.reasons)
	}
	if h := f.c.hosts()[sickAgent]; !h.Online || h.AgentVersion == u.TargetVersion || f.c.starts(sickAgent, u.TargetVersion) > 0 {
		f.t.Errorf("%s: %s did not run on in its old version: %+v", f.fault.name, sickAgent, h)
	}
	f.mend()
}

// strike breaks a host's disk until mend, or the test's end.
func (f *diskRun) strike(name string) (mend func()) {
	f.t.Helper()
	mend = sync.OnceFunc(f.fault.strikes(f, name))
	f.t.Cleanup(mend)
	return mend
}

// breakServer breaks a server's disk for some time. Writes go on, by another leader
// if it led.
func (f *diskRun) breakServer() {
	f.gapLimit = slowDiskLimit
	time.Sleep(time.Duration(f.rng.Int64N(int64(time.Second))))
	leader := f.c.leader()
	name := leader
	for !f.fault.leader && name == leader {
		name = fmt.Sprintf("server-%d", 1+f.rng.IntN(3))
	}
	argv, pid := f.c.argv(name), f.c.pid(name)
	mend := f.strike(name)
	f.push(name)
	if f.fault.leader {
		f.c.await(slowDiskLimit, "another server to lead than "+name, func() error { return f.ledByAnother(name) })
	}
	mend()
	started := false
	f.c.await(catchUpLimit, "all to be well", func() error {
		// A service manager starts it again, when it ends a moment later, too.
		if !started && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			started = true
			f.noteMoment(f.fault.name + ", the server ended")
			f.c.startAgain(name, argv)
		}
		return f.allWell()
	})
	f.writer.revoke() // what was pushed; the sick server could not have followed
}

// push writes until the sick server's disk has to take something, for a few seconds.
func (f *diskRun) push(name string) {
	for until := time.Now().Add(5 * time.Second); time.Now().Before(until); {
		for _, addr := range f.c.client.addrs {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			big := map[string]string{"name": "w-push-" + strings.Repeat("x", 40), "role": "viewer"}
			_ = f.at(addr, time.Second).call(ctx, http.MethodPost, "/api/tokens", big, nil) // the sick one may refuse
			cancel()
		}
	}
}

// ledByAnother is nil when a server leads that is not this one.
func (f *faultRun) ledByAnother(name string) error {
	for _, addr := range f.c.client.addrs { // what a sick server says is old
		servers, err := f.at(addr, 3*time.Second).servers(context.Background())
		if err != nil {
			continue
		}
		for _, s := range servers {
			if s.Leader && s.Healthy && s.Name != name {
				return nil
			}
		}
	}
	return errors.New("none")
}

// fill leaves about free bytes on a file system.
func (f *diskRun) fill(name string, free int64) (mend func()) {
	f.t.Helper()
	dir := filepath.Join(f.c.dir, name)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		f.t.Fatal(err)
	}
	path := filepath.Join(dir, "filler")
	file, err := os.Create(path)
	if err != nil {
		f.t.Fatal(err)
	}
	defer file.Close()
	size := int64(st.Bavail)*st.Bsize - free
	for ; size > 0; size -= 64 << 10 { // others write meanwhile
		if err := unix.Fallocate(int(file.Fd()), 0, 0, size); err == nil {
			break
		} else if !errors.Is(err, unix.ENOSPC) {
			f.t.Fatalf("fill %s: %v", dir, err)
		}
	}
	for free == 0 {
		if _, err := file.WriteAt(make([]byte, st.Bsize), size); err != nil {
			break
		}
		size += st.Bsize
	}
	return func() {
		if err := os.Remove(path); err != nil {
			f.t.Error(err)
		}
	}
}

// fillAgent leaves no room for an artifact in an agent's data, not even by those of
// earlier releases, which a job deletes first.
func (f *diskRun) fillAgent(name string) (mend func()) {
	f.t.Helper()
	spare, err := filepath.Glob(filepath.Join(f.c.dir, name, "data", "artifacts", "*"))
	if err != nil {
		f.t.Fatal(err)
	}
	for _, path := range spare {
		if err := os.Remove(path); err != nil {
			f.t.Fatal(err)
		}
	}
	return f.fill(name+"/data", 1<<20)
}

// remount lays the same directory over itself with other options: what is open for
// writing there would hold up a change of the file system itself.
func (f *diskRun) remount(name, option string) (mend func()) {
	f.t.Helper()
	dir := filepath.Join(f.c.dir, name)
	for _, args := range [][]string{{"--bind", dir, dir}, {"-o", "remount,bind," + option, dir}} {
		if out, err := exec.Command("mount", args...).CombinedOutput(); err != nil {
			f.t.Fatalf("mount %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	return func() {
		if out, err := exec.Command("umount", "--lazy", dir).CombinedOutput(); err != nil { // lazy: a process may be in it
			f.t.Errorf("umount %s: %v: %s", dir, err, out)
		}
	}
}

// failSyncs has each fsync of a host's processes fail.
func (f *diskRun) failSyncs(name string) (mend func()) {
	return f.trace(name, "inject=fsync,fdatasync:error=EIO")
}

// trace has strace change what a host's processes are told by the system, until
// mend.
func (f *faultRun) trace(name, injection string) (mend func()) {
	f.t.Helper()
	args := []string{"-f", "-qq", "-e", "trace=fsync,fdatasync", "-e", injection, "-o", os.DevNull, "-p", strconv.Itoa(f.c.pid(name))}
	if child := childOf(f.c.pid(name)); child != 0 {
		args = append(args, "-p", strconv.Itoa(child))
	}
	cmd := exec.Command("strace", args...)
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	f.c.await(20*time.Second, "strace to attach to "+name, func() error {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%s/status", args[len(args)-1]))
		if err != nil {
			return err
		}
		if !strings.Contains(string(text), fmt.Sprintf("TracerPid:\t%d\n", cmd.Process.Pid)) {
			return errors.New("it has not")
		}
		return nil
	})
	return func() {
		_ = cmd.Process.Signal(os.Interrupt) // strace detaches; calls that it holds up end
		_ = cmd.Wait()
	}
}
