package nodekit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
)

// programPages are those of the program's file that this process has mapped.
type programPages struct {
	lines *bufio.Reader // kept from one time to the next, as is clean: to look costs no memory
	clean []span
}

// span is a range of addresses.
type span struct{ start, end uintptr }

// drop takes the pages of the program's file out of this process: most were needed
// by its start alone. The kernel keeps them as cache, gives them to others when it
// has to, and maps those again that are touched again.
func (p *programPages) drop() error {
	if err := p.look(); err != nil {
		return err
	}
	var errs []error
	for _, s := range p.clean {
		if _, _, errno := syscall.RawSyscall(syscall.SYS_MADVISE, s.start, s.end-s.start, syscall.MADV_DONTNEED); errno != 0 {
			errs = append(errs, fmt.Errorf("give %x-%x back: %w", s.start, s.end, errno))
		}
	}
	return errors.Join(errs...)
}

// look finds what is clean. It has to be done each time: a debugger may have come.
func (p *programPages) look() error {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return fmt.Errorf("read this process's memory map: %w", err)
	}
	defer f.Close()
	if err := p.read(f, program); err != nil {
		return fmt.Errorf("read this process's memory map: %w", err)
	}
	return nil
}

// read finds, in a /proc/PID/smaps, where a file is mapped for reading and nothing in
// memory differs from it. What does, relocated addresses of a program that is loaded
// anywhere, or a debugger's breakpoints, is nowhere else.
func (p *programPages) read(smaps io.Reader, path string) error {
	if p.lines == nil {
		const longest = 4096 + 128 // a path, and what stands before it
		p.lines = bufio.NewReaderSize(nil, longest)
	}
	p.lines.Reset(smaps)
	p.clean = p.clean[:0]
	var at span
	ours := false
	for {
		line, err := p.lines.ReadSlice('\n')
		if err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
		// "00400000-00f18000 r-xp 00000000 08:01 1234  /usr/bin/moult", then "Name: value".
		line = bytes.TrimSuffix(line, []byte("\n"))
		head, rest, _ := bytes.Cut(line, []byte(" "))
		if bytes.HasSuffix(head, []byte(":")) {
			if ours && string(head) == "Anonymous:" && string(bytes.TrimLeft(rest, " ")) == "0 kB" {
				p.clean = append(p.clean, at)
			}
			continue
		}
		before, named := bytes.CutSuffix(line, []byte(path))
		ours = named && bytes.HasSuffix(before, []byte(" ")) && (bytes.HasPrefix(rest, []byte("r-xp ")) || bytes.HasPrefix(rest, []byte("r--p ")))
		start, end, found := bytes.Cut(head, []byte("-"))
		if !found {
			return fmt.Errorf("%q is no mapping", line)
		}
		if !ours {
			continue
		}
		from, err1 := strconv.ParseUint(string(start), 16, 64)
		to, err2 := strconv.ParseUint(string(end), 16, 64)
		if err := errors.Join(err1, err2); err != nil {
			return fmt.Errorf("%q is no mapping: %w", line, err)
		}
		at = span{uintptr(from), uintptr(to)}
	}
}
