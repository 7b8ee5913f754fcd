//go:build unix

package main

import (
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

// TestLaunchdPlist reads the property list back as a parser sees it.
func TestLaunchdPlist(t *testing.T) {
	p := servicePlan{
		role: roleAgent, binary: "/Applications/R&D <1>/moult", config: "/etc/moult/agent.toml", data: "/var/lib/moult",
	}
	text, err := launchdPlist(p)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text, "{") {
		t.Errorf("a placeholder is left:\n%s", text)
	}
	values := plistValues(t, text)
	for key, want := range map[string][]string{
		"Label":            {"moult.agent"},
		"ProgramArguments": {p.binary, "agent", "--config", p.config},
		"KeepAlive":        {"true"}, "RunAtLoad": {"true"}, "Umask": {"63"},
		"StandardErrorPath": {"/var/log/moult-agent.log"},
	} {
		if !slices.Equal(values[key], want) {
			t.Errorf("%s is %q, want %q", key, values[key], want)
		}
	}
	for _, bad := range []string{"relative/moult", "/two\nlines"} {
		p.binary = bad
		if _, err := launchdPlist(p); err == nil || !strings.Contains(err.Error(), "--binary") {
			t.Errorf("a binary %q: error is %v", bad, err)
		}
	}
}

// plistValues are the values of a flat property list by their keys; true and false
// stand for themselves.
func plistValues(t *testing.T, text string) map[string][]string {
	t.Helper()
	values := map[string][]string{}
	d := xml.NewDecoder(strings.NewReader(text))
	key, element := "", ""
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return values
		}
		if err != nil {
			t.Fatalf("not XML: %v", err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			element = token.Name.Local
			if element == "true" || element == "false" {
				values[key] = append(values[key], element)
			}
		case xml.EndElement:
			element = ""
		case xml.CharData:
			switch element {
			case "key":
				key = string(token)
			case "string", "integer":
				values[key] = append(values[key], string(token))
			}
		}
	}
}
