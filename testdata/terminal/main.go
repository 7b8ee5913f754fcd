// Command terminal draws what a terminal shows as an SVG. It reads the screen
// from standard input, as `tmux capture-pane -p -e` writes it: lines of text with
// the colours of ECMA-48's SGR sequences. testdata/pictures.sh uses it.
package main

import (
	"bufio"
	"fmt"
	"html"
	"os"
	"regexp"
	"strings"
)

const (
	cellWidth, lineHeight = 8.4, 19 // pixels, of the font at 14 px
	margin, bar           = 16, 28
)

// colours are those of a dark terminal, by SGR number.
var colours = map[string]string{"31": "#ff7b72", "32": "#7ee787", "33": "#e3b341", "34": "#79c0ff", "35": "#d2a8ff", "36": "#76e3ea"}

var sgr = regexp.MustCompile("\x1b\\[([0-9;]*)m")

// style is what the sequences so far have switched on.
type style struct{ colour, bold, dim string }

func (s *style) set(params string) {
	for p := range strings.SplitSeq(params, ";") {
		switch {
		case p == "" || p == "0":
			*s = style{}
		case p == "1":
			s.bold = ` font-weight="bold"`
		case p == "2":
			s.dim = ` opacity="0.6"`
		case p == "22":
			s.bold, s.dim = "", ""
		case p == "39":
			s.colour = ""
		case colours[p] != "":
			s.colour = fmt.Sprintf(` fill="%s"`, colours[p])
		}
	}
}

// draw writes one line as spans, each at its column, so that a font with other
// widths does not shift it. The style goes on to the next line.
func (s *style) draw(b *strings.Builder, line string, y int) (columns int) {
	span := func(text string) {
		runes := []rune(text)
		if strings.TrimSpace(text) != "" {
			fmt.Fprintf(b, `<text xml:space="preserve" x="%.1f" y="%d" textLength="%.1f"%s%s%s>%s</text>`+"\n",
				margin+float64(columns)*cellWidth, y, float64(len(runes))*cellWidth, s.colour, s.bold, s.dim, html.EscapeString(text))
		}
		columns += len(runes)
	}
	at := 0
	for _, m := range sgr.FindAllStringSubmatchIndex(line, -1) {
		span(line[at:m[0]])
		s.set(line[m[2]:m[3]])
		at = m[1]
	}
	span(line[at:])
	return columns
}

func main() {
	var body strings.Builder
	var s style
	columns, lines, last := 0, 0, 0
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		lines++
		if n := s.draw(&body, strings.TrimRight(in.Text(), " "), bar+margin+lines*lineHeight); n > 0 {
			columns, last = max(columns, n), lines
		}
	}
	if err := in.Err(); err != nil {
		fmt.Fprintln(os.Stderr, "terminal: read the screen:", err)
		os.Exit(1)
	}
	width, height := 2*margin+int(float64(columns)*cellWidth), bar+2*margin+last*lineHeight
	fmt.Printf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace" font-size="14" fill="#e6edf3">
<rect width="100%%" height="100%%" rx="8" fill="#0d1117"/>
<circle cx="20" cy="16" r="5" fill="#ff5f57"/><circle cx="38" cy="16" r="5" fill="#febc2e"/><circle cx="56" cy="16" r="5" fill="#28c840"/>
%s</svg>
`, width, height, width, height, body.String())
}
