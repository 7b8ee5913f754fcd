package webui

import (
	"encoding/csv"
	"encoding/json"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"moult/consensus/fleet"
)

// unauditedKinds are the kinds of changes that never leave an entry.
var unauditedKinds = actionsOf(fleet.JobLogAppended{}, fleet.AlertNotifying{}, fleet.WebhookRefreshed{})

// A kind of change that is new is one that people can filter by.
func TestEveryKindOfChangeIsOfferedByTheAudit(t *testing.T) {
	for _, kind := range fleet.Kinds() {
		if offered := slices.Contains(auditActions, kind); offered == slices.Contains(unauditedKinds, kind) {
			t.Errorf("%s: offered %v; enter it in auditActions, or here", kind, offered)
		}
	}
	for _, action := range auditActions {
		if !slices.Contains(fleet.Kinds(), action) {
			t.Errorf("%s is offered, and there is no such change", action)
		}
	}
}

// callFrom is Call from an address, by way of a proxy that says another one.
func (w *world) callFrom(address, method, path, body string) answer {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+adminToken)
	r.Header.Set("X-Forwarded-For", "203.0.113.9")
	r.RemoteAddr = address
	return w.Do(r)
}

func TestAuditTellsFiltersAndExportsWhereChangesCameFrom(t *testing.T) {
	w := StartWorld(t)
	w.callFrom("192.0.2.7:4711", "POST", "/api/users", `{"name":"vera","role":"viewer","password":"long enough"}`).OK()
	w.callFrom("[2001:db8:0:1::7]:4711", "POST", "/api/tokens", `{"name":"ci","role":"viewer"}`).OK()
	w.MustEnrol("web-1", "1.0.0", true)                                       // by the host, and its token by the system
	w.MustPropose("user:old", fleet.UserChanged{UserID: "u1", Role: "admin"}) // before addresses were recorded
	w.MustPropose("system", fleet.LoginsTried{Tries: slices.Repeat([]fleet.LoginTry{{ID: "x", Name: "admin", Network: "2001:db8:0:2::/64"}}, 10)})

	of := func(query string) string {
		t.Helper()
		return strings.Join(column(w.Admin("GET", "/api/audit?"+query, "").OK()["entries"], "action"), " ")
	}
	for query, want := range map[string]string{
		"from=192.0.2.7":                            "user_created",
		"from=192.0.2.0/24":                         "user_created",
		"from=0.0.0.0/0":                            "user_created",
		"from=DB8":                                  "logins_tried api_token_created",
		"from=2001:db8::/48":                        "logins_tried api_token_created",
		"from=2001:db8:0:1::/64":                    "api_token_created",
		"from=2001:db8:0:2::/96":                    "", // a part of a network is not the whole
		"from=203.0.113.9":                          "",
		"from=host":                                 "host_enrolled",
		"from=system&action=join_token_created":     "join_token_created",
		"from=192.0.2.7&action=user_changed":        "",
		"action=user_changed&actor=old":             "user_changed",
		"from=192.0.2.7&actor=token&q=vera&limit=1": "user_created",
	} {
		if got := of(query); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	msg := w.Admin("GET", "/api/audit?from=10.0.0.0/33", "").Refused(400, "bad_request")
	if !strings.HasPrefix(msg, "from: ") || !strings.Contains(msg, "10.0.0.0/8") {
		t.Error(msg)
	}
	w.Admin("GET", "/audit", "").Shows("user created user vera viewer 192.0.2.7", "api token created API token ci viewer 2001:db8:0:1::7",
		"host enrolled host web-1", "user changed user admin role admin not recorded")
	page := w.Admin("GET", "/audit?from=192.0.2.0/24", "")
	page.Shows("user vera")
	if !strings.Contains(page.Body.String(), "/api/audit/export?format=csv&amp;from=192.0.2.0%2F24") {
		t.Error("the export leaves the filter out")
	}

	rows, err := csv.NewReader(w.Admin("GET", "/api/audit/export?format=csv&from=192.0.2.7", "").Body).ReadAll()
	if err != nil || len(rows) != 2 || rows[0][6] != "from" || rows[1][6] != "192.0.2.7" {
		t.Errorf("%v %v", rows, err)
	}
	var out struct {
		Entries []struct{ Actor, From string }
	}
	if err := json.Unmarshal(w.Admin("GET", "/api/audit/export", "").Body.Bytes(), &out); err != nil {
		t.Fatal(err)
	}
	for _, e := range out.Entries {
		if (e.From == "") != (e.Actor == "user:old") {
			t.Errorf("%+v", e)
		}
	}
}

func TestSigningInTellsFromWhere(t *testing.T) {
	w := StartWorld(t)
	w.signInFrom("192.0.2.7:1", "admin", adminPassword)
	if e := w.state.View().Audit(0, 1)[0]; e.Action != "session_created" || e.From != "192.0.2.7" {
		t.Errorf("%+v", e)
	}
}
