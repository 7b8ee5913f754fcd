//go:build unix

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestOldDataDirectories opens with the present version what earlier ones left
// on disk: an update must never cost a server or an agent its data.
func TestOldDataDirectories(t *testing.T) {
	versions, err := os.ReadDir("testdata/datadirs")
	if err != nil {
		t.Fatal(err)
	}
	opened := 0
	for _, v := range versions {
		if !v.IsDir() {
			continue
		}
		dir := filepath.Join("testdata/datadirs", v.Name())
		for _, kind := range []string{"server-log", "server-snapshot"} {
			t.Run(v.Name()+"/"+kind, func(t *testing.T) { openOldServer(t, dir, kind) })
		}
		t.Run(v.Name()+"/agent", func(t *testing.T) { openOldAgent(t, dir) })
		opened++
	}
	if opened == 0 {
		t.Fatal("no data directories found")
	}
}

// observedFields depend on who is there, not on what was decided.
var observedFields = []string{
	"agent_version", "online", "last_seen", "phase", "update_available", "target_version", "progress", "available", "status",
}

func openOldServer(t *testing.T, dir, kind string) {
	data := unpack(t, filepath.Join(dir, kind+".tar.gz"), kind)
	ui := freeAddress(t)
	startMoult(t, "server", "--data", data, "--name", "s1", "--http", ui, "--peer", freeAddress(t), "--gossip", freeAddress(t))
	token, err := os.ReadFile(filepath.Join(data, adminTokenFile))
	if err != nil {
		t.Fatal(err)
	}
	c := &testCluster{t: t, client: &client{addrs: []string{"http://" + ui}, token: strings.TrimSpace(string(token)), http: &http.Client{Timeout: 10 * time.Second}}}
	c.await(30*time.Second, "the server to be ready", func() error { return c.try(http.MethodGet, "/readyz", nil, nil) })
	expected, err := filepath.Glob(filepath.Join(dir, kind, "*.json"))
	if err != nil || len(expected) == 0 {
		t.Fatalf("nothing to compare with: %v", err)
	}
	for _, path := range expected {
		resource := strings.TrimSuffix(filepath.Base(path), ".json")
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var want, got any
		if err := json.Unmarshal(text, &want); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		c.get("/api/"+resource, &got)
		ignored := observedFields
		if resource != "hosts" && resource != "releases" {
			ignored = nil
		}
		for _, diff := range missing(want, got, resource, ignored) {
			t.Error(diff)
		}
	}

	// What was decided goes on: a change on top of the old ones.
	var made struct{ ID string }
	if err := c.try(http.MethodPost, "/api/tokens", map[string]string{"name": "later", "role": "viewer"}, &made); err != nil || made.ID == "" {
		t.Errorf("a change on the old state: %v", err)
	}
}

func openOldAgent(t *testing.T, dir string) {
	data := unpack(t, filepath.Join(dir, "agent.tar.gz"), "agent")
	startMoult(t, "agent", "--data", data, "--name", "a1", "--peer", freeAddress(t), "--gossip", freeAddress(t))
	c := &testCluster{t: t}
	var d diagnosis
	c.await(30*time.Second, "the agent to answer", func() error {
		out, err := exec.Command(binary(t, versionA), "doctor", "--json", "--data", data).Output()
		var failed *exec.ExitError // no server is there: something has failed
		if err != nil && !errors.As(err, &failed) {
			return err
		}
		d = diagnosis{}
		if err := json.Unmarshal(out, &d); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		if v := d.verdict("process"); v != findingOK {
			return fmt.Errorf("the process is %q: %s", v, out)
		}
		return nil
	})
	for _, check := range []string{"certificate", "update"} {
		if v := d.verdict(check); v != findingOK {
			t.Errorf("%s is %q: %+v", check, v, d.Findings)
		}
	}
	var trust struct {
		Body struct {
			HighestNumber uint64 `json:"highest_number"`
		} `json:"body"`
	}
	text, err := os.ReadFile(filepath.Join(data, "trust.json"))
	if err != nil || json.Unmarshal(text, &trust) != nil || trust.Body.HighestNumber < 2 {
		t.Errorf("the highest release number is not kept: %s %v", text, err)
	}
}

// verdict returns the worst verdict on a check, "" when it was not looked at.
func (d diagnosis) verdict(check string) (worst string) {
	order := []string{"", findingOK, findingWarning, findingFailed}
	for _, f := range d.Findings {
		if f.Check == check && slices.Index(order, f.Verdict) > slices.Index(order, worst) {
			worst = f.Verdict
		}
	}
	return worst
}

// missing lists what of want is not in got. Objects may have got more fields;
// lists are newest first, and may have got more in front.
func missing(want, got any, path string, ignored []string) (diffs []string) {
	switch want := want.(type) {
	case map[string]any:
		have, ok := got.(map[string]any)
		if !ok {
			return []string{fmt.Sprintf("%s: %v is no object", path, got)}
		}
		for _, field := range slices.Sorted(maps.Keys(want)) {
			if !slices.Contains(ignored, field) {
				diffs = append(diffs, missing(want[field], have[field], path+"."+field, ignored)...)
			}
		}
	case []any:
		have, _ := got.([]any)
		if len(have) < len(want) {
			return []string{fmt.Sprintf("%s: %d elements, want %d", path, len(have), len(want))}
		}
		have = have[len(have)-len(want):]
		for i := range want {
			diffs = append(diffs, missing(want[i], have[i], fmt.Sprintf("%s[%d]", path, i), ignored)...)
		}
	default:
		if want != got {
			return []string{fmt.Sprintf("%s: %v, want %v", path, got, want)}
		}
	}
	return diffs
}

// unpack unpacks an archive with one folder in it and returns the folder.
func unpack(t *testing.T, archive, folder string) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("tar", "-xzf", archive, "-C", dir).CombinedOutput(); err != nil {
		t.Fatalf("unpack %s: %v: %s", archive, err, out)
	}
	return filepath.Join(dir, folder)
}

// startMoult runs a node until the test ends.
func startMoult(t *testing.T, args ...string) {
	t.Helper()
	var mu sync.Mutex
	log := &lockedBuffer{mu: &mu, b: &bytes.Buffer{}}
	cmd := exec.Command(binary(t, versionA), args...)
	cmd.Stdout, cmd.Stderr = io.Writer(log), log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		timer := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("moult %s:\n%s", strings.Join(args, " "), log)
		}
	})
}
