package updater

import (
	"errors"
	"os"
)

var errNoExec = errors.New("a running process cannot be replaced on Windows")

func execute(string) error { return errNoExec }

func executeFile(*os.File, []string) error { return errNoExec }

func takeName() {}
