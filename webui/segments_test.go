package webui

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"moult/consensus/fleet"
)

// startPlant is a server, two relays between it and the segment dmz, where two
// agents are, and one relay on to the segment plant, where one is.
func startPlant(t *testing.T) *world {
	t.Helper()
	w := StartWorld(t)
	w.MustEnrol("web-1", "1.0.0", true)
	for name, segments := range map[string][]string{
		"relay-1": {"default", "dmz"}, "relay-2": {"default", "dmz"}, "relay-3": {"dmz", "plant"},
		"dmz-1": {"dmz"}, "dmz-2": {"dmz"}, "plant-1": {"plant"},
	} {
		w.mustEnrol(name, fleet.RoleAgent, segments[0], "1.0.0", true)
		w.seeIn(name, true, segments...)
	}
	return w
}

func (w *world) seeIn(name string, online bool, segments ...string) {
	w.roster.set("id-"+name, Observation{Online: online, Version: "1.0.0", Phase: "idle", LastSeen: w.clock.Now(), Segments: segments})
}

// cutDMZ takes both relays of dmz away.
func (w *world) cutDMZ() {
	for _, name := range []string{"relay-1", "relay-2"} {
		w.seeIn(name, false, "default", "dmz")
	}
	for name, segments := range map[string][]string{"dmz-1": {"dmz"}, "dmz-2": {"dmz"}, "relay-3": {"dmz", "plant"}, "plant-1": {"plant"}} {
		w.roster.set("id-"+name, Observation{Unreachable: true, Version: "1.0.0", LastSeen: w.clock.Now(), Segments: segments})
	}
}

func segmentOf(t *testing.T, answer map[string]any, name string) map[string]any {
	t.Helper()
	for _, s := range answer["segments"].([]any) {
		if at(s, "name") == name {
			return s.(map[string]any)
		}
	}
	t.Fatalf("no segment %s in %v", name, answer)
	return nil
}

func TestSegmentsTellWhoReachesWhom(t *testing.T) {
	w := startPlant(t)
	all := w.Call(viewerToken, "GET", "/api/segments", "").OK()
	if names := strings.Join(column(all["segments"], "name"), " "); names != "default dmz plant" {
		t.Errorf("segments %s", names)
	}
	for name, want := range map[string]string{
		"default": "true 0 [server-1] [] 3",
		"dmz":     "true 1 [] [] 3",
		"plant":   "true 2 [] [relay-3] 1",
	} {
		s := segmentOf(t, all, name)
		if got := fmt.Sprint(s["reached"], s["distance"], s["servers"], s["only_way"], at(s, "hosts", "online")); strings.ReplaceAll(got, " ", "") != strings.ReplaceAll(want, " ", "") {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	w.Admin("GET", "/segments", "").Shows("dmz through 1 relay relay-1 → default relay-2 → default relay-3 → plant 3 3 0 0 0",
		"plant through 2 relays only by relay-3", "No fleet update has run yet")

	w.cutDMZ()
	all = w.Call(viewerToken, "GET", "/api/segments", "").OK()
	s := segmentOf(t, all, "plant")
	if s["reached"] != false || at(s, "hosts", "unreachable") != 1.0 || at(s, "hosts", "offline") != 0.0 {
		t.Errorf("plant, cut off: %v", s)
	}
	if s := segmentOf(t, all, "default"); at(s, "hosts", "offline") != 2.0 {
		t.Errorf("the relays are not offline: %v", s)
	}
	w.Admin("GET", "/segments", "").Shows("dmz not reached relay-1 offline → default relay-2 offline → default")
}

func TestSegmentsTellWhoServedWhom(t *testing.T) {
	w := startPlant(t)
	w.MustRelease("2.0.0", 2)
	w.MustPropose("user:ann", fleet.FleetUpdateStarted{ID: "fu", TargetVersion: "2.0.0", HostIDs: []string{"id-dmz-1", "id-dmz-2"}})
	w.MustPropose("coordinator", fleet.JobDispatched{JobID: "j1", HostID: "id-dmz-1", FleetUpdateID: "fu", FromVersion: "1.0.0", Boot: 1})
	w.MustPropose("coordinator", fleet.JobFinished{JobID: "j1", Status: fleet.JobSucceeded, Sources: []fleet.Source{{HostID: "id-relay-1", Name: "?", Role: "?", Bytes: 900}, {HostID: "gone", Name: "old", Role: "agent", Bytes: 5}}})
	w.MustPropose("coordinator", fleet.JobDispatched{JobID: "j2", HostID: "id-dmz-2", FleetUpdateID: "fu", FromVersion: "1.0.0", Boot: 1})
	// What the running host reports shows before its job ends, and only for that job.
	o := Observation{Online: true, Version: "1.0.0", Phase: "fetching", JobID: "j2", Sources: []fleet.Source{{HostID: "id-relay-1", Bytes: 100}}, Segments: []string{"dmz"}}
	w.roster.set("id-dmz-2", o)
	served := func() string {
		var out []string
		for _, s := range segmentOf(t, w.Admin("GET", "/api/segments", "").OK(), "dmz")["served"].([]any) {
			out = append(out, fmt.Sprint(at(s, "name"), "/", at(s, "segment"), "/", at(s, "hosts"), "/", at(s, "bytes")))
		}
		return strings.Join(out, " ")
	}
	if got := served(); got != "relay-1/default/2/1000 old//1/5" {
		t.Errorf("served: %s", got)
	}
	o.JobID = "j0"
	w.roster.set("id-dmz-2", o)
	if got := served(); got != "relay-1/default/1/900 old//1/5" {
		t.Errorf("served, with another job's report: %s", got)
	}
	w.Admin("GET", "/segments", "").Shows("In the fleet update to 2.0.0 , which is running", "dmz relay-1 agent default across segments 1 900 B", "dmz old agent removed 1 5 B")
}

func TestUnreachableIsToldApart(t *testing.T) {
	w := startPlant(t)
	w.roster.set("id-plant-1", Observation{Online: true, Version: "1.0.0", LastSeen: w.clock.Now().Add(-7 * time.Second), SeenVia: "id-relay-3", Segments: []string{"plant"}})
	if h := w.Admin("GET", "/api/hosts/id-plant-1", "").OK(); h["seen_via"] != "relay-3" || h["status"] != "online" {
		t.Errorf("%v", h)
	}
	w.Admin("GET", "/hosts/id-plant-1", "").Shows("through relay-3, 7 s ago")
	w.Admin("GET", "/?q=plant", "").Shows("7 s ago through relay-3")

	w.mustEnrol("dmz-new", fleet.RoleAgent, "dmz", "", false) // never seen: offline, while somebody looks into dmz
	w.roster.set("id-web-1", Observation{Left: true, Version: "1.0.0"})
	status := func(query string) string {
		return strings.Join(column(w.Admin("GET", "/api/hosts"+query, "").OK()["hosts"], "name"), " ")
	}
	if got := status("?status=offline"); got != "dmz-new web-1" {
		t.Errorf("offline: %s", got)
	}
	w.cutDMZ()
	for query, want := range map[string]string{
		"?status=unreachable": "dmz-1 dmz-2 dmz-new plant-1 relay-3",
		"?status=offline":     "relay-1 relay-2 web-1",
		"?status=left":        "web-1",
		"?status=online":      "",
	} {
		if got := status(query); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	w.Admin("GET", "/api/hosts?status=away", "").Refused(400, "bad_request")
	if h := w.Admin("GET", "/api/hosts/id-dmz-1", "").OK(); h["status"] != "unreachable" || h["online"] != false {
		t.Errorf("%v", h)
	}
	w.Admin("GET", "/", "").Shows("0 online 3 offline 5 unreachable")
	w.Admin("GET", "/hosts/id-dmz-1", "").Shows("unreachable: no relay of segment dmz is online (relay-1, relay-2, relay-3)")
	if body := w.Admin("GET", "/metrics", "").Body.String(); !strings.Contains(body, `moult_hosts{state="unreachable"} 5`) {
		t.Error("the metrics do not tell of unreachable hosts")
	}
	w.MustRelease("2.0.0", 2)
	why := w.Admin("POST", "/api/hosts/id-dmz-1/update", "").Refused(409, "host_offline")
	if !strings.Contains(why, "no relay of segment dmz is online (relay-1, relay-2, relay-3)") {
		t.Errorf("refused: %s", why)
	}
}

func TestPreflightTellsWhomNoPathReaches(t *testing.T) {
	w := startPlant(t)
	w.Admin("GET", "/api/fleet/plan", "").Refused(404, "release_not_found")
	w.MustRelease("2.0.0", 2)
	only := "relay-3 is the only relay on the way to segment plant: while it restarts nobody sees or reaches 1 host there"
	plan := w.Call(viewerToken, "GET", "/api/fleet/plan", "").OK()
	if fmt.Sprint(plan["warnings"]) != "["+only+"]" || len(plan["left_out"].([]any)) != 0 {
		t.Errorf("%v", plan)
	}
	w.Admin("GET", fleetPath, "").Shows(only)
	// The API starts what the plan shows, in its order.
	id := w.Admin("POST", "/api/fleet/update", `{"expect_hosts":7}`).OK()["fleet_update_id"].(string)
	f, _ := w.state.View().FleetUpdate(id)
	var order []string
	for _, turn := range f.Hosts.All() {
		order = append(order, turn.Name)
	}
	if planned := column(plan["hosts"], "name"); !slices.Equal(order, planned) || strings.Join(order, " ") != "dmz-1 relay-1 dmz-2 relay-2 plant-1 relay-3 web-1" {
		t.Errorf("order %v, planned %v", order, planned)
	}
	w.Admin("POST", "/api/fleet-updates/"+id+"/cancel", "").OK()

	w.cutDMZ()
	plan = w.Admin("GET", "/api/fleet/plan?target_version=2.0.0", "").OK()
	if names := column(plan["hosts"], "name"); !slices.Equal(names, []string{"web-1"}) || len(plan["warnings"].([]any)) != 0 {
		t.Errorf("%v", plan)
	}
	w.Admin("GET", fleetPath, "").Shows("dmz-1 : unreachable: no relay of segment dmz is online (relay-1, relay-2, relay-3)",
		"plant-1 : unreachable: no relay of segment plant is online (relay-3)", "relay-1 : it is offline")
}

func TestRelaysAreSpread(t *testing.T) {
	for others := range 9 {
		for relays := range 6 {
			p := picture{observed: map[string]Observation{}}
			var hosts []*fleet.Host
			for i := range relays {
				id := fmt.Sprint("a-relay-", i)
				p.observed[id] = Observation{Segments: []string{"default", "dmz"}}
				hosts = append(hosts, &fleet.Host{ID: id})
			}
			for i := range others {
				hosts = append(hosts, &fleet.Host{ID: fmt.Sprint("host-", i)})
			}
			got := p.spread(hosts)
			seen, adjacent := map[string]bool{}, 0
			for i, h := range got {
				seen[h.ID] = true
				if i > 0 && len(p.observed[h.ID].Segments) > 1 && len(p.observed[got[i-1].ID].Segments) > 1 {
					adjacent++
				}
			}
			if len(seen) != len(hosts) || len(got) != len(hosts) {
				t.Errorf("%d relays, %d others: %d hosts come out", relays, others, len(got))
			}
			if adjacent > max(0, relays-others) || others > 0 && relays > 0 && len(p.observed[got[0].ID].Segments) > 1 {
				t.Errorf("%d relays, %d others: %d relays follow another, the first is %s", relays, others, adjacent, got[0].ID)
			}
		}
	}
}

func TestMapKeepsItsShapesApart(t *testing.T) {
	var segments []segmentJSON
	var relays []relayJSON
	for i := range 70 {
		s := segmentJSON{Name: strings.Repeat("x", 1+i%32) + fmt.Sprint(i)}
		if d := i / 3; i < 60 {
			s.Distance = &d
		}
		segments = append(segments, s)
		if i > 0 {
			relays = append(relays, relayJSON{ID: fmt.Sprint(i), Segments: []string{segments[i-1].Name, s.Name}}, relayJSON{ID: fmt.Sprint(i, "b"), Segments: []string{s.Name, segments[i-1].Name}})
		}
	}
	m := drawMap(segments, relays)
	if len(m.Boxes) != maxDrawn || m.More != 10 || len(m.Relays) != 2*(maxDrawn-1) {
		t.Fatalf("%d boxes, %d more, %d relays", len(m.Boxes), m.More, len(m.Relays))
	}
	for i, a := range m.Boxes {
		if a.X < 0 || a.X+a.W > m.Width || a.Y < 0 || a.Y+a.H > m.Height {
			t.Errorf("box %d is outside", i)
		}
		for _, b := range m.Boxes[i+1:] {
			if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("%s and %s overlap", a.Name, b.Name)
			}
		}
	}
	dots := map[[2]int]bool{}
	for _, r := range m.Relays {
		if dots[[2]int{r.X, r.Y}] {
			t.Errorf("two relays are drawn at %d, %d", r.X, r.Y)
		}
		dots[[2]int{r.X, r.Y}] = true
	}
	if empty := drawMap(nil, nil); empty.Height < 1 {
		t.Errorf("the empty map has no height: %+v", empty)
	}
}
