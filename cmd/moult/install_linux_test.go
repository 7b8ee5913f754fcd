package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"moult/cmd/internal/nodekit"
	"moult/mesh/identity"
)

// What is removed with all that is in it is the data of the role that is
// uninstalled, and nothing else.
func TestUninstallTakesNobodyElsesData(t *testing.T) {
	server, other, empty := t.TempDir(), t.TempDir(), t.TempDir()
	if err := (nodekit.RunningNode{Role: identity.RoleServer}).Write(server); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{
		filepath.Join(other, "lock"):          "years of work",
		filepath.Join(empty, "broken.toml"):   "data = \"" + other,
		filepath.Join(empty, "settings.toml"): "data = \"" + server + "\"",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, tt := range map[string]struct {
		plan servicePlan
		say  string // "": it is let through
	}{
		"its own":       {servicePlan{role: roleServer, data: server}, ""},
		"the server's":  {servicePlan{role: roleAgent, data: server}, "this host's server"},
		"not moult's":   {servicePlan{role: roleAgent, data: other}, "does not look like moult's"},
		"nothing there": {servicePlan{role: roleAgent, data: filepath.Join(empty, "none")}, ""},
	} {
		tt.plan.purge, tt.plan.config = true, filepath.Join(empty, "none.toml")
		_, err := removalSteps(tt.plan)
		if tt.say == "" && err != nil || tt.say != "" && (err == nil || !strings.Contains(err.Error(), tt.say)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if data, err := configuredData(filepath.Join(empty, "none.toml"), "/usual"); data != "/usual" || err != nil {
		t.Errorf("without a configuration: %q %v", data, err)
	}
	if data, err := configuredData(filepath.Join(empty, "settings.toml"), "/usual"); data != server || err != nil {
		t.Errorf("as configured: %q %v", data, err)
	}
	if _, err := configuredData(filepath.Join(empty, "broken.toml"), "/usual"); err == nil || !strings.Contains(err.Error(), "broken.toml:1") {
		t.Errorf("with a configuration that cannot be read: %v", err)
	}
}

// What writes in a data directory runs as its owner: the service could not open what
// others leave.
func TestRecoveryRunsAsTheOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it takes root to make a directory another user's")
	}
	data := t.TempDir()
	if err := os.Chown(data, 12345, 12345); err != nil {
		t.Fatal(err)
	}
	if _, err := inspectForRecovery(data); err == nil || !strings.Contains(err.Error(), "belongs to user 12345") {
		t.Errorf("recover: %v", err)
	}
	if entries, err := os.ReadDir(data); err != nil || len(entries) > 0 {
		t.Errorf("it left %v, %v", entries, err)
	}
}

// An account that was there before is not removed with the service.
func TestUninstallRemovesItsOwnAccountAlone(t *testing.T) {
	for account, want := range map[string]bool{serviceUser: true, "deploy": false, "root": false} {
		p := servicePlan{role: roleAgent, purge: true, data: filepath.Join(t.TempDir(), "none"), config: filepath.Join(t.TempDir(), "agent.toml"), user: account, binary: usualBinary}
		steps, err := removalSteps(p)
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, s := range steps {
			found = found || s.what == "remove account "+account
		}
		if found != want {
			t.Errorf("%s: removed is %v", account, found)
		}
	}
}

// Installing again keeps the account and the place of the program that were chosen.
func TestInstallReadsItsOwnUnit(t *testing.T) {
	for _, tt := range []servicePlan{
		{role: roleAgent, binary: "/srv/with space/moult", data: nodekit.DefaultDataDir, config: "/etc/moult/agent.toml", user: "deploy"},
		{role: roleServer, binary: "/opt/moult", data: "/srv/moult", config: "/etc/moult/server.toml", user: "root"},
	} {
		text, err := systemdUnit(tt)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "unit")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if binary, account, ok := readUnit(path); binary != tt.binary || account != tt.user || !ok {
			t.Errorf("read %q %q %v", binary, account, ok)
		}
	}
}
