package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// eachCommand calls f for each command of the tree.
func eachCommand(root *cobra.Command, f func(cmd *cobra.Command)) {
	f(root)
	for _, c := range root.Commands() {
		eachCommand(c, f)
	}
}

// Each command's help shows what it does and how it is typed, and each command
// prints JSON when asked.
func TestEachCommandTeaches(t *testing.T) {
	root := newRootCommand()
	n := 0
	eachCommand(root, func(cmd *cobra.Command) {
		n++
		path := cmd.CommandPath()
		var out bytes.Buffer
		again := newRootCommand()
		again.SetOut(&out)
		again.SetErr(&out)
		again.SetArgs(append(strings.Fields(path)[1:], "--help"))
		if err := again.Execute(); err != nil {
			t.Errorf("%s --help: %v", path, err)
		}
		if !strings.Contains(out.String(), "Examples:\n  ") {
			t.Errorf("the help of %s has no example", path)
		}
		if cmd.Short == "" {
			t.Errorf("%s has no short description", path)
		}
		if cmd.HasSubCommands() && path != "moult alerts" && path != "moult servers" && path != "moult server" {
			return // it only lists the commands below it
		}
		if !strings.Contains(out.String(), "--json") {
			t.Errorf("%s has no --json", path)
		}
	})
	if n < 60 {
		t.Errorf("only %d commands were seen", n)
	}
}

// Each example is one that the command takes: the command exists, its flags do, the
// number of arguments is right.
func TestExamplesParse(t *testing.T) {
	seen := 0
	eachCommand(newRootCommand(), func(cmd *cobra.Command) {
		for line := range strings.SplitSeq(cmd.Example, "\n") {
			args, ok := exampleArgs(line)
			if !ok {
				t.Errorf("%s: the example %q does not begin with two spaces and moult", cmd.CommandPath(), line)
				continue
			}
			seen++
			root := newRootCommand()
			root.InitDefaultHelpCmd()
			found, rest, err := root.Find(args)
			if err != nil {
				t.Errorf("%q: %v", line, err)
				continue
			}
			if err := found.ParseFlags(rest); err != nil {
				t.Errorf("%q: %v", line, err)
				continue
			}
			if err := found.ValidateArgs(found.Flags().Args()); err != nil {
				t.Errorf("%q: %v", line, err)
			}
			if root != found && cmd.Runnable() && !strings.HasPrefix(found.CommandPath(), "moult help") && !related(cmd, found) {
				t.Errorf("the example %q of %s is for %s", line, cmd.CommandPath(), found.CommandPath())
			}
		}
	})
	if seen < 80 {
		t.Errorf("only %d examples were seen", seen)
	}
}

// related tells whether a command's example is about it, or goes on from it.
func related(cmd, shown *cobra.Command) bool {
	return shown == cmd || strings.HasPrefix(shown.CommandPath(), strings.TrimSuffix(cmd.CommandPath(), "s")) ||
		cmd.CommandPath() == "moult" || cmd.CommandPath() == "moult server restore" || cmd.CommandPath() == "moult key generate"
}

var inEnvironment = regexp.MustCompile(`^  [A-Z_]+=\S+ `)

var shellSubstitution = regexp.MustCompile(`\$\([^)]*\)`)

// exampleArgs are an example's arguments, without what the shell does with the
// output and without the comment.
func exampleArgs(line string) ([]string, bool) {
	line, ok := strings.CutPrefix(inEnvironment.ReplaceAllString(line, "  "), "  moult ")
	if !ok {
		return nil, false
	}
	line = shellSubstitution.ReplaceAllString(line, "X")
	for _, end := range []string{" #", " > ", " < ", " | ", " || ", " && "} {
		line, _, _ = strings.Cut(line, end)
	}
	var args []string
	for i, part := range strings.Split(line, `"`) {
		if i%2 == 1 {
			args = append(args, part)
		} else {
			args = append(args, strings.Fields(part)...)
		}
	}
	return args, true
}

// The script json.txtar has each command print JSON. Those that are left out run
// until they are stopped, or make or unmake a server; other tests look at them.
func TestEachCommandIsAskedForJSON(t *testing.T) {
	elsewhere := []string{
		"moult server", "moult agent", "moult server backup", "moult server restore", "moult server recover", // backup's story
		"moult servers transfer-leadership", "moult servers demote", "moult servers promote", "moult servers replace", "moult servers remove", // take three servers
		"moult install agent", "moult install server", "moult uninstall", // the tests of install
		"moult dev", "moult host readmit", "moult config reload",
	}
	script, err := os.ReadFile(filepath.Join("testdata", "script", "json.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	eachCommand(newRootCommand(), func(cmd *cobra.Command) {
		path := cmd.CommandPath()
		group := cmd.HasSubCommands() && path != "moult alerts" && path != "moult servers"
		if group || slices.Contains(elsewhere, path) {
			return
		}
		if !regexp.MustCompile(`(?m)^json `+path+`( |$)`).Match(script) && path != "moult fleet watch" { // which fails there
			t.Errorf("json.txtar does not ask for: %s --json", path)
		}
	})
}

// A bug ends a command with a sentence, and leaves the details in a file; no secret
// gets there.
func TestPanicIsTold(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Setenv("TEMP", dir) // Windows
	boom := func() (*cobra.Command, []string) {
		root := newRootCommand()
		cmd := &cobra.Command{Use: "boom", RunE: func(*cobra.Command, []string) error { panic("kaputt") }}
		cmd.Flags().String("token", "", "")
		root.AddCommand(cmd)
		args := []string{"boom", "--token", "hush", "--token=hush"}
		root.SetArgs(args)
		return root, args
	}
	var stderr bytes.Buffer
	root, args := boom()
	if code := execute(t.Context(), root, args, &stderr); code != exitBug {
		t.Errorf("exit code %d, want %d", code, exitBug)
	}
	said := stderr.String()
	if strings.Contains(said, "goroutine") || strings.Contains(said, ".go:") {
		t.Errorf("a traceback was printed:\n%s", said)
	}
	files, err := filepath.Glob(filepath.Join(dir, "moult-bug-*.txt"))
	if err != nil || len(files) != 1 || !strings.Contains(said, files[0]) {
		t.Fatalf("files %v, said:\n%s", files, said)
	}
	details, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(details), "kaputt") || !strings.Contains(string(details), "commands_test.go") {
		t.Errorf("the details do not tell where it was:\n%s", details)
	}
	if strings.Contains(string(details), "hush") {
		t.Errorf("the token is in the details:\n%s", details)
	}

	t.Setenv("TMPDIR", filepath.Join(dir, "gone"))
	t.Setenv("TEMP", filepath.Join(dir, "gone"))
	stderr.Reset()
	root, args = boom()
	if code := execute(t.Context(), root, args, &stderr); code != exitBug || strings.Contains(stderr.String(), ".go:") {
		t.Errorf("exit code %d, said:\n%s", code, stderr.String())
	}
}

// The exit codes are those that the documentation lists; errors are JSON for those
// who asked for JSON.
func TestExitCodes(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tc := range []struct {
		ctx  context.Context
		args []string
		want int
	}{
		{t.Context(), []string{"version"}, exitOK},
		{t.Context(), []string{"frobnicate"}, exitFailed},
		{t.Context(), []string{"hosts", "--addr", "127.0.0.1:1"}, exitFailed},
		{t.Context(), []string{"status", "--addr", "127.0.0.1:1"}, exitUnreachable},
		{t.Context(), []string{"doctor", "--data", t.TempDir()}, exitFailed},
		{cancelled, []string{"hosts", "--addr", "127.0.0.1:1"}, exitInterrupted},
	} {
		for _, asJSON := range []bool{false, true} {
			args := tc.args
			if asJSON {
				args = append(args[:len(args):len(args)], "--json")
			}
			var stdout, stderr bytes.Buffer
			if code := run(tc.ctx, args, strings.NewReader(""), &stdout, &stderr); code != tc.want {
				t.Errorf("%q: exit code %d, want %d; %s", args, code, tc.want, stderr.String())
			}
			if asJSON && stderr.Len() > 0 && tc.args[0] != "frobnicate" {
				var e struct {
					Error struct{ Code, Message string }
				}
				if err := json.Unmarshal(stderr.Bytes(), &e); err != nil || e.Error.Code == "" || e.Error.Message == "" {
					t.Errorf("%q: the error is no JSON (%v): %s", args, err, stderr.String())
				}
			}
		}
	}
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "troubleshooting.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []string{"| 0 |", "| 1 |", "| 2 |", "| 70 |", "| 130 |"} {
		if !strings.Contains(string(page), row) {
			t.Errorf("docs/troubleshooting.md lacks the exit code %s", row)
		}
	}
}

// An agent's process makes its own command alone, and that one is the same.
func TestAgentMakesNoOtherCommand(t *testing.T) {
	root := rootCommandFor([]string{"agent", "--name", "a1"})
	if all := root.Commands(); len(all) != 1 || all[0].Name() != "agent" {
		t.Fatalf("it makes %d commands", len(all))
	}
	own, _, err := root.Find([]string{"agent"})
	must(t, err)
	whole, _, err := newRootCommand().Find([]string{"agent"})
	must(t, err)
	if a, b := own.UsageString(), whole.UsageString(); a != b {
		t.Errorf("its usage is\n%s\nas one of all it is\n%s", a, b)
	}
	for _, args := range [][]string{nil, {"--config", "x", "agent"}, {"help", "agent"}, {"hosts"}} {
		if n := len(rootCommandFor(args).Commands()); n != len(newRootCommand().Commands()) {
			t.Errorf("%q has %d commands", args, n)
		}
	}
}
