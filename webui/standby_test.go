package webui

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"moult/consensus/fleet"
)

func standby(t *testing.T, w *world, id string) bool {
	t.Helper()
	h, ok := w.state.View().Host(id)
	if !ok {
		t.Fatalf("%s is not known", id)
	}
	return h.Standby
}

// A demotion is written down before it is carried out, and taken back when it is
// refused: else the leader would promote the server again, or never.
func TestDemoteAndPromote(t *testing.T) {
	w := StartWorld(t)
	s2 := w.mustEnrol("server-2", fleet.RoleServer, "default", ownVersion, true)
	w.servers.list = append(w.servers.list, ServerStatus{ID: s2, Name: "server-2", Voter: true, Healthy: true})

	w.servers.fail = &fleet.Error{Code: fleet.CodeConflict, Message: "only 1 of the 2 remaining voters would answer"}
	if m := w.Admin("POST", "/api/servers/"+s2+"/demote", "").Refused(http.StatusConflict, "conflict"); !strings.Contains(m, "remaining voters") {
		t.Errorf("the refusal says %s", m)
	}
	if standby(t, w, s2) {
		t.Error("a refused demotion left it on standby")
	}
	w.servers.fail = nil
	w.Admin("POST", "/api/servers/"+s2+"/demote", "").OK()
	if !standby(t, w, s2) || !slices.Equal(w.servers.demoted, []string{s2}) {
		t.Errorf("standby %t, demoted %v", standby(t, w, s2), w.servers.demoted)
	}
	if e := w.state.View().Audit(0, 1)[0]; e.Action != "server_standby_changed" || e.Subject != "host server-2" || e.Actor != "token:bootstrap" {
		t.Errorf("audit %+v", e)
	}
	w.servers.list[1].Voter, w.servers.list[1].Standby = false, true
	page := w.Call(adminToken, "GET", "/settings/servers", "")
	page.Shows("on standby, without a vote")
	page.Shows("Promote")
	w.Admin("POST", "/api/servers/"+s2+"/promote", "").OK()
	if standby(t, w, s2) {
		t.Error("it is on standby after its promotion")
	}
	for _, operation := range []string{"demote", "promote"} {
		w.Admin("POST", "/api/servers/nobody/"+operation, "").Refused(http.StatusNotFound, "server_not_found")
	}
}

// followsNoMore is the log as seen by a server that was just removed: changes are
// applied, and it does not hear of it.
type followsNoMore struct{ *memoryLog }

func (l followsNoMore) Propose(ctx context.Context, actor string, c fleet.Change) (fleet.Result, error) {
	result, err := l.memoryLog.Propose(ctx, actor, c)
	if err == nil {
		err = context.DeadlineExceeded
	}
	return result, err
}

func TestServerRemovesItself(t *testing.T) {
	w := StartWorld(t)
	w.config.Proposer = followsNoMore{w.log}
	var err error
	if w.handler, err = New(w.config); err != nil {
		t.Fatal(err)
	}
	w.log.fail = errors.New("no leader")
	w.Admin("POST", "/api/servers/s1/remove", "").Refused(http.StatusServiceUnavailable, "unavailable")
	w.log.fail = nil
	w.Admin("POST", "/api/servers/s1/remove", "").OK()
	if _, ok := w.state.View().Host("s1"); ok || !slices.Equal(w.servers.removed, []string{"s1", "s1"}) { // a repetition finishes it
		t.Errorf("removed %v, still a host: %t", w.servers.removed, ok)
	}
}
