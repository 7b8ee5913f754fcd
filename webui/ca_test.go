package webui

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"moult/consensus/fleet"
	"moult/mesh/identity"
)

// casWorld is what a server knows of a change of the CA, with real CAs. Who has not
// followed is what a test says.
type casWorld struct {
	view    func() fleet.View
	pending []CAHost
}

func (k *casWorld) Hosts() []CAHost {
	hosts := k.pending
	for _, h := range k.view().Hosts() {
		waited := false
		for _, p := range k.pending {
			waited = waited || p.Name == h.Name
		}
		if !waited {
			hosts = append(hosts[:len(hosts):len(hosts)], CAHost{Name: h.Name, Server: h.Role == fleet.RoleServer, Done: true})
		}
	}
	return hosts
}

func (k *casWorld) Begin() (fleet.CARotationBegun, error) {
	cluster, _ := k.view().Cluster()
	old, err := identity.LoadCA(cluster.CACert, cluster.CAKey)
	if err != nil {
		return fleet.CARotationBegun{}, err
	}
	next, err := identity.NewCA(cluster.ID, cluster.CreatedAt)
	if err != nil {
		return fleet.CARotationBegun{}, err
	}
	signed, err := old.SignSuccession(cluster.ID, cluster.CANumber+1, next)
	return fleet.CARotationBegun{Number: cluster.CANumber + 1, Cert: next.CertPEM(), Key: next.KeyPEM(), Succession: signed}, err
}

func (k *casWorld) Switch() (fleet.CASwitched, error) {
	cluster, _ := k.view().Cluster()
	return fleet.CASwitched{Number: cluster.CANumber + 1}, nil
}

func (k *casWorld) Retire() (fleet.CARetired, error) {
	cluster, _ := k.view().Cluster()
	return fleet.CARetired{Number: cluster.CANumber, Retirement: []byte("signed"), GossipKey: bytes.Repeat([]byte{9}, 32)}, nil
}

// The CA is changed step by step; hosts that have not followed are named, and a
// majority of the servers is waited for even by force.
func TestTheCAIsChanged(t *testing.T) {
	w := StartWorld(t)
	cas := w.config.CAs.(*casWorld)
	w.MustEnrol("a", "1.0.0", true)
	first := w.Call(viewerToken, "GET", "/api/ca", "").OK()
	page := func() answer { return w.Call(viewerToken, "GET", "/settings/servers", "") }
	page().Lacks("Change of the CA", "moult ca rotate")
	if first["stage"] != "" || first["next"] != nil || first["number"].(float64) != 0 {
		t.Errorf("at first: %v", first)
	}
	w.Call(viewerToken, "POST", "/api/ca/rotate", `{}`).Refused(403, "forbidden")
	w.Admin("POST", "/api/ca/advance", `{"from":"prepared"}`).Refused(409, "conflict")
	w.Admin("POST", "/api/ca/advance", `{"from":"soon"}`).Refused(400, "bad_request")
	w.Admin("POST", "/api/ca/rotate", `{"reason":"`+strings.Repeat("x", fleet.MaxDetailBytes+1)+`"}`).Refused(400, "bad_request")
	out := w.Admin("POST", "/api/ca/rotate", `{"reason":"stolen"}`).OK()
	next := out["next"].(map[string]any)
	if out["stage"] != "prepared" || out["sha256"] != first["sha256"] || next["sha256"] == first["sha256"] || out["reason"] != "stolen" || !strings.Contains(next["ui_ca"].(string), "BEGIN CERTIFICATE") {
		t.Errorf("prepared: %v", out)
	}
	if text := w.Call(viewerToken, "GET", "/api/ca", "").Body.String(); strings.Contains(text, "PRIVATE") {
		t.Error("it shows a key")
	}
	w.Admin("POST", "/api/ca/rotate", `{}`).Refused(409, "rotation_running")

	cas.pending = []CAHost{{Name: "a", Why: "offline"}}
	page().Shows("Change of the CA prepared", "the old one signs", "1 of 2 hosts has followed", "Begun by API token bootstrap: stolen.", "a agent offline", "moult ca rotate --force")
	refusal := w.Admin("POST", "/api/ca/advance", `{"from":"prepared"}`)
	refusal.Refused(409, "hosts_pending")
	if !strings.Contains(refusal.Body.String(), "not followed yet: a;") {
		t.Errorf("it does not name the host: %s", refusal.Body)
	}
	w.Admin("POST", "/api/ca/advance", `{"from":"prepared","force":true}`).Refused(400, "bad_request")
	w.Admin("POST", "/api/ca/advance", `{"from":"prepared","force":true,"expect_pending":2}`).Refused(409, "hosts_changed")
	cas.pending = append(cas.pending, CAHost{Name: "server-1", Server: true, Why: "behind"})
	w.Admin("POST", "/api/ca/advance", `{"from":"prepared","force":true,"expect_pending":2}`).Refused(409, "hosts_pending")
	cas.pending = cas.pending[:1]
	advanceGossip := func() {
		for _, r := range w.state.View().GossipRings() {
			w.MustPropose("coordinator", fleet.GossipRotationAdvanced{Segment: r.Segment, Revision: r.Revision})
		}
	}
	w.Admin("POST", "/api/gossip/rotate", `{}`).OK()
	w.Admin("POST", "/api/ca/advance", `{"from":"prepared","force":true,"expect_pending":1}`).Refused(409, "rotation_running")
	advanceGossip()
	advanceGossip()
	out = w.Admin("POST", "/api/ca/advance", `{"from":"prepared","force":true,"expect_pending":1}`).OK()
	if out["stage"] != "switched" || out["sha256"] != next["sha256"] || out["old_sha256"] != first["sha256"] || out["ui_ca_sha256"] != next["ui_ca_sha256"] {
		t.Errorf("switched: %v", out)
	}
	w.Admin("POST", "/api/ca/advance", `{"from":"prepared"}`).Refused(409, "conflict") // a repeated request
	for n := range maxNamed + 2 {
		cas.pending = append(cas.pending, CAHost{Name: fmt.Sprintf("b%02d", n)})
	}
	page().Shows("And 3 others", "b18")
	page().Lacks("b19")
	cas.pending = nil
	page().Shows("Change of the CA switched", "The new CA signs", "2 of 2 hosts have followed", "Gossip keys to change before the old CA is retired: default", "Next step: moult ca rotate")
	page().Lacks("--force")
	w.Admin("POST", "/api/ca/advance", `{"from":"switched"}`).Refused(409, "conflict") // the gossip keys are the old ones
	w.Admin("POST", "/api/gossip/rotate", `{}`).OK()
	advanceGossip()
	advanceGossip()
	out = w.Admin("POST", "/api/ca/advance", `{"from":"switched"}`).OK()
	if out["stage"] != "" || out["number"].(float64) != 1 || out["old_sha256"] != "" || out["completed_at"] == nil {
		t.Errorf("retired: %v", out)
	}
	page().Lacks("Change of the CA", "moult ca rotate")
	if e := w.state.View().Audit(0, 1)[0]; e.Action != "ca_retired" || e.Actor != "token:bootstrap" {
		t.Errorf("the audit says %+v", e)
	}
}
