package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestServiceLogRotates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "moult-agent.log")
	r, err := openRotatingFile(path, 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"first", "second", "third"} {
		if _, err := r.Write([]byte(strings.Repeat(word+" ", 10) + "\n")); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	r, err = openRotatingFile(path, 100) // goes on with what is there
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Write([]byte("end\n")); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{path: "third third", path + ".1": "second second"} {
		text, err := os.ReadFile(file)
		if err != nil || !strings.HasPrefix(string(text), want) || len(text) > 100 {
			t.Errorf("%s is %q, %v; want it to begin with %q", file, text, err, want)
		}
	}
	if text, _ := os.ReadFile(path); !strings.HasSuffix(string(text), "end\n") {
		t.Errorf("a log that is opened again ends with %q", text)
	}
}

// A directory in the place of NAME.1 keeps the log from being renamed.
func TestServiceLogThatCannotBeRenamedStaysBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.MkdirAll(filepath.Join(path+".1", "occupied"), 0o700); err != nil {
		t.Fatal(err)
	}
	r, err := openRotatingFile(path, 64)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for range 10 {
		if _, err := r.Write(bytes.Repeat([]byte("x"), 50)); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := os.Stat(path); err != nil || st.Size() > 64 {
		t.Errorf("the log has %v bytes, %v", st.Size(), err)
	}
}

func TestEventsOfALog(t *testing.T) {
	var events []string
	e := &eventLines{report: func(level slog.Level, text string) { events = append(events, level.String()+" "+text) }}
	logger := slog.New(slog.NewTextHandler(e, nil))
	logger.Info("agent is up", "version", "1.0.0")
	logger.Warn("slow", "peer", "a b")
	logger.With("component", "supervisor").Info("committed", "release", "2.0.0")
	slog.New(slog.NewJSONHandler(e, nil)).Error("no disk")
	for _, part := range []string{"moult: the token", " is used up\r\nnothing\npanic: oh", "\n"} {
		if _, err := e.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		`WARN msg=slow peer="a b"`,
		`INFO msg=committed component=supervisor release=2.0.0`,
		`ERROR {"`,
		`ERROR moult: the token is used up`,
		`ERROR panic: oh`,
	}
	if !slices.EqualFunc(events, want, strings.HasPrefix) {
		t.Errorf("events are\n%s\nwant\n%s", strings.Join(events, "\n"), strings.Join(want, "\n"))
	}
	events = nil
	_, _ = e.Write([]byte("moult: " + strings.Repeat("x", 2*maxEventLine)))
	_, _ = e.Write([]byte("y\nmoult: next\n"))
	if len(events) != 2 || len(events[0]) > maxEventLine+10 || events[1] != "ERROR moult: next" {
		t.Errorf("a long line becomes %d events, the first of %d bytes", len(events), len(events[0]))
	}
}
