package updater

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"
)

// Limits of what is kept of a child's output.
const (
	tailLines = 20
	tailWidth = 1000 // bytes of a line
)

// tail passes on what is written and keeps the last 20 lines. Safe for
// concurrent use.
type tail struct {
	mu    sync.Mutex
	to    io.Writer
	lines []string
	open  []byte // the line that has not ended yet
}

func newTail(to io.Writer) *tail { return &tail{to: to} }

// Write never errs: a broken output must not break the child that prints to it.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, _ = t.to.Write(p)
	rest := p
	for {
		line, after, found := bytes.Cut(rest, []byte("\n"))
		if room := tailWidth - len(t.open); room > 0 {
			t.open = append(t.open, line[:min(len(line), room)]...)
		}
		if !found {
			return len(p), nil
		}
		t.end()
		rest = after
	}
}

// end closes the open line; blank ones are not kept.
func (t *tail) end() {
	if line := clean(t.open); line != "" {
		t.lines = append(t.lines, line)
		if len(t.lines) > tailLines {
			t.lines = slices.Clone(t.lines[len(t.lines)-tailLines:])
		}
	}
	t.open = t.open[:0]
}

// clean makes a line fit for a report: valid UTF-8 without control characters.
// What was printed for the journal begins with its priority, as in "<3>", which is
// no part of what it says.
func clean(line []byte) string {
	if len(line) > 2 && line[0] == '<' && line[1] >= '0' && line[1] <= '7' && line[2] == '>' {
		line = line[3:]
	}
	s := strings.ToValidUTF8(string(line), string(utf8.RuneError))
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' || r == 0x7f {
			return -1
		}
		return r
	}, s))
}

// all returns the last lines, oldest first, the open one included.
func (t *tail) all() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := slices.Clone(t.lines)
	if open := clean(t.open); open != "" {
		out = append(out, open)
	}
	return out
}

// last returns the last line that is not blank, or "".
func (t *tail) last() string {
	if all := t.all(); len(all) > 0 {
		return all[len(all)-1]
	}
	return ""
}
