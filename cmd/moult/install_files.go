package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"moult/cmd/internal/nodekit"
)

// fileStep writes a file whole, where it differs.
func fileStep(path string, content []byte, mode fs.FileMode) installStep {
	return installStep{
		what: "write " + path,
		done: func() (bool, error) {
			old, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				return false, nil
			}
			return bytes.Equal(old, content), err
		},
		do: func(context.Context) error { return nodekit.WriteFileAtomic(path, content, mode) },
	}
}

// removeStep removes a file, or a directory with all that is in it.
func removeStep(path string) installStep {
	return installStep{
		what: "remove " + path,
		done: func() (bool, error) {
			_, err := os.Lstat(path)
			if errors.Is(err, fs.ErrNotExist) {
				return true, nil
			}
			return false, err
		},
		do: func(context.Context) error { return os.RemoveAll(path) },
	}
}

// removeEmptyStep removes a directory that nobody else put anything into.
func removeEmptyStep(path string) installStep {
	s := removeStep(path)
	s.what += " if it is empty"
	s.done = func() (bool, error) {
		entries, err := os.ReadDir(path)
		if errors.Is(err, fs.ErrNotExist) {
			return true, nil
		}
		return len(entries) > 0, err
	}
	s.do = func(context.Context) error { return os.Remove(path) }
	return s
}

// noting is the step, with changed set when there is anything to do in it.
func (s installStep) noting(changed *bool) installStep {
	look := s.done
	s.done = func() (bool, error) {
		done, err := look()
		*changed = *changed || !done
		return done, err
	}
	return s
}

// configStep has the settings in the configuration, and leaves the rest of the file
// as it is. first is the file's text where there is none.
func configStep(path, first string, settings map[string]any, mode fs.FileMode) installStep {
	next := func() (old, text string, err error) {
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			b, err = []byte(first), nil
		} else {
			old = string(b)
		}
		if err != nil {
			return "", "", err
		}
		text, err = withSettings(path, string(b), settings)
		return old, text, err
	}
	return installStep{
		what: "configuration " + path,
		done: func() (bool, error) {
			old, text, err := next()
			return old == text && old != "", err
		},
		do: func(context.Context) error {
			_, text, err := next()
			if err != nil {
				return err
			}
			return nodekit.WriteFileAtomic(path, []byte(text), mode)
		},
	}
}

// withSettings sets keys in the text of a TOML file: in the place of the line that
// sets one now, else of the comment that shows one, else at the end.
func withSettings(path, text string, settings map[string]any) (string, error) {
	have := map[string]any{}
	if err := toml.Unmarshal([]byte(text), &have); err != nil {
		return "", fmt.Errorf("%s: %w; mend it, or move it away", path, err)
	}
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		value := settings[key]
		if now, set := have[key]; set && sameSetting(now, value) {
			continue
		}
		line := key + " = " + tomlValue(value)
		replaced, ok, err := replaceSetting(text, key, line, have[key] != nil)
		if err != nil {
			return "", fmt.Errorf("%s: %w", path, err)
		}
		if !ok {
			if text != "" && !strings.HasSuffix(text, "\n") {
				replaced += "\n"
			}
			replaced += line + "\n"
		}
		text = replaced
	}
	return text, nil
}

// replaceSetting replaces the line of a key; ok tells whether there was one.
func replaceSetting(text, key, line string, set bool) (_ string, ok bool, err error) {
	comment := `#\s?`
	if set {
		comment = ""
	}
	at := regexp.MustCompile(`(?m)^` + comment + regexp.QuoteMeta(key) + `\s*=.*$`).FindStringIndex(text)
	if at == nil {
		if set {
			return "", false, fmt.Errorf("%s is set in a way that cannot be changed from here; set it to %s by hand", key, line)
		}
		return text, false, nil
	}
	out := text[:at[0]] + line + text[at[1]:]
	var check map[string]any
	if err := toml.Unmarshal([]byte(out), &check); err != nil {
		return "", false, fmt.Errorf("%s takes several lines; write it by hand: %s", key, line)
	}
	return out, true, nil
}

// sameSetting compares a value of a file with one that is wanted.
func sameSetting(now, want any) bool { return slices.Equal(valueTexts(now), valueTexts(want)) }

// valueTexts are a value, or those of a list, as flags take them.
func valueTexts(v any) []string {
	switch v := v.(type) {
	case []string:
		return v
	case []any:
		out := make([]string, 0, len(v))
		for _, e := range v {
			out = append(out, fmt.Sprint(e))
		}
		return out
	}
	return []string{fmt.Sprint(v)}
}

func tomlValue(v any) string {
	switch v := v.(type) {
	case bool:
		return fmt.Sprint(v)
	case []string:
		quoted := make([]string, len(v))
		for i, s := range v {
			quoted[i] = tomlString(s)
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	}
	return tomlString(fmt.Sprint(v))
}

// tomlString quotes as TOML's basic strings do.
func tomlString(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// copyBinaryStep puts the program where the service runs it from.
func copyBinaryStep(from, to string) installStep {
	return installStep{
		what: "program " + to,
		done: func() (bool, error) {
			if from == to {
				return true, nil
			}
			have, err := nodekit.FileDigest(to)
			if errors.Is(err, fs.ErrNotExist) {
				return false, nil
			}
			if err != nil {
				return false, err
			}
			want, err := nodekit.FileDigest(from)
			return have == want, err
		},
		do: func(context.Context) error {
			if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
				return err
			}
			return copyExecutable(from, to)
		},
	}
}

// refuseToPurge refuses a directory that is not a data directory of moult's: what
// the configuration names is removed with all that is in it.
func refuseToPurge(data string) error {
	entries, err := os.ReadDir(data)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range []string{"identity", nodekit.RunningFile, nodekit.JoinTokenFile, nodekit.BootstrapOnceFile} { // not lock: /var has one
		if fileExists(filepath.Join(data, name)) {
			return nil
		}
	}
	return fmt.Errorf("%s does not look like moult's data directory; remove it by hand, if it is", data)
}

// refuseOthersData refuses the data directory of this host's other role.
func refuseOthersData(p servicePlan) error {
	if r, err := nodekit.ReadRunning(p.data); err == nil && r.Role != "" && string(r.Role) != p.role {
		return fmt.Errorf("%s is the data of this host's %s; a host is one or the other; run `moult uninstall %s --purge` first, or give another --data", p.data, r.Role, r.Role)
	}
	return nil
}
