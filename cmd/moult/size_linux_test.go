package main

import (
	"cmp"
	"debug/buildinfo"
	"debug/elf"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

const (
	// maxBinary bounds the stripped binary of linux/amd64: what makes it larger than
	// this has to be worth it (docs/footprint.md tells what each module takes).
	maxBinary = 24_500_000
	// maxStartAllocated bounds what the packages of the binary allocate before main,
	// which the agent and its supervisor each keep most of. A table or a regular
	// expression that only some command needs is made when it does.
	maxStartAllocated = 520_000
)

// Every host keeps the binary three times and has it in memory: it carries no fat.
func TestBinaryStaysSmall(t *testing.T) {
	if longForm() || runtime.GOARCH != "amd64" {
		t.Skip("another binary than that of the bound")
	}
	st, err := os.Stat(binary(t, versionA))
	must(t, err)
	if st.Size() > maxBinary {
		t.Errorf("the binary has %d bytes, %d more than it may; `make size` tells whose they are", st.Size(), st.Size()-maxBinary)
	}
}

// What the agent does not need is not made when it starts.
func TestStartAllocatesLittle(t *testing.T) {
	if longForm() {
		t.Skip("the race detector's own allocations count too")
	}
	cmd := exec.Command(binary(t, versionA), "version", "--data", t.TempDir())
	cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
	var trace strings.Builder
	cmd.Stderr = &trace
	must(t, cmd.Run())
	total := 0
	for line := range strings.Lines(trace.String()) {
		var name string
		var at, took float64
		var n, allocs int
		if _, err := fmt.Sscanf(line, "init %s @%f ms, %f ms clock, %d bytes, %d allocs", &name, &at, &took, &n, &allocs); err == nil {
			total += n
		}
	}
	if total == 0 || total > maxStartAllocated {
		t.Errorf("%d bytes are allocated before main, at most %d are to be:\n%s", total, maxStartAllocated, trace.String())
	}
}

// moduleSize is what of the binary's code and data is a module's, in bytes.
type moduleSize struct {
	Module string
	Bytes  uint64
}

// TestBinarySizes prints what each dependency adds to the binary: make size.
func TestBinarySizes(t *testing.T) {
	out := os.Getenv("MOULT_BENCH_SIZE")
	if out == "" {
		t.Skip("run by make size")
	}
	path := filepath.Join(t.TempDir(), "moult")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, ".") // with its symbols, which a release does without
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, text)
	}
	sizes := sizesByModule(t, path)
	st, err := os.Stat(binary(t, versionA))
	must(t, err)
	fmt.Printf("\n| module | MB |\n|---|---:|\n| **the stripped binary** | **%.2f** |\n", float64(st.Size())/1e6)
	var rest uint64
	for _, s := range sizes {
		if s.Bytes < 50_000 {
			rest += s.Bytes
			continue
		}
		fmt.Printf("| %s | %.2f |\n", s.Module, float64(s.Bytes)/1e6)
	}
	fmt.Printf("| all others | %.2f |\n", float64(rest)/1e6)
	text, err := json.MarshalIndent(map[string]any{"stripped": st.Size(), "modules": sizes}, "", "  ")
	must(t, err)
	must(t, os.MkdirAll(filepath.Dir(out), 0o755))
	must(t, os.WriteFile(out, append(text, '\n'), 0o644))
}

// goTables is what Go's linker makes of all packages: types, and for each function
// where its lines, frames and pointers are.
const goTables = "tables of functions and types"

// sizesByModule adds up a binary's symbols, the largest module first.
func sizesByModule(t *testing.T, path string) []moduleSize {
	t.Helper()
	info, err := buildinfo.ReadFile(path)
	must(t, err)
	modules := []string{info.Main.Path}
	for _, m := range info.Deps {
		modules = append(modules, m.Path)
	}
	f, err := elf.Open(path)
	must(t, err)
	defer f.Close()
	symbols, err := f.Symbols()
	must(t, err)
	sum, named := map[string]uint64{}, map[elf.SectionIndex]uint64{}
	for _, s := range symbols {
		if int(s.Section) >= len(f.Sections) || f.Sections[s.Section].Type == elf.SHT_NOBITS || f.Sections[s.Section].Flags&elf.SHF_ALLOC == 0 {
			continue // of no section, or of one that takes no room in the file
		}
		sum[moduleOf(s.Name, modules)] += s.Size
		named[s.Section] += s.Size
	}
	for i, section := range f.Sections { // what bears no name
		if section.Flags&elf.SHF_ALLOC != 0 && section.Type != elf.SHT_NOBITS && section.Size > named[elf.SectionIndex(i)] {
			sum[goTables] += section.Size - named[elf.SectionIndex(i)]
		}
	}
	sizes := make([]moduleSize, 0, len(sum))
	for m, n := range sum {
		sizes = append(sizes, moduleSize{m, n})
	}
	slices.SortFunc(sizes, func(a, b moduleSize) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Module, b.Module))
	})
	return sizes
}

// moduleOf tells whose a symbol is, such as "net/http.(*Server).Serve" or
// "type:.eq.moult/mesh.Record".
func moduleOf(symbol string, modules []string) string {
	for _, made := range []string{"type:.eq.", "type:.hash.", "go:itab.*", "go:itab."} {
		symbol = strings.TrimPrefix(symbol, made)
	}
	if strings.HasPrefix(symbol, "type:") || strings.HasPrefix(symbol, "go:") || strings.HasPrefix(symbol, "runtime.pclntab") || strings.HasPrefix(symbol, "runtime.types") || !strings.Contains(symbol, ".") {
		return goTables
	}
	name, _, _ := strings.Cut(symbol, "[") // type arguments
	name, _, _ = strings.Cut(name, ",")    // the interface of an itab
	slash := strings.LastIndex(name, "/")
	pkg, _, _ := strings.Cut(name[slash+1:], ".")
	pkg = strings.ReplaceAll(name[:slash+1]+pkg, "%2e", ".")
	if pkg == "main" {
		return "moult"
	}
	best := ""
	for _, m := range modules {
		if (pkg == m || strings.HasPrefix(pkg, m+"/")) && len(m) > len(best) {
			best = m
		}
	}
	return cmp.Or(best, "Go's standard library")
}

func TestModuleOfSymbol(t *testing.T) {
	modules := []string{"moult", "github.com/hashicorp/go-msgpack/v2", "github.com/hashicorp/raft", "gopkg.in/x.v1"}
	for symbol, want := range map[string]string{
		"main.run":                    "moult",
		"moult/mesh.(*Node).Send":     "moult",
		"type:.eq.moult/mesh.Record":  "moult",
		"net/http.(*Server).Serve":    "Go's standard library",
		"runtime.mallocgc":            "Go's standard library",
		"runtime.pclntab":             goTables,
		"go:func.*":                   goTables,
		"type:*":                      goTables,
		"gopkg.in/x%2ev1.Parse":       "gopkg.in/x.v1",
		"github.com/hashicorp/raft.x": "github.com/hashicorp/raft",
		"github.com/hashicorp/go-msgpack/v2/codec.(*Encoder).Encode":            "github.com/hashicorp/go-msgpack/v2",
		"go:itab.*github.com/hashicorp/raft.Node,github.com/x/y.I":              "github.com/hashicorp/raft",
		"sync/atomic.(*Pointer[go.shape.struct { moult/mesh.a int }]).Load":     "Go's standard library",
		"github.com/hashicorp/raft-boltdb/v2.New":                               "Go's standard library", // not in the list
		"slices.SortFunc[go.shape.[]moult/mesh.Member,go.shape.struct { A.B }]": "Go's standard library",
	} {
		if got := moduleOf(symbol, modules); got != want {
			t.Errorf("%s is of %s, want %s", symbol, got, want)
		}
	}
}
