package main

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// soakReport says whether an agent and its supervisor grew while nothing happened:
// the medians of the last third of the time beside those of the first. Private memory
// goes up and down with the collector's cycles, so that in a few minutes the slope is
// worth little; in hours it is.
type soakReport struct {
	Took            string
	Samples         int
	Private         float64 // bytes, median of the first third
	Grown           float64 // bytes
	PerHour         float64 // bytes; the slope of a line through all samples
	Goroutines      int     // of the agent, at the end
	GoroutinesGrown int
	Files           int
	FilesGrown      int
}

func (r soakReport) String() string {
	return fmt.Sprintf("private memory %.2f MB, %+.2f MB from the first to the last third, %+.2f MB an hour as a line through %d samples; %d goroutines (%+d), %d open files (%+d)",
		r.Private/1e6, r.Grown/1e6, r.PerHour/1e6, r.Samples, r.Goroutines, r.GoroutinesGrown, r.Files, r.FilesGrown)
}

// runSoak watches a host that has nothing to do. The agent is asked for its
// goroutines twice in each third, since the question is work for it.
func runSoak(t *testing.T, h idleHost, d time.Duration) soakReport {
	t.Helper()
	const samples = 180
	const questions = 6
	var at, private, files, goroutines []float64
	began := time.Now()
	for i := range samples {
		if i%(samples/questions) == 0 {
			_, n := h.asks(t)
			goroutines = append(goroutines, float64(n))
		}
		settle(time.Until(began.Add(d * time.Duration(i+1) / samples)))
		at = append(at, time.Since(began).Hours())
		private = append(private, memoryOf(t, h.child).plus(memoryOf(t, h.supervisor)).Private)
		files = append(files, float64(openFiles(t, h.child)+openFiles(t, h.supervisor)))
	}
	first := func(all []float64) float64 { return middle(all[:len(all)/3]) }
	last := func(all []float64) float64 { return middle(all[len(all)-len(all)/3:]) }
	return soakReport{
		Took: time.Since(began).Round(time.Second).String(), Samples: samples,
		Private: first(private), Grown: last(private) - first(private), PerHour: slope(at, private),
		Goroutines: int(last(goroutines)), GoroutinesGrown: int(last(goroutines) - first(goroutines)),
		Files: int(last(files)), FilesGrown: int(last(files) - first(files)),
	}
}

// middle is the lower one of two in the middle.
func middle(of []float64) float64 {
	sorted := slices.Sorted(slices.Values(of))
	return sorted[(len(sorted)-1)/2]
}

// slope is that of the line of least squares.
func slope(x, y []float64) float64 {
	var sx, sy, sxx, sxy float64
	n := float64(len(x))
	for i := range x {
		sx, sy, sxx, sxy = sx+x[i], sy+y[i], sxx+x[i]*x[i], sxy+x[i]*y[i]
	}
	return (n*sxy - sx*sy) / (n*sxx - sx*sx)
}
