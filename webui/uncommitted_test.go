package webui

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"moult/consensus/fleet"
)

// errNotCommitted is what the Raft group says when it cannot.
var errNotCommitted = errors.New("no leader took the request; a majority of the servers must be up (see: moult status)")

// TestWritesTellThatNothingIsCommitted makes each change while no server can
// commit it, and while the leader is too new for this server.
func TestWritesTellThatNothingIsCommitted(t *testing.T) {
	w := StartWorld(t)
	s2 := w.mustEnrol("server-2", fleet.RoleServer, "default", "1.0.0", true)
	w.servers.list = append(w.servers.list, ServerStatus{ID: s2, Name: "server-2", Voter: true})
	a, b := w.MustEnrol("a", "1.0.0", true), w.MustEnrol("b", "1.0.0", true)
	w.MustRelease("2.0.0", 2)
	w.MustPropose("user:admin", fleet.UserCreated{User: fleet.User{ID: "u2", Name: "ann", Role: fleet.Viewer, PasswordHash: "x"}})
	job := w.Admin("POST", "/api/hosts/"+b+"/update", "").OK()["job_id"].(string)
	w.MustPropose("coordinator", fleet.JobFinished{JobID: job, Status: fleet.JobFailed, Error: "x"})
	alert := w.state.View().OpenAlerts()[0].ID
	update := w.Admin("POST", "/api/fleet/update", "").OK()["fleet_update_id"].(string)
	w.Admin("POST", "/api/fleet-updates/"+update+"/cancel", "").OK()
	const hook = `{"name":"pager","format":"json","url":"https://hooks.example/x"}`
	webhook := w.Admin("POST", "/api/webhooks", hook).OK()["id"].(string)
	session := w.MustSession(t, "u1")
	w.mustEnrol("c", fleet.RoleAgent, "dmz", "1.0.0", true)
	w.Admin("POST", "/api/ca/rotate", `{}`).OK()
	w.Admin("POST", "/api/gossip/rotate", `{"segments":["default"]}`).OK()
	w.MustPropose("coordinator", fleet.HostQuarantined{HostID: b, Why: "two machines"})
	manifest, signature, artifact := w.store.makeRelease(t, "3.0.0", 3)

	writes := map[string]string{ // op and path to body
		"POST /api/gossip/rotate": `{"segments":["dmz"]}`, "POST /api/gossip/default/force": `{"expect_pending":1}`, "POST /api/hosts/" + b + "/lift-quarantine": "",
		"DELETE /api/hosts/" + a: "", "PUT /api/hosts/" + a + "/labels": `{"labels":{"a":"b"}}`, "POST /api/hosts/" + a + "/update": "",
		"POST /api/fleet/update": "", "POST /api/fleet-updates/" + update + "/retry": "", "POST /api/fleet-updates/" + update + "/pause": "",
		"POST /api/fleet-updates/" + update + "/resume": "", "POST /api/fleet-updates/" + update + "/cancel": "",
		"POST /api/ca/rotate": `{}`, "POST /api/ca/advance": `{"from":"prepared"}`,
		"DELETE /api/releases/2.0.0": "", "POST /api/releases/2.0.0/stage": "", "POST /api/releases": "", "POST /api/alerts/" + alert + "/acknowledge": "",
		"POST /api/users": `{"name":"bob","role":"viewer","password":"long enough"}`, "PATCH /api/users/u2": `{"role":"admin"}`, "DELETE /api/users/u2": "",
		"POST /api/tokens": `{"name":"ci","role":"viewer"}`, "DELETE /api/tokens/t3": "", "POST /api/join-tokens": "",
		"POST /api/account/confirm": `{"password":"` + adminPassword + `"}`, "POST /api/account/end-sessions": "", "POST /api/account/password": `{"current_password":"` + adminPassword + `","new_password":"another one"}`,
		"POST /api/servers/" + s2 + "/remove": "", "POST /api/servers/" + s2 + "/demote": "", "POST /api/servers/" + s2 + "/promote": "",
		"GET /api/backup?recipient=age1good": "", "POST /api/webhooks": strings.Replace(hook, "pager", "other", 1),
		"PUT /api/webhooks/" + webhook: `{"name":"other"}`, "DELETE /api/webhooks/" + webhook: "", "POST /api/webhooks/" + webhook + "/test": "",
	}
	index := w.state.View().Index()
	for code, fail := range map[string]error{
		codeUnavailable: errNotCommitted, fleet.CodeUnknownChange: refuse(fleet.CodeUnknownChange, "update all servers first"), codeNoMajority: refuse(codeNoMajority, "1 of 3"),
	} {
		w.log.fail = fail
		for write, body := range writes {
			if code == codeNoMajority && write != "POST /api/releases" {
				continue
			}
			method, path, _ := strings.Cut(write, " ")
			r := httptest.NewRequest(method, path, strings.NewReader(body))
			if path == "/api/releases" {
				setParts(r, part{"manifest", manifest}, part{"signature", signature}, part{"artifact", artifact})
			}
			if strings.HasPrefix(path, "/api/account/") {
				r.AddCookie(session)
			} else {
				r.Header.Set("Authorization", "Bearer "+adminToken)
			}
			if a := w.Do(r); a.Header().Get("Retry-After") == "" {
				t.Errorf("%s: %s without Retry-After", write, a.Refused(http.StatusServiceUnavailable, code))
			} else {
				a.Refused(http.StatusServiceUnavailable, code)
			}
		}
	}
	w.servers.fail = errNotCommitted
	w.Admin("POST", "/api/servers/transfer-leadership", "").Refused(http.StatusServiceUnavailable, codeUnavailable)
	w.servers.fail = refuse(fleet.CodeConflict, "there is no other voter")
	w.Admin("POST", "/api/servers/transfer-leadership", "").Refused(http.StatusConflict, "conflict")
	if w.state.View().Index() != index {
		t.Error("something was committed all the same")
	}
}

// TestWhatIsFullRefusesMore fills the tables that people fill. Ten thousand join
// tokens take too long: for them the state's refusal is played, whose own tests
// are in package fleet.
func TestWhatIsFullRefusesMore(t *testing.T) {
	w := StartWorld(t)
	for i := range 1000 {
		if i < fleet.MaxUsers-1 { // one is there
			w.MustPropose("system", fleet.UserCreated{User: fleet.User{ID: fmt.Sprint("n", i), Name: fmt.Sprint("n", i), Role: fleet.Viewer, PasswordHash: "x"}})
		}
		if i < fleet.MaxAPITokens-3 {
			w.MustPropose("system", fleet.APITokenCreated{Token: fleet.APIToken{ID: fmt.Sprint("k", i), Name: fmt.Sprint("k", i), Role: fleet.Viewer, Hash: hashSecret(fmt.Sprint(i))}})
		}
		if i < fleet.MaxReleases {
			w.MustRelease(fmt.Sprint("1.", i), uint64(i+1))
		}
	}
	for path, body := range map[string]string{"/api/users": `{"name":"bob","role":"viewer","password":"long enough"}`, "/api/tokens": `{"name":"ci","role":"viewer"}`} {
		if msg := w.Admin("POST", path, body).Refused(http.StatusConflict, "limit_reached"); !strings.Contains(msg, "1000") {
			t.Errorf("%s: how many? %s", path, msg)
		}
	}
	for i := range fleet.MaxWebhooks {
		w.Admin("POST", "/api/webhooks", fmt.Sprintf(`{"name":"hook-%d","format":"json","url":"https://hooks.example/x"}`, i)).OK()
	}
	w.Admin("POST", "/api/webhooks", `{"name":"more","format":"json","url":"https://hooks.example/x"}`).Refused(http.StatusConflict, "limit_reached")
	w.log.fail = refuse(fleet.CodeLimitReached, "10000 join tokens are good still")
	w.Admin("POST", "/api/join-tokens", "").Refused(http.StatusConflict, "limit_reached")
	w.log.fail = nil
	manifest, signature, artifact := w.store.makeRelease(t, "3.0.0", 30_000)
	w.Upload(part{"manifest", manifest}, part{"signature", signature}, part{"artifact", artifact}).Refused(http.StatusConflict, "limit_reached")
}

func TestRefusalsOfChanges(t *testing.T) {
	w := StartWorld(t)
	for _, name := range []string{"a", "b"} {
		w.Admin("POST", "/api/webhooks", `{"name":"`+name+`","format":"json","url":"https://hooks.example/x"}`).OK()
	}
	w.Admin("PUT", "/api/webhooks/"+w.state.View().Webhooks()[0].ID, `{"name":"b"}`).Refused(http.StatusConflict, "webhook_exists")
	w.MustEnrol("a", "1.0.0", true)
	w.MustRelease("2.0.0", 2)
	w.Admin("POST", "/api/fleet/update", "").OK()
	w.Admin("DELETE", "/api/releases/2.0.0", "").Refused(http.StatusConflict, "conflict")
	w.Admin("PATCH", "/api/users/u1", `{"role":"viewer"}`).Refused(http.StatusConflict, "last_admin")
}

// blocked is a binary whose bytes do not come before the test lets them.
type blocked struct {
	*store
	reached chan struct{}
	open    chan struct{}
}

func (b blocked) Open(os, arch string) (Binary, error) {
	binary, err := b.store.Open(os, arch)
	b.reached <- struct{}{}
	<-b.open
	return binary, err
}

func TestDownloadsAndStreamsBeyondTheLimitAreBusy(t *testing.T) {
	w := StartWorld(t)
	b := blocked{w.store, make(chan struct{}), make(chan struct{})}
	w.config.Binaries = b
	var err error
	if w.handler, err = New(w.config); err != nil {
		t.Fatal(err)
	}
	var downloads sync.WaitGroup
	for range maxDownloads {
		downloads.Go(func() {
			if a := w.Call("", "GET", "/agent/binary?os=linux&arch=amd64", ""); a.Code != http.StatusOK {
				t.Errorf("%d %s", a.Code, a.Body)
			}
		})
		<-b.reached
	}
	w.Call("", "GET", "/agent/binary?os=linux&arch=amd64", "").Refused(http.StatusServiceUnavailable, codeBusy)
	close(b.open)
	downloads.Wait()

	srv := httptest.NewServer(w.handler)
	conns := w.subscribers(t, srv.Listener.Addr().String(), maxStreams)
	w.Call(viewerToken, "GET", "/api/events", "").Refused(http.StatusServiceUnavailable, codeBusy)
	for _, c := range conns {
		c.Close()
	}
	srv.Close()
}

func TestBinaryAnswersAsHTTPDoes(t *testing.T) {
	w := StartWorld(t)
	ask := func(header, value string) answer {
		r := httptest.NewRequest("GET", "/agent/binary?os=linux&arch=amd64", nil)
		r.Header.Set(header, value)
		return w.Do(r)
	}
	tag := ask("Accept", "*/*").Header().Get("ETag")
	if a := ask("If-None-Match", tag); a.Code != http.StatusNotModified || a.Body.Len() != 0 {
		t.Errorf("%d %s", a.Code, a.Body)
	}
	if a := ask("Range", "bytes=1-3"); a.Code != http.StatusPartialContent || a.Body.String() != string(ownBinary[1:4]) {
		t.Errorf("%d %s", a.Code, a.Body)
	}
	if a := ask("Range", "bytes=100000-"); a.Code != http.StatusRequestedRangeNotSatisfiable {
		t.Errorf("%d %s", a.Code, a.Body)
	}
}
