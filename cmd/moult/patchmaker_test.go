package main

import (
	"reflect"
	"testing"

	"moult/consensus/fleet"
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
			[]fleet.Release{newest, staged(older[1], ""), staged(older[2], "update-1")}, all,
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
