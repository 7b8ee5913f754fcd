package nodekit

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"sync"

	"github.com/coreos/go-systemd/v22/journal"
)

// StderrIsJournal tells whether w is this process's stderr and that is the journal.
func StderrIsJournal(w io.Writer) bool {
	if w != io.Writer(os.Stderr) {
		return false
	}
	is, err := journal.StderrIsJournalStream()
	return err == nil && is
}

// The priorities before a line, by which the journal knows its level (sd-daemon(3)).
const (
	PriorityError   = "<3>"
	priorityWarning = "<4>"
	priorityInfo    = "<6>"
	priorityDebug   = "<7>"
)

func priorityOf(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return PriorityError
	case l >= slog.LevelWarn:
		return priorityWarning
	case l >= slog.LevelInfo:
		return priorityInfo
	}
	return priorityDebug
}

// journalHandler logs lines as the journal takes them from a service's stderr: a
// priority in front, and neither time nor level, which the journal has by itself.
type journalHandler struct {
	text slog.Handler // writes into line
	out  *journalOut
}

// journalOut is shared by a handler and those made from it.
type journalOut struct {
	mu   sync.Mutex
	line bytes.Buffer
	to   io.Writer
}

// NewJournalHandler logs lines with the journal's levels.
func NewJournalHandler(w io.Writer, opts *slog.HandlerOptions) *journalHandler {
	own := *opts
	own.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
		_, level := a.Value.Any().(slog.Level)
		if len(groups) == 0 && (a.Key == slog.TimeKey && a.Value.Kind() == slog.KindTime || a.Key == slog.LevelKey && level) {
			return slog.Attr{}
		}
		return a
	}
	out := &journalOut{to: w}
	return &journalHandler{text: slog.NewTextHandler(&out.line, &own), out: out}
}

func (h *journalHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return h.text.Enabled(ctx, l)
}

// Handle writes a line at once, lest the journal take half of it for one.
func (h *journalHandler) Handle(ctx context.Context, r slog.Record) error {
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	h.out.line.Reset()
	h.out.line.WriteString(priorityOf(r.Level))
	if err := h.text.Handle(ctx, r); err != nil {
		return err
	}
	_, err := h.out.to.Write(h.out.line.Bytes())
	return err
}

func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &journalHandler{h.text.WithAttrs(attrs), h.out}
}

func (h *journalHandler) WithGroup(name string) slog.Handler {
	return &journalHandler{h.text.WithGroup(name), h.out}
}
