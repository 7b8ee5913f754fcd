package updater

import (
	"errors"
	"os"
)

var errNoExec = errors.New("Windows cannot replace a running process")

func execute(string) error { return errNoExec }

func executePath(string, []string) error { return errNoExec }

func executeFile(*os.File, []string) error { return errNoExec }

func takeName() {}
