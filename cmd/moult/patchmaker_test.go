package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"moult/consensus/fleet"
	"moult/mesh"
	"moult/updater/artifact"
	"moult/updater/patch"
)

func TestPatchesWanted(t *testing.T) {
	release := func(version string, number uint64, withdrawn bool, artifacts ...fleet.Artifact) fleet.Release {
		return fleet.Release{Version: version, Number: number, Withdrawn: withdrawn, Artifacts: artifacts}
	}
	artifact := func(arch, digest string) fleet.Artifact {
		return fleet.Artifact{OS: "linux", Arch: arch, SHA256: digest}
	}
	staged := func(r fleet.Release, update string) fleet.Release {
		r.StageIndex, r.StageFor = 7, update
		return r
	}
	all := func(string) bool { return true }
	newest := release("4", 4, false, artifact("amd64", "d-amd"), artifact("arm64", "d-arm"))
	older := []fleet.Release{
		release("3", 3, true, artifact("amd64", "c-amd")),
		release("2", 2, false, artifact("amd64", "b-amd"), artifact("arm64", "d-arm")),
		release("1", 1, false, artifact("amd64", "a-amd"), artifact("riscv64", "a-riscv")),
	}
	for name, c := range map[string]struct {
		releases []fleet.Release
		runs     func(string) bool
		want     []wantedPatch
	}{
		"nothing is released": {nil, all, nil},
		"the first release":   {[]fleet.Release{newest}, all, nil},
		"from all that are not withdrawn, of the same platform, and changed": {
			append([]fleet.Release{newest}, older...), all, []wantedPatch{{from: "b-amd", to: "d-amd"}, {from: "a-amd", to: "d-amd"}},
		},
		"from what runs": {
			append([]fleet.Release{newest}, older...), func(d string) bool { return d == "a-amd" }, []wantedPatch{{from: "a-amd", to: "d-amd"}},
		},
		"to what is staged, for all or for this fleet update": {
			[]fleet.Release{newest, staged(older[1], ""), staged(older[2], "update-1")},
			all,
			[]wantedPatch{{from: "b-amd", to: "d-amd"}, {from: "a-amd", to: "d-amd"}, {from: "d-amd", to: "b-amd"}, {from: "a-amd", to: "b-amd"}, {from: "d-amd", to: "a-amd"}, {from: "b-amd", to: "a-amd"}},
		},
		"not to what was staged for another one": {
			[]fleet.Release{newest, staged(older[2], "update-0")}, all, []wantedPatch{{from: "a-amd", to: "d-amd"}},
		},
		"to the newest that is not withdrawn": {
			append([]fleet.Release{release("5", 5, true, artifact("amd64", "e-amd")), newest}, older[2]), all, []wantedPatch{{from: "a-amd", to: "d-amd"}},
		},
	} {
		if got := patchesWanted(c.releases, "update-1", c.runs); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// Hosts are to wait for a patch that is wanted and not made yet, for as long as making
// it may take; not for one that is there, or is not to be had.
func TestHowLongAPatchIsAwaited(t *testing.T) {
	f := newStagingFleet(t, 1)
	older, other := strings.Repeat("0a", 32), strings.Repeat("0b", 32)
	f.apply(fleet.ReleasePublished{Release: fleet.Release{Version: "A", Number: 1, Artifacts: []fleet.Artifact{{OS: "linux", Arch: "amd64", Size: 1, SHA256: older}}}})
	f.members[0].Digest = older[:16]
	dir := t.TempDir()
	patches, err := patch.OpenStore(filepath.Join(dir, "patches"))
	if err != nil {
		t.Fatal(err)
	}
	artifacts, err := artifact.OpenStore(filepath.Join(dir, "artifacts"), "", "")
	if err != nil {
		t.Fatal(err)
	}
	m := &patchMaker{state: f.state, artifacts: artifacts, patches: patches, members: func() []mesh.Member { return f.members }, logger: slog.New(slog.DiscardHandler)}
	now := time.Now()
	must := func(what string, after time.Duration, want bool) {
		t.Helper()
		awaited := m.awaited(now.Add(after))
		if awaited(older[:16], wantedDigest) != want {
			t.Errorf("%s: awaited is %v", what, !want)
		}
		if awaited(other[:16], wantedDigest) || awaited(older[:16], other) {
			t.Errorf("%s: a patch that nobody makes is awaited", what)
		}
	}
	must("at first", 0, true)
	must("for a while", patchAllowance-time.Millisecond, true)
	must("for too long", patchAllowance, false)
	m.asked = nil
	name := filepath.Join(dir, "patches", patch.Name(older, wantedDigest))
	if err := os.WriteFile(name, []byte("patch"), 0o600); err != nil {
		t.Fatal(err)
	}
	must("once it is there", 0, false)
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	m.vain = map[string]bool{patch.Name(older, wantedDigest): true}
	must("where it is not to be had", 0, false)
}
