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
	if rows != 8 {
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

// Each code that the API answers with is explained, and none that it does not know.
func TestTroubleshootingHasAllCodes(t *testing.T) {
	constant := regexp.MustCompile(`(?m)^\s*[cC]ode\w+\s*=\s*"([a-z_]+)"`)
	literal := regexp.MustCompile(`fleet\.Error\{Code: "([a-z_]+)"`)
	codes := map[string]bool{}
	for _, pattern := range []string{"../../webui/*.go", "../../consensus/*.go", "../../consensus/fleet/*.go", "*.go"} {
		files, err := filepath.Glob(filepath.FromSlash(pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range files {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range append(constant.FindAllSubmatch(text, -1), literal.FindAllSubmatch(text, -1)...) {
				codes[string(m[1])] = true
			}
		}
	}
	delete(codes, "wrong_password") // never leaves package webui
	if len(codes) < 45 {
		t.Fatalf("only %d codes were found", len(codes))
	}
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "troubleshooting.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(page), "## Codes of the API")
	if !ok {
		t.Fatal("docs/troubleshooting.md has no codes of the API")
	}
	rows := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| \\d{3} \\| .+ \\| .+ \\|$").FindAllStringSubmatch(table, -1) {
		rows[m[1]] = true
		if !codes[m[1]] {
			t.Errorf("docs/troubleshooting.md explains %s, which the API does not answer", m[1])
		}
	}
	for code := range codes {
		if !rows[code] {
			t.Errorf("docs/troubleshooting.md does not explain %s, with its status and the next step", code)
		}
	}
}

// What the pages point to is there.
func TestLinksOfThePagesLead(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#\s:]*)(#[^)\s]*)?\)`)
	pages, err := filepath.Glob(filepath.Join("..", "..", "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	reference, err := filepath.Glob(filepath.Join("..", "..", "docs", "reference", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	readme := filepath.Join("..", "..", "README.md")
	seen := 0
	listed := map[string]bool{}
	for _, page := range append(append(pages, reference...), readme) {
		text := mustReadText(t, page)
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			seen++
			target := page
			if m[1] != "" {
				target = filepath.Join(filepath.Dir(page), filepath.FromSlash(m[1]))
			}
			if page == readme {
				listed[target] = true
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s points to %s: %v", filepath.Base(page), m[1], err)
				continue
			}
			if m[2] != "" && strings.HasSuffix(target, ".md") && !hasHeading(mustReadText(t, target), m[2][1:]) {
				t.Errorf("%s points to %s%s, which has no such heading", filepath.Base(page), m[1], m[2])
			}
		}
	}
	if seen < 100 {
		t.Errorf("only %d links were seen", seen)
	}
	for _, page := range append(pages, reference...) {
		if !listed[page] {
			t.Errorf("the README does not list %s", page)
		}
	}
}

func mustReadText(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var (
	heading    = regexp.MustCompile(`(?m)^#+ (.+)$`)
	notInLinks = regexp.MustCompile(`[^\p{L}\p{N}_-]`)
)

// hasHeading makes anchors of headings as GitHub does.
func hasHeading(text, anchor string) bool {
	for _, m := range heading.FindAllStringSubmatch(text, -1) {
		words := strings.ToLower(strings.ReplaceAll(m[1], " ", "-"))
		if notInLinks.ReplaceAllString(words, "") == anchor {
			return true
		}
	}
	return false
}
