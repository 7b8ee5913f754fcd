//go:build linux

package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"moult/testdata/faultsuite"
)

// The power is cut at a system call by killing a child there: strace delivers
// SIGKILL as the call begins. What the tests then look at is all a power cut
// leaves, except for what was not synced; TestSwapSyncsInOrder sees to that.

// envActor makes the test binary do one thing and end: see runActor.
const envActor = "INSTALL_TEST_ACTOR"

// runActor is the child's main: it does what the environment says, on one thread
// so that calls can be counted.
func runActor(actor string) int {
	runtime.LockOSThread()
	args := strings.Split(actor, "\n")
	var err error
	switch args[0] {
	case "swap":
		err = Swap(SwapRequest{Staged: args[1], Installed: args[2], Digest: args[3]})
	case "marker":
		err = SaveMarker(args[1], markerNumbered(2))
	case "activate":
		var a Active
		var text []byte
		if text, err = os.ReadFile(args[4]); err == nil {
			err = json.Unmarshal(text, &a)
		}
		if err == nil {
			err = Activate(ActivateRequest{Staged: args[2], DataDir: args[3], Active: a})
		}
	case "remove":
		err = RemoveMarker(args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func markerNumbered(n int) Marker {
	return Marker{JobID: fmt.Sprint("job-", n), Version: "1.1.0", Digest: strings.Repeat("a", 64), StagedPath: "/s", Starts: n, State: OnTrial}
}

// changing are the calls that can change a file, or end a change.
const changing = "openat,write,copy_file_range,sendfile,fsync,fchmod,fchmodat,fchown,fsetxattr,ftruncate,linkat,renameat,renameat2,unlinkat,close"

var call = regexp.MustCompile(`^(?:\d+ +)?([a-z_0-9]+)\((.*)$`)

// traced runs an actor under strace; options come before its own. It returns
// the calls, and whether the actor was killed.
func traced(t *testing.T, actor []string, options ...string) (calls [][2]string, killed bool) {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed: apt-get install strace")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(t.TempDir(), "trace")
	args := append([]string{"-f", "-qq", "-y", "-s", "4096", "-e", "signal=none", "-e", "trace=" + changing, "-o", log}, options...)
	cmd := exec.Command(strace, append(args, self)...)
	cmd.Env = append(os.Environ(), envActor+"="+strings.Join(actor, "\n"), "GOMAXPROCS=1")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return nil, true
		}
	}
	if err != nil {
		if bytes.Contains(out, []byte("ptrace")) {
			t.Skipf("tracing is not allowed here: %s", out)
		}
		t.Fatalf("%v: %s", err, out)
	}
	trace, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(trace)) {
		if m := call.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			calls = append(calls, [2]string{m[1], m[2]})
		}
	}
	return calls, false
}

// powerCutCycles are the cycles of the rows of the fault suite: each cuts at every
// call of a swap, or of a change of the marker, once. Together they make more than
// 500 cuts.
const powerCutCycles = 15

// cutAtEachCall sets a scene up again and again, and kills the actor at one
// call after the other; check looks at what is left. What is cut names the row.
func cutAtEachCall(t *testing.T, what string, scene func() (actor []string), check func(at string)) {
	t.Helper()
	row := faultsuite.Row{Name: "power cut at every syscall of " + what, Long: powerCutCycles, Short: 1}
	row.MustBeChosen(t)
	all := 0
	for range row.Cycles(t) {
		all += cutOnceAtEachCall(t, scene, check)
	}
	t.Logf("%-50s %4d cuts", row.Name, all)
}

func cutOnceAtEachCall(t *testing.T, scene func() (actor []string), check func(at string)) (cuts int) {
	t.Helper()
	actor := scene()
	calls, _ := traced(t, actor)
	check("the end")
	counts := map[string]int{}
	begun, tried := false, 0
	for _, c := range calls {
		counts[c[0]]++
		// What comes before is the program's own start.
		if begun = begun || strings.Contains(c[1], actor[1]); !begun {
			continue
		}
		tried++
		at := fmt.Sprintf("%s:signal=KILL:when=%d", c[0], counts[c[0]])
		if _, killed := traced(t, scene(), "-e", "inject="+at); killed {
			cuts++
		}
		check(fmt.Sprintf("%s #%d(%s", c[0], counts[c[0]], strings.TrimSpace(c[1])))
	}
	if tried == 0 || cuts < tried {
		t.Errorf("only %d of %d cuts took place", cuts, tried)
	}
	return cuts
}

// Whatever call the power fails at, the installed path holds a complete binary
// that runs, and after the rename the last good one is beside it.
func TestPowerCutAtEachCallOfASwap(t *testing.T) {
	var r SwapRequest
	var seen []string
	cutAtEachCall(t, "the swap", func() []string {
		r = swapSite(t)
		script(t, r.Installed+".old", "older")
		return []string{"swap", r.Staged, r.Installed, r.Digest}
	}, func(at string) {
		word := says(t, r.Installed)
		seen = append(seen, word)
		if word != "old" && word != "new" {
			t.Errorf("cut at %s: installed says %q", at, word)
		}
		kept := says(t, r.Installed+".old")
		if kept != "old" && (word == "new" || kept != "older") {
			t.Errorf("cut at %s: installed says %q and .old %q: the last good binary is gone", at, word, kept)
		}
		if word == "new" && mustDigest(t, r.Installed) != r.Digest {
			t.Errorf("cut at %s: the installed binary is not the verified one", at)
		}
		if err := SweepLeftovers(r.Installed); err != nil {
			t.Errorf("cut at %s: %v", at, err)
		}
		if left := leftovers(t, filepath.Dir(r.Installed)); len(left) > 0 {
			t.Errorf("cut at %s: leftovers %v", at, left)
		}
	})
	if !slices.Contains(seen, "old") || !slices.Contains(seen, "new") {
		t.Errorf("the cuts left %q: some have to come before the rename, some after", seen)
	}
}

func mustDigest(t *testing.T, path string) string {
	t.Helper()
	d, err := Digest(path)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Whatever call the power fails at, the marker is the one before or the one
// after, never a mixture, and never none.
func TestPowerCutAtEachCallOfAMarker(t *testing.T) {
	var dir string
	var seen []int
	cutAtEachCall(t, "the marker", func() []string {
		dir = t.TempDir()
		if err := SaveMarker(dir, markerNumbered(1)); err != nil {
			t.Fatal(err)
		}
		return []string{"marker", dir}
	}, func(at string) {
		m, err := LoadMarker(dir)
		if err != nil || m != markerNumbered(1) && m != markerNumbered(2) {
			t.Errorf("cut at %s: marker %+v, %v", at, m, err)
		}
		seen = append(seen, m.Starts)
		if err := SaveMarker(dir, markerNumbered(3)); err != nil {
			t.Errorf("cut at %s: the next marker: %v", at, err)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
			t.Errorf("cut at %s: after the next marker the directory holds %v, %v", at, entries, err)
		}
	})
	if !slices.Contains(seen, 1) || !slices.Contains(seen, 2) {
		t.Errorf("the cuts left the markers %v: some have to come before the rename, some after", seen)
	}
}

func TestPowerCutAtEachCallOfRemovingAMarker(t *testing.T) {
	var dir string
	cutAtEachCall(t, "the marker's removal", func() []string {
		dir = t.TempDir()
		if err := SaveMarker(dir, markerNumbered(1)); err != nil {
			t.Fatal(err)
		}
		return []string{"remove", dir}
	}, func(at string) {
		if m, err := LoadMarker(dir); !errors.Is(err, ErrNoMarker) && (err != nil || m != markerNumbered(1)) {
			t.Errorf("cut at %s: marker %+v, %v", at, m, err)
		}
	})
}

// order finds the calls that match, one after the other; the name of the first
// that does not come is returned.
func inOrder(calls [][2]string, patterns ...string) (missing string) {
	for _, c := range calls {
		if len(patterns) == 0 {
			return ""
		}
		if regexp.MustCompile(patterns[0]).MatchString(c[0] + "(" + c[1]) {
			patterns = patterns[1:]
		}
	}
	if len(patterns) > 0 {
		return patterns[0]
	}
	return ""
}

// A kill loses nothing that was written; a power cut loses what was not synced.
// So the order of the syncs is looked at itself: bytes before the name, .old
// before the installed name changes, the directory last.
func TestSwapSyncsInOrder(t *testing.T) {
	r := swapSite(t)
	dir := regexp.QuoteMeta(filepath.Dir(r.Installed))
	calls, _ := traced(t, []string{"swap", r.Staged, r.Installed, r.Digest})
	missing := inOrder(calls,
		`^(copy_file_range|write)\(.*`+dir+`/\.moult-swap-`,
		`^fchmod\(\d+<`+dir+`/\.moult-swap-`,
		`^fsync\(\d+<`+dir+`/\.moult-swap-\d+>`,
		`^linkat\(.*`+dir+`/moult", .*`+dir+`/\.moult-swap-old-`,
		`^renameat2?\(.*\.moult-swap-old-.*`+dir+`/moult\.old"`,
		`^fsync\(\d+<`+dir+`>`,
		`^renameat2?\(.*\.moult-swap-\d+".*`+dir+`/moult"`,
		`^fsync\(\d+<`+dir+`>`,
	)
	if missing != "" {
		t.Errorf("no call in its turn matches %s; the calls are %q", missing, calls)
	}
}

func TestMarkerSyncsInOrder(t *testing.T) {
	dir := t.TempDir()
	quoted := regexp.QuoteMeta(dir)
	calls, _ := traced(t, []string{"marker", dir})
	missing := inOrder(calls,
		`^write\(\d+<`+quoted+`/\.trial\.json\.new>`, `^fsync\(\d+<`+quoted+`/\.trial\.json\.new>`,
		`^renameat2?\(.*`+quoted+`/trial\.json"`, `^fsync\(\d+<`+quoted+`>`,
	)
	if missing != "" {
		t.Errorf("no call in its turn matches %s; the calls are %q", missing, calls)
	}
}
