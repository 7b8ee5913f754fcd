//go:build linux

package updater

import (
	"bufio"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"moult/updater/install"
	"moult/updater/internal/disktest"
)

// Faults that meet the supervisor in the middle of a trial. It must come to an
// end in bounded time and leave a binary running that works.

// on moves a directory of the site to a file system of its own.
func (s *site) on(disk string, dir *string, name string) {
	s.t.Helper()
	*dir = filepath.Join(disk, name)
	must(s.t, os.MkdirAll(*dir, 0o700))
}

// join has a trial go on that the file "joining" held up.
func (s *site) join() { must(s.t, os.Remove(filepath.Join(s.data, "joining"))) }

func (s *site) awaitStarts(version string, n int) {
	s.t.Helper()
	s.await("start "+strconv.Itoa(n)+" of "+version, func() bool { return strings.Count(s.events(), "agent "+version+" pid") >= n })
}

// The place of the installed binary became read-only since preflight: the new
// one has proved itself, but it cannot be installed.
func TestSwapThatFailsRollsBack(t *testing.T) {
	s := newSite(t)
	disk := disktest.Small(t, 64<<10)
	var dir string
	s.on(disk, &dir, "bin")
	s.installed = filepath.Join(dir, "moult")
	s.variant(s.installed, "1.0.0", "good")
	old := mustDigest(t, s.installed)
	s.start()
	s.touch("joining", "")
	s.stage("1.1.0", "good")
	s.awaitStarts("1.1.0", 1)
	s.await("the copy to be written", func() bool { return !s.hasOpen(".moult-swap-") })
	disktest.Remount(t, disk, unix.MS_RDONLY)
	s.join()
	o := s.awaitOutcome(install.RolledBack)
	if !strings.Contains(o.Reason, "install: open the copy") || !strings.Contains(o.Reason, "read-only file system") {
		t.Errorf("reason is %q", o.Reason)
	}
	s.awaitStarts("1.0.0", 2)
	if got := mustDigest(t, s.installed); got != old {
		t.Errorf("installed is %s, was %s", got, old)
	}
	if pid := s.agentPID("1.1.0"); !s.gone(pid) {
		t.Error("the trial still runs")
	}
}

// The disk under the data directory fills up during the trial. No verdict can be
// written down; it is carried out all the same.
func TestFullDataDiskDuringATrial(t *testing.T) {
	for _, tt := range []struct {
		behave, env, runs string
		starts            int
	}{
		{"silent", "TEST_TRIAL_TIMEOUT=8s", "1.0.0", 2},
		{"good", "", "1.1.0", 1},
	} {
		t.Run(tt.behave, func(t *testing.T) {
			s := newSite(t, tt.env)
			disk := disktest.Small(t, 64<<10)
			s.on(disk, &s.data, "data")
			s.start()
			s.touch("joining", "")
			s.stage("1.1.0", tt.behave)
			s.awaitStarts("1.1.0", 1)
			disktest.Fill(t, disk, 0)
			s.join()
			s.await("the end of the trial", func() bool {
				_, err := os.Stat(install.MarkerPath(s.data))
				return errors.Is(err, os.ErrNotExist)
			})
			s.awaitStarts(tt.runs, tt.starts)
			s.mustRun(tt.runs)
			if _, err := install.LoadOutcome(s.data); !errors.Is(err, install.ErrNoOutcome) {
				t.Errorf("there was room for the outcome: %v", err)
			}
		})
	}
}

// Nobody takes what the supervisor and the trial print: neither is held up.
func TestBlockedOutputDoesNotHoldTheSupervisor(t *testing.T) {
	s := newSite(t, "TEST_TRIAL_TIMEOUT=6s")
	r, w, err := os.Pipe() // its reader reads nothing
	must(t, err)
	defer r.Close()
	s.print = w
	s.start()
	w.Close()
	s.stage("1.1.0", "chatty")
	o := s.awaitOutcome(install.RolledBack)
	if !strings.Contains(o.Reason, "no commit within 6s") || len(o.LastOutput) == 0 {
		t.Errorf("reason is %q, last output %q", o.Reason, o.LastOutput)
	}
	s.awaitStarts("1.0.0", 2)
}

// A marker that has used up its starts leads to none, and says why.
func TestMarkerWithoutStartsLeft(t *testing.T) {
	s := newSite(t)
	s.start()
	m := install.Marker{JobID: "job-1", Version: "1.1.0", State: install.OnTrial, Starts: 3, StagedPath: filepath.Join(s.data, "staged")}
	m.Digest = s.variant(m.StagedPath, "1.1.0", "good")
	s.restart(m)
	if o := s.awaitOutcome(install.RolledBack); !strings.Contains(o.Reason, "was started 3 times already") {
		t.Errorf("reason is %q", o.Reason)
	}
	s.awaitStarts("1.0.0", 2)
	if strings.Contains(s.events(), "agent 1.1.0") {
		t.Error("it was started again")
	}
}

// An agent that asks for a trial over and over, without a marker, must not make
// the supervisor spin.
func TestRestartsWithoutATrialArePaced(t *testing.T) {
	s := newSite(t, "TEST_RESTART_DELAY=300ms")
	s.variant(s.installed, "1.0.0", "restarts")
	start := time.Now()
	s.start()
	s.awaitStarts("1.0.0", 5)
	if took := time.Since(start); took < 4*300*time.Millisecond {
		t.Errorf("5 starts took %v, each has to wait for 300ms", took)
	}
}

// The agent ended while its supervisor became another program: what it left
// running is ended, and the handed over descriptors are closed.
func TestHandoverOfAnAgentThatEnded(t *testing.T) {
	out, print, err := os.Pipe()
	must(t, err)
	defer out.Close()
	cmd := exec.Command("sh", "-c", "sleep 1000 & echo $!")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stdout = print
	must(t, cmd.Start())
	print.Close()
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	left, err := strconv.Atoi(strings.TrimSpace(line))
	must(t, err)
	ended := site{t: t}
	ended.await("the agent's end", func() bool { return ended.gone(cmd.Process.Pid) })

	fds := make([]int, 3)
	must(t, unix.Pipe(fds[:2]))
	fds[2], err = unix.Dup(fds[0])
	must(t, err)
	state, err := json.Marshal(handover{PID: cmd.Process.Pid, Send: fds[1], Recv: fds[0], Out: fds[2]})
	must(t, err)
	t.Setenv(envHandover, string(state))
	s := &supervisor{log: slog.New(slog.DiscardHandler)}
	if c := s.adopt(); c != nil {
		t.Errorf("an agent that has ended was adopted: %+v", c)
	}
	for _, fd := range fds {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
			t.Errorf("descriptor %d is still open: %v", fd, err)
		}
	}
	ended.await("the end of what it left running", func() bool { return ended.gone(left) })
	if _, found := os.LookupEnv(envHandover); found {
		t.Error("the handover is still in the environment")
	}
	must(t, cmd.Process.Release())
}

// A supervisor that lives through many children keeps no descriptor of theirs.
func TestRestartsLeakNoDescriptors(t *testing.T) {
	s := newSite(t)
	s.start()
	open := func() int {
		fds, err := os.ReadDir("/proc/" + strconv.Itoa(s.cmd.Process.Pid) + "/fd")
		must(t, err)
		return len(fds)
	}
	first := open() // in the middle of a start there are up to 4 more
	const restarts = 20
	for n := range restarts {
		s.touch("restart", "")
		s.awaitStarts("1.0.0", n+2)
	}
	s.await("as few descriptors as after the first start", func() bool { return open() <= first })
}
