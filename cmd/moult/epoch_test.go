package main

import (
	"testing"
	"time"
)

// Two clusters that were restored from one backup know nothing of each other. The
// later one has the higher epoch all the same.
func TestEpochsRise(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	first, second := nextEpoch(0, now), nextEpoch(0, now.Add(time.Second))
	if first == 0 || second <= first {
		t.Errorf("epochs %d and %d", first, second)
	}
	// Whatever the clock says.
	for _, at := range []time.Time{now, now.AddDate(-70, 0, 0), now.AddDate(-2000, 0, 0)} {
		if got := nextEpoch(second, at); got <= second {
			t.Errorf("after %d at %s: %d", second, at, got)
		}
	}
}
