package main

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The page of limits says what the code has: each row's constant, with its value.
func TestLimitsAreAsDescribed(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "limits.md"))
	must(t, err)
	row := regexp.MustCompile("(?m)^\\|[^|]*\\| ([^|]+) \\|[^|]*\\| `([a-z/]+)` `(\\w+)` \\|$")
	rows := row.FindAllStringSubmatch(string(text), -1)
	if len(rows) < 40 {
		t.Fatalf("only %d rows", len(rows))
	}
	packages := map[string]map[string]string{}
	for _, m := range rows {
		described, name, constName := m[1], m[2], m[3]
		if packages[name] == nil {
			packages[name] = constants(t, filepath.Join("..", "..", filepath.FromSlash(name)))
		}
		expr, ok := packages[name][constName]
		if !ok {
			t.Errorf("%s has no constant %s", name, constName)
			continue
		}
		value, err := types.Eval(token.NewFileSet(), nil, token.NoPos, strings.NewReplacer("time.Second", "1000000000", "time.Minute", "60000000000").Replace(expr))
		if err != nil {
			t.Errorf("%s %s = %s: %v", name, constName, expr, err)
			continue
		}
		if n, _ := constant.Int64Val(constant.ToInt(value.Value)); !inWords(described, n) {
			t.Errorf("%s %s is %s, described as %s", name, constName, expr, described)
		}
	}
}

// constants are those of a package, as they are written.
func constants(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	must(t, err)
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		must(t, err)
		for _, decl := range file.Decls {
			d, ok := decl.(*ast.GenDecl)
			if !ok || d.Tok != token.CONST {
				continue
			}
			for _, spec := range d.Specs {
				if v, ok := spec.(*ast.ValueSpec); ok && len(v.Names) == 1 && len(v.Values) == 1 {
					found[v.Names[0].Name] = types.ExprString(v.Values[0])
				}
			}
		}
	}
	return found
}

// inWords tells whether a number, a size or a time is described so.
func inWords(described string, n int64) bool {
	number, unit, _ := strings.Cut(described, " ")
	units := map[string]int64{
		"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "GB": 1e9,
		"s": int64(time.Second), "min": int64(time.Minute),
	}
	return units[unit] != 0 && n%units[unit] == 0 && number == fmt.Sprint(n/units[unit])
}
