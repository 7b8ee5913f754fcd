//go:build linux

package delta

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"
)

// What a patch may cost, against the bsdiff program side by side.
const (
	maxBytesRatio  = 1.3
	maxMakeRatio   = 0.4
	maxApplyRatio  = 0.6
	minWholeRatio  = 18 // zstd -19 of the whole file over the patch, for a small edit
	benchRuns      = 3  // of making, of which the medians count
	applyRuns      = 11 // of applying, which takes a hundredth of that
	moduleRoot     = "../.."
	smallEdit      = "small edit"
	dependencyBump = "dependency bump"
	wideEdit       = "edit of all functions in three packages"
)

type benchResult struct {
	Change       string  `json:"change"`
	Length       int     `json:"length"`
	Zstd         int64   `json:"zstd_19_bytes"`
	Bsdiff       int64   `json:"bsdiff_bytes"`
	Plain        int64   `json:"without_prediction_bytes"`
	Patch        int64   `json:"patch_bytes"`
	BytesRatio   float64 `json:"bytes_ratio"`
	WholeRatio   float64 `json:"zstd_19_over_patch"`
	BsdiffMake   float64 `json:"bsdiff_seconds"`
	Make         float64 `json:"make_seconds"`
	MakeRatio    float64 `json:"make_ratio"`
	BsdiffMemory int64   `json:"bsdiff_peak_bytes"`
	MakeMemory   int64   `json:"make_peak_bytes"`
	MemoryRatio  float64 `json:"make_peak_ratio"`
	BspatchApply float64 `json:"bspatch_seconds"`
	Unhashed     float64 `json:"apply_without_sha256_seconds"`
	Apply        float64 `json:"apply_seconds"`
	ApplyRatio   float64 `json:"apply_ratio"`
}

// TestBenchDelta measures patches of moult itself, in the order in which they
// are printed, beside bsdiff, bspatch and zstd: make bench-delta.
func TestBenchDelta(t *testing.T) {
	report := os.Getenv("MOULT_BENCH_DELTA")
	if report == "" {
		t.Skip("minutes; make bench-delta runs it")
	}
	for _, program := range []string{"bsdiff", "bspatch", "zstd"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%s is not here; install the packages bsdiff and zstd", program)
		}
	}
	dir := t.TempDir()
	source := filepath.Join(dir, "source")
	copyTree(t, source)
	old := buildMoult(t, source, filepath.Join(dir, "old"), "1.0.0")
	insert(t, filepath.Join(source, "consensus/coordinator/plan.go"), `(?m)^func plan\(.*\{$`, `
	if in.Self == "" && len(in.Hosts) > 1<<20 {
		return []step{{Say: fmt.Sprintf("%d hosts are too many to plan for", len(in.Hosts))}}, in.Memory, in.Now.Add(time.Minute)
	}`)
	var results []benchResult
	results = append(results, measure(t, smallEdit, old, buildMoult(t, source, filepath.Join(dir, "small"), "1.0.1")))
	if err := bump(source); err == nil {
		results = append(results, measure(t, dependencyBump, old, buildMoult(t, source, filepath.Join(dir, "bump"), "1.1.0")))
	} else {
		t.Logf("%s: not measured: %v", dependencyBump, err)
	}
	for _, part := range []string{"consensus/coordinator", "consensus/fleet", "webui"} {
		editAll(t, filepath.Join(source, part))
	}
	results = append(results, measure(t, wideEdit, old, buildMoult(t, source, filepath.Join(dir, "wide"), "2.0.0")))
	printResults(t, results)
	b, err := json.MarshalIndent(map[string]any{"patches": results}, "", "  ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(report), 0o755)
	}
	if err == nil {
		err = os.WriteFile(report, append(b, '\n'), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		if r.BytesRatio > maxBytesRatio {
			t.Errorf("%s: the patch has %.2f times the bytes of bsdiff's, at most %.1f are to be", r.Change, r.BytesRatio, maxBytesRatio)
		}
		if r.Change == smallEdit && r.WholeRatio < minWholeRatio {
			t.Errorf("%s: the whole file, compressed, is %.0f times the patch, at least %d are to be", r.Change, r.WholeRatio, minWholeRatio)
		}
	}
}

func printResults(t *testing.T, results []benchResult) {
	var out bytes.Buffer
	table := func(head string, row func(r benchResult) []any) {
		w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(w, head)
		for _, r := range results {
			fmt.Fprintf(w, strings.Repeat("%v\t", strings.Count(head, "\t"))+"\n", append([]any{r.Change}, row(r)...)...)
		}
		w.Flush()
		out.WriteByte('\n')
	}
	table("bytes\tzstd -19\tbsdiff\twithout prediction\tpatch\tpatch/bsdiff\tzstd/patch\t", func(r benchResult) []any {
		return []any{r.Zstd, r.Bsdiff, r.Plain, r.Patch, fmt.Sprintf("%.3f", r.BytesRatio), fmt.Sprintf("%.0f", r.WholeRatio)}
	})
	table("making\tbsdiff\tpatch\tof its time\tbsdiff's peak\tpeak\tof its memory\t", func(r benchResult) []any {
		return []any{inSeconds(r.BsdiffMake), inSeconds(r.Make), ratio(r.MakeRatio), inMiB(r.BsdiffMemory), inMiB(r.MakeMemory), ratio(r.MemoryRatio)}
	})
	table("applying\tbspatch\tapply\tof its time\tapply, sha256\tof its time\t", func(r benchResult) []any {
		return []any{inSeconds(r.BspatchApply), inSeconds(r.Unhashed), ratio(r.Unhashed / r.BspatchApply), inSeconds(r.Apply), ratio(r.ApplyRatio)}
	})
	fmt.Printf("%s(to be: patch/bsdiff ≤ %.1f, zstd/patch ≥ %d for the small edit, making ≤ %.1f of bsdiff's time, applying with sha256 ≤ %.1f of bspatch's, which has none)\n",
		out.String(), maxBytesRatio, minWholeRatio, maxMakeRatio, maxApplyRatio)
}

func inSeconds(v float64) string { return fmt.Sprintf("%.3f s", v) }
func inMiB(n int64) string       { return fmt.Sprintf("%d MiB", n>>20) }
func ratio(v float64) string     { return fmt.Sprintf("%.2f", v) }

// measure makes and applies the patch, in turns with the programs. Making is a
// process that reads and writes files, as bsdiff is. Applying reads and writes
// files, and hashes what it wrote, which bspatch does not do.
func measure(t *testing.T, change, oldPath, newPath string) benchResult {
	t.Helper()
	want, size := benchTarget(t, oldPath, newPath)
	r := benchResult{Change: change, Length: size}
	run(t, "zstd", "-19", "-q", "-f", "-k", newPath, "-o", newPath+".zst")
	r.Zstd = length(t, newPath+".zst")
	var bsdiff, mine []float64
	for range benchRuns {
		took, peak := run(t, "bsdiff", oldPath, newPath, newPath+".bsdiff")
		bsdiff, r.BsdiffMemory = append(bsdiff, took), max(r.BsdiffMemory, peak)
		took, peak = benchMake(t, oldPath, newPath, newPath+".patch", predicted)
		mine, r.MakeMemory = append(mine, took), max(r.MakeMemory, peak)
	}
	benchMake(t, oldPath, newPath, newPath+".plain", plainly)
	patch, err := os.ReadFile(newPath + ".patch")
	if err != nil {
		t.Fatal(err)
	}
	var bspatch, unhashed, hashed []float64
	for range applyRuns {
		took, _ := run(t, "bspatch", oldPath, newPath+".out", newPath+".bsdiff")
		bspatch = append(bspatch, took)
		unhashed = append(unhashed, seconds(func() { applyFile(t, oldPath, patch, want, newPath+".out", false) }))
		hashed = append(hashed, seconds(func() { applyFile(t, oldPath, patch, want, newPath+".out", true) }))
	}
	r.Bsdiff, r.Patch, r.Plain = length(t, newPath+".bsdiff"), length(t, newPath+".patch"), length(t, newPath+".plain")
	r.BsdiffMake, r.Make = median(bsdiff), median(mine)
	r.BspatchApply, r.Unhashed, r.Apply = median(bspatch), median(unhashed), median(hashed)
	r.BytesRatio = float64(r.Patch) / float64(r.Bsdiff)
	r.WholeRatio = float64(r.Zstd) / float64(r.Patch)
	r.MakeRatio, r.ApplyRatio = r.Make/r.BsdiffMake, r.Apply/r.BspatchApply
	r.MemoryRatio = float64(r.MakeMemory) / float64(r.BsdiffMemory)
	return r
}

func benchTarget(t *testing.T, oldPath, newPath string) (want Target, size int) {
	t.Helper()
	old, err := os.ReadFile(oldPath)
	if err != nil {
		t.Fatal(err)
	}
	new, err := os.ReadFile(newPath)
	if err != nil {
		t.Fatal(err)
	}
	return targetOf(old, new), len(new)
}

const (
	benchMakeEnv = "MOULT_BENCH_DELTA_MAKE" // OLD:NEW:PATCH:HOW
	predicted    = "predicted"
	plainly      = "plainly"
)

// benchMake makes a patch in a process of its own. What a process takes at most
// counts from what its parent had when it began: so this one stays small.
func benchMake(t *testing.T, old, new, patch, how string) (took float64, peak int64) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	files := strings.Join([]string{old, new, patch, how}, ":")
	return run(t, "env", benchMakeEnv+"="+files, self, "-test.run=^TestBenchMake$")
}

// TestBenchMake is that process.
func TestBenchMake(t *testing.T) {
	args := strings.Split(os.Getenv(benchMakeEnv), ":")
	if len(args) != 4 {
		t.Skip("a part of TestBenchDelta")
	}
	old, err := os.ReadFile(args[0])
	if err != nil {
		t.Fatal(err)
	}
	new, err := os.ReadFile(args[1])
	if err != nil {
		t.Fatal(err)
	}
	var patch []byte
	if args[3] == plainly {
		ops, err := match(t.Context(), old, new)
		if err != nil {
			t.Fatal(err)
		}
		patch = mustEncode(t, old, new, &plan{ops: ops})
	} else {
		patch = mustMake(t, old, new)
	}
	if err := os.WriteFile(args[2], patch, 0o600); err != nil {
		t.Fatal(err)
	}
}

func applyFile(t *testing.T, oldPath string, patch []byte, want Target, newPath string, hash bool) {
	t.Helper()
	old, err := os.Open(oldPath)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	out, err := os.Create(newPath)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	sum := sha256.New()
	var to io.Writer = out
	if hash {
		to = io.MultiWriter(out, sum)
	}
	if err := Apply(t.Context(), old, bytes.NewReader(patch), want, to); err != nil {
		t.Fatal(err)
	}
	if hash && hex.EncodeToString(sum.Sum(nil)) != want.NewDigest {
		t.Fatal("the patch makes another file")
	}
}

func seconds(f func()) float64 {
	begin := time.Now()
	f()
	return time.Since(begin).Seconds()
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// run runs a program, and returns how long it took and how much memory it had at
// most, in bytes.
func run(t *testing.T, name string, args ...string) (took float64, peak int64) {
	t.Helper()
	cmd := exec.Command(name, args...)
	took = seconds(func() {
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	})
	return took, cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
}

func length(t *testing.T, path string) int64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

// copyTree copies the module's source.
func copyTree(t *testing.T, to string) {
	t.Helper()
	err := filepath.WalkDir(moduleRoot, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(moduleRoot, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); relative != "." && (strings.HasPrefix(name, ".") || name == "bin" || name == "build" || name == "dist") {
				return filepath.SkipDir
			}
			return os.MkdirAll(filepath.Join(to, relative), 0o755)
		}
		if !d.Type().IsRegular() {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, relative), b, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func buildMoult(t *testing.T, source, out, version string) string {
	t.Helper()
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.version="+version, "-o", out, "./cmd/moult")
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build moult: %v\n%s", err, b)
	}
	return out
}

// insert puts code behind a match.
func insert(t *testing.T, path, pattern, code string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := regexp.MustCompile(pattern).FindIndex(b)
	if at == nil {
		t.Fatalf("%s has nothing like %s", path, pattern)
	}
	if err := os.WriteFile(path, []byte(string(b[:at[1]])+code+string(b[at[1]:])), 0o644); err != nil {
		t.Fatal(err)
	}
}

// bump takes other versions of two dependencies; on an error it takes none.
func bump(source string) error {
	modules := []string{"golang.org/x/crypto@v0.55.0", "golang.org/x/sys@v0.47.0"}
	edit := func(flag string, value func(module string) string) error {
		for _, module := range modules {
			cmd := exec.Command("go", "mod", "edit", flag, value(module))
			cmd.Dir = source
			if b, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%w: %s", err, b)
			}
		}
		return nil
	}
	name := func(module string) string { n, _, _ := strings.Cut(module, "@"); return n }
	if err := edit("-replace", func(m string) string { return name(m) + "=" + m }); err != nil {
		return err
	}
	cmd := exec.Command("go", "list", "-deps", "./cmd/moult")
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod")
	if b, err := cmd.CombinedOutput(); err != nil {
		if err := edit("-dropreplace", name); err != nil {
			return err
		}
		return fmt.Errorf("get %s: %w: %s", strings.Join(modules, " and "), err, b)
	}
	return nil
}

// editAll begins each function of a package with a statement of its own.
func editAll(t *testing.T, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	function := regexp.MustCompile(`(?m)^func .*\{$`)
	name := ""
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(path, "_test.go") || regexp.MustCompile(`(?m)^//go:build`).Match(b) {
			continue
		}
		name = string(regexp.MustCompile(`(?m)^package (\w+)`).FindSubmatch(b)[1])
		b = function.ReplaceAllFunc(b, func(line []byte) []byte {
			if bytes.HasSuffix(line, []byte("interface {")) { // of a type parameter: the body is further down
				return line
			}
			return slices.Concat(line, []byte("\n\tif benchCalls++; benchCalls < 0 {\n\t\tpanic(\"too many calls\")\n\t}"))
		})
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "calls.go"), []byte("package "+name+"\n\nvar benchCalls int\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}
