package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"moult/cmd/internal/nodekit"
)

// Settings that installing puts into a configuration leave the rest of it alone, and
// a second time changes nothing.
func TestInstallSetsKeysInPlace(t *testing.T) {
	set := map[string]any{"name": "web-1", "join": []string{"10.0.0.1:7947", `odd"\name`}, "log_json": true}
	for name, tt := range map[string]struct{ before, after string }{
		"empty": {"", "join = [\"10.0.0.1:7947\", \"odd\\\"\\\\name\"]\nlog_json = true\nname = \"web-1\"\n"},
		"comments show the keys": {
			"# Who.\n#name = \"db-1\"\n# name of a thing\nsoak = \"9s\" # mine\n# log_json = false\n",
			"# Who.\nname = \"web-1\"\n# name of a thing\nsoak = \"9s\" # mine\nlog_json = true\njoin = [\"10.0.0.1:7947\", \"odd\\\"\\\\name\"]\n",
		},
		"other values, no line break at the end": {
			"join = [\"10.0.0.9:7947\"]\nlog_json = false\nname = \"db-1\"",
			"join = [\"10.0.0.1:7947\", \"odd\\\"\\\\name\"]\nlog_json = true\nname = \"web-1\"",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := withSettings("f.toml", tt.before, set)
			if err != nil || got != tt.after {
				t.Fatalf("got %v\n%s\nwant\n%s", err, got, tt.after)
			}
			again, err := withSettings("f.toml", got, set)
			if err != nil || again != got {
				t.Errorf("a second time: %v\n%s", err, again)
			}
			var read map[string]any
			if err := toml.Unmarshal([]byte(got), &read); err != nil || read["name"] != "web-1" {
				t.Errorf("it reads as %v, %v", read, err)
			}
		})
	}
	for name, tt := range map[string]struct{ before, say string }{
		"several lines": {"join = [\n  \"a:1\",\n]\n", "write it by hand: join = "},
		"no TOML":       {"join = [", "mend it, or move it away"},
		"quoted key":    {"\"join\" = [\"a:1\"]\n", "set it to join = "},
	} {
		if got, err := withSettings("f.toml", tt.before, set); err == nil || !strings.Contains(err.Error(), tt.say) || !strings.Contains(err.Error(), "f.toml") {
			t.Errorf("%s: got %v\n%s", name, err, got)
		}
	}
}

// The unit of a service is one that systemd takes, whatever the places are called.
func TestSystemdUnitIsOne(t *testing.T) {
	analyze, missing := exec.LookPath("systemd-analyze")
	for _, role := range []string{roleAgent, roleServer} {
		dir := filepath.Join(t.TempDir(), "a b")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		program := filepath.Join(dir, "moult")
		if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		text, err := systemdUnit(servicePlan{role: role, binary: program, data: filepath.Join(dir, "data"), config: "/etc/moult/x.toml", user: "daemon"})
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range []string{
			"ExecStart=\"" + program + "\" " + role + " --config /etc/moult/x.toml\n", "User=daemon\n", "Type=notify\n", "Restart=always\n",
			"ExecReload=/bin/kill -HUP $MAINPID\n",
			"ReadWritePaths=-\"" + filepath.Join(dir, "data") + "\"\n", "CapabilityBoundingSet=\n", "NoNewPrivileges=yes\n", "ProtectSystem=strict\n",
		} {
			if !strings.Contains(text, line) {
				t.Errorf("%s: the unit lacks %q:\n%s", role, line, text)
			}
		}
		if missing != nil {
			continue
		}
		unit := filepath.Join(dir, unitName(role))
		if err := os.WriteFile(unit, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(analyze, "verify", "--man=no", "--recursive-errors=no", unit).CombinedOutput()
		if err != nil || strings.Contains(string(out), unitName(role)+":") {
			t.Errorf("systemd-analyze verify: %v\n%s\n%s", err, out, text)
		}
	}
	for _, path := range []string{"relative", "/with\"quote", "/with%specifier", "/with\nline"} {
		if _, err := systemdUnit(servicePlan{role: roleAgent, binary: "/usr/bin/moult", config: "/etc/moult/agent.toml", data: path}); err == nil || !strings.Contains(err.Error(), "--data") {
			t.Errorf("%q: got %v", path, err)
		}
	}
}

// A dry run leaves a host as it is, and what cannot be a service's is refused with
// what to do.
func TestInstallRefuses(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "release.key")
	if err := os.WriteFile(secret, []byte("untrusted comment: minisign encrypted secret key\nRWR…\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		args []string
		say  string
	}{
		"secret key":     {[]string{"server", "--bootstrap", "--release-key", secret}, "give the public one"},
		"first password": {[]string{"server", "--bootstrap", "--keep-first-password"}, "leave it out"},
		"no token":       {[]string{"agent", "--token", "nonsense"}, "moult token create"},
		"bad flag":       {[]string{"agent", "--peer", "nowhere"}, "HOST:PORT"},
	} {
		var out, said strings.Builder
		args := append(append([]string{"install"}, tt.args...), "--dry-run", "--no-start")
		code := run(t.Context(), args, strings.NewReader(""), &out, &said)
		if code == 0 || !strings.Contains(said.String(), tt.say) {
			t.Errorf("%s: exit code %d: %s", name, code, said.String())
		}
	}
}

// A join token that waits in the data directory is taken where none is given.
func TestJoinTokenWaitsInTheDataDirectory(t *testing.T) {
	o := nodekit.NodeOptions{Data: t.TempDir()}
	if text, err := o.JoinToken(); text != "" || err != nil {
		t.Errorf("with none: %q %v", text, err)
	}
	if err := os.WriteFile(filepath.Join(o.Data, nodekit.JoinTokenFile), []byte("MOULT1.waiting\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if text, err := o.JoinToken(); text != "MOULT1.waiting" || err != nil {
		t.Errorf("got %q %v", text, err)
	}
	o.Token = "MOULT1.given"
	if text, err := o.JoinToken(); text != "MOULT1.given" || err != nil {
		t.Errorf("beside one that was given: %q %v", text, err)
	}
}
