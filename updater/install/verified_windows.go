package install

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

func isTextBusy(err error) bool { return errors.Is(err, windows.ERROR_SHARING_VIOLATION) }

func makeExecutable(*os.File) error { return nil }
