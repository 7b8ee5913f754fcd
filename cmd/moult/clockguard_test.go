package main

import (
	"context"
	"log/slog"
	"testing"
	"time"
)

// A step makes a server unfit at once. The clock is trusted again when it is back,
// when a majority of those that answer agrees with it, or after a long time.
func TestClockGuard(t *testing.T) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var passed, step time.Duration
	var others []time.Duration // how far their clocks are from the true time
	g := &clockGuard{
		now: func() time.Time { return start.Add(passed + step) }, mono: func() time.Duration { return passed },
		others: func(context.Context) (clocks []time.Time) {
			for _, off := range others {
				clocks = append(clocks, start.Add(passed+off))
			}
			return clocks
		},
		logger: slog.New(slog.DiscardHandler),
	}
	g.trust()
	expect := func(what string, fit bool) {
		t.Helper()
		passed += time.Second
		if g.unfit() != nil {
			g.compare(t.Context())
		}
		if err := g.unfit(); (err == nil) != fit {
			t.Errorf("%s: %v", what, err)
		}
	}
	expect("nothing happened", true)
	step = 20 * time.Second
	expect("a small step", true)
	for range 10 { // slow drift is none
		step += 10 * time.Second
		expect("drift", true)
	}
	settled := step
	for _, off := range []time.Duration{time.Hour, -time.Hour, 365 * 24 * time.Hour, -365 * 24 * time.Hour} {
		others = []time.Duration{settled, settled}
		step = settled + off
		expect("a step that the others did not make", false)
		others = nil
		expect("nobody answers", false)
		others = []time.Duration{settled}
		expect("one answers, of another opinion", false)
		others = []time.Duration{settled + off, settled}
		expect("one agrees and one does not", true)
		step, others = settled, []time.Duration{settled, settled}
		expect("back, as the others", true)
		step, others = settled+off, nil
		expect("again", false)
		step = settled
		expect("and back, with nobody to ask", true)
		step = settled + off
		expect("and away for good", false)
		passed += clockPatience
		expect("that was on purpose", true)
		step, others = settled, []time.Duration{settled, settled}
		expect("as the others again", true)
	}
}
