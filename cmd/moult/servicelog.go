package main

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"sync"
)

// rotatingFile is a log for where no service manager keeps one. Safe for
// concurrent use.
type rotatingFile struct {
	path string
	max  int64

	mu   sync.Mutex
	file *os.File
	size int64
}

func openRotatingFile(path string, limit int64) (*rotatingFile, error) {
	r := &rotatingFile{path: path, max: limit}
	return r, r.open(os.O_APPEND)
}

func (r *rotatingFile) open(how int) error {
	f, err := os.OpenFile(r.path, os.O_CREATE|os.O_WRONLY|how, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	r.file, r.size = f, st.Size()
	return nil
}

func (r *rotatingFile) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil || r.size > 0 && r.size+int64(len(p)) > r.max {
		if err := r.rotate(); err != nil {
			return 0, err
		}
	}
	n, err := r.file.Write(p)
	r.size += int64(n)
	return n, err
}

// rotate begins a new file. Where somebody has the old one open and it cannot be
// renamed, what is in it is given up: a full disk would be worse.
func (r *rotatingFile) rotate() error {
	how := os.O_APPEND
	if r.file != nil {
		r.file.Close()
		r.file = nil
		if err := os.Rename(r.path, r.path+".1"); err != nil {
			how = os.O_TRUNC
		}
	}
	return r.open(how)
}

func (r *rotatingFile) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil {
		return nil
	}
	err := r.file.Close()
	r.file = nil
	return err
}

// eventReporter takes what the operating system's own log is to show.
type eventReporter func(level slog.Level, text string)

// eventLines passes what is written to it on, line by line, where an admin should
// see it without looking into a file: warnings, errors, and what the supervisor
// does. It is written to by one goroutine.
type eventLines struct {
	report eventReporter
	rest   []byte
}

// maxEventLine bounds a line, in bytes: the event log takes 31,839 characters.
const maxEventLine = 16 << 10

func (e *eventLines) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		line, rest, whole := bytes.Cut(p, []byte("\n"))
		if room := maxEventLine - len(e.rest); room > 0 {
			e.rest = append(e.rest, line[:min(room, len(line))]...)
		}
		p = rest
		if !whole {
			break
		}
		if level, text, ok := eventOf(strings.TrimRight(string(e.rest), "\r")); ok {
			e.report(level, text)
		}
		e.rest = e.rest[:0]
	}
	return n, nil
}

var logLevel = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(?:time=\S+ )?level=(DEBUG|INFO|WARN|ERROR) (.*)$`)
})

// eventOf tells whether a line of output is an event, of which level, and how it
// reads without the time, which the event log has itself.
func eventOf(line string) (level slog.Level, text string, ok bool) {
	if strings.HasPrefix(line, "{") {
		var record struct {
			Level     slog.Level `json:"level"`
			Component string     `json:"component"`
		}
		if json.Unmarshal([]byte(line), &record) != nil {
			return 0, "", false
		}
		return record.Level, line, isEvent(record.Level, record.Component)
	}
	if m := logLevel().FindStringSubmatch(line); m != nil {
		if err := level.UnmarshalText([]byte(m[1])); err != nil {
			return 0, "", false
		}
		component := ""
		if strings.Contains(m[2], " component=supervisor") {
			component = "supervisor"
		}
		return level, m[2], isEvent(level, component)
	}
	for _, prefix := range []string{"moult: ", "panic: ", "fatal error: "} {
		if strings.HasPrefix(line, prefix) {
			return slog.LevelError, line, true
		}
	}
	return 0, "", false
}

func isEvent(level slog.Level, component string) bool {
	return level >= slog.LevelWarn || level == slog.LevelInfo && component == "supervisor"
}
