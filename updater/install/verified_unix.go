//go:build unix

package install

import (
	"errors"
	"os"
	"syscall"
)

func isTextBusy(err error) bool { return errors.Is(err, syscall.ETXTBSY) }

func openStaged(path string) (*os.File, error) { return os.Open(path) }

// makeExecutable gives the owner the right to read and execute, nobody a right
// that the file's mode did not give before.
func makeExecutable(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Mode()&0o500 == 0o500 {
		return nil
	}
	return f.Chmod(st.Mode().Perm() | 0o500)
}
