package main

import (
	"io"
	"os"

	"github.com/coreos/go-systemd/v22/journal"
)

// stdoutIsJournal tells whether what is printed to w lands in the journal, where
// more people read than at a terminal.
func stdoutIsJournal(w io.Writer) bool {
	if w != io.Writer(os.Stdout) {
		return false
	}
	is, err := journal.StdoutIsJournalStream()
	return err == nil && is
}
