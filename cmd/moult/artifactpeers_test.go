package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"moult/cmd/internal/nodekit"
	"moult/mesh"
)

const wantedDigest = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

// seen is a member of the roster: "server", or an agent that is in the segments,
// the first its home. With "holds" it has the artifact.
func seen(id string, segments string, marks ...string) mesh.Member {
	m := mesh.Member{Addr: id + ":7947", Liveness: mesh.Online}
	m.HostID, m.Role, m.Segments = id, "agent", strings.Split(segments, " ")
	for _, mark := range marks {
		switch mark {
		case "server":
			m.Role = "server"
		case "holds":
			m.Holds = []string{wantedDigest[:16]}
		case "runs":
			m.Digest = wantedDigest[:16]
		case "offline":
			m.Liveness = mesh.Offline
		case "nowhere":
			m.Addr = ""
		}
	}
	return m
}

func TestWhoIsAskedForAnArtifact(t *testing.T) {
	members := []mesh.Member{
		seen("s1", "core", "server"), seen("s2", "core", "server", "offline"),
		seen("core-1", "core", "runs"), seen("core-2", "core"),
		seen("r1", "core dmz"), seen("r2", "dmz core", "holds"), seen("r3", "core dmz", "offline"),
		seen("dmz-1", "dmz", "runs"), seen("dmz-2", "dmz"), seen("dmz-3", "dmz", "holds", "offline"), seen("dmz-4", "dmz", "holds", "nowhere"),
		seen("far-relay", "dmz plant", "holds"), seen("plant-1", "plant", "holds"), seen("plant-2", "plant"),
		seen("beyond", "plant attic"), seen("attic-1", "attic"),
		seen("lost-relay", "island isle"), seen("isle-1", "isle"),
	}
	for _, tt := range []struct {
		self            string
		via             []string
		holders, relays string // as id:class
	}{
		{"core-2", nil, "core-1:0 r2:0 s1:2", "r1:1 r2:1 s1:0"},
		{"dmz-2", nil, "dmz-1:0 far-relay:0 r2:0", "far-relay:2 r1:1 r2:1"},
		{"dmz-2", []string{"x", "r1"}, "dmz-1:0 far-relay:0 r2:0", "far-relay:2 r2:1"},
		// A relay's own home segment first, then its others.
		{"r1", nil, "core-1:0 dmz-1:1 far-relay:1 r2:0 s1:2", "far-relay:2 r2:1 s1:0"},
		{"r2", nil, "core-1:1 dmz-1:0 far-relay:0 s1:2", "far-relay:2 r1:1 s1:0"},
		{"plant-2", nil, "far-relay:0 plant-1:0", "beyond:3 far-relay:2"},
		// It is on the other side of the only way itself.
		{"far-relay", nil, "dmz-1:0 plant-1:1 r2:0", "beyond:3 r1:1 r2:1"},
		{"isle-1", nil, "", "lost-relay:5"},
		{"s1", nil, "core-1:0 r2:0", "r1:1 r2:1"},
	} {
		i := slices.IndexFunc(members, func(m mesh.Member) bool { return m.HostID == tt.self })
		v := nodekit.PeerView{Self: tt.self, Own: members[i].Record, Members: members}
		var holders, relays []string
		for _, p := range v.Holders(wantedDigest) {
			holders = append(holders, fmt.Sprintf("%s:%d", p.HostID, p.Class))
		}
		for _, p := range v.Relays(tt.via) {
			relays = append(relays, fmt.Sprintf("%s:%d", p.HostID, p.Class))
		}
		slices.Sort(holders)
		slices.Sort(relays)
		if got := strings.Join(holders, " "); got != tt.holders {
			t.Errorf("%s asks %q, want %q", tt.self, got, tt.holders)
		}
		if got := strings.Join(relays, " "); got != tt.relays {
			t.Errorf("%s has %v pull: %q, want %q", tt.self, tt.via, got, tt.relays)
		}
	}
}

// Servers are where releases are; they reach each other whatever their segments.
func TestServersAskEachOther(t *testing.T) {
	members := []mesh.Member{seen("s1", "core", "server"), seen("s2", "other", "server"), seen("a", "other", "runs")}
	v := nodekit.PeerView{Self: "s1", Own: members[0].Record, Members: members}
	if got := v.Holders(wantedDigest); len(got) != 1 || got[0].HostID != "s2" {
		t.Errorf("a server asks %v", got)
	}
}

func TestPullRateIsChecked(t *testing.T) {
	for text, fits := range map[string]bool{"0": true, "100kB": true, "10MB": true, "99kB": false, "1": false} {
		l := nodekit.ServeLimits{Streams: 1, Hosts: 1}
		if err := l.Pull.Set(text); err != nil {
			t.Fatal(err)
		}
		if err := l.Validate(); (err == nil) != fits {
			t.Errorf("--pull-rate %s: %v", text, err)
		}
	}
}
