package updater

import (
	"testing"
	"time"

	"moult/consensus/fleet"
)

// At rest the reporter looks when its next report is due: each look wakes the process.
func TestReporterRestsWhileNothingChanges(t *testing.T) {
	job := Report{JobID: "j"}
	for name, c := range map[string]struct {
		r          Report
		busy       bool
		since, ago time.Duration
		want       time.Duration
	}{
		"no job yet":                  {want: restateEvery},
		"some time later":             {ago: time.Minute, want: restateEvery - time.Minute},
		"a report is due":             {ago: restateEvery, want: progressEvery},
		"a job that is fetched":       {r: job, busy: true, since: time.Hour, ago: time.Minute, want: progressEvery},
		"a job before its first word": {busy: true, want: progressEvery},
		"a verdict just now":          {r: job, since: settledFor - 1, ago: time.Second, want: progressEvery},
		"an old verdict":              {r: job, since: settledFor, ago: time.Second, want: restateEvery - time.Second},
		"lines that nobody has":       {r: Report{JobID: "j", Lines: make([]fleet.LogLine, 1)}, since: time.Hour, want: progressEvery},
		"staging":                     {r: Report{Staging: &Staging{State: StageFetching}}, want: progressEvery},
		"staged":                      {r: Report{Staging: &Staging{State: StageDone}}, want: restateEvery},
		"staging awaits a patch":      {r: Report{Staging: &Staging{State: StageAwaitsPatch}}, want: restateEvery},
	} {
		if got := nextLook(c.r, c.busy, c.since, c.ago); got != c.want {
			t.Errorf("%s: the next look is in %v, want %v", name, got, c.want)
		}
	}
}
