package webui

import (
	"bytes"
	"encoding/base64"
	"slices"
	"strings"
	"testing"
	"time"

	"moult/consensus/fleet"
)

// trustWorld is what a server knows of who follows, as a test says.
type trustWorld struct {
	clock  *clockwork
	view   func() fleet.View
	online int      // of each segment, of its hosts; -1: all
	behind []string // hosts that do not know of removals
	keys   int
}

func (k *trustWorld) Rotations() (all []Rotation) {
	v := k.view()
	for _, segment := range v.Segments() {
		r := Rotation{Pending: []RotationHost{}}
		r.Ring, _ = v.GossipRing(segment)
		r.Ring.Segment = segment
		for _, h := range v.Hosts() {
			if slices.Contains(h.Segments(), segment) {
				r.Hosts++
			}
		}
		r.Online = r.Hosts
		if k.online >= 0 {
			r.Online = k.online
		}
		if r.Ring.Stage != fleet.RotationNone {
			r.Pending = append(r.Pending, RotationHost{Name: "slow", Why: "online, and has not said that it has the keys"})
			r.Offline = []string{"off"}
		}
		all = append(all, r)
	}
	return all
}

func (k *trustWorld) NewKeys(segments []string) (keys []fleet.SegmentKey, err error) {
	for _, s := range segments {
		k.keys++
		keys = append(keys, fleet.SegmentKey{Segment: s, Key: bytes.Repeat([]byte{byte(k.keys)}, 32), Base: [][]byte{make([]byte, 32)}})
	}
	return keys, nil
}

func (k *trustWorld) Until() time.Time       { return k.clock.Now().AddDate(1, 3, 0) }
func (k *trustWorld) DeniedBehind() []string { return k.behind }

// A removal denies the host, changes the keys of its segments, and says so, and
// who does not know yet.
func TestRemovalShutsAHostOut(t *testing.T) {
	w := StartWorld(t)
	id := w.MustEnrol("a", "1.0.0", true)
	w.MustEnrol("b", "1.0.0", true)
	w.trust.behind = []string{"b"}
	out := w.Admin("DELETE", "/api/hosts/"+id, "").OK()
	if out["denied"] != true || out["until"] == nil || len(out["rotating"].([]any)) != 1 || out["hosts_behind"].([]any)[0] != "b" {
		t.Errorf("it answers %v", out)
	}
	if _, known := w.state.View().Host(id); known {
		t.Error("the host is still there")
	}
	list := w.Call(viewerToken, "GET", "/api/denied", "").OK()
	line := list["hosts"].([]any)[0].(map[string]any)
	if line["host_id"] != id || line["name"] != "a" || line["by"] != "token:bootstrap" || list["number"].(float64) == 0 {
		t.Errorf("the list is %v", list)
	}
	page := w.Call(viewerToken, "GET", "/segments", "").Body.String()
	for _, want := range []string{"Removed hosts", "Not said yet that they know have b.", "new key goes to all hosts", "removal of a"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, h := range []string{"server-1"} {
		if strings.Contains(page, "denied-"+h) {
			t.Errorf("%s is shown as removed", h)
		}
	}
}

// While a server of an older version is in the group a host is removed as before,
// and the answer says that it is not denied.
func TestRemovalBesideAnOlderServer(t *testing.T) {
	w := StartWorld(t)
	id := w.MustEnrol("a", "1.0.0", true)
	w.log.refuse = func(c fleet.Change) *fleet.Error {
		if _, is := c.(fleet.HostDenied); is {
			return &fleet.Error{Code: fleet.CodeUnknownChange, Message: "server server-2 runs an older moult"}
		}
		return nil
	}
	out := w.Admin("DELETE", "/api/hosts/"+id, "").OK()
	if out["denied"] != false || out["until"] != nil || len(out["rotating"].([]any)) != 0 {
		t.Errorf("it answers %v", out)
	}
	if _, known := w.state.View().Host(id); known {
		t.Error("the host is still there")
	}
}

func TestGossipKeysAreRotated(t *testing.T) {
	w := StartWorld(t)
	w.MustEnrol("a", "1.0.0", true)
	w.mustEnrol("b", fleet.RoleAgent, "dmz", "1.0.0", true)
	stage := func(segment string) fleet.RotationStage {
		r, _ := w.state.View().GossipRing(segment)
		return r.Stage
	}
	w.Admin("POST", "/api/gossip/rotate", `{"segments":["moon"]}`).Refused(400, "bad_request")
	w.Admin("POST", "/api/gossip/default/force", `{"expect_pending":0}`).Refused(409, "not_running")
	w.trust.online = 0
	w.Admin("POST", "/api/gossip/rotate", `{"segments":["dmz"]}`).Refused(409, "host_offline")
	w.Admin("POST", "/api/gossip/rotate", `{"segments":["dmz"],"force":true,"reason":"stolen"}`).OK()
	w.trust.online = -1
	if stage("dmz") != fleet.RotationInstalling || stage("default") != fleet.RotationNone {
		t.Errorf("dmz: %q, default: %q", stage("dmz"), stage("default"))
	}
	w.Admin("POST", "/api/gossip/rotate", `{"segments":["dmz"]}`).Refused(409, "rotation_running")
	w.Admin("POST", "/api/gossip/rotate", `{}`).OK() // the others
	if stage("default") != fleet.RotationInstalling {
		t.Errorf("default: %q", stage("default"))
	}
	w.Admin("POST", "/api/gossip/rotate", `{}`).Refused(409, "rotation_running")

	w.Admin("POST", "/api/gossip/dmz/force", `{}`).Refused(400, "bad_request")
	w.Admin("POST", "/api/gossip/dmz/force", `{"expect_pending":3}`).Refused(409, "hosts_changed")
	w.Admin("POST", "/api/gossip/dmz/force", `{"expect_pending":1}`).OK()
	if stage("dmz") != fleet.RotationUsing {
		t.Errorf("dmz: %q", stage("dmz"))
	}
	if e := w.state.View().Audit(0, 1)[0]; e.Actor != "token:bootstrap" || !strings.Contains(e.Detail, "without waiting for 1 hosts: slow") {
		t.Errorf("the audit says %+v", e)
	}
	text := w.Call(viewerToken, "GET", "/api/gossip", "").Body.String()
	r, _ := w.state.View().GossipRing("dmz")
	for _, key := range r.Keys {
		for _, form := range []string{string(key), base64.StdEncoding.EncodeToString(key)} {
			if strings.Contains(text, form) {
				t.Error("the API shows a key")
			}
		}
	}
}

// A host in quarantine is left out of updates, says why everywhere, and comes back
// when an admin says so.
func TestQuarantineIsShownAndLifted(t *testing.T) {
	w := StartWorld(t)
	id := w.MustEnrol("a", "1.0.0", true)
	w.MustEnrol("b", "1.0.0", true)
	w.MustRelease("2.0.0", 2)
	w.MustPropose("coordinator", fleet.HostQuarantined{HostID: id, Why: "two machines answer as a"})
	host := w.Call(viewerToken, "GET", "/api/hosts/"+id, "").OK()
	if q, _ := host["quarantine"].(map[string]any); q["why"] != "two machines answer as a" {
		t.Errorf("the host is %v", host)
	}
	w.Admin("POST", "/api/hosts/"+id+"/update", "").Refused(409, "host_quarantined")
	plan := w.Call(viewerToken, "GET", "/api/fleet/plan", "").Body.String()
	if !strings.Contains(plan, "in quarantine: two machines answer as a") {
		t.Errorf("the plan is %s", plan)
	}
	if page := w.Call(viewerToken, "GET", "/hosts/"+id, "").Body.String(); !strings.Contains(page, "two machines answer as a") || strings.Contains(page, "Lift the quarantine") {
		t.Error("a viewer's page of the host")
	}
	if page := w.Admin("GET", "/hosts/"+id, "").Body.String(); !strings.Contains(page, "Lift the quarantine") {
		t.Error("an admin's page of the host")
	}
	w.Admin("POST", "/api/hosts/"+id+"/lift-quarantine", "").OK()
	w.Admin("POST", "/api/hosts/"+id+"/lift-quarantine", "").Refused(409, "conflict")
	w.Admin("POST", "/api/hosts/nobody/lift-quarantine", "").Refused(404, "host_not_found")
	w.Admin("POST", "/api/hosts/"+id+"/update", "").OK()
}
