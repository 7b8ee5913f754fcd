//go:build unix

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"moult/mesh/identity"
)

// The scripts in testdata/script are the command line as a person types it:
// what it prints, and what bad input gets. They run this test binary as moult.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			moult, err := exec.LookPath("moult")
			env.Setenv("MOULT_BINARY", moult)
			env.Setenv("PLATFORM", runtime.GOOS+"/"+runtime.GOARCH)
			env.Setenv("OSARCH", runtime.GOOS+"-"+runtime.GOARCH)
			return err
		},
		Condition: func(cond string) (bool, error) {
			if cond == "exists:bash-completion" {
				_, err := os.Stat("/usr/share/bash-completion/bash_completion")
				return err == nil, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"addresses": scriptAddresses,
			"await":     scriptAwait,
			"certhash":  scriptCertHash,
			"capture":   scriptCapture,
			"exits":     scriptExits,
			"hangup":    scriptHangup,
			"json":      scriptJSON,
			"silence":   scriptSilence,
			"within":    scriptWithin,
			"flip":      scriptFlip,
			"replace":   scriptReplace,
		},
	})
}

// sideBySide is how many tests run at a time unless -parallel says so: they wait for
// processes most of the time.
const sideBySide = 4

func TestMain(m *testing.M) {
	if err := flag.Set("test.parallel", strconv.Itoa(sideBySide)); err != nil { // before the command line is read
		panic(err)
	}
	testscript.Main(cleaningM{m}, map[string]func(){"moult": main, crowdCommand: crowdMain})
}

type cleaningM struct{ m *testing.M }

func (c cleaningM) Run() int {
	defer removeBinaries()
	return c.m.Run()
}

// scriptAddresses sets each variable to a free loopback address.
func scriptAddresses(ts *testscript.TestScript, neg bool, names []string) {
	if neg || len(names) == 0 {
		ts.Fatalf("usage: addresses VARIABLE …")
	}
	ip := loopback()
	for _, name := range names {
		l, err := listenOnNodePort(ip)
		ts.Check(err)
		defer l.Close() // held until all are chosen
		ts.Setenv(name, l.Addr().String())
	}
}

// scriptAwait repeats a command until it succeeds (or, negated, fails).
func scriptAwait(ts *testscript.TestScript, neg bool, args []string) {
	const patience = 30 * time.Second
	deadline := time.Now().Add(patience)
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := ts.Exec(args[0], args[1:]...)
		if (err != nil) == neg {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("waited %v for %s: %v", patience, strings.Join(args, " "), err)
		}
		<-ticker.C
	}
}

// scriptCapture sets a variable to what a pattern's group matches in the last
// command's standard output.
func scriptCapture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: capture VARIABLE PATTERN")
	}
	m := regexp.MustCompile(args[1]).FindStringSubmatch(ts.ReadFile("stdout"))
	if len(m) < 2 {
		ts.Fatalf("the output does not match %s", args[1])
	}
	ts.Setenv(args[0], m[1])
}

// scriptCertHash sets a variable to the sha256 of a certificate: certhash VARIABLE FILE.
func scriptCertHash(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: certhash VARIABLE FILE")
	}
	hash, err := identity.CAHash([]byte(ts.ReadFile(args[1])))
	ts.Check(err)
	ts.Setenv(args[0], hash)
}

// scriptExits runs a command and wants an exit code: exits 2 moult status.
func scriptExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND …")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	var exit *exec.ExitError
	err = ts.Exec(args[1], args[2:]...)
	code := 0
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if code != want {
		ts.Fatalf("exit code %d, want %d", code, want)
	}
}

// scriptFlip flips the bits of a file's last byte.
func scriptFlip(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: flip FILE")
	}
	path := ts.MkAbs(args[0])
	text, err := os.ReadFile(path)
	ts.Check(err)
	text[len(text)-1] ^= 0xff
	ts.Check(os.WriteFile(path, text, 0o755))
}

// scriptReplace replaces a text in a file: replace FILE OLD NEW.
func scriptReplace(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: replace FILE OLD NEW")
	}
	path := ts.MkAbs(args[0])
	text, err := os.ReadFile(path)
	ts.Check(err)
	if !bytes.Contains(text, []byte(args[1])) {
		ts.Fatalf("%s does not contain %q", args[0], args[1])
	}
	ts.Check(os.WriteFile(path, bytes.ReplaceAll(text, []byte(args[1]), []byte(args[2])), 0o644))
}

// scriptHangup sends SIGHUP to the background command that was started with an
// argument: hangup ARGUMENT.
func scriptHangup(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: hangup ARGUMENT")
	}
	for _, cmd := range ts.BackgroundCmds() {
		if slices.Contains(cmd.Args, args[0]) {
			ts.Check(cmd.Process.Signal(syscall.SIGHUP))
			return
		}
	}
	ts.Fatalf("no background command has the argument %s", args[0])
}

// scriptSilence sets a variable to an address where connections are taken and
// nothing is ever answered.
func scriptSilence(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: silence VARIABLE")
	}
	l, err := net.Listen("tcp", loopback()+":0")
	ts.Check(err)
	ts.Defer(func() { l.Close() })
	ts.Setenv(args[0], l.Addr().String())
}

// scriptWithin runs a command and wants it to end in time: within 1s COMMAND….
func scriptWithin(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: within DURATION COMMAND …")
	}
	limit, err := time.ParseDuration(args[0])
	ts.Check(err)
	const start = 500 * time.Millisecond // of the process, on a busy machine
	began := time.Now()
	ts.Check(ts.Exec(args[1], args[2:]...))
	if took := time.Since(began); took > limit+start {
		ts.Fatalf("it took %v", took)
	}
}

// scriptJSON runs a command with --json and wants JSON, one value or more, and
// nothing else on its standard output: json COMMAND….
func scriptJSON(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: json COMMAND …")
	}
	ts.Check(ts.Exec(args[0], append(args[1:len(args):len(args)], "--json")...))
	dec, n := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout"))), 0
	for {
		var v any
		err := dec.Decode(&v)
		if errors.Is(err, io.EOF) {
			break
		}
		ts.Check(err)
		n++
	}
	if n == 0 {
		ts.Fatalf("nothing was printed")
	}
}
