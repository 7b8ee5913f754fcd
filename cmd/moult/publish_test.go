package main

import (
	"slices"
	"testing"
	"time"

	"moult/consensus/fleet"
)

func TestUnofferedArtifacts(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	release := func(withdrawn bool, digests ...string) fleet.Release {
		r := fleet.Release{Withdrawn: withdrawn}
		for _, d := range digests {
			r.Artifacts = append(r.Artifacts, fleet.Artifact{SHA256: d})
		}
		return r
	}
	releases := []fleet.Release{release(false, "offered", "in both"), release(true, "withdrawn", "in both")}
	held := map[string]time.Time{
		"offered": now.Add(-1000 * time.Hour), "in both": now.Add(-1000 * time.Hour), "withdrawn": now,
		"being uploaded": now.Add(-strayAge), "upload given up": now.Add(-strayAge - time.Second),
	}
	if got := unoffered(releases, held, now); !slices.Equal(got, []string{"upload given up", "withdrawn"}) {
		t.Errorf("dropped: %q", got)
	}
}
