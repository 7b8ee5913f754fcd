package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// runClient runs a client command against an API that answers by path.
func runClient(t *testing.T, answers map[string]string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, ok := answers[r.Method+" "+r.URL.RequestURI()]
		if !ok {
			t.Errorf("asked %s %s", r.Method, r.URL.RequestURI())
		}
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(srv.Close)
	var out, errs bytes.Buffer
	cmd := newRootCommand()
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	cmd.SetArgs(append(args, "--addr", srv.URL))
	err = cmd.ExecuteContext(t.Context())
	return out.String(), errs.String(), err
}

func mustSay(t testing.TB, what, text string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(text, want) {
			t.Errorf("%s lacks %q:\n%s", what, want, text)
		}
	}
}

func TestDryRunTellsWhomNoPathReaches(t *testing.T) {
	answers := map[string]string{"GET /api/fleet/plan?target_version=2.0.0": `{"target_version":"2.0.0","hosts":[{"host_id":"1","name":"web-1"},{"host_id":"2","name":"relay-1"}],
		"left_out":[{"host_id":"3","name":"dmz-1","why":"unreachable: no relay of segment dmz is online (relay-2)"}],"up_to_date":0,
		"warnings":["relay-1 is the only relay on the way to segment plant"]}`}
	stdout, stderr, err := runClient(t, answers, "fleet", "update", "--dry-run", "--to", "2.0.0")
	if err != nil {
		t.Fatal(err)
	}
	mustSay(t, "stdout", stdout, "1  web-1", "2  relay-1")
	mustSay(t, "stderr", stderr, "left out: dmz-1: unreachable: no relay of segment dmz is online (relay-2)", "warning: relay-1 is the only relay", "2 hosts would go to 2.0.0")
	stdout, _, err = runClient(t, answers, "fleet", "update", "--dry-run", "--to", "2.0.0", "--json")
	if err != nil {
		t.Fatal(err)
	}
	mustSay(t, "JSON", stdout, `"why": "unreachable`, `"warnings": [`)
}

const segmentedHosts = `{"hosts":[
	{"id":"1","name":"dmz-1","segment":"dmz","online":true,"status":"online","seen_via":"relay-1","last_seen":null},
	{"id":"2","name":"plant-1","segment":"plant","online":false,"status":"unreachable","last_seen":null},
	{"id":"3","name":"old-1","segment":"default","online":false,"last_seen":null}]}`

func TestHostsAndStatusTellUnreachableFromOffline(t *testing.T) {
	stdout, _, err := runClient(t, map[string]string{"GET /api/hosts?status=unreachable": segmentedHosts}, "hosts", "--status", "unreachable")
	if err != nil {
		t.Fatal(err)
	}
	mustSay(t, "hosts", strings.Join(strings.Fields(stdout), " "), "dmz-1 online", "through relay-1", "plant-1 unreachable", "old-1 offline")
	stdout, _, err = runClient(t, map[string]string{
		"GET /api/hosts": segmentedHosts, "GET /api/servers": `{"servers":[{"name":"s1","leader":true,"healthy":true}]}`,
		"GET /api/alerts": `{"alerts":[]}`, "GET /api/fleet-updates": `{"fleet_updates":[]}`, "GET /api/ca": `{"stage":""}`,
	}, "status")
	if err == nil {
		t.Error("a cluster with unreachable hosts is healthy")
	}
	mustSay(t, "status", stdout, "1 of 3 online, 0 behind, 1 unreachable", "host plant-1 is unreachable", "no relay of segment plant is online", "host old-1 is offline")
}

func TestServerTakesOnlyPoliciesThatExist(t *testing.T) {
	cmd := newRootCommand()
	cmd.SetArgs([]string{"server", "--data", t.TempDir(), "--name", "s1", "--bootstrap", "--unreachable", "halt"})
	cmd.SetOut(&bytes.Buffer{})
	cmd.SetErr(&bytes.Buffer{})
	if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), `--unreachable is "halt"; give offline or wait`) {
		t.Errorf("got %v", err)
	}
}
