package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The pages of invariants and of security name tests; one that is renamed must be
// renamed there.
func TestInvariantsNameTestsThatExist(t *testing.T) {
	code := mustReadTests(t)
	for page, least := range map[string]int{"invariants.md": 30, "security.md": 30} {
		text, err := os.ReadFile(filepath.Join("..", "..", "docs", page))
		if err != nil {
			t.Fatal(err)
		}
		names := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(string(text), -1)
		if len(names) < least {
			t.Fatalf("%s names only %d tests", page, len(names))
		}
		for _, m := range names {
			if !strings.Contains(code, "func "+m[1]+"(") {
				t.Errorf("%s: there is no %s", page, m[1])
			}
		}
	}
}

// Each attacker of the table has tests that speak against him.
func TestEachAttackerHasTests(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "security.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "## Attackers")
	table, _, _ = strings.Cut(table, "\n## ")
	rows := 0
	for line := range strings.SplitSeq(table, "\n") {
		cells := strings.Split(line, "|")
		if len(cells) != 5 || strings.HasPrefix(line, "|---") || strings.Contains(line, "| attacker |") {
			continue
		}
		rows++
		if strings.Count(cells[3], "`Test") < 2 {
			t.Errorf("%s: fewer than two tests", strings.TrimSpace(cells[1]))
		}
	}
	if rows != 7 {
		t.Errorf("the table has %d rows", rows)
	}
}

// mustReadTests returns the code of all tests.
func mustReadTests(t *testing.T) string {
	t.Helper()
	var code strings.Builder
	for _, pattern := range []string{"../../*/*_test.go", "../../*/*/*_test.go"} {
		files, err := filepath.Glob(filepath.FromSlash(pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range files {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			code.Write(text)
		}
	}
	return code.String()
}
