package main

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// leaves may be imported by any package; they import none of the roots.
var leaves = []string{
	"moult/mesh/identity", "moult/mesh/crowd", "moult/mesh/nodeport", "moult/consensus/fleet",
	"moult/updater/release", "moult/updater/order", "moult/updater/artifact",
}

// roots are the four parts of moult; none knows another.
var roots = []string{"moult/mesh", "moult/consensus", "moult/updater", "moult/webui"}

type listedPackage struct {
	ImportPath string
	Imports    []string
}

func TestImportRules(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, problem := range violations(p) {
			t.Error(problem)
		}
	}
}

// violations returns what a package imports against the rules.
func violations(p listedPackage) (problems []string) {
	say := func(imported, rule string) {
		problems = append(problems, p.ImportPath+" imports "+imported+": "+rule)
	}
	for _, imp := range p.Imports {
		if owner, ok := onlyImporter[imp]; ok && p.ImportPath != owner && !strings.HasPrefix(p.ImportPath, owner+"test") {
			if !strings.HasPrefix(p.ImportPath, owner+"/") {
				say(imp, "only "+owner+" does")
			}
		}
		if !strings.HasPrefix(imp, "moult/") || strings.HasPrefix(p.ImportPath, "moult/cmd/") {
			continue
		}
		if strings.HasPrefix(imp, "moult/cmd/") {
			say(imp, "cmd is the top")
		}
		if slices.Contains(roots, imp) && part(p.ImportPath) != part(imp) {
			say(imp, "the four parts do not know each other")
		}
		if slices.Contains(leaves, p.ImportPath) && slices.Contains(roots, imp) {
			say(imp, "a leaf imports no root")
		}
		if part(p.ImportPath) != part(imp) && !slices.Contains(leaves, imp) && !slices.Contains(roots, imp) {
			say(imp, "only leaf packages are shared between the parts")
		}
		if p.ImportPath == "moult/consensus/fleet" {
			say(imp, "the state machine stands alone")
		}
	}
	return problems
}

// onlyImporter names the one part that may import a module.
var onlyImporter = map[string]string{
	"github.com/hashicorp/memberlist":     "moult/mesh",
	"github.com/hashicorp/raft":           "moult/consensus",
	"github.com/hashicorp/raft-boltdb/v2": "moult/consensus",
}

func part(path string) string { return strings.Split(path, "/")[1] }

func TestImportRulesCatchViolations(t *testing.T) {
	for _, p := range []listedPackage{
		{"moult/webui", []string{"moult/mesh"}},
		{"moult/webui", []string{"github.com/hashicorp/raft"}},
		{"moult/mesh/identity", []string{"moult/mesh"}},
		{"moult/consensus/fleet", []string{"moult/mesh/identity"}},
		{"moult/updater", []string{"moult/cmd/moult"}},
		{"moult/updater", []string{"moult/consensus/coordinator"}},
	} {
		if len(violations(p)) == 0 {
			t.Errorf("%s importing %v is let through", p.ImportPath, p.Imports)
		}
	}
}

func listPackages(t *testing.T) []listedPackage {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "moult/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []listedPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listedPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) < 10 {
		t.Fatalf("go list found only %d packages", len(pkgs))
	}
	return pkgs
}
