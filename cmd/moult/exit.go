package main

import (
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
)

// The exit codes. docs/troubleshooting.md lists them.
const (
	exitOK          = 0
	exitFailed      = 1
	exitBug         = 70  // as EX_SOFTWARE of sysexits.h
	exitInterrupted = 130 // as a shell tells of SIGINT
)

// The exit codes of `moult status` beside 0.
const (
	exitDegraded    = 1
	exitUnreachable = 2
)

// exitError carries an exit code other than 1; a nil err prints nothing.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// tellPanic says of a bug what to do, and leaves the details in a file.
func tellPanic(stderr io.Writer, args []string, panicked any) int {
	fmt.Fprintf(stderr, "moult: this is a bug in moult and no mistake of yours: %v\n", printable(fmt.Sprint(panicked)))
	path, err := writePanic(args, panicked, debug.Stack())
	if err != nil {
		fmt.Fprintf(stderr, "moult: the details could not be written (%v); set TMPDIR to a directory that can be, run the command again, and report it\n", err)
		return exitBug
	}
	fmt.Fprintf(stderr, "moult: the details are in %s; please report it with them. Whether the command had an effect is unknown: look before you repeat it\n", path)
	return exitBug
}

func writePanic(args []string, panicked any, stack []byte) (string, error) {
	f, err := os.CreateTemp("", "moult-bug-*.txt") // mode 0600
	if err != nil {
		return "", err
	}
	defer f.Close()
	_, err = fmt.Fprintf(f, "moult %s (%s)\narguments: %q\npanic: %v\n\n%s", version, commit, withoutSecrets(args), panicked, stack)
	return f.Name(), err
}

// withoutSecrets leaves the values of --token out.
func withoutSecrets(args []string) []string {
	out := make([]string, 0, len(args))
	for i, arg := range args {
		switch {
		case strings.HasPrefix(arg, "--token="):
			arg = "--token=…"
		case i > 0 && args[i-1] == "--token":
			arg = "…"
		}
		out = append(out, arg)
	}
	return out
}
