//go:build unix

package updater

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// executeBusy is how long another process may hold a file open for writing that it
// inherited in a fork.
const executeBusy = 2 * time.Second

func executePath(path string, env []string) error {
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		err := syscall.Exec(path, os.Args, env)
		if !errors.Is(err, syscall.ETXTBSY) || time.Since(began) > executeBusy {
			return err
		}
	}
}

func execute(path string) error { return executePath(path, withoutHandover(os.Environ())) }

// executeFile executes an open file where the system can, else its path.
func executeFile(f *os.File, env []string) error {
	if executesDescriptors {
		return executePath(fmt.Sprintf("/proc/self/fd/%d", descriptor(f)), env)
	}
	return executePath(f.Name(), env)
}
