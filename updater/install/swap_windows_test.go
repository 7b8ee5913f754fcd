package install

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/windows"
)

// site is an installed binary in a directory whose name needs care.
func site(t *testing.T) SwapRequest {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "Program Files [x64]")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	r := SwapRequest{Staged: filepath.Join(t.TempDir(), "staged"), Installed: filepath.Join(dir, "moult.exe")}
	for path, content := range map[string]string{r.Staged: "new", r.Installed: "old"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if r.Digest, err = Digest(r.Staged); err != nil {
		t.Fatal(err)
	}
	return r
}

func mustHold(t *testing.T, path, want string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%s holds %q, %v; want %q", path, got, err, want)
	}
}

// hold opens a file as a scanner does, that lets others read and nothing else.
func hold(t *testing.T, path string) (release func()) {
	t.Helper()
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		t.Fatal(err)
	}
	h, err := windows.CreateFile(name, windows.GENERIC_READ, windows.FILE_SHARE_READ, nil, windows.OPEN_EXISTING, windows.FILE_ATTRIBUTE_NORMAL, 0)
	if err != nil {
		t.Fatal(err)
	}
	return func() { windows.CloseHandle(h) }
}

func TestSwapSetsAsideAndSweeps(t *testing.T) {
	r := site(t)
	for range 3 {
		if err := Swap(r); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond) // the names tell the order
	}
	mustHold(t, r.Installed, "new")
	if err := SweepLeftovers(r.Installed); err != nil {
		t.Fatal(err)
	}
	left, err := Asides(r.Installed)
	if err != nil || len(left) != 1 {
		t.Errorf("after a sweep %v lie aside, %v; want the last good one", left, err)
	}
}

func TestSwapReplacesARunningProgram(t *testing.T) {
	r := site(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.Installed, program, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(r.Installed, "-test.run", "TestSleepingProgram")
	cmd.Env = append(os.Environ(), "TEST_SLEEP=1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	defer func() { _ = cmd.Process.Kill() }()
	time.Sleep(500 * time.Millisecond)
	if err := Swap(r); err != nil {
		t.Fatal(err)
	}
	mustHold(t, r.Installed, "new")
	if err := Reinstate(r.Installed); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(r.Installed); err != nil || st.Size() != int64(len(program)) {
		t.Errorf("the program before is not back: %v, %v", st, err)
	}
}

// TestSleepingProgram is what TestSwapReplacesARunningProgram runs.
func TestSleepingProgram(t *testing.T) {
	if os.Getenv("TEST_SLEEP") == "" {
		t.Skip("part of another test")
	}
	time.Sleep(time.Minute)
}

func TestSwapWaitsForAScanner(t *testing.T) {
	r := site(t)
	release := hold(t, r.Installed)
	time.AfterFunc(time.Second, release)
	began := time.Now()
	if err := Swap(r); err != nil {
		t.Fatal(err)
	}
	if time.Since(began) < 500*time.Millisecond {
		t.Error("the file was not held: the test shows nothing")
	}
	mustHold(t, r.Installed, "new")
}

func TestSwapGivesUpAndNamesTheFile(t *testing.T) {
	r := site(t)
	defer hold(t, r.Installed)()
	began := time.Now()
	err := Swap(r)
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), r.Installed) || !strings.Contains(err.Error(), "virus scanner") {
		t.Errorf("error is %v", err)
	}
	if d := time.Since(began); d > 20*time.Second {
		t.Errorf("it took %v", d)
	}
	mustHold(t, r.Installed, "old")
	if entries, _ := os.ReadDir(filepath.Dir(r.Installed)); len(entries) != 1 {
		t.Errorf("a failed swap left %v", entries)
	}
}

// Between the check and the start nobody can put other bytes under the name.
func TestTheVerifiedFileCannotBeChanged(t *testing.T) {
	r := site(t)
	f, err := OpenVerified(r.Staged, r.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if w, err := os.OpenFile(r.Staged, os.O_WRONLY, 0); err == nil {
		w.Close()
		t.Error("it can be written to")
	}
	if err := os.Rename(r.Staged, r.Staged+".moved"); err == nil {
		t.Error("it can be renamed")
	}
	if err := os.Remove(r.Staged); err == nil {
		t.Error("it can be removed")
	}
	mustHold(t, r.Staged, "new")
}
