package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// readPassword asks for a password on a terminal, and reads a line elsewhere. It
// is never an argument: the process list shows those.
func readPassword(cmd *cobra.Command, prompt string) (string, error) {
	in, ok := cmd.InOrStdin().(*os.File)
	if ok && term.IsTerminal(int(in.Fd())) {
		fmt.Fprint(cmd.ErrOrStderr(), prompt)
		text, err := term.ReadPassword(int(in.Fd()))
		fmt.Fprintln(cmd.ErrOrStderr())
		return string(text), err
	}
	line, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 4096)).ReadString('\n')
	if password := strings.TrimRight(line, "\r\n"); password != "" {
		return password, nil
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return "", errNoPassword
}

var errNoPassword = errors.New("no password on standard input; type it on a terminal, or pass it in a pipe")

// onTerminal tells whether there is a person to ask.
func onTerminal(cmd *cobra.Command) bool {
	in, ok := cmd.InOrStdin().(*os.File)
	return ok && term.IsTerminal(int(in.Fd()))
}

// passwordFrom reads a password from a file's first line.
func passwordFrom(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("read --password-file: %w", err)
	}
	defer f.Close()
	line, err := bufio.NewReader(io.LimitReader(f, 4096)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read --password-file: %w", err)
	}
	password := strings.TrimRight(line, "\r\n")
	if password == "" {
		return "", fmt.Errorf("--password-file %s: its first line is empty; write the password there", path)
	}
	return password, nil
}

// readNewPassword asks twice on a terminal.
func readNewPassword(cmd *cobra.Command) (string, error) { return readNewSecret(cmd, "Password") }

func readNewSecret(cmd *cobra.Command, what string) (string, error) {
	first, err := readPassword(cmd, what+": ")
	if err != nil {
		return "", err
	}
	if !onTerminal(cmd) {
		return first, nil
	}
	second, err := readPassword(cmd, "Again: ")
	if err != nil {
		return "", err
	}
	if first != second {
		return "", errors.New("the two differ; nothing was changed")
	}
	return first, nil
}
