package webui

import (
	"encoding/json"
	"fmt"
	"html/template"
	"strings"
	"time"
)

// templateFuncs are what templates call to show numbers and times.
var templateFuncs = template.FuncMap{
	"ago": timeAgo, "clock": timeClock, "percent": percent, "bytes": byteCount, "count": count, "number": number, "who": who,
	"instant": instant, "words": words, "platform": platform, "kindChoices": kindChoices,
	"label": labelText, "labellines": labelLines, "json": jsonText,
}

// ago tells how long ago something was, for people.
func ago(now time.Time, t *time.Time) string {
	if t == nil {
		return "never"
	}
	switch d := now.Sub(*t); {
	case d < 5*time.Second:
		return "now"
	case d < time.Minute:
		return fmt.Sprintf("%d s ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	default:
		return fmt.Sprintf("%d days ago", int(d.Hours()/24))
	}
}

func instant(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// moment reads what templates hand over: a time, or a pointer that may be nil.
func moment(v any) *time.Time {
	switch t := v.(type) {
	case time.Time:
		return &t
	case *time.Time:
		return t
	default:
		return nil
	}
}

// timeAgo shows a time as how long ago it was. The pages' script keeps it up to
// date and puts the time in the reader's zone into the title.
func timeAgo(now time.Time, v any) template.HTML {
	t := moment(v)
	if t == nil {
		return "never"
	}
	return timeElement(*t, "ago", ago(now, t))
}

// timeClock shows a time; the script shows it in the reader's zone.
func timeClock(v any) template.HTML {
	t := moment(v)
	if t == nil {
		return "–"
	}
	return timeElement(*t, "clock", clock(*t))
}

// timeElement is made of times alone, so nothing in it has to be escaped.
func timeElement(t time.Time, as, text string) template.HTML {
	return template.HTML(fmt.Sprintf(`<time datetime="%s" data-as="%s" title="%s">%s</time>`, instant(t), as, clock(t), text))
}

func percent(p *progressJSON) int64 {
	if p == nil || p.Total <= 0 {
		return 0
	}
	return min(100, 100*p.Done/p.Total)
}

// byteCount shows a size as people write it: 17.3 MB.
func byteCount(n int64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	size, unit := float64(n), 0
	for size >= 999.95 && unit < 4 {
		size, unit = size/1000, unit+1
	}
	return fmt.Sprintf("%.1f %cB", size, " kMGT"[unit])
}

// number groups the digits of a large number: 10 000.
func number(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "\u202f" + s[i:]
	}
	return s
}

// count shows how many of something there are: "1 host", "10 000 hosts".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return number(n) + " " + noun + "s"
}

// sentence makes a message a sentence of its own.
func sentence(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:] + "."
}

// jsonText is a value for a script to read, in an attribute.
func jsonText(v any) (string, error) {
	text, err := json.Marshal(v)
	return string(text), err
}

// words makes an identifier readable: "job_created" is "job created".
func words(s string) string { return strings.ReplaceAll(s, "_", " ") }

// who shows an actor as people call it: "alice", "API token ci", "host web-1".
func who(actor string) string {
	kind, name, found := strings.Cut(actor, ":")
	switch {
	case !found:
		return actor
	case kind == "user":
		return name
	case kind == "token":
		return "API token " + name
	default:
		return kind + " " + name
	}
}
