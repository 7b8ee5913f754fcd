package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
	"github.com/spf13/pflag"

	"moult/cmd/internal/nodekit"
)

// Limits of a configuration file.
const (
	maxSettingsBytes = 1 << 20
	maxSyntaxErrors  = 10 // told at once
)

// settingsFile is a TOML file of settings, and what is wrong with it, by place.
type settingsFile struct {
	path     string
	lines    []string
	settings []*setting
	problems []*settingError
}

// setting is one key of the file.
type setting struct {
	key     string
	name    span // where the key stands
	value   span // where its value begins
	content any
	applied bool // a flag has it
}

// span is a place in the file: line and column from 1, in characters.
type span struct{ line, column, width int }

// settingError shows a person the place, with a caret under it.
type settingError struct {
	path    string
	at      span
	line    string
	message string
}

func (e *settingError) Error() string {
	caret := strings.Map(func(r rune) rune {
		if r == '\t' {
			return r // as wide as in the line above
		}
		return ' '
	}, firstRunes(e.line, e.at.column-1)) + strings.Repeat("^", max(1, e.at.width))
	return fmt.Sprintf("%s:%d:%d: %s\n    %s\n    %s", e.path, e.at.line, e.at.column, e.message, printable(e.line), caret)
}

func firstRunes(s string, n int) string {
	r := []rune(s)
	return string(r[:max(0, min(n, len(r)))])
}

// readSettings reads a file. What is wrong in it is in its err, not here.
func readSettings(path string) (*settingsFile, error) {
	st, err := os.Stat(path)
	if err == nil && st.Size() > maxSettingsBytes {
		return nil, fmt.Errorf("read configuration: %s has %s; a configuration has at most %s", path, nodekit.ByteCount(st.Size()), nodekit.ByteCount(maxSettingsBytes))
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return parseSettings(path, text), nil
}

func parseSettings(path string, text []byte) *settingsFile {
	text = bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n"))
	f := &settingsFile{path: path, lines: strings.Split(string(text), "\n")}
	f.decode(text)
	return f
}

// decode reads the settings. A line that is no TOML is noted and left out, so that
// what is wrong further down is told too; lines keep their numbers.
func (f *settingsFile) decode(text []byte) {
	lines := slices.Clone(f.lines)
	for range maxSyntaxErrors {
		values := map[string]any{}
		err := toml.Unmarshal(text, &values)
		if err == nil {
			f.settings = settingsIn(text)
			for _, s := range f.settings {
				s.content = values[s.key]
			}
			return
		}
		var de *toml.DecodeError
		if !errors.As(err, &de) {
			f.note(span{1, 1, 1}, "%s", strings.TrimPrefix(err.Error(), "toml: "))
			return
		}
		row, column := de.Position()
		if row < 1 || row > len(lines) {
			row, column = 1, 1
		}
		line := lines[row-1]
		f.note(span{row, 1 + len([]rune(line[:max(0, min(column-1, len(line)))])), 1}, "%s", strings.TrimPrefix(de.Error(), "toml: "))
		if !standsAlone(line) {
			return
		}
		lines[row-1] = ""
		text = []byte(strings.Join(lines, "\n"))
	}
}

// standsAlone tells whether a line is a whole setting, right or wrong: without it
// the others can be read.
func standsAlone(line string) bool {
	return strings.Contains(line, "=") && strings.Count(line, "[") == strings.Count(line, "]") &&
		!strings.Contains(line, `"""`) && !strings.Contains(line, `'''`)
}

// settingsIn finds the places of all keys in a text that is known to be TOML. A
// table counts as one key: there are none.
func settingsIn(text []byte) (found []*setting) {
	p := &unstable.Parser{}
	p.Reset(text)
	inTable := false
	spanOf := func(r unstable.Range) span {
		begin, end := p.Shape(r).Start, p.Shape(r).End
		lineBegin := int(r.Offset) - (begin.Column - 1)
		s := span{begin.Line, 1 + len([]rune(string(text[lineBegin:r.Offset]))), len([]rune(string(p.Raw(r))))}
		if end.Line != begin.Line {
			s.width = 1
		}
		return s
	}
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind == unstable.Comment || inTable && e.Kind == unstable.KeyValue {
			continue
		}
		key := e.Key()
		if !key.Next() {
			continue
		}
		name := key.Node()
		s := &setting{key: string(name.Data), name: spanOf(name.Raw)}
		s.value = s.name
		if e.Kind == unstable.KeyValue {
			s.value = valueSpan(text, s.name)
		} else {
			inTable = true
		}
		if !slices.ContainsFunc(found, func(other *setting) bool { return other.key == s.key }) {
			found = append(found, s)
		}
	}
	return found
}

// valueSpan is what follows the equals sign of a key, to the end of the line
// without its comment.
func valueSpan(text []byte, name span) span {
	line := []rune(string(bytes.Split(text, []byte("\n"))[name.line-1]))
	from := name.column - 1 + name.width
	for from < len(line) && line[from] != '=' {
		from++
	}
	from++
	for from < len(line) && (line[from] == ' ' || line[from] == '\t') {
		from++
	}
	to, quote := from, rune(0)
	for ; to < len(line) && (quote != 0 || line[to] != '#'); to++ {
		switch c := line[to]; {
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		case quote == '"' && c == '\\':
			to++
		case c == quote:
			quote = 0
		}
	}
	to = min(to, len(line))
	for to > from && (line[to-1] == ' ' || line[to-1] == '\t') {
		to--
	}
	if from >= to {
		return name
	}
	return span{name.line, from + 1, to - from}
}

func (f *settingsFile) find(key string) (*setting, bool) {
	i := slices.IndexFunc(f.settings, func(s *setting) bool { return s.key == key })
	if i < 0 {
		return nil, false
	}
	return f.settings[i], true
}

func (f *settingsFile) has(key string) bool {
	_, ok := f.find(key)
	return ok
}

func (f *settingsFile) note(at span, format string, args ...any) {
	e := &settingError{path: f.path, at: at, message: fmt.Sprintf(format, args...)}
	if at.line >= 1 && at.line <= len(f.lines) {
		e.line = f.lines[at.line-1]
	}
	f.problems = append(f.problems, e)
}

// refuseUnknown notes each key that is none of these flags'.
func (f *settingsFile) refuseUnknown(flags []string) {
	for _, s := range f.settings {
		if slices.Contains(flags, flagOf(s.key)) && !strings.Contains(s.key, "-") {
			continue
		}
		if _, table := s.content.(map[string]any); table {
			f.note(s.name, "there are no tables, but %q is one; write each key by itself, as `moult config example` shows", s.key)
			continue
		}
		next := "`moult config example` lists the keys"
		if near := nearest(keyOf(s.key), flags); near != "" {
			next = fmt.Sprintf("did you mean %q?", near)
		}
		f.note(s.name, "unknown key %q; %s", s.key, next)
	}
}

// set gives a flag its value from the file.
func (f *settingsFile) set(flags *pflag.FlagSet, flag *pflag.Flag) {
	s, _ := f.find(keyOf(flag.Name))
	values, err := settingValues(flag, s.content)
	for _, v := range values {
		if err == nil {
			err = flags.Set(flag.Name, v)
		}
	}
	if err != nil {
		f.note(s.value, "%s: %s", s.key, plainReason(err))
		return
	}
	s.applied = true
}

// plainReason leaves out of pflag's words what the place says already.
func plainReason(err error) string {
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) {
		return invalid.Unwrap().Error()
	}
	return err.Error()
}

// settingValues are the texts that a flag is set to, one after the other.
func settingValues(flag *pflag.Flag, content any) ([]string, error) {
	_, repeats := flag.Value.(pflag.SliceValue)
	switch v := content.(type) {
	case map[string]any:
		return nil, errors.New("a table is given; give a value")
	case []any:
		if !repeats {
			return nil, fmt.Errorf("a list is given; give one value (%s)", flag.Value.Type())
		}
		out := make([]string, 0, len(v))
		for _, e := range v {
			switch e.(type) {
			case []any, map[string]any:
				return nil, errors.New("a list in a list is given; give a list of values")
			}
			out = append(out, fmt.Sprint(e))
		}
		return out, nil
	}
	return []string{fmt.Sprint(content)}, nil
}

// err is all that is wrong with the file, by place.
func (f *settingsFile) err() error {
	slices.SortStableFunc(f.problems, func(a, b *settingError) int {
		return cmp.Or(cmp.Compare(a.at.line, b.at.line), cmp.Compare(a.at.column, b.at.column))
	})
	errs := make([]error, 0, len(f.problems))
	for _, p := range f.problems {
		errs = append(errs, p)
	}
	return errors.Join(errs...)
}

// nearest is the key that a mistyped one was most likely to be, "" when none is
// near.
func nearest(key string, flags []string) string {
	best, least := "", max(2, len(key)/3)+1
	for _, flag := range flags {
		if d := editDistance(key, keyOf(flag)); d < least {
			best, least = keyOf(flag), d
		}
	}
	return best
}

// editDistance counts the characters to insert, delete or replace.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			next := diagonal
			if a[i] != b[j] {
				next = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}
