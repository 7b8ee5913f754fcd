package webui

import (
	"fmt"
	"strings"
	"testing"

	"moult/consensus/fleet"
)

// Before its turn each host's row tells how far it is with the release, and the first
// one's what the first turn waits for; by API and on the page.
func TestFleetUpdateTellsOfStaging(t *testing.T) {
	w := StartWorld(t)
	ids := map[string]string{}
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		ids[name] = w.MustEnrol(name, "1.0.0", true)
	}
	w.MustRelease("2.0.0", 2)
	rel, _ := w.state.View().Release("2.0.0")
	digest := rel.Artifacts[0].SHA256
	stage := func(name string, s Staging, holds ...string) {
		w.roster.set(ids[name], Observation{Online: true, Version: "1.0.0", Phase: "idle", LastSeen: w.clock.Now(), Staging: s, Holds: holds, KeptBytes: 1_500_000})
	}
	stage("a", Staging{Digest: digest, State: "fetching", Done: 2_000_000, Total: 8_000_000})
	stage("b", Staging{Digest: digest, State: "awaits_patch", Total: 8_000_000})
	stage("c", Staging{Digest: digest, State: "failed", Total: 8_000_000, Error: "the disk is full"})
	stage("d", Staging{Digest: digest, State: "staged", Done: 8_000_000, Total: 8_000_000}, digest[:16])
	stage("e", Staging{Digest: "0123", State: "fetching", Done: 1, Total: 8_000_000}) // another release
	id := w.Admin("POST", "/api/fleet/update", "").OK()["fleet_update_id"].(string)

	u := w.Admin("GET", "/api/fleet-updates/"+id, "").OK()
	want := map[string]string{
		"a": "false map[done:2e+06 reason: state:fetching total:8e+06]", "b": "false map[done:0 reason: state:awaits_patch total:8e+06]",
		"c": "false map[done:0 reason:the disk is full state:failed total:8e+06]", "d": "true <nil>", "e": "false <nil>",
	}
	for _, turn := range u["hosts"].([]any) {
		row := turn.(map[string]any)
		if got := fmt.Sprint(row["staged"], " ", row["staging"]); got != want[row["name"].(string)] {
			t.Errorf("%s: %s", row["name"], got)
		}
	}
	if got := u["waiting_for"]; got != "a is to have the release first: 2.0 MB of 8.0 MB staged" {
		t.Errorf("it waits for %q", got)
	}
	w.Admin("GET", fleetPath, "").Shows("1 of 5 hosts still to come has the release staged", "2.0 MB of 8.0 MB staged",
		"awaits a patch that is being made", "not staged: the disk is full", "Waiting: a is to have the release first")
	if got := w.Admin("GET", "/api/hosts/"+ids["a"], "").OK()["kept_bytes"]; got != 1.5e6 {
		t.Errorf("it keeps %v bytes", got)
	}
	w.Admin("GET", "/hosts/"+ids["a"], "").Shows("Keeps of releases 1.5 MB")
	w.Admin("GET", "/metrics", "").Shows("moult_hosts_kept_bytes 7.5e+06", "moult_fleet_update_hosts_staged 1")

	stage("a", Staging{Digest: digest, State: "failed", Total: 8_000_000, Error: "no"})
	waits := func(what, want string) {
		t.Helper()
		if got := w.Admin("GET", "/api/fleet-updates/"+id, "").OK()["waiting_for"]; got != want {
			t.Errorf("%s: it waits for %q", what, got)
		}
	}
	waits("the first cannot", "")
	stage("a", Staging{Digest: digest, State: "awaits_patch"})
	waits("the first awaits a patch", "a is to have the release first: awaits a patch that is being made")
	w.MustPropose("coordinator", fleet.JobDispatched{JobID: "j1", HostID: ids["a"], FleetUpdateID: id, FromVersion: "1.0.0", Boot: 1})
	w.MustPropose("coordinator", fleet.JobFinished{JobID: "j1", Status: fleet.JobSucceeded})
	waits("later turns", "")
}

// A release that all hosts stage tells how far they are, before any fleet update; by
// API, on its page, on that of fleet updates, and on the host's.
func TestReleaseTellsOfStaging(t *testing.T) {
	w := StartWorld(t)
	ids := map[string]string{}
	for _, name := range []string{"a", "b", "c", "d", "gone", "new", "twin"} {
		ids[name] = w.MustEnrol(name, "1.0.0", true)
	}
	w.MustPropose("coordinator", fleet.HostQuarantined{HostID: ids["twin"], Why: "two machines answer as it"})
	w.MustRelease("1.5.0", 1)
	w.MustRelease("2.0.0", 2)
	rel, _ := w.state.View().Release("2.0.0")
	digest, size := rel.Artifacts[0].SHA256, rel.Artifacts[0].Size
	show := func(name string, o Observation) {
		o.Phase, o.LastSeen = "idle", w.clock.Now()
		w.roster.set(ids[name], o)
	}
	show("a", Observation{Online: true, Version: "1.0.0", Staging: Staging{Digest: digest, State: "fetching", Done: 2, Total: 4}})
	show("b", Observation{Online: true, Version: "1.0.0", Staging: Staging{Digest: digest, State: "failed", Total: 4, Error: "<b>the disk is full"}})
	show("c", Observation{Online: true, Version: "1.0.0", Holds: []string{digest[:16]}})
	show("d", Observation{Online: true, Version: "1.0.0", Staging: Staging{Digest: "0123", State: "fetching", Done: 1, Total: 4}})
	show("gone", Observation{Version: "1.0.0"})
	show("new", Observation{Online: true, Version: "2.0.0", Digest: digest[:16]})
	staging := func() any {
		t.Helper()
		return w.Call(viewerToken, "GET", "/api/releases", "").OK()["releases"].([]any)[0].(map[string]any)["staging"]
	}
	if got := staging(); got != nil {
		t.Errorf("nobody stages it: %v", got)
	}
	w.Admin("GET", "/releases", "").Shows("Stage Withdraw")
	w.Admin("POST", "/api/releases/2.0.0/stage", "").OK()
	want := fmt.Sprintf("map[done:%v failed:1 hosts:4 reasons:[map[host_id:%s name:b reason:<b>the disk is full]] staged:1 total:%v]", size/2+size, ids["b"], 4*size)
	if got := fmt.Sprint(staging()); got != want {
		t.Errorf("%s, not %s", got, want)
	}
	w.Admin("GET", "/releases", "").Shows("Staging of 2.0.0 33 Staged on 1 of 4 hosts, 1 cannot have it now.", "b : &lt;b&gt;the disk is full", "Stage again Withdraw")
	w.Admin("GET", fleetPath, "").Shows("The release is staged on 1 of 4 hosts", "1 cannot have it now", "2 B of 4 B staged", "not staged: &lt;b&gt;the disk is full")
	for name, want := range map[string]string{"a": "false map[done:2 reason: state:fetching total:4]", "c": "true <nil>", "d": "false <nil>", "new": "false <nil>"} {
		h := w.Call(viewerToken, "GET", "/api/hosts/"+ids[name], "").OK()
		if got := fmt.Sprint(h["staged"], " ", h["staging"]); got != want {
			t.Errorf("%s: %s", name, got)
		}
	}
	w.Admin("GET", "/hosts/"+ids["a"], "").Shows("Staged 2.0.0: 2 B of 4 B staged")
	w.Admin("GET", "/hosts/"+ids["c"], "").Shows("Staged 2.0.0: it is there and verified")

	for _, name := range []string{"a", "b", "d"} {
		show(name, Observation{Online: true, Version: "1.0.0", Holds: []string{digest[:16]}})
	}
	page := w.Admin("GET", "/releases", "")
	page.Shows("Staged on 4 of 4 hosts.")
	if strings.Contains(page.Body.String(), "/stage\"") {
		t.Error("who has staged all is asked to stage it")
	}
	w.MustRelease("3.0.0", 3)
	w.Admin("POST", "/api/releases/3.0.0/stage", "").OK() // takes its place
	second := w.Call(viewerToken, "GET", "/api/releases", "").OK()["releases"].([]any)[1].(map[string]any)
	if second["version"] != "2.0.0" || second["staging"] != nil {
		t.Errorf("a release whose place another one took: %v", second)
	}
	if got := w.Admin("GET", "/releases", "").Body.String(); strings.Contains(got, "/api/releases/1.5.0/stage") {
		t.Error("an old release has the button, too")
	}
}

// Of many hosts that cannot have a release it tells why of some; and a release that the
// hosts of a fleet update stage is that one's to tell of.
func TestReleaseTellsOfStagingWithinLimits(t *testing.T) {
	w := StartWorld(t)
	w.MustRelease("2.0.0", 2)
	rel, _ := w.state.View().Release("2.0.0")
	for i := range maxStagingReasons + 5 {
		id := w.MustEnrol(fmt.Sprintf("web-%d", i), "1.0.0", true)
		w.roster.set(id, Observation{Online: true, Version: "1.0.0", Phase: "idle", Staging: Staging{Digest: rel.Artifacts[0].SHA256, State: "failed", Error: "no"}})
	}
	id := w.Admin("POST", "/api/fleet/update", "").OK()["fleet_update_id"].(string)
	w.MustPropose("coordinator", fleet.ReleaseStaged{Version: "2.0.0", FleetUpdateID: id})
	staging := func() map[string]any {
		t.Helper()
		got, _ := w.Admin("GET", "/api/releases", "").OK()["releases"].([]any)[0].(map[string]any)["staging"].(map[string]any)
		return got
	}
	if got := staging(); got != nil {
		t.Errorf("the hosts of a fleet update stage it: %v", got)
	}
	w.Admin("POST", "/api/releases/2.0.0/stage", "").OK()
	if got := staging(); got["failed"] != float64(maxStagingReasons+5) || len(got["reasons"].([]any)) != maxStagingReasons {
		t.Errorf("%v", got)
	}
}
