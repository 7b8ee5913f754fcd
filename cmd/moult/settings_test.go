package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"moult/cmd/internal/nodekit"
)

// All that is wrong with a file is told at once, each with its place.
func TestConfigurationErrorsShowThePlace(t *testing.T) {
	text := strings.Join([]string{
		`# my agent`,
		`name = `,
		`log-json = true`,
		`soak = "fast"   # how long`,
		"\tserve_rte = \"10MB\"",
		`trial_timeout = "10ms"`,
		`serve_streams = 0`,
		`gossip = ["a"]`,
		`peer = "größe" # ö`,
		`[agent]`,
		`foo = 1`,
	}, "\n")
	var got strings.Builder
	for _, err := range parseSettings("a.toml", []byte(text)).check(roleAgent) {
		got.WriteString(err.Error() + "\n")
	}
	want := `a.toml:2:8: unexpected character U+000A at start of value
    name = 
           ^
a.toml:3:1: unknown key "log-json"; did you mean "log_json"?
    log-json = true
    ^^^^^^^^
a.toml:4:8: soak: must be a duration like "30s" or "5m"
    soak = "fast"   # how long
           ^^^^^^
a.toml:5:2: unknown key "serve_rte"; did you mean "serve_rate"?
    	serve_rte = "10MB"
    	^^^^^^^^^
a.toml:6:17: trial_timeout is 10ms; give at least 1s
    trial_timeout = "10ms"
                    ^^^^^^
a.toml:6:17: soak is 5s; give less than trial_timeout (10ms)
    trial_timeout = "10ms"
                    ^^^^^^
a.toml:7:17: serve_streams is 0; give at least 1
    serve_streams = 0
                    ^
a.toml:8:10: gossip: a list is given; give one value (string)
    gossip = ["a"]
             ^^^^^
a.toml:9:8: peer "größe": give HOST:PORT
    peer = "größe" # ö
           ^^^^^^^
a.toml:10:2: there are no tables, but "agent" is one; write each key by itself, as ` + "`moult config example`" + ` shows
    [agent]
     ^^^^^
`
	if got.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", got.String(), want)
	}
}

// A file that was made with an example is as good as none, and all of its keys are
// such that the role takes them.
func TestConfigurationExamples(t *testing.T) {
	for _, role := range configRoles {
		text := exampleConfig(role, nil)
		file := parseSettings(role+".toml", []byte(text))
		if errs := file.check(role); len(errs) > 0 || len(file.settings) > 0 {
			t.Errorf("%s: %d settings, %v", role, len(file.settings), errs)
		}
		if got := likelyRole(file); got != role {
			t.Errorf("the example for %s is taken for one for %s", role, got)
		}
		all := parseSettings(role+".toml", []byte(regexp.MustCompile(`(?m)^# ([a-z0-9_]+ = )`).ReplaceAllString(text, "$1")))
		cmd, _ := commandOfRole(role)
		all.refuseUnknown(flagNames(cmd))
		for _, name := range flagNames(cmd) {
			s, ok := all.find(keyOf(name))
			if slices.Contains(notInExamples, name) {
				if ok {
					t.Errorf("%s: %s stands in the example", role, name)
				}
				continue
			}
			if !ok {
				t.Errorf("%s: %s is missing", role, name)
				continue
			}
			all.set(cmd.Flags(), cmd.Flags().Lookup(name))
			if !s.applied {
				t.Errorf("%s: the value of %s is refused", role, name)
			}
		}
		if err := all.err(); err != nil {
			t.Errorf("%s: %v", role, err)
		}
	}
}

// What install writes: the keys that are given stand there, the others don't.
func TestConfigurationWithValues(t *testing.T) {
	text := exampleConfig(roleAgent, map[string]string{"name": `"web-1"`, "join": `["10.0.0.1:7947"]`})
	file := parseSettings("agent.toml", []byte(text))
	if len(file.settings) != 2 || !file.has("name") || !file.has("join") {
		t.Errorf("the settings are %v in:\n%s", file.settings, text)
	}
	if errs := file.check(roleAgent); len(errs) > 0 {
		t.Error(errs)
	}
}

func TestNearestKey(t *testing.T) {
	flags := []string{"serve-rate", "serve-streams", "join", "log-json"}
	for typed, want := range map[string]string{
		"serve_rte": "serve_rate", "log-json": "log_json", "jion": "join", "streams_served": "", "": "",
	} {
		if got := nearest(keyOf(typed), flags); got != want {
			t.Errorf("%q is taken for %q, want %q", typed, got, want)
		}
	}
}

// A token that is named nearer to the person counts alone.
func TestTokenFromNearestCounts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "agent.toml")
	if err := os.WriteFile(file, []byte("token_file = \"/in/the/file\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args            []string
		env             map[string]string
		token, tokenFil string
	}{
		{nil, nil, "", "/in/the/file"},
		{nil, map[string]string{"MOULT_TOKEN": "secret"}, "secret", ""},
		{nil, map[string]string{"MOULT_TOKEN_FILE": "/in/env"}, "", "/in/env"},
		{[]string{"--token-file", "/typed"}, map[string]string{"MOULT_TOKEN": "secret"}, "", "/typed"},
		{[]string{"--token", "typed"}, map[string]string{"MOULT_TOKEN_FILE": "/in/env"}, "typed", ""},
	} {
		for _, name := range []string{"MOULT_TOKEN", "MOULT_TOKEN_FILE"} {
			t.Setenv(name, "")
			os.Unsetenv(name)
			if v, ok := tc.env[name]; ok {
				t.Setenv(name, v)
			}
		}
		o := new(nodekit.AgentOptions)
		cmd := agentCommand(o)
		cmd.Flags().String("config", file, "")
		if err := cmd.ParseFlags(tc.args); err != nil {
			t.Fatal(err)
		}
		if err := loadSettings(cmd); err != nil {
			t.Fatal(err)
		}
		if o.Token != tc.token || o.TokenFile != tc.tokenFil {
			t.Errorf("%v with %v: token %q, file %q", tc.args, tc.env, o.Token, o.TokenFile)
		}
	}
}

// Whatever stands in a file is told, and nothing panics.
func FuzzConfiguration(f *testing.F) {
	f.Add("name = \"a\"\n[x]\ny = 1\n")
	f.Add("a.b = 1\na = [1,\n2]\n")
	f.Add("\"\\u00e9\" = '''x\ny'''\nsoak = 1979-05-27T07:32:00Z")
	f.Add("soak = \n= 1\n\r\n\tx")
	f.Add(exampleConfig(roleServer, nil))
	f.Fuzz(func(t *testing.T, text string) {
		for _, role := range configRoles {
			for _, err := range parseSettings("f", []byte(text)).check(role) {
				if err.Error() == "" {
					t.Error("an error without words")
				}
			}
		}
	})
}
