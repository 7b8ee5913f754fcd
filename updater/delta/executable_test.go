package delta

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// The patch of an edit to a real program is a fraction of what it is without
// prediction: what describe finds in the executables is what the predictor takes
// it for.
func TestRealExecutables(t *testing.T) {
	platforms := []string{runtime.GOOS + "/" + runtime.GOARCH}
	if os.Getenv("MOULT_LONG") != "" {
		platforms = []string{"linux/amd64", "linux/arm64", "windows/amd64", "windows/arm64", "darwin/amd64", "darwin/arm64"}
	}
	for _, platform := range platforms {
		t.Run(strings.ReplaceAll(platform, "/", "-"), func(t *testing.T) {
			goos, arch, _ := strings.Cut(platform, "/")
			code, ok := map[string]refKind{"amd64": codeAMD64, "arm64": codeARM64}[arch]
			if !ok {
				t.Skipf("references are not predicted for %s", arch)
			}
			dir := t.TempDir()
			old := build(t, dir, goos, arch, "")
			new := build(t, dir, goos, arch, `
	if len(os.Args) > 3 {
		println("too many", len(os.Args), "arguments:", strconv.Itoa(len(os.Args)))
		os.Exit(2)
	}`)
			l := describe(old, new)
			found := map[refKind]bool{}
			for _, r := range l.regions {
				found[r.kind] = true
			}
			for name, kind := range map[string]refKind{"code": code, "pointers": pointers, "functab": goFunctab, "function records": goFuncs, "types": goTypes} {
				if !found[kind] {
					t.Errorf("the %s of the executable are not found", name)
				}
			}
			ops, err := match(context.Background(), old, new)
			if err != nil {
				t.Fatal(err)
			}
			plain := mustEncode(t, old, new, &plan{ops: ops})
			patch := mustMake(t, old, new)
			t.Logf("%d bytes for an executable of %d; without prediction %d", len(patch), len(new), len(plain))
			signature := 0
			if platform == "darwin/arm64" {
				signature = len(new) / 4096 * 32 // a sha256 of each page, which nothing predicts
			}
			if len(patch)-signature > (len(plain)-signature)/2 {
				t.Errorf("the patch has %d bytes, and %d without prediction", len(patch), len(plain))
			}
			mustApply(t, old, patch, new)
		})
	}
}

// build returns a small program of which main begins with the code given.
func build(t *testing.T, dir, goos, arch, code string) []byte {
	t.Helper()
	source := `package main

import (
	"os"
	"strconv"
	"strings"
)

func main() {` + code + `
	n, err := strconv.Atoi(strings.TrimSpace(strings.Join(os.Args[1:], "")))
	if err != nil {
		println(err.Error())
		os.Exit(1)
	}
	println(n)
}
`
	for name, content := range map[string]string{"main.go": source, "go.mod": "module small\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(dir, "program")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", out, ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOOS="+goos, "GOARCH="+arch)
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, b)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
