//go:build linux

package main

import (
	endian "encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"moult/testdata/faultsuite"
)

// Clock steps. A server's clock cannot be stepped without everybody's on the
// machine: name spaces shift the monotonic clock alone, and a Go program asks the
// kernel for the time in ways that neither strace nor a preloaded library sees. So
// these servers are built with another time.Now, laid over Go's own for this one
// build: it adds what stands in a file of the server's. All else is the product.

// clockSteps are how far, and in which order, clocks are put forward and back.
var clockSteps = []time.Duration{time.Hour, -time.Hour, 365 * 24 * time.Hour, -365 * 24 * time.Hour}

// envClocks names the directory with the servers' offsets: files NAME of eight
// bytes, the nanoseconds to add.
const envClocks = "MOULT_TEST_CLOCKS"

// steppedClock is added to package time. The file is mapped, so that a change counts
// at once and costs nothing.
const steppedClock = `
package time

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

var clockOffset *int64

func init() {
	dir, ok := syscall.Getenv("` + envClocks + `")
	if !ok {
		return
	}
	fd, err := syscall.Open("/proc/self/cmdline", syscall.O_RDONLY, 0)
	if err != nil {
		return
	}
	buf := make([]byte, 64<<10)
	n, _ := syscall.Read(fd, buf)
	syscall.Close(fd)
	name := ""
	args := string(buf[:n])
	for previous := ""; args != ""; {
		end := 0
		for end < len(args) && args[end] != 0 {
			end++
		}
		arg := args[:end]
		args = args[min(end+1, len(args)):]
		if previous == "--name" {
			name = arg
		}
		if len(arg) > 7 && arg[:7] == "--name=" {
			name = arg[7:]
		}
		previous = arg
	}
	fd, err = syscall.Open(dir+"/"+name, syscall.O_RDONLY, 0)
	if name == "" || err != nil {
		return
	}
	mem, err := syscall.Mmap(fd, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
	syscall.Close(fd)
	if err == nil {
		clockOffset = (*int64)(unsafe.Pointer(&mem[0]))
	}
}

func steppedNow(sec int64, nsec int32) (int64, int32) {
	if clockOffset == nil {
		return sec, nsec
	}
	return sec + atomic.LoadInt64(clockOffset)/1e9, nsec
}
`

// buildStepped builds moult in version A with clocks that can be stepped.
func buildStepped(t *testing.T) string {
	t.Helper()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	src := filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	text, err := os.ReadFile(filepath.Join(src, "time.go"))
	if err != nil {
		t.Fatal(err)
	}
	const now = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	if strings.Count(string(text), now) != 1 {
		t.Fatalf("time.Now of this Go is not as expected; look at %s and change this test", src)
	}
	dir := t.TempDir()
	patched := strings.Replace(string(text), now, now+"\tsec, nsec = steppedNow(sec, nsec)\n", 1)
	overlay := map[string]map[string]string{"Replace": {
		filepath.Join(src, "time.go"): filepath.Join(dir, "time.go"), filepath.Join(src, "stepped.go"): filepath.Join(dir, "stepped.go"),
	}}
	list, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"time.go": []byte(patched), "stepped.go": []byte(steppedClock), "overlay.json": list} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(dir, "moult")
	cmd := exec.Command("go", "build", "-trimpath", "-overlay", filepath.Join(dir, "overlay.json"),
		"-ldflags", "-s -w -X main.version="+versionA+" -X main.commit=test", "-o", out, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build with clocks that can be stepped: %v\n%s", err, text)
	}
	return out
}

func TestFaultsClocks(t *testing.T) {
	t.Parallel()
	row := faultsuite.Row{Name: "clock steps of ± 1 h and ± 1 year", Long: 50, Short: 1}
	row.MustBeChosen(t)
	clocks := t.TempDir()
	for i := range 3 {
		setClock(t, clocks, fmt.Sprintf("server-%d", i+1), 0)
	}
	c := newCluster(t)
	c.program, c.env = buildStepped(t), []string{envClocks + "=" + clocks}
	c.up(3, faultAgents)
	f := &clockRun{faultRun: newFaultRun(t, c), clocks: clocks}
	f.runAll([]fault{{Row: row, inflict: func(*faultRun) { f.step() }}})
}

// setClock puts a server's clock forward by an offset, or back.
func setClock(t *testing.T, clocks, name string, offset time.Duration) {
	t.Helper()
	file, err := os.OpenFile(filepath.Join(clocks, name), os.O_CREATE|os.O_WRONLY, 0o600) // not anew: it is mapped
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt(endian.NativeEndian.AppendUint64(nil, uint64(offset)), 0); err != nil {
		t.Fatal(err)
	}
}

// clockRun is a faultRun whose servers' clocks can be stepped.
type clockRun struct {
	*faultRun
	clocks string
}

// step steps a server's clock in the middle of a fleet update, the leader's most
// times, and back when the update has ended.
func (f *clockRun) step() {
	f.gapLimit = failoverLimit
	step := clockSteps[f.count.Cycles%len(clockSteps)]
	if f.short() {
		step = -time.Hour
	}
	name, whose := f.c.leader(), "the leader's"
	if f.rng.IntN(3) == 0 && !f.short() {
		name, whose = fmt.Sprintf("server-%d", 1+f.rng.IntN(3)), "any server's"
	}
	f.noteMoment(fmt.Sprintf("%s by %v", whose, step))
	alerts := f.c.openAlerts()
	setClock(f.t, f.clocks, name, step)
	f.toldTime(name, step)
	f.endAt(f.others(name), f.update)
	f.mayUse(name)
	setClock(f.t, f.clocks, name, 0)
	f.well(catchUpLimit)
	if n := f.c.openAlerts(); n > alerts {
		f.t.Errorf("the clock of %s was stepped by %v: %d alerts are open, %d were", name, step, n, alerts)
	}
}

// others is a client of the other servers than this one.
func (f *clockRun) others(name string) *client {
	number := int(name[len(name)-1] - '1')
	rest := slices.Delete(slices.Clone(f.c.client.addrs), number, number+1)
	return &client{addrs: rest, token: f.c.client.token, http: f.c.client.http}
}

// toldTime fails when a server's clock does not show: the row would test nothing.
func (f *clockRun) toldTime(name string, step time.Duration) {
	f.t.Helper()
	number := int(name[len(name)-1] - '1')
	resp, err := http.Get(f.c.client.addrs[number] + "/healthz")
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	date, err := http.ParseTime(resp.Header.Get("Date"))
	if off := time.Until(date) - step; err != nil || off.Abs() > time.Minute {
		f.t.Fatalf("%s says that it is %v (%v); the step of %v does not show", name, date, err, step)
	}
}

// mayUse fails when the step keeps people out at another server than its own, which
// says that it is not ready.
func (f *clockRun) mayUse(name string) {
	f.t.Helper()
	for _, addr := range f.others(name).addrs {
		f.c.await(catchUpLimit, "people to be let in at "+addr, func() error {
			_, err := f.at(addr, 10*time.Second).servers(f.t.Context())
			return err
		})
	}
}
