package webui

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"moult/consensus/fleet"
)

func mustDocument(t *testing.T) map[string]any {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal(openAPI, &doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

// at follows keys down; nil when one is missing.
func at(v any, keys ...string) any {
	for _, k := range keys {
		m, _ := v.(map[string]any)
		v = m[k]
	}
	return v
}

// forBrowsers tells the operations that the document leaves out.
func forBrowsers(op string) bool {
	_, path, _ := strings.Cut(op, " ")
	return isPage(path)
}

func TestOpenAPIDescribesEachRouteAndItsRole(t *testing.T) {
	doc, found := mustDocument(t), walk(t, StartWorld(t).handler)
	described := map[string]bool{}
	for path, operations := range at(doc, "paths").(map[string]any) {
		for method, op := range operations.(map[string]any) {
			name := strings.ToUpper(method) + " " + path
			described[name] = true
			if !found[name] {
				t.Errorf("%s is described but not served", name)
			}
			role, _ := at(op, "x-role").(string)
			if role != string(roleMatrix[name]) || (at(op, "security") != nil) != (role == "") {
				t.Errorf("%s: described for %q, served for %q", name, role, roleMatrix[name])
			}
			for _, parameter := range strings.Split(path, "{")[1:] {
				want, _, _ := strings.Cut(parameter, "}")
				if params, _ := json.Marshal(at(op, "parameters")); !strings.Contains(string(params), `"name":"`+want+`"`) {
					t.Errorf("%s: parameter %s is not described", name, want)
				}
			}
		}
	}
	for name := range found {
		if !described[name] && !forBrowsers(name) {
			t.Errorf("%s is served but not described", name)
		}
	}
}

// TestAnswersAreAsDescribed calls every JSON operation of a world in which each
// list has something in it, and holds bodies and answers to their schemas.
func TestAnswersAreAsDescribed(t *testing.T) {
	key, secret := mustKey(t)
	doc, w := mustDocument(t), StartWorldWith(t, key)
	s2 := w.mustEnrol("server-2", fleet.RoleServer, "default", "1.0.0", true)
	w.servers.list = append(w.servers.list, ServerStatus{ID: s2})
	a, b := w.MustEnrol("a", "1.0.0", true), w.MustEnrol("b", "1.0.0", true)
	w.roster.set(a, Observation{Online: true, Version: "1.0.0", Phase: "fetching", Done: 1, Total: 2, LastSeen: w.clock.Now()})
	w.MustRelease("2.0.0", 2)
	manifest, signature, artifact := w.store.makeRelease(t, "3.0.0", 3)
	upload := httptest.NewRequest("POST", "/api/releases", nil)
	setParts(upload, part{"manifest", manifest}, part{"signature", signature}, part{"artifact", artifact})

	steps := []struct {
		op   string // method and path as described
		path string // as called; "": the same
		body string
		save func(map[string]any)
	}{
		{op: "GET /api/version"},
		{op: "GET /healthz"},
		{op: "GET /readyz"},
		{op: "GET /api/hosts"},
		{op: "GET /api/hosts/{id}", path: "/api/hosts/" + a},
		{op: "PUT /api/hosts/{id}/labels", path: "/api/hosts/" + a + "/labels", body: `{"labels":{"rack":"a","spare":""},"expect_labels":{}}`},
		{op: "POST /api/hosts/{id}/update", path: "/api/hosts/" + a + "/update", body: `{"target_version":"2.0.0"}`, save: func(m map[string]any) {
			job := m["job_id"].(string)
			w.agents["job"] = job
			w.MustPropose("coordinator", fleet.JobDispatched{JobID: job, HostID: a, FromVersion: "1.0.0", Boot: 1})
			w.MustPropose("host:a", fleet.JobLogAppended{JobID: job, First: 1, Lines: []fleet.LogLine{{At: w.clock.Now(), Stream: "agent", Line: "x"}}})
			w.MustPropose("coordinator", fleet.JobFinished{JobID: job, Status: fleet.JobFailed, Error: "x", Sources: []fleet.Source{{HostID: b, Name: "b", Role: "agent", Bytes: 3}}})
			w.agents["alert"] = w.state.View().Alerts()[0].ID
			w.MustPropose("coordinator", fleet.HostQuarantined{HostID: b, Why: "two machines"})
		}},
		{op: "POST /api/hosts/{id}/lift-quarantine", path: "/api/hosts/" + b + "/lift-quarantine"},
		{op: "GET /api/jobs/{id}", path: "/api/jobs/<job>"},
		{op: "GET /api/jobs/{id}/log", path: "/api/jobs/<job>/log"},
		{op: "POST /api/fleet/update", body: `{"target_version":"2.0.0","host_ids":["` + a + `","` + b + `"],"expect_hosts":2}`, save: func(m map[string]any) {
			w.agents["fleet"] = m["fleet_update_id"].(string)
		}},
		{op: "GET /api/segments"},
		{op: "POST /api/ca/rotate", body: `{"reason":"yearly"}`},
		{op: "POST /api/ca/advance", body: `{"from":"prepared","force":true,"expect_pending":0}`},
		{op: "GET /api/ca"},
		{op: "POST /api/gossip/rotate", body: `{"segments":["default"],"reason":"yearly","force":true}`},
		{op: "POST /api/gossip/{segment}/force", path: "/api/gossip/default/force", body: `{"expect_pending":1}`},
		{op: "GET /api/gossip"},
		{op: "GET /api/denied"},
		{op: "GET /api/fleet/plan", path: "/api/fleet/plan?target_version=2.0.0"},
		{op: "GET /api/fleet-updates"},
		{op: "GET /api/fleet-updates/{id}", path: "/api/fleet-updates/<fleet>"},
		{op: "POST /api/fleet-updates/{id}/pause", path: "/api/fleet-updates/<fleet>/pause"},
		{op: "POST /api/fleet-updates/{id}/resume", path: "/api/fleet-updates/<fleet>/resume"},
		{op: "POST /api/fleet-updates/{id}/cancel", path: "/api/fleet-updates/<fleet>/cancel"},
		{op: "POST /api/fleet-updates/{id}/retry", path: "/api/fleet-updates/<fleet>/retry"},
		{op: "GET /api/releases"},
		{op: "POST /api/releases"},
		{op: "POST /api/releases/{version}/stage", path: "/api/releases/2.0.0/stage"},
		{op: "DELETE /api/releases/{version}", path: "/api/releases/3.0.0"},
		{op: "POST /api/release-keys", body: w.keyStatement(secret, 1, key)},
		{op: "GET /api/release-keys"},
		{op: "GET /api/alerts"},
		{op: "POST /api/alerts/{id}/acknowledge", path: "/api/alerts/<alert>/acknowledge"},
		{op: "GET /api/audit"},
		{op: "GET /api/audit/export", path: "/api/audit/export?format=json"},
		{op: "POST /api/users", body: `{"name":"bob","role":"viewer","password":"long enough"}`, save: func(m map[string]any) { w.agents["user"] = m["id"].(string) }},
		{op: "GET /api/users"},
		{op: "PATCH /api/users/{id}", path: "/api/users/<user>", body: `{"role":"admin"}`},
		{op: "DELETE /api/users/{id}", path: "/api/users/<user>"},
		{op: "POST /api/tokens", body: `{"name":"ci","role":"viewer","ttl":"1h"}`, save: func(m map[string]any) { w.agents["token"] = m["id"].(string) }},
		{op: "GET /api/tokens"},
		{op: "DELETE /api/tokens/{id}", path: "/api/tokens/<token>"},
		{op: "POST /api/join-tokens", body: `{"role":"agent","segment":"dmz","ttl":"1m","arch":"arm64"}`},
		{op: "POST /api/webhooks", body: `{"name":"pager","format":"json","url":"https://hooks.example/x","bearer_token":"t","signing_secret":"sixteen-or-more-of-it","enabled":true,"kinds":["update_failed"]}`, save: func(m map[string]any) {
			id := m["id"].(string)
			w.agents["webhook"] = id
			w.MustPropose("notifier", fleet.WebhookRefreshed{WebhookID: id, Revision: w.state.View().Webhooks()[0].Delivery.Revision, Status: 500, Error: "the receiver answered 500"})
		}},
		{op: "GET /api/webhooks"},
		{op: "PUT /api/webhooks/{id}", path: "/api/webhooks/<webhook>", body: `{"name":"other"}`},
		{op: "POST /api/webhooks/{id}/test", path: "/api/webhooks/<webhook>/test"},
		{op: "DELETE /api/webhooks/{id}", path: "/api/webhooks/<webhook>"},
		{op: "POST /api/account/confirm", body: `{"password":"` + adminPassword + `"}`},
		{op: "POST /api/account/end-sessions"},
		{op: "POST /api/account/password", body: `{"current_password":"` + adminPassword + `","new_password":"another one"}`},
		{op: "GET /api/servers"},
		{op: "GET /api/servers/state"},
		{op: "POST /api/servers/{id}/demote", path: "/api/servers/" + s2 + "/demote"},
		{op: "POST /api/servers/{id}/promote", path: "/api/servers/" + s2 + "/promote"},
		{op: "POST /api/servers/{id}/remove", path: "/api/servers/" + s2 + "/remove"},
		{op: "POST /api/servers/transfer-leadership"},
		{op: "DELETE /api/hosts/{id}", path: "/api/hosts/" + b},
	}
	called := map[string]bool{}
	for _, s := range steps {
		method, path, _ := strings.Cut(s.op, " ")
		called[s.op] = true
		op := at(doc, "paths", path, strings.ToLower(method))
		if s.path != "" {
			path = s.path
		}
		for name, id := range w.agents {
			path = strings.ReplaceAll(path, "<"+name+">", id)
		}
		r := httptest.NewRequest(method, path, strings.NewReader(s.body))
		if s.op == "POST /api/releases" {
			r = upload
		}
		if strings.HasPrefix(path, "/api/account/") {
			r.AddCookie(w.MustSession(t, "u1"))
		} else {
			r.Header.Set("Authorization", "Bearer "+adminToken)
		}
		got := answer{w.Do(r).ResponseRecorder, t}.OK()
		if problems := conforms(doc, at(op, "responses", "200", "content", "application/json", "schema"), got, s.op); problems != "" {
			t.Error(problems)
		}
		if s.body != "" {
			var body any
			if err := json.Unmarshal([]byte(s.body), &body); err != nil {
				t.Fatal(err)
			}
			if problems := conforms(doc, at(op, "requestBody", "content", "application/json", "schema"), body, s.op+" body"); problems != "" {
				t.Error(problems)
			}
		}
		if s.save != nil {
			s.save(got)
		}
	}
	for name := range walk(t, w.handler) {
		notJSON := []string{"GET /api/openapi.json", "GET /metrics", "GET /agent/binary", "GET /api/events", "GET /api/backup"}
		if !called[name] && !forBrowsers(name) && !slices.Contains(notJSON, name) {
			t.Errorf("%s was not called", name)
		}
	}
	var refusal any
	if err := json.Unmarshal(w.Call("", "GET", "/api/hosts", "").Body.Bytes(), &refusal); err != nil {
		t.Fatal(err)
	}
	if problems := conforms(doc, at(doc, "components", "schemas", "Error"), refusal, "error"); problems != "" {
		t.Error(problems)
	}
}

// conforms tells what of a value is not as its schema says; it knows the part of
// JSON Schema that the document uses.
func conforms(doc, schema, v any, where string) string {
	s, _ := schema.(map[string]any)
	if s == nil {
		return where + ": there is no schema"
	}
	if name, ok := s["$ref"].(string); ok {
		return conforms(doc, at(doc, strings.Split(strings.TrimPrefix(name, "#/"), "/")...), v, where)
	}
	if choices, ok := s["oneOf"].([]any); ok {
		var all string
		for _, c := range choices {
			p := conforms(doc, c, v, where)
			if p == "" {
				return ""
			}
			all += p + "; "
		}
		return all
	}
	var types []string
	switch t := s["type"].(type) {
	case string:
		types = []string{t}
	case []any:
		for _, e := range t {
			types = append(types, e.(string))
		}
	}
	if !slices.Contains(types, kindOf(v)) {
		return fmt.Sprintf("%s is %s, not %v", where, kindOf(v), types)
	}
	if allowed, ok := s["enum"].([]any); ok && !slices.Contains(allowed, v) {
		return fmt.Sprintf("%s is %v, not one of %v", where, v, allowed)
	}
	switch v := v.(type) {
	case string:
		if s["format"] == "date-time" {
			if _, err := time.Parse(time.RFC3339, v); err != nil {
				return where + ": " + err.Error()
			}
		}
	case []any:
		for i, e := range v {
			if p := conforms(doc, s["items"], e, fmt.Sprintf("%s[%d]", where, i)); p != "" {
				return p
			}
		}
	case map[string]any:
		properties, _ := s["properties"].(map[string]any)
		required, _ := s["required"].([]any)
		for _, name := range required {
			if _, present := v[name.(string)]; !present {
				return fmt.Sprintf("%s lacks %s", where, name)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(v)) {
			schema, known := properties[name]
			if !known {
				if s["additionalProperties"] == false {
					return fmt.Sprintf("%s: %s is not described", where, name)
				}
				schema = s["additionalProperties"]
			}
			if p := conforms(doc, schema, v[name], where+"."+name); p != "" {
				return p
			}
		}
	}
	return ""
}

func kindOf(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case bool:
		return "boolean"
	case string:
		return "string"
	case float64:
		if v == float64(int64(v)) {
			return "integer"
		}
		return "number"
	case []any:
		return "array"
	default:
		return "object"
	}
}

func TestConformsFindsWhatIsWrong(t *testing.T) {
	doc := mustDocument(t)
	good := map[string]any{"version": "1", "commit": "a"}
	for name, v := range map[string]any{
		"missing": map[string]any{"version": "1"}, "unknown": map[string]any{"version": "1", "commit": "a", "x": 1.0},
		"type": map[string]any{"version": 1.0, "commit": "a"}, "kind": []any{},
	} {
		if conforms(doc, at(doc, "components", "schemas", "Version"), v, name) == "" {
			t.Errorf("%s passes", name)
		}
	}
	if p := conforms(doc, at(doc, "components", "schemas", "Version"), good, "good"); p != "" {
		t.Error(p)
	}
}
