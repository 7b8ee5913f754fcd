package webui

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"moult/consensus/fleet"
)

// jsonOperations are the API's operations that read a body or a query, sorted, so
// that a corpus means the same in each run.
func jsonOperations() (ops []string) {
	for op := range roleMatrix {
		if !isPage(strings.Fields(op)[1]) && op != "GET /api/events" {
			ops = append(ops, op)
		}
	}
	slices.Sort(ops)
	return ops
}

// Whatever an admin's program sends: the answer is JSON with a code, no handler
// breaks, and what is refused changes nothing.
func FuzzAPI(f *testing.F) {
	ops := jsonOperations()
	for i, op := range ops {
		f.Add(uint8(i), "id-a", "limit=1&q=a", `{"name":"a","role":"viewer","ttl":"1h","target_version":"2.0.0"}`)
		if strings.HasPrefix(op, "POST") || strings.HasPrefix(op, "PATCH") {
			f.Add(uint8(i), "x", "", `{"name":"\u0000","role":1}`)
			f.Add(uint8(i), "..", "", `[`)
		}
	}
	// What each operation takes, of things that there are: from here a mutation gets
	// further than to the first check.
	for op, s := range map[string]struct{ id, query, body string }{
		"POST /api/hosts/{id}/update":           {"@host", "", `{"target_version":"2.0.0"}`},
		"PUT /api/hosts/{id}/labels":            {"@host", "", `{"labels":{"rack":"a","spare":""},"expect_labels":{}}`},
		"GET /api/hosts":                        {"", "status=online&updates=behind&segment=default&q=rack%3Aa&sort=-name&limit=2&offset=1", ""},
		"GET /api/audit":                        {"", "before=9&after=1&limit=5&actor=user%3Aadmin&action=webhook_created&q=a", ""},
		"GET /api/audit/export":                 {"", "format=csv&since=2026-01-01T00:00:00Z&until=2027-01-01", ""},
		"GET /api/jobs/{id}/log":                {"@job", "after=0&limit=1", ""},
		"GET /api/fleet/plan":                   {"", "target_version=2.0.0&host_ids=@host&servers=true", ""},
		"POST /api/fleet/update":                {"", "", `{"target_version":"2.0.0","host_ids":["@host","@other"],"expect_hosts":2,"servers":true}`},
		"POST /api/fleet-updates/{id}/retry":    {"@fleet", "", `{"expect_hosts":1}`},
		"POST /api/gossip/rotate":               {"", "", `{"segments":["default"],"reason":"yearly","force":true}`},
		"POST /api/gossip/{segment}/force":      {"default", "", `{"expect_pending":1}`},
		"POST /api/alerts/{id}/acknowledge":     {"@alert", "", ""},
		"POST /api/users":                       {"", "", `{"name":"bob","role":"viewer","password":"long enough"}`},
		"PATCH /api/users/{id}":                 {"u1", "", `{"role":"admin","password":"another one"}`},
		"POST /api/tokens":                      {"", "", `{"name":"ci","role":"viewer","ttl":"1h"}`},
		"POST /api/join-tokens":                 {"", "", `{"role":"agent","segment":"dmz","ttl":"1m","os":"linux","arch":"arm64"}`},
		"POST /api/webhooks":                    {"", "", `{"name":"pager-2","format":"json","url":"https://hooks.example/x","bearer_token":"t","signing_secret":"sixteen-or-more-of-it","enabled":true,"kinds":["host_silent"]}`},
		"PUT /api/webhooks/{id}":                {"@webhook", "", `{"name":"other","enabled":false,"kinds":["forged_records"],"url":"https://h:1/"}`},
		"DELETE /api/hosts/{id}":                {"@host", "", ""},
		"DELETE /api/releases/{version}":        {"2.0.0", "", ""},
		"POST /api/servers/{id}/demote":         {"@server", "", ""},
		"POST /api/account/password":            {"", "", `{"current_password":"x","new_password":"another one"}`},
		"POST /api/servers/transfer-leadership": {"", "", `{"to":"@server"}`},
		"POST /api/hosts/{id}/lift-quarantine":  {"@other", "", ""},
		"POST /api/release-keys":                {"", "", `{"statement":"e30=","signature":"eA=="}`},
		"POST /api/fleet-updates/{id}/pause":    {"@fleet", "", ""},
	} {
		if i := slices.Index(ops, op); i >= 0 {
			f.Add(uint8(i), s.id, s.query, s.body)
		} else {
			f.Fatalf("there is no %s", op)
		}
	}
	f.Add(uint8(0), "%2e%2e", "since=yesterday&before=-1&limit=1e9&sort=;", `{"statement":"{}","signature":""}`)
	f.Fuzz(func(t *testing.T, which uint8, id, query, body string) {
		method, pattern, _ := strings.Cut(ops[int(which)%len(ops)], " ")
		w := StartWorld(t)
		w.config.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
		named := w.furnish()
		id, query, body = named.Replace(id), named.Replace(query), named.Replace(body)
		path := pattern
		for _, name := range []string{"{id}", "{version}", "{segment}"} {
			path = strings.ReplaceAll(path, name, url.PathEscape(id))
		}
		u, err := url.ParseRequestURI(path)
		if err != nil {
			return
		}
		u.RawQuery = query
		before := w.decided()
		r := httptest.NewRequest(method, "/", strings.NewReader(body))
		r.URL = u
		r.Header.Set("Authorization", "Bearer "+adminToken)
		got := w.Do(r)
		if got.Code >= 500 && got.Code != 503 {
			t.Fatalf("%s %s: %d %s", method, u, got.Code, got.Body)
		}
		if got.Code < 400 {
			return
		}
		var out errorJSON
		if err := json.Unmarshal(got.Body.Bytes(), &out); method != "HEAD" && (err != nil || out.Error.Code == "" || out.Error.Message == "") {
			t.Fatalf("%s %s: %d %s", method, u, got.Code, got.Body)
		}
		if w.decided() != before {
			t.Fatalf("%s %s was refused (%d %s) and changed the state", method, u, got.Code, got.Body)
		}
	})
}

// furnish has the world hold something of each kind. What it returns puts their ids
// in the place of their names.
func (w *world) furnish() *strings.Replacer {
	w.tb.Helper()
	server := w.mustEnrol("server-2", fleet.RoleServer, "default", "1.0.0", true)
	w.servers.list = append(w.servers.list, ServerStatus{ID: server})
	host, other := w.MustEnrol("a", "1.0.0", true), w.MustEnrol("b", "1.0.0", true)
	w.MustRelease("2.0.0", 2)
	hook := w.MustWebhook()
	for _, c := range []fleet.Change{
		fleet.JobCreated{JobID: "job", HostID: host, TargetVersion: "2.0.0"},
		fleet.JobDispatched{JobID: "job", HostID: host, FromVersion: "1.0.0", Boot: 1},
		fleet.JobLogAppended{JobID: "job", First: 1, Lines: []fleet.LogLine{{At: w.clock.Now(), Stream: "agent", Line: "x"}}},
		fleet.JobFinished{JobID: "job", Status: fleet.JobFailed, Error: "x"},
		fleet.HostQuarantined{HostID: other, Why: "two machines"},
		fleet.FleetUpdateStarted{ID: "fleet", TargetVersion: "2.0.0", HostIDs: []string{host}},
	} {
		w.MustPropose("coordinator", c)
	}
	return strings.NewReplacer("@host", host, "@other", other, "@server", server, "@webhook", hook, "@job", "job", "@fleet", "fleet", "@alert", w.state.View().Alerts()[0].ID)
}

// decided is the state but for how far the log is and which proposals it has
// seen: those change with an entry that the state refuses, too.
func (w *world) decided() string {
	w.tb.Helper()
	var snapshot bytes.Buffer
	if err := w.state.Snapshot(&snapshot); err != nil {
		w.tb.Fatal(err)
	}
	var kept strings.Builder
	for line := range strings.Lines(snapshot.String()) {
		var row struct {
			Table string         `json:"t"`
			Row   map[string]any `json:"r"`
		}
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			w.tb.Fatal(err)
		}
		switch row.Table {
		case "", "proposals": // the header and the trailer, or seen
			continue
		case "meta":
			fmt.Fprintln(&kept, row.Row["cluster"])
			continue
		}
		kept.WriteString(line)
	}
	return kept.String()
}
