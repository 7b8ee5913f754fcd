//go:build linux

package updater

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"moult/updater/install"
	"moult/updater/internal/disktest"
	"moult/updater/release"
)

var testReleasePublic, testReleaseSecret, _ = release.GenerateKey()

// stageActive is stage for a host whose binary is not moult's to replace.
func (s *site) stageActive(version string, number uint64, behave string) install.Marker {
	s.t.Helper()
	m := install.Marker{
		JobID: "job-" + version, Attempt: 1, Index: 7, Version: version, Number: number, State: install.Staged,
		StagedPath: filepath.Join(s.data, "staged-"+version+"-"+behave), FromVersion: "1.0.0", FromDigest: mustDigest(s.t, s.installed),
		Place: install.InData,
	}
	m.Digest = s.variant(m.StagedPath, version, behave)
	m.Release = s.proof(m)
	s.restart(m)
	return m
}

func (s *site) proof(m install.Marker) *install.SignedRelease {
	s.t.Helper()
	st, err := os.Stat(m.StagedPath)
	if err != nil {
		s.t.Fatal(err)
	}
	text, err := json.Marshal(release.Manifest{
		Product: release.Product, Version: m.Version, Number: m.Number, Created: time.Now().UTC().Truncate(time.Second),
		Artifacts: []release.Artifact{{OS: runtime.GOOS, Arch: runtime.GOARCH, Size: st.Size(), SHA256: m.Digest}},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	sig, err := release.Sign(testReleaseSecret, text)
	if err != nil {
		s.t.Fatal(err)
	}
	return &install.SignedRelease{Manifest: text, Signature: sig, Keys: release.Pinned(testReleasePublic)}
}

// commitActive updates the host to a version in the data directory.
func (s *site) commitActive(version string, number uint64) install.Marker {
	s.t.Helper()
	m := s.stageActive(version, number, "good")
	s.awaitEvent("agent " + version + " committed")
	s.awaitOutcome(install.Committed)
	s.awaitEvent("supervisor " + version)
	return m
}

// exe is what the site's process executes.
func (s *site) exe() string {
	exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", s.cmd.Process.Pid))
	return exe
}

func (s *site) stop() {
	s.t.Helper()
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.ended:
	case <-time.After(patience):
		s.t.Fatal("the supervisor does not stop")
	}
}

// mustStayPackaged: the installed path holds the packaged binary, untouched.
func (s *site) mustStayPackaged(digest string) {
	s.t.Helper()
	if got := mustDigest(s.t, s.installed); got != digest {
		s.t.Error("the packaged binary was changed")
	}
	if left, err := os.ReadDir(filepath.Dir(s.installed)); err != nil || len(left) != 1 {
		s.t.Errorf("beside the packaged binary there is %v, %v", left, err)
	}
}

// An update goes to the data directory; the process goes on as the active binary,
// with its child, and so does the next start.
func TestUpdateInTheDataDirectory(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	packaged := mustDigest(t, s.installed)
	s.start()
	m := s.commitActive("1.1.0", 2)
	pid := s.agentPID("1.1.0")
	if n := strings.Count(s.events(), "agent 1.1.0 pid"); n != 1 {
		t.Errorf("version 1.1.0 was started %d times, want its trial to go on", n)
	}
	if want := install.ActivePath(s.data, m.Digest); s.exe() != want {
		t.Errorf("the supervisor runs %s, want %s", s.exe(), want)
	}
	s.mustStayPackaged(packaged)
	if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", s.cmd.Process.Pid)); err != nil || string(name) != "moult\n" {
		t.Errorf("the process is called %q, %v", name, err)
	}

	// Its agent crashes: the active binary's supervisor starts the active one.
	_ = syscall.Kill(pid, syscall.SIGKILL)
	s.await("a new agent", func() bool { return strings.Count(s.events(), "agent 1.1.0 pid") == 2 })

	// The whole of it is killed, as a power cut does, and started as ever.
	_ = s.cmd.Process.Kill()
	<-s.ended
	s.start()
	s.await("the active agent", func() bool { return strings.Count(s.events(), "agent 1.1.0 pid") == 3 })
	if want := install.ActivePath(s.data, m.Digest); s.exe() != want {
		t.Errorf("after a start the supervisor runs %s, want %s", s.exe(), want)
	}
	if strings.Count(s.events(), "agent 1.0.0 pid") != 1 {
		t.Error("the packaged agent was started again")
	}

	// And the next updates go the same way, also from there.
	s.commitActive("1.2.0", 3)
	if _, err := os.Stat(install.ActivePath(s.data, m.Digest)); err != nil {
		t.Errorf("the last good binary is gone: %v", err)
	}
	s.commitActive("1.3.0", 4)
	s.mustStayPackaged(packaged)
	s.stop()
	s.start()
	s.await("the newest agent", func() bool { return strings.Count(s.events(), "agent 1.3.0 pid") == 2 })
	if _, err := os.Stat(install.ActivePath(s.data, m.Digest)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the one before the last is kept: %v", err)
	}
}

// On a read-only root the binary cannot be touched at all.
func TestUpdateOnAReadOnlyDisk(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	disk := disktest.Small(t, 64<<10)
	s.installed = filepath.Join(disk, "moult")
	s.variant(s.installed, "1.0.0", "good")
	disktest.Remount(t, disk, unix.MS_RDONLY)
	t.Cleanup(func() { s.stop() }) // before the disk goes
	s.start()
	s.commitActive("1.1.0", 2)
	s.stop()
	s.start()
	s.await("the active agent", func() bool { return strings.Count(s.events(), "agent 1.1.0 pid") == 2 })
}

// A bad release is taken back to whatever ran: the packaged binary, or the active
// one before.
func TestTrialInTheDataDirectoryRollsBack(t *testing.T) {
	for _, behave := range []string{"crash", "silent", "lie"} {
		t.Run(behave, func(t *testing.T) {
			t.Parallel()
			env := ""
			if behave == "silent" {
				env = "TEST_TRIAL_TIMEOUT=6s" // the good one has to be in time
			}
			s := newSite(t, env)
			packaged := mustDigest(t, s.installed)
			s.start()
			s.stageActive("1.1.0", 2, behave)
			s.awaitOutcome(install.RolledBack)
			s.await("the packaged agent's return", func() bool { return strings.Count(s.events(), "agent 1.0.0 pid") == 2 })
			if _, err := install.LoadActive(s.data); !errors.Is(err, install.ErrNoActive) {
				t.Errorf("active: %v", err)
			}
			s.commitActive("1.2.0", 3)
			s.stageActive("1.3.0", 4, behave)
			s.awaitOutcome(install.RolledBack)
			s.await("the active agent's return", func() bool { return strings.Count(s.events(), "agent 1.2.0 pid") == 2 })
			if a, err := install.LoadActive(s.data); err != nil || a.Version != "1.2.0" {
				t.Errorf("active is %s, %v", a.Version, err)
			}
			s.mustStayPackaged(packaged)
		})
	}
}

// TestKilledAtEachStepOfTheActivation cuts the power before each step of a commit to
// the data directory: whatever happened, the next start runs a complete binary, and
// the record agrees with the disk.
func TestKilledAtEachStepOfTheActivation(t *testing.T) {
	for _, step := range []string{"create", "copy", "owner", "mode", "attributes", "sync", "close", "rename", "sync-directory", "record", "done"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			packaged := mustDigest(t, s.installed)
			s.start()
			s.commitActive("1.1.0", 2)
			s.stop()
			s.start("TEST_KILL_AT=" + step)
			s.stageActive("1.2.0", 3, "good")
			select {
			case <-s.ended:
			case <-time.After(patience):
				t.Fatalf("the supervisor never came to step %s", step)
			}
			want, version := install.Interrupted, "1.1.0"
			if step == "done" { // after the record
				want, version = install.Committed, "1.2.0"
			}
			before := strings.Count(s.events(), "agent "+version+" pid")
			s.start()
			s.awaitOutcome(want)
			s.await("the agent", func() bool { return strings.Count(s.events(), "agent "+version+" pid") == before+1 })
			if left, err := filepath.Glob(filepath.Join(install.ActiveDir(s.data), ".moult-*")); err != nil || len(left) > 0 {
				t.Errorf("leftovers %v, %v", left, err)
			}
			s.mustStayPackaged(packaged)
			s.commitActive("1.4.0", 5)
		})
	}
}

// A damaged active binary is not executed: the packaged one runs, at the start and
// when the damage is found by a supervisor that runs.
func TestDamagedActiveBinary(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.start()
	m := s.commitActive("1.1.0", 2)
	path := install.ActivePath(s.data, m.Digest)
	damage := func() {
		t.Helper()
		// Beside it and renamed: the running file itself cannot be written.
		s.variant(path+".evil", "6.6.6", "good")
		if err := os.Rename(path+".evil", path); err != nil {
			t.Fatal(err)
		}
	}
	damage()
	_ = syscall.Kill(s.agentPID("1.1.0"), syscall.SIGKILL)
	s.await("the packaged agent", func() bool { return strings.Count(s.events(), "agent 1.0.0 pid") == 2 })
	if s.exe() != s.installed {
		t.Errorf("the supervisor runs %s, want the packaged binary", s.exe())
	}
	s.awaitOutput("the active binary cannot be used; becoming the packaged one")
	s.awaitOutput("does not match its digest")
	s.stop()
	s.start()
	s.await("the packaged agent", func() bool { return strings.Count(s.events(), "agent 1.0.0 pid") == 3 })
	s.awaitOutput("running the packaged binary: the active one in the data directory cannot be used")
	if strings.Contains(s.events(), "agent 6.6.6") || strings.Contains(s.events(), "supervisor 6.6.6") {
		t.Error("bytes that were not verified were executed")
	}
	if _, err := ActiveBinary(s.data); !errors.Is(err, install.ErrActive) {
		t.Errorf("the diagnosis says %v", err)
	}
	// The same release again mends it.
	s.commitActive("1.1.0", 2)
	s.await("the active supervisor", func() bool { return s.exe() == path })
}

// After a new package, the newer of the two runs.
func TestPackageIsUpgraded(t *testing.T) {
	for _, tt := range []struct{ packaged, runs string }{
		{"2.0.0", "2.0.0"}, // newer than what is active
		{"1.0.1", "1.1.0"}, // newer than the package before, older than what is active
		{"nightly", "1.1.0"},
	} {
		t.Run(tt.packaged, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.start()
			s.commitActive("1.1.0", 2)
			s.stop()
			s.variant(s.installed, tt.packaged, "good")
			before := strings.Count(s.events(), "agent "+tt.runs+" pid")
			s.start()
			s.await("the agent", func() bool { return strings.Count(s.events(), "agent "+tt.runs+" pid") == before+1 })
			// And from there the next release goes to the data directory, and stays:
			// also one that is older, which only a signed rollback comes to.
			s.commitActive("1.5.0", 3)
			s.stop()
			s.start()
			s.await("the agent", func() bool { return strings.Count(s.events(), "agent 1.5.0 pid") == 2 })
		})
	}
}

// A release whose agent is well and whose supervisor is not would be started for
// ever by the service manager. After some starts the packaged one runs.
func TestActiveBinaryThatDoesNotStayUp(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.start()
	s.stageActive("1.1.0", 2, "bad-supervisor")
	<-s.ended // the handover to it
	for i := range maxHandOvers {
		if strings.Contains(s.events(), "agent 1.0.0 pid") && strings.Count(s.events(), "agent 1.0.0 pid") > 1 {
			t.Fatalf("the packaged agent runs after %d starts", i)
		}
		if i == maxHandOvers-1 {
			break
		}
		cmd := s.command()
		if err := cmd.Run(); err == nil {
			t.Fatal("the bad supervisor ended well")
		}
	}
	s.start()
	s.await("the packaged agent", func() bool { return strings.Count(s.events(), "agent 1.0.0 pid") == 2 })
	s.awaitOutput("it was started 5 times and never stayed up")
	if n := strings.Count(s.events(), "supervisor 1.1.0"); n != maxHandOvers {
		t.Errorf("it was handed over to %d times, want %d", n, maxHandOvers)
	}
	// Another release is tried as ever.
	s.commitActive("1.2.0", 3)
}

// The variable of one process means nothing in another, or a child with its
// parent's environment would take itself for the active binary.
func TestHandedOverIsOfThisProcess(t *testing.T) {
	for env, want := range map[string]bool{
		fmt.Sprintf("%d:/usr/bin/moult", os.Getpid()):  true,
		fmt.Sprintf("%d:/usr/bin/moult", os.Getppid()): false,
		fmt.Sprintf("%d:", os.Getpid()):                false,
		"":                                             false,
		"1":                                            false,
	} {
		t.Setenv(envHandedOver, env)
		path, ok := handedOver()
		if ok != want || ok && path != "/usr/bin/moult" {
			t.Errorf("%q: %q, %v", env, path, ok)
		}
	}
}

func TestNewerProgram(t *testing.T) {
	for _, tt := range []struct {
		version string
		number  uint64
		than    string
		thanNo  uint64
		want    bool
	}{
		{"1.10.0", 0, "1.9.0", 5, true},
		{"1.9.0", 0, "1.10.0", 5, false},
		{"1.9.0", 0, "1.9.0", 5, false},
		{"v2.0.0", 0, "1.0.0", 5, true},
		{"2.0.0-rc.1", 0, "2.0.0", 5, false},
		{"nightly", 0, "1.0.0", 5, false},
		{"1.0.0", 0, "nightly", 5, false},
		{"1.0.0", 6, "9.0.0", 5, true}, // the numbers decide
		{"9.0.0", 4, "1.0.0", 5, false},
		{"9.0.0", 5, "1.0.0", 5, false},
	} {
		if got := NewerProgram(tt.version, tt.number, tt.than, tt.thanNo); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}

// A program without a supervisor, as a server: it ends itself, tries, and comes back
// as the active binary.
func TestAloneInTheDataDirectory(t *testing.T) {
	t.Parallel()
	s := newSite(t, "TEST_ALONE=1")
	packaged := mustDigest(t, s.installed)
	s.start()
	pid := s.cmd.Process.Pid
	m := s.stageActive("1.1.0", 2, "good")
	s.awaitEvent(fmt.Sprintf("agent 1.1.0 pid %d alone", pid))
	if want := install.ActivePath(s.data, m.Digest); s.exe() != want {
		t.Errorf("the process runs %s, want %s", s.exe(), want)
	}
	s.stageActive("1.2.0", 3, "crash")
	s.awaitOutcome(install.RolledBack)
	s.await("the return", func() bool {
		return strings.Count(s.events(), fmt.Sprintf("agent 1.1.0 pid %d alone", pid)) == 2
	})
	s.stageActive("1.3.0", 4, "good")
	s.awaitEvent(fmt.Sprintf("agent 1.3.0 pid %d alone", pid))
	s.mustStayPackaged(packaged)
}
