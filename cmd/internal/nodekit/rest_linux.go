package nodekit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// dropProgramPages takes the pages of the program's file out of this process: most
// were needed by its start alone. The kernel keeps them as cache, gives them to
// others when it has to, and maps those again that are touched again.
func dropProgramPages() error {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return fmt.Errorf("read this process's memory map: %w", err)
	}
	defer f.Close()
	spans, err := cleanSpans(f, program)
	if err != nil {
		return fmt.Errorf("read this process's memory map: %w", err)
	}
	var errs []error
	for _, s := range spans {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, s.start, s.end-s.start, unix.MADV_DONTNEED); errno != 0 {
			errs = append(errs, fmt.Errorf("give %x-%x back: %w", s.start, s.end, errno))
		}
	}
	return errors.Join(errs...)
}

// span is a range of addresses.
type span struct{ start, end uintptr }

// cleanSpans returns, of a /proc/PID/smaps, where a file is mapped for reading and
// nothing in memory differs from it. What does, relocated addresses of a program
// that is loaded anywhere, or a debugger's breakpoints, is nowhere else.
func cleanSpans(smaps io.Reader, path string) (clean []span, err error) {
	var at span
	ours := false
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		// "00400000-00f18000 r-xp 00000000 08:01 1234  /usr/bin/moult", then "Name: value".
		line := lines.Text()
		if key, value, _ := strings.Cut(line, " "); strings.HasSuffix(key, ":") {
			if ours && key == "Anonymous:" && strings.TrimSpace(value) == "0 kB" {
				clean = append(clean, at)
			}
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 2 {
			return nil, fmt.Errorf("%q is no mapping", line)
		}
		start, end, _ := strings.Cut(fields[0], "-")
		from, err1 := strconv.ParseUint(start, 16, 64)
		to, err2 := strconv.ParseUint(end, 16, 64)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("%q is no mapping: %w", line, err)
		}
		at = span{uintptr(from), uintptr(to)}
		ours = (fields[1] == "r-xp" || fields[1] == "r--p") && strings.HasSuffix(line, " "+path)
	}
	return clean, lines.Err()
}
