package install

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"

	"moult/updater/internal/durable"
)

func isTextBusy(err error) bool { return errors.Is(err, windows.ERROR_SHARING_VIOLATION) }

func makeExecutable(*os.File) error { return nil }

// openStaged opens a file so that, as long as it is open, nobody writes to it,
// renames it or removes it: what is executed by its path is what was verified.
func openStaged(path string) (f *os.File, err error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return nil, err
	}
	err = durable.WhileInUse(func() error {
		h, err := windows.CreateFile(name, windows.GENERIC_READ, windows.FILE_SHARE_READ, nil, windows.OPEN_EXISTING, windows.FILE_ATTRIBUTE_NORMAL, 0)
		if err == nil {
			f = os.NewFile(uintptr(h), path)
		}
		return err
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return f, nil
}
