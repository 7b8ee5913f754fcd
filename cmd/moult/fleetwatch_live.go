package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

const (
	barWidth = 24
	// What a terminal is taken to be when it does not tell.
	defaultColumns, defaultRows = 80, 24
)

// liveWatch redraws one table. A fleet that is longer than the terminal is shown
// around the host whose turn it is.
type liveWatch struct {
	w      io.Writer
	colour bool
	size   func() (columns, rows int)
	lines  int // drawn last
}

func terminalSize(f *os.File) (columns, rows int) {
	columns, rows, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return defaultColumns, defaultRows
	}
	return cmp.Or(columns, defaultColumns), cmp.Or(rows, defaultRows)
}

func (l *liveWatch) show(u apiFleetUpdate, hosts map[string]apiHost) {
	columns, rows := l.size()
	lines := l.table(u, hosts, columns, rows-1) // the cursor stands on the last row
	var b strings.Builder
	if l.lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", l.lines)
	}
	for _, line := range lines {
		b.WriteString("\x1b[2K" + line + "\n")
	}
	b.WriteString("\x1b[J") // what the last table had more
	l.lines = len(lines)
	io.WriteString(l.w, b.String()) //nolint:errcheck // a terminal that went away ends the watch by its signal
}

// table is a fleet update in at most rows lines of at most columns characters.
func (l *liveWatch) table(u apiFleetUpdate, hosts map[string]apiHost, columns, rows int) []string {
	done, current, width := 0, -1, 4
	for i, t := range u.Hosts {
		width = max(width, len([]rune(t.Name)))
		if t.Status != "pending" && t.Status != "running" {
			done++
		} else if current < 0 {
			current = i
		}
	}
	if current < 0 {
		current = len(u.Hosts) - 1
	}
	head := fmt.Sprintf("Fleet update to %s: %s, %d of %d hosts, %s", printable(u.TargetVersion), l.paint(u.Status), done, len(u.Hosts), elapsed(u))
	out := []string{head}
	if line := staging(u); line != "" {
		out = append(out, clipped(line, columns-1))
		rows--
	}
	if u.WaitingFor != "" {
		out = append(out, clipped("waiting: "+printable(u.WaitingFor), columns-1))
		rows--
	}
	from, to := window(current, len(u.Hosts), max(1, rows-3))
	if from > 0 {
		out = append(out, fmt.Sprintf("      … %d before", from))
	}
	for _, t := range u.Hosts[from:to] {
		out = append(out, l.row(t, hosts[t.HostID], min(width, 32), columns))
	}
	if to < len(u.Hosts) {
		out = append(out, fmt.Sprintf("      … %d more", len(u.Hosts)-to))
	}
	return out
}

// window chooses which of n rows to show when only size fit, around current.
func window(current, n, size int) (from, to int) {
	from = max(0, min(current-size/2, n-size))
	return from, min(n, from+size)
}

func elapsed(u apiFleetUpdate) string {
	return (time.Duration(secondsBetween(u.StartedAt, u.CompletedAt)) * time.Second).String()
}

func (l *liveWatch) row(t apiTurn, h apiHost, width, columns int) string {
	extra := printable(t.FailedReason)
	if t.Staged {
		extra = "staged"
	}
	if t.Status == "running" {
		extra = dash(phaseOf(t, h))
		if h.Progress != nil && h.Progress.Total > 0 && h.Phase == "fetching" {
			extra += " " + progressBar(h.Progress.Done, h.Progress.Total)
		}
	}
	const fixed = 4 + 2 + 2 + 9 + 2 // position, gaps and status
	return fmt.Sprintf(" %3d  %-*s  %s  %s", t.Position, width, clipped(printable(t.Name), width),
		l.paint(fmt.Sprintf("%-9s", t.Status)), clipped(extra, max(0, columns-fixed-width-1)))
}

// clipped cuts a text to a number of characters: a line that wraps would be
// redrawn in the wrong place.
func clipped(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:max(0, n-1)]) + "…"
}

func progressBar(done, total int64) string {
	full := int(min(done, total) * barWidth / total)
	return fmt.Sprintf("[%s%s] %s of %s", strings.Repeat("█", full), strings.Repeat("░", barWidth-full), byteCount(done), byteCount(total))
}

func (l *liveWatch) paint(status string) string {
	if !l.colour {
		return status
	}
	colours := map[string]string{"running": "36", "succeeded": "32", "completed": "32", "failed": "31", "halted": "31", "skipped": "33", "paused": "33", "cancelled": "33"}
	if c, ok := colours[strings.TrimSpace(status)]; ok {
		return "\x1b[" + c + "m" + status + "\x1b[0m"
	}
	return status
}
