package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// settingGroup puts flags that belong together under one heading of a file, where
// the command has the first of them.
type settingGroup struct {
	title string
	flags []string
}

// settingGroups are in the order of an example file. A flag that is in none comes
// last, under a heading of its own.
var settingGroups = []settingGroup{
	{"Which host this is, and where others reach it.", []string{"data", "any-data-path", "name", "advertise", "gossip", "peer", "allow-from", "hosts-per-address"}},
	{"Where the cluster answers, and how it is trusted.", []string{"addr", "token-file", "ca", "ca-sha256"}},
	{"The UI and the API.", []string{"http", "tls", "tls-name", "tls-cert", "tls-key"}},
	{"Only until the host has joined; left in, it changes nothing.", []string{"join", "token-file", "segment"}},
	{"Further segments, between which the host relays.", []string{"also-segment"}},
	{"Only at the bootstrap of the first server.", []string{"bootstrap", "release-key", "release-threshold", "keep-first-password"}},
	{"The trial of a new binary.", []string{"binary", "install-to", "trial-timeout", "trial-starts", "soak"}},
	{"What is served to other hosts, fetched from them, and kept.", []string{"serve-streams", "serve-rate", "pull-rate", "store-limit"}},
	{"The coordinator's waits; the same on all servers.", []string{"resend", "no-sign", "stalled", "rejoin", "reason", "stage-wait", "unreachable"}},
	{"The servers among themselves; the same on all servers.", []string{"heartbeat", "disk-stall", "certificate-lifetime"}},
	{"When the log is compacted.", []string{"snapshot-interval", "snapshot-entries", "snapshot-trailing"}},
	{"The log.", []string{"log-json", "log-journal", "log-debug"}},
}

const otherSettings = "Further settings."

// notInExamples are flags that a file had better not hold.
var notInExamples = []string{
	"token", // a secret: token_file names the file that holds it
	"json",
}

// exampleValues are shown where a flag has no default, or one of this machine.
var exampleValues = map[string]string{
	"name":         `"web-1"`,
	"advertise":    `"10.0.0.1"`,
	"allow-from":   `["10.0.0.0/16"]`,
	"token-file":   `"/etc/moult/token"`,
	"ca":           `"/etc/moult/ui-ca.pem"`,
	"ca-sha256":    `"8d2f0c1ad3c5e4e0a9c0f5a8a9a3f0f6d1a7e1d54c1c3dba5d9c7b0f2b9b6a11"`,
	"tls-name":     `["moult.example"]`,
	"tls-cert":     `"/etc/ssl/moult.pem"`,
	"tls-key":      `"/etc/ssl/moult.key"`,
	"join":         `["10.0.0.1:7947", "10.0.0.2:7947"]`,
	"segment":      `"default"`,
	"also-segment": `["dmz=10.2.0.5:7946"]`,
	"release-key":  `["/etc/moult/release.key.pub"]`,
	"binary":       `"/usr/local/bin/moult"`,
}

// configKey is one key of a role's file.
type configKey struct {
	Key      string `json:"key"`
	Group    string `json:"group"`
	Type     string `json:"type"`
	Default  string `json:"default"` // in TOML; "": none, or this machine's
	Example  string `json:"example"` // in TOML
	Help     string `json:"help"`
	Variable string `json:"variable"`
	Reload   bool   `json:"reload"` // takes effect without a restart
}

// configKeys are the keys of a role's file in the order of its example.
func configKeys(role string) (keys []configKey) {
	cmd, _ := commandOfRole(role)
	taken := slices.Clone(notInExamples)
	add := func(group string, f *pflag.Flag) {
		taken = append(taken, f.Name)
		keys = append(keys, describeKey(group, f))
	}
	for _, g := range settingGroups {
		if cmd.Flags().Lookup(g.flags[0]) == nil {
			continue
		}
		for _, name := range g.flags {
			if f := cmd.Flags().Lookup(name); f != nil {
				add(g.title, f)
			}
		}
	}
	for _, name := range flagNames(cmd) {
		if !slices.Contains(taken, name) {
			add(otherSettings, cmd.Flags().Lookup(name))
		}
	}
	return keys
}

func describeKey(group string, f *pflag.Flag) configKey {
	k := configKey{
		Key: keyOf(f.Name), Group: group, Type: typeOf(f), Help: f.Usage, Variable: variableOf(f.Name),
		Reload: slices.Contains(reloadable, f.Name), Example: exampleValues[f.Name],
	}
	if f.Name != "name" && f.DefValue != "" && f.DefValue != "[]" {
		k.Default = tomlDefault(f, f.DefValue)
	}
	if k.Example == "" {
		k.Example = tomlDefault(f, f.DefValue)
	}
	return k
}

// typeOf names a flag's type in words of the documentation.
func typeOf(f *pflag.Flag) string {
	switch t := f.Value.Type(); t {
	case "stringArray", "stringSlice":
		return "list of texts"
	case "bool":
		return "true or false"
	case "int", "uint64":
		return "number"
	case "duration":
		return "duration"
	case "bytes":
		return "bytes"
	default:
		return "text"
	}
}

// tomlValue writes a flag's value in TOML.
func tomlDefault(f *pflag.Flag, text string) string {
	switch typeOf(f) {
	case "true or false", "number":
		return text
	case "list of texts":
		if text == "" || text == "[]" {
			return "[]"
		}
		return fmt.Sprintf("[%q]", text)
	}
	return fmt.Sprintf("%q", text)
}

// exampleConfig is a role's file with all its keys. Those of set stand in it with
// these values, in TOML; the others are commented out.
func exampleConfig(role string, set map[string]string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# moult %s --config FILE\n#\n# What is commented out is the default, or an example where there is none.\n# Check it with: moult config check FILE\n", roleExampleCommand(role))
	group := ""
	for _, k := range configKeys(role) {
		if k.Group != group {
			group = k.Group
			fmt.Fprintf(&b, "\n## %s\n", group)
		}
		comment := k.Help
		if k.Reload {
			comment += " (takes effect on reload)"
		}
		b.WriteString("\n")
		for _, line := range wrapped(strings.ToUpper(comment[:1])+comment[1:]+".", 100) {
			b.WriteString("# " + line + "\n")
		}
		if v, ok := set[k.Key]; ok {
			fmt.Fprintf(&b, "%s = %s\n", k.Key, v)
		} else {
			fmt.Fprintf(&b, "# %s = %s\n", k.Key, k.Example)
		}
	}
	return b.String()
}

func roleExampleCommand(role string) string {
	if role == roleClient {
		return "hosts"
	}
	return role
}

// wrapped breaks a text into lines of at most width characters, at spaces.
func wrapped(text string, width int) (lines []string) {
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
