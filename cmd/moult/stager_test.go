package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"moult/consensus/fleet"
	"moult/mesh"
	"moult/updater/order"
)

// stagingFleet is a fleet of agents h0, h1… in one segment with the release B, whose
// artifact is wantedDigest.
type stagingFleet struct {
	t       *testing.T
	state   *fleet.State
	index   uint64
	members []mesh.Member
	staging map[string]string // what hosts are getting
}

func noPatch(string, string) bool { return false }

func newStagingFleet(t *testing.T, agents int) *stagingFleet {
	f := &stagingFleet{t: t, state: fleet.New()}
	now := time.Now()
	f.apply(fleet.ClusterInitialized{
		Cluster: fleet.Cluster{ID: "c"}, Server: fleet.Host{ID: "s", Name: "s"},
		Admin: fleet.User{ID: "u", Name: "admin"}, Token: fleet.APIToken{ID: "t", Name: "t", Hash: "t"},
	})
	for i := range agents {
		id := fmt.Sprint("h", i)
		key := make([]byte, 32)
		key[0] = byte(i + 1)
		f.apply(fleet.JoinTokenCreated{Token: fleet.JoinToken{ID: id, Hash: id, Role: fleet.RoleAgent, ExpiresAt: now.Add(time.Hour)}})
		f.apply(fleet.HostEnrolled{TokenHash: id, Host: fleet.Host{ID: id, Name: id, OS: "linux", Arch: "amd64", PublicKey: key}})
		f.members = append(f.members, seen(id, "default"))
	}
	f.apply(fleet.ReleasePublished{Release: fleet.Release{Version: "B", Number: 2, Artifacts: []fleet.Artifact{{OS: "linux", Arch: "amd64", Size: 1, SHA256: wantedDigest}}}})
	return f
}

func (f *stagingFleet) apply(c fleet.Change) {
	f.t.Helper()
	f.index++
	e, err := fleet.NewEntry(fmt.Sprint("p", f.index), "user:ann", time.Now(), c)
	if err != nil {
		f.t.Fatal(err)
	}
	if result := f.state.Apply(f.index, e); result.Err != nil {
		f.t.Fatalf("%s: %v", c.Kind(), result.Err)
	}
}

func (f *stagingFleet) plan() map[string]string {
	told := map[string]string{}
	for _, o := range stagePlan(f.state.View(), f.members, f.staging, noPatch) {
		told[o.host.ID] += o.action
	}
	return told
}

func (f *stagingFleet) mustPlan(when, action string, hosts ...string) {
	f.t.Helper()
	told := f.plan()
	for _, h := range hosts {
		if told[h] != action {
			f.t.Errorf("%s: %s is told %q, want %q", when, h, told[h], action)
		}
	}
	if len(told) != len(hosts) {
		f.t.Errorf("%s: told are %v, want %v", when, told, hosts)
	}
}

func TestWhoIsToldToStage(t *testing.T) {
	f := newStagingFleet(t, 5)
	f.mustPlan("at rest", "")
	f.apply(fleet.FleetUpdateStarted{ID: "f", TargetVersion: "B", HostIDs: []string{"h0", "h1", "h2"}})
	if version, update := wantsStaging(f.state.View()); version != "B" || update != "f" {
		t.Errorf("wanted is %q for %q", version, update)
	}
	f.mustPlan("before it is committed", "")
	f.apply(fleet.ReleaseStaged{Version: "B", FleetUpdateID: "f"})
	if version, _ := wantsStaging(f.state.View()); version != "" {
		t.Errorf("wanted again is %q", version)
	}
	f.mustPlan("in the fleet update", order.ActionStage, "h0", "h1", "h2")
	f.members[1].Holds = []string{wantedDigest[:16]}
	f.members[2].Liveness = mesh.Offline
	f.mustPlan("with one that has it and one that is off", order.ActionStage, "h0")
	f.apply(fleet.FleetUpdateCancelled{ID: "f"})
	f.mustPlan("after its end", "")
	f.apply(fleet.ReleaseStaged{Version: "B"})
	f.mustPlan("for all hosts", order.ActionStage, "h0", "h3", "h4")
	f.members[3].Digest = wantedDigest[:16] // runs it
	f.apply(fleet.ReleaseWithdrawn{Version: "B"})
	f.mustPlan("once it is withdrawn", order.ActionDrop, "h1")
	f.staging = map[string]string{"h3": wantedDigest, "h4": wantedDigest, "h0": "another"} // h3 runs it
	f.mustPlan("while one is getting it", order.ActionDrop, "h1", "h4")
	f.apply(fleet.ReleasePublished{Release: fleet.Release{Version: "C", Number: 3, Artifacts: []fleet.Artifact{{OS: "linux", Arch: "amd64", Size: 1, SHA256: wantedDigest}}}})
	f.mustPlan("while another release has the same bytes", "")
}

// The trees stay as they are while one host after the other gets the artifact, and
// no host is told of parents in another segment.
func TestStagingTrees(t *testing.T) {
	f := newStagingFleet(t, 12)
	for i := 6; i < 12; i++ {
		f.members[i].Segments = strings.Fields("dmz")
	}
	f.apply(fleet.ReleaseStaged{Version: "B"})
	parents := map[string][][]string{}
	for _, o := range stagePlan(f.state.View(), f.members, f.staging, noPatch) {
		parents[o.host.ID] = o.parents
		for _, list := range o.parents {
			for _, id := range list {
				at := slices.IndexFunc(f.members, func(m mesh.Member) bool { return m.HostID == id })
				self := slices.IndexFunc(f.members, func(m mesh.Member) bool { return m.HostID == o.host.ID })
				if f.members[at].Segments[0] != f.members[self].Segments[0] {
					t.Errorf("%s has the parent %s in another segment", o.host.ID, id)
				}
			}
		}
	}
	for i := 0; i < 12; i += 2 {
		f.members[i].Holds = []string{wantedDigest[:16]}
	}
	for _, o := range stagePlan(f.state.View(), f.members, f.staging, noPatch) {
		if !slices.EqualFunc(o.parents, parents[o.host.ID], slices.Equal) {
			t.Errorf("%s: the parents changed from %v to %v", o.host.ID, parents[o.host.ID], o.parents)
		}
	}
}

// The relay through which a segment gets the artifact waits for nobody in it; one that
// is at home elsewhere has its parents there.
func TestTheFeederOfASegmentHasNoParentsInIt(t *testing.T) {
	f := newStagingFleet(t, 12)
	server := seen("s", "default")
	server.Role = string(fleet.RoleServer)
	f.members = append(f.members, server)
	for i := 6; i < 12; i++ {
		f.members[i].Segments = strings.Fields("dmz")
	}
	f.members[6].Segments = strings.Fields("dmz default")
	f.apply(fleet.ReleaseStaged{Version: "B"})
	parents := func() map[string][][]string {
		by := map[string][][]string{}
		for _, o := range stagePlan(f.state.View(), f.members, f.staging, noPatch) {
			by[o.host.ID] = o.parents
		}
		return by
	}
	named := func(id string) (n int) {
		for _, stripes := range parents() {
			for _, list := range stripes {
				if slices.Contains(list, id) {
					n++
				}
			}
		}
		return n
	}
	if got := parents()["h6"]; len(got) != 2 || len(got[0])+len(got[1]) > 0 || named("h6") > 0 {
		t.Errorf("the relay of its own segment takes it from %v and gives it to %d", got, named("h6"))
	}
	f.members[6].Segments = strings.Fields("dmz")
	f.members[5].Segments = strings.Fields("default dmz")
	if got := parents()["h5"]; len(got[0]) == 0 || len(got[1]) == 0 {
		t.Errorf("the relay of another segment takes it from %v", got)
	}
	if got := parents()["h6"]; len(got[0])+len(got[1]) == 0 {
		t.Error("a host that is no relay any more has no parents")
	}
}

// Who does not do it is told again, ever more rarely; who did is forgotten.
func TestStagingOrdersArePaced(t *testing.T) {
	f := newStagingFleet(t, stageBatch+10)
	f.apply(fleet.ReleaseStaged{Version: "B"})
	s := newStager(nil, nil, nil, nil, nil, nil)
	plan := stagePlan(f.state.View(), f.members, f.staging, noPatch)
	now := time.Now()
	if n := len(s.due(plan, now)); n != stageBatch {
		t.Errorf("%d orders at once", n)
	}
	if n := len(s.due(plan, now)); n != 10 {
		t.Errorf("%d orders in the next round", n)
	}
	if n := len(s.due(plan, now.Add(stageResend-time.Second))); n != 0 {
		t.Errorf("%d orders before it is time", n)
	}
	plan = plan[:1]
	for try := 1; try < stageTries; try++ {
		now = now.Add(stageResend)
		if n := len(s.due(plan, now)); n != 1 {
			t.Errorf("try %d: %d orders", try, n)
		}
	}
	if n := len(s.due(plan, now.Add(stageResend))); n != 0 {
		t.Errorf("%d orders after %d tries", n, stageTries)
	}
	if n := len(s.due(plan, now.Add(stageSlow))); n != 1 {
		t.Errorf("%d orders after the long pause", n)
	}
	if s.due(nil, now); len(s.sent) != 0 {
		t.Errorf("remembered are %v", s.sent)
	}
}

// A host whose patch is being made is told to wait for it, and told again, at once,
// when there is none to wait for any more.
func TestStagingAwaitsPatches(t *testing.T) {
	f := newStagingFleet(t, 2)
	f.apply(fleet.ReleaseStaged{Version: "B"})
	f.members[0].Digest = "0c0c0c0c0c0c0c0c"
	f.members[1].Digest = "0d0d0d0d0d0d0d0d"
	making := true
	awaited := func(running, to string) bool {
		return making && running == "0c0c0c0c0c0c0c0c" && to == wantedDigest
	}
	s := newStager(nil, nil, nil, nil, nil, nil)
	now := time.Now()
	told := func() map[string]bool {
		got := map[string]bool{}
		for _, o := range s.due(stagePlan(f.state.View(), f.members, f.staging, awaited), now) {
			got[o.host.ID] = o.awaitPatch
		}
		return got
	}
	if got := told(); len(got) != 2 || !got["h0"] || got["h1"] {
		t.Errorf("told to wait are %v", got)
	}
	if got := told(); len(got) != 0 {
		t.Errorf("told again are %v", got)
	}
	making = false
	if got := told(); len(got) != 1 || got["h0"] {
		t.Errorf("told once it is made are %v", got)
	}
}
