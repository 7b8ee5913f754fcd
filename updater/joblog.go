package updater

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"moult/consensus/fleet"
)

const (
	jobLogPrefix = "job-log-"
	jobLogSuffix = ".jsonl"
	// maxJobLog bounds a job's log on disk and in memory, in bytes.
	maxJobLog = 1 << 20
	logFull   = "the log of this job is full; later lines are dropped"
)

// jobLog is a job's log on this host: DATA/job-log-JOB.jsonl, one fleet.LogLine
// a line, numbered from 1. It survives the agent's restart, so that the new or
// the returning binary sends what the old one could not. Owned by Updater.mu.
type jobLog struct {
	job     string
	file    *os.File
	size    int64 // of all lines
	full    bool
	lines   []fleet.LogLine
	written int    // lines that are in the file
	offset  int64  // where they end in it
	stored  uint64 // lines up to this number are committed
}

// openJobLog opens or makes the log of a job and removes those of other jobs. A
// last line torn by a crash is cut off.
func openJobLog(dir, job string) (*jobLog, error) {
	if !validJobID(job) {
		return nil, fmt.Errorf("job id %q is not one", job)
	}
	path := filepath.Join(dir, jobLogPrefix+job+jobLogSuffix)
	others, err := filepath.Glob(filepath.Join(dir, jobLogPrefix+"*"+jobLogSuffix))
	if err != nil {
		return nil, err
	}
	for _, other := range others {
		if other != path {
			os.Remove(other)
		}
	}
	l := &jobLog{job: job}
	if l.file, err = os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, fmt.Errorf("open job log: %w", err)
	}
	if err := l.load(); err != nil {
		l.file.Close()
		return nil, err
	}
	return l, nil
}

// load reads the lines in the file, to the first that is torn.
func (l *jobLog) load() error {
	content, err := io.ReadAll(io.LimitReader(l.file, maxJobLog))
	if err != nil {
		return fmt.Errorf("read job log: %w", err)
	}
	for {
		line, rest, found := bytes.Cut(content, []byte("\n"))
		var parsed fleet.LogLine
		if !found || json.Unmarshal(line, &parsed) != nil || parsed.Seq != uint64(len(l.lines))+1 {
			break
		}
		l.lines = append(l.lines, parsed)
		l.size += int64(len(line)) + 1
		l.full = parsed.Line == logFull
		content = rest
	}
	l.written, l.offset = len(l.lines), l.size
	if err := l.file.Truncate(l.size); err != nil {
		return fmt.Errorf("cut torn line off the job log: %w", err)
	}
	return nil
}

// validJobID keeps a job id from being a path.
func validJobID(job string) bool {
	if job == "" || len(job) > 64 || job[0] == '.' {
		return false
	}
	return strings.Trim(job, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == ""
}

// add appends a line. An error means that it is kept in memory only, until a
// later line can be written.
func (l *jobLog) add(at time.Time, stream, text string) error {
	if l.full {
		return nil
	}
	line := fleet.LogLine{Seq: uint64(len(l.lines)) + 1, At: at.UTC(), Stream: stream, Line: shorten(text)}
	b, err := json.Marshal(line)
	if err == nil && l.size+int64(len(b)) > maxJobLog-512 {
		l.full = true
		line.Line = logFull
		b, err = json.Marshal(line)
	}
	if err != nil {
		return err
	}
	l.lines = append(l.lines, line)
	l.size += int64(len(b)) + 1
	return l.write()
}

// write brings to the file what is not in it yet, in order: a line that is
// missing would end the log there at the next start.
func (l *jobLog) write() error {
	for ; l.written < len(l.lines); l.written++ {
		b, err := json.Marshal(l.lines[l.written])
		if err != nil {
			return err
		}
		if _, err := l.file.WriteAt(append(b, '\n'), l.offset); err != nil {
			return err
		}
		l.offset += int64(len(b)) + 1
	}
	return nil
}

func shorten(text string) string {
	if len(text) <= tailWidth {
		return text
	}
	return strings.ToValidUTF8(text[:tailWidth], "") + "…"
}

// has tells whether a line was written before, this process's start or not.
func (l *jobLog) has(stream, text string) bool {
	text = shorten(text)
	for _, line := range l.lines {
		if line.Stream == stream && line.Line == text {
			return true
		}
	}
	return false
}

// unstored returns the first lines that are not acknowledged, up to a size.
func (l *jobLog) unstored(limit int) (first uint64, lines []fleet.LogLine) {
	for _, line := range l.lines[min(l.stored, uint64(len(l.lines))):] {
		limit -= len(line.Line) + 100
		if limit < 0 && len(lines) > 0 {
			break
		}
		lines = append(lines, line)
	}
	if len(lines) == 0 {
		return 0, nil
	}
	return l.stored + 1, lines
}

func (l *jobLog) acknowledge(stored uint64) {
	l.stored = max(l.stored, min(stored, uint64(len(l.lines))))
}

func (l *jobLog) settled() bool { return l.stored == uint64(len(l.lines)) }

func (l *jobLog) sync() error  { return l.file.Sync() }
func (l *jobLog) close() error { return l.file.Close() }
