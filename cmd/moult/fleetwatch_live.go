package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/term"

	"moult/cmd/internal/nodekit"
)

const (
	barWidth = 24
	// What a terminal is taken to be when it does not tell.
	defaultColumns, defaultRows = 80, 24
	// minColumns is what a table is drawn for at least; a narrower terminal wraps it.
	minColumns = 20
	// maxFailuresShown stand above the other hosts, however long the fleet is.
	maxFailuresShown = 3
)

// liveWatch redraws one table. A fleet that is longer than the terminal is shown
// around the host whose turn it is. What has not changed is not written again, and
// what has, is written over: nothing flickers.
type liveWatch struct {
	w      io.Writer
	colour bool
	ascii  bool // the locale has no other characters
	size   func() (columns, rows int)
	now    func() time.Time

	drawn         []string
	columns, rows int // of the terminal that drawn was made for
}

func newLiveWatch(f *os.File) *liveWatch {
	return &liveWatch{
		w: f, colour: os.Getenv("NO_COLOR") == "", ascii: !speaksUTF8(), now: time.Now,
		size: func() (int, int) { return terminalSize(f) },
	}
}

// canRedraw tells a terminal on which a table can be drawn over.
func canRedraw(w io.Writer) (*os.File, bool) {
	f, ok := w.(*os.File)
	return f, ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
}

// speaksUTF8 reads the locale as the C library does.
func speaksUTF8() bool {
	if runtime.GOOS == "windows" {
		return true
	}
	locale := cmp.Or(os.Getenv("LC_ALL"), os.Getenv("LC_CTYPE"), os.Getenv("LANG"))
	locale = strings.ToLower(locale)
	return strings.Contains(locale, "utf-8") || strings.Contains(locale, "utf8")
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
	if columns != l.columns || rows != l.rows {
		if l.drawn != nil {
			b.WriteString("\x1b[2J\x1b[H") // the terminal has wrapped and moved what was there
		}
		l.drawn, l.columns, l.rows = nil, columns, rows
	}
	if len(l.drawn) > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\r", len(l.drawn))
	}
	changed := len(lines) != len(l.drawn)
	for i, line := range lines {
		if i < len(l.drawn) && l.drawn[i] == line {
			b.WriteString("\n")
			continue
		}
		changed = true
		b.WriteString(line + "\x1b[K\n")
	}
	if !changed {
		return
	}
	b.WriteString("\x1b[J") // what the last table had more
	l.drawn = lines
	// Terminals that know these two marks show what is between them at once.
	io.WriteString(l.w, "\x1b[?2026h"+b.String()+"\x1b[?2026l") //nolint:errcheck // a terminal that went away ends the watch by its signal
}

// piece is a part of a line in one colour, "" for none.
type piece struct{ text, colour string }

// line joins pieces to at most columns-1 characters: a line that wraps would be
// redrawn in the wrong place.
func (l *liveWatch) line(columns int, pieces ...piece) string {
	room := max(columns, minColumns) - 1
	var b strings.Builder
	for _, p := range pieces {
		text := []rune(p.text)
		if len(text) > room {
			text = append(text[:max(0, room-1)], []rune(l.glyph("…", "~"))[:min(1, room)]...)
		}
		room -= len(text)
		if l.colour && p.colour != "" && len(text) > 0 {
			fmt.Fprintf(&b, "\x1b[%sm%s\x1b[0m", p.colour, string(text))
		} else {
			b.WriteString(string(text))
		}
	}
	return strings.TrimRight(b.String(), " ")
}

func (l *liveWatch) glyph(fine, plain string) string {
	if l.ascii {
		return plain
	}
	return fine
}

const (
	dim    = "2"
	bold   = "1"
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
)

func colourOf(status string) string {
	return map[string]string{
		"running": cyan, "succeeded": green, "completed": green, "failed": red, "halted": red,
		"skipped": yellow, "paused": yellow, "cancelled": yellow, "pending": dim,
	}[status]
}

// tally counts a fleet update's turns by status.
type tally struct{ succeeded, failed, skipped, running, pending int }

func tallyOf(u apiFleetUpdate) (n tally) {
	for _, t := range u.Hosts {
		switch t.Status {
		case "succeeded":
			n.succeeded++
		case "failed":
			n.failed++
		case "skipped":
			n.skipped++
		case "running":
			n.running++
		default:
			n.pending++
		}
	}
	return n
}

func (n tally) done() int { return n.succeeded + n.failed + n.skipped }

// remaining is how long the rest will take if it goes on as it went, false before
// that can be told, and when nothing goes on.
func remaining(u apiFleetUpdate, n tally, now time.Time) (time.Duration, bool) {
	worked := n.succeeded + n.failed // a host that is skipped takes no time
	if u.Status != "running" || u.StartedAt == nil || worked == 0 || n.running+n.pending == 0 || u.WaitingFor != "" {
		return 0, false
	}
	elapsed := now.Sub(*u.StartedAt)
	each := elapsed / time.Duration(worked)
	if n.running > 0 { // the present one has taken its part of the time
		each = time.Duration(float64(elapsed) / (float64(worked) + 0.5))
		return time.Duration((float64(n.pending) + 0.5) * float64(each)), true
	}
	return each * time.Duration(n.pending), true
}

// clock is a duration as a person reads it on a watch.
func clock(d time.Duration) string {
	s := int(max(d, 0).Round(time.Second).Seconds())
	if s >= 3600 {
		return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
	}
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}

// table is a fleet update in at most rows lines of at most columns characters.
func (l *liveWatch) table(u apiFleetUpdate, hosts map[string]apiHost, columns, rows int) []string {
	n := tallyOf(u)
	out := l.head(u, n, columns)
	foot := l.foot(u, columns)
	rows -= len(foot)
	failures := 0
	for _, t := range u.Hosts {
		if t.Status == "failed" && failures < maxFailuresShown && len(out) < rows-2 && len(u.Hosts) > rows-len(out) {
			failures++
			out = append(out, l.row(t, hosts[t.HostID], l.width(u, columns), columns))
		}
	}
	current := len(u.Hosts) - 1
	for i, t := range u.Hosts {
		if t.Status == "pending" || t.Status == "running" {
			current = i
			break
		}
	}
	room := rows - len(out)
	if room < len(u.Hosts) {
		room -= 2 // for what is said of those that are not shown
	}
	from, to := window(current, len(u.Hosts), max(1, room))
	if from > 0 && len(out) < rows-1 {
		out = append(out, l.line(columns, piece{fmt.Sprintf("   %s %d before", l.glyph("⋮", ":"), from), dim}))
	}
	for _, t := range u.Hosts[from:to] {
		out = append(out, l.row(t, hosts[t.HostID], l.width(u, columns), columns))
	}
	if to < len(u.Hosts) && len(out) < rows {
		out = append(out, l.line(columns, piece{fmt.Sprintf("   %s %d more", l.glyph("⋮", ":"), len(u.Hosts)-to), dim}))
	}
	return append(out, foot...)[:min(len(out)+len(foot), max(1, rows+len(foot)))]
}

// width is the column of the names: as wide as the longest, within reason.
func (l *liveWatch) width(u apiFleetUpdate, columns int) int {
	w := 4
	for _, t := range u.Hosts {
		w = max(w, len([]rune(t.Name)))
	}
	return min(w, max(8, columns/3))
}

func (l *liveWatch) head(u apiFleetUpdate, n tally, columns int) []string {
	now := time.Now()
	if l.now != nil {
		now = l.now()
	}
	when := clock(time.Duration(secondsBetween(u.StartedAt, u.CompletedAt)) * time.Second)
	if u.CompletedAt == nil && u.StartedAt != nil {
		when = clock(now.Sub(*u.StartedAt))
	}
	if left, ok := remaining(u, n, now); ok {
		when += ", about " + clock(left) + " left"
	}
	out := []string{l.line(columns,
		piece{"Fleet update to " + printable(u.TargetVersion) + "  ", bold}, piece{u.Status, colourOf(u.Status)}, piece{"  " + when, dim})}

	width := min(40, max(8, columns/3))
	full := 0
	if len(u.Hosts) > 0 {
		full = n.done() * width / len(u.Hosts)
	}
	pieces := []piece{
		{strings.Repeat(l.glyph("█", "#"), full), cmp.Or(map[bool]string{true: red}[n.failed > 0], green)},
		{strings.Repeat(l.glyph("░", "."), width-full), dim},
		{fmt.Sprintf(" %d/%d", n.done(), len(u.Hosts)), bold},
	}
	for _, c := range []struct {
		count        int
		word, colour string
	}{{n.failed, "failed", red}, {n.succeeded, "succeeded", green}, {n.skipped, "skipped", yellow}, {n.running, "running", cyan}, {n.pending, "to come", dim}} {
		if c.count > 0 {
			pieces = append(pieces, piece{fmt.Sprintf("  %d %s", c.count, c.word), c.colour})
		}
	}
	out = append(out, l.line(columns, pieces...))
	if line := staging(u); line != "" {
		out = append(out, l.line(columns, piece{line, dim}))
	}
	if u.WaitingFor != "" {
		out = append(out, l.line(columns, piece{"waiting: " + printable(u.WaitingFor), yellow}))
	}
	return append(out, "")
}

// foot is what to do next, in the states in which there is something.
func (l *liveWatch) foot(u apiFleetUpdate, columns int) []string {
	hint := ""
	switch u.Status {
	case "running":
		hint = "Ctrl-C ends the watching, not the update; stop it with: moult fleet pause"
	case "paused":
		hint = "go on with: moult fleet resume"
	case "completed":
		hint = "what it cost: moult fleet summary"
	case "halted":
		hint = "look at: moult alerts"
		for _, t := range u.Hosts {
			if t.Status == "failed" && t.JobID != "" {
				hint = "look at: moult job log " + t.JobID
			}
		}
	default:
		return nil
	}
	return []string{"", l.line(columns, piece{hint, dim})}
}

// window chooses which of n rows to show when only size fit, around current.
func window(current, n, size int) (from, to int) {
	from = max(0, min(current-size/2, n-size))
	return from, min(n, from+size)
}

func (l *liveWatch) row(t apiTurn, h apiHost, width, columns int) string {
	mark := map[string]string{
		"succeeded": l.glyph("✔", "+"), "failed": l.glyph("✘", "x"), "skipped": l.glyph("–", "-"), "running": l.glyph("▸", ">"),
	}[t.Status]
	status, extra := t.Status, printable(t.FailedReason)
	switch words := t.stagingWords(); {
	case t.Staged:
		extra = "staged"
	case words != "":
		extra = "staging: " + printable(words)
	}
	if t.Status == "running" {
		if phase := phaseOf(t, h); phase != "" && phase != "idle" {
			status = printable(phase)
		}
		if h.Progress != nil && h.Progress.Total > 0 && h.Phase == "fetching" {
			extra = l.bar(h.Progress.Done, h.Progress.Total)
		}
	}
	return l.line(columns,
		piece{fmt.Sprintf(" %1s ", mark), colourOf(t.Status)},
		piece{fmt.Sprintf("%-*s  ", width, l.clipped(printable(t.Name), width)), map[bool]string{true: dim}[t.Status == "pending"]},
		piece{fmt.Sprintf("%-10s ", status), colourOf(t.Status)},
		piece{extra, map[bool]string{true: red}[t.Status == "failed"]})
}

func (l *liveWatch) bar(done, total int64) string {
	if !l.ascii {
		return progressBar(done, total)
	}
	return strings.NewReplacer("█", "#", "░", ".").Replace(progressBar(done, total))
}

// clipped cuts a text to a number of characters.
func (l *liveWatch) clipped(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:max(0, n-1)]) + l.glyph("…", "~")
}

func progressBar(done, total int64) string {
	full := int(min(done, total) * barWidth / total)
	return fmt.Sprintf("[%s%s] %s of %s", strings.Repeat("█", full), strings.Repeat("░", barWidth-full), nodekit.ByteCount(done), nodekit.ByteCount(total))
}
