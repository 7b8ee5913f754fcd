package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/consensus/fleet"
	"moult/mesh"
	"moult/mesh/identity"
	"moult/webui"
)

func TestLimitsOfTheDenyListAgree(t *testing.T) {
	if fleet.MaxDenied > identity.MaxDenied {
		t.Errorf("the state denies %d hosts, a list holds %d", fleet.MaxDenied, identity.MaxDenied)
	}
	ca, err := identity.NewCA("cluster-1", time.Now())
	must(t, err)
	full := make([]fleet.DeniedHost, fleet.MaxDenied)
	for i := range full {
		full[i] = fleet.DeniedHost{HostID: fmt.Sprint(i), PublicKey: make([]byte, 32)}
	}
	raw, err := signDenyList(fleet.Cluster{ID: "cluster-1", CACert: ca.CertPEM(), CAKey: ca.KeyPEM()}, 1, full)
	must(t, err)
	if len(raw) > mesh.MaxPayload {
		t.Errorf("a full list has %d bytes, a message carries %d", len(raw), mesh.MaxPayload)
	}
}

// A host that is lost asks after a while, at longer and longer intervals, and soon
// when it sees nobody at all; one that sees a server never does.
func TestLostHostAsks(t *testing.T) {
	start := time.Now()
	asks := func(peers, servers int, during time.Duration) (at []time.Duration) {
		w := nodekit.LostWatch{Since: start}
		for now := time.Duration(0); now < during; now += time.Second {
			if w.Due(peers, servers, start.Add(now)) {
				at = append(at, now)
			}
		}
		return at
	}
	if at := asks(3, 1, time.Hour); len(at) > 0 {
		t.Errorf("a host that sees a server asks at %v", at)
	}
	alone := asks(0, 0, time.Hour)
	if len(alone) == 0 || alone[0] != nodekit.AloneAfter {
		t.Errorf("a host that sees nobody asks at %v", alone)
	}
	lost := asks(3, 0, 3*time.Hour)
	if len(lost) == 0 || lost[0] != nodekit.LostAfter {
		t.Errorf("a host that sees no server asks at %v", lost)
	}
	for _, at := range [][]time.Duration{alone, lost} {
		if last := at[len(at)-1] - at[len(at)-2]; last < nodekit.MaxLostWait*3/4-time.Second || last > nodekit.MaxLostWait+time.Second {
			t.Errorf("at last it waits %v", last)
		}
	}
	w := nodekit.LostWatch{Since: start}
	if !w.Due(0, 0, start.Add(nodekit.AloneAfter)) || w.Due(0, 1, start.Add(time.Minute)) || w.Due(0, 0, start.Add(time.Minute+time.Second)) {
		t.Error("a server that came and went does not begin the wait anew")
	}
}

// ringState is a fleet in two segments, the keys of one of which change.
func ringState(t *testing.T) *fleet.State {
	t.Helper()
	s := fleet.New()
	index := uint64(0)
	apply := func(c fleet.Change) {
		t.Helper()
		index++
		e, err := fleet.NewEntry(fmt.Sprint("p", index), "user:ann", time.Now(), c)
		must(t, err)
		if r := s.Apply(index, e); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	apply(fleet.ClusterInitialized{
		Cluster: fleet.Cluster{ID: "c1"}, Server: fleet.Host{ID: "s1", Name: "server-1"},
		Admin: fleet.User{ID: "u1", Name: "admin"}, Token: fleet.APIToken{ID: "t1", Name: "bootstrap", Hash: "h1"},
	})
	for i, segment := range []string{"default", "default", "default", "default", "dmz"} {
		id, key := fmt.Sprintf("a%d", i+1), bytes.Repeat([]byte{byte(i + 1)}, 32)
		apply(fleet.JoinTokenCreated{Token: fleet.JoinToken{ID: "j" + id, Hash: "j" + id, Role: fleet.RoleAgent, Segment: segment, ExpiresAt: time.Now().Add(time.Hour)}})
		apply(fleet.HostEnrolled{TokenHash: "j" + id, Host: fleet.Host{ID: id, Name: id, OS: "linux", Arch: "amd64", PublicKey: key}})
	}
	apply(fleet.GossipRotationBegun{Keys: []fleet.SegmentKey{{Segment: "default", Key: bytes.Repeat([]byte{9}, 32), Base: [][]byte{make([]byte, 32)}}}})
	return s
}

// A stage waits for hosts that are online or that nobody can see; not for those
// that are off; and for who has the keys of an earlier stage as for any other.
func TestWhoARotationWaitsFor(t *testing.T) {
	v := ringState(t).View()
	ring, _ := v.GossipRing("default")
	has := func(revision uint64) nodekit.TrustFollowed {
		return nodekit.TrustFollowed{Rings: map[string]uint64{"default": revision}}
	}
	all := rotations(v, map[string]mesh.Liveness{"s1": mesh.Online, "a1": mesh.Online, "a2": mesh.Unreachable, "a3": mesh.Offline, "a5": mesh.Online},
		map[string]nodekit.TrustFollowed{"s1": has(ring.Revision), "a1": has(ring.Revision - 1)})
	if len(all) != 2 || all[0].Ring.Segment != "default" || all[1].Ring.Segment != "dmz" {
		t.Fatalf("segments %+v", all)
	}
	r := all[0]
	var names []string
	for _, h := range r.Pending {
		names = append(names, h.Name)
	}
	if !slices.Equal(names, []string{"a1", "a2", "a4"}) || !slices.Equal(r.Offline, []string{"a3"}) || r.Confirmed != 1 || r.Hosts != 5 || r.Online != 2 {
		t.Errorf("default: %+v", r)
	}
	if r.Waits(false) != 3 || r.Waits(true) != 2 { // a4 was never heard of
		t.Errorf("it waits for %d, %d", r.Waits(false), r.Waits(true))
	}
	if dmz := all[1]; dmz.Confirmed != 1 || len(dmz.Pending) != 0 || dmz.Ring.Revision != 0 {
		t.Errorf("dmz: %+v", dmz)
	}
}

// The leader goes on when nobody is waited for, no sooner than each stage lasts,
// and never while a job runs.
func TestRotationGoesOn(t *testing.T) {
	began := time.Now()
	r := &rotor{began: began, since: map[string]time.Time{}, seen: map[string]uint64{}}
	ring := func(revision uint64) []fleet.GossipRing {
		return []fleet.GossipRing{{Segment: "default", Revision: revision, Stage: fleet.RotationInstalling}, {Segment: "done", Revision: 3}}
	}
	state := func(revision uint64, pending ...webui.RotationHost) []webui.Rotation {
		return []webui.Rotation{{Ring: fleet.GossipRing{Segment: "default", Revision: revision}, Pending: pending}}
	}
	for _, step := range []struct {
		what     string
		at       time.Duration
		revision uint64
		states   []webui.Rotation
		busy, on bool
	}{
		{"it has just begun", 0, 5, state(5), false, false},
		{"the stage has not lasted", rotationDwell - 1, 5, state(5), false, false},
		{"a host is pending", rotationDwell, 5, state(5, webui.RotationHost{Name: "a"}), false, false},
		{"a job runs", rotationDwell, 5, state(5), true, false},
		{"who has them is not known of this stage", rotationDwell, 5, state(4), false, false},
		{"all have them", rotationDwell, 5, state(5), false, true},
		{"the next stage has just begun", rotationDwell + 1, 6, state(6), false, false},
		{"a host that was not heard of", 2*rotationDwell + 1, 6, state(6, webui.RotationHost{Name: "a", Unseen: true}), false, false},
		{"and was not for long", rotationUnheard, 6, state(6, webui.RotationHost{Name: "a", Unseen: true}), false, true},
		{"nobody is in the segment any more", rotationUnheard, 6, nil, false, true},
	} {
		next := r.due(ring(step.revision), step.states, step.busy, began.Add(step.at))
		if on := len(next) == 1 && next[0].Segment == "default" && next[0].Revision == step.revision && !next[0].Forced; on != step.on || !on && len(next) > 0 {
			t.Errorf("%s: %+v", step.what, next)
		}
	}
}

// What a host says that it follows is what it has, in all its segments.
func TestWhatAHostFollows(t *testing.T) {
	f := nodekit.FollowedBy(identity.Credentials{Segment: "default", GossipRevision: 4, Also: []identity.Segment{{Name: "dmz", GossipRevision: 7}}})
	text, err := json.Marshal(f)
	must(t, err)
	if string(text) != `{"epoch":0,"denied":0,"rings":{"default":4,"dmz":7},"cas":null,"signer":""}` {
		t.Errorf("it says %s", text)
	}
	for _, tc := range []struct {
		rings map[string]uint64
		lacks bool
	}{
		{nil, false},
		{map[string]uint64{"default": 4}, false},
		{map[string]uint64{"default": 4, "dmz": 8}, true},
		{map[string]uint64{"default": 3}, true}, // a restored cluster counts anew
		{map[string]uint64{"other": 1}, true},
	} {
		if f.Lacks(tc.rings) != tc.lacks {
			t.Errorf("%v: lacks %v", tc.rings, !tc.lacks)
		}
	}
}

func TestAllowFromFlags(t *testing.T) {
	for text, want := range map[string]string{
		"10.1.0.0/16": "10.1.0.0/16", "10.1.2.3/16": "10.1.0.0/16", "192.0.2.7/32": "192.0.2.7/32", "2001:db8::/64": "2001:db8::/64",
		"10.1.0.0": "", "10.1.0.0/33": "", "": "", "web-1/24": "",
	} {
		o := nodekit.NodeOptions{AllowFrom: []string{text}}
		err := o.ReadNetworks()
		if want == "" {
			if err == nil || !strings.Contains(err.Error(), "--allow-from") {
				t.Errorf("%q: %v", text, err)
			}
			continue
		}
		if got := o.Allowed("10.9.0.1:7946"); err != nil || !slices.Equal(got, []string{want, "10.9.0.1/32"}) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	if got := (&nodekit.NodeOptions{}).Allowed("10.9.0.1:7946"); got != nil {
		t.Errorf("without the flag: %v", got)
	}
}

// A host is behind when it follows an older list, not when its server does.
func TestWhoIsBehind(t *testing.T) {
	for _, tc := range []struct {
		has, is [2]uint64 // epoch, number
		behind  bool
	}{
		{[2]uint64{0, 0}, [2]uint64{0, 0}, false},
		{[2]uint64{0, 0}, [2]uint64{0, 1}, true},
		{[2]uint64{0, 3}, [2]uint64{0, 2}, false},
		{[2]uint64{1, 1}, [2]uint64{0, 9}, false},
		{[2]uint64{0, 9}, [2]uint64{1, 0}, true},
	} {
		f := nodekit.TrustFollowed{Epoch: tc.has[0], Denied: tc.has[1]}
		if f.Behind(tc.is[0], tc.is[1]) != tc.behind {
			t.Errorf("%v of %v: behind %v", tc.has, tc.is, !tc.behind)
		}
	}
}
