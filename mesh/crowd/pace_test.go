package crowd_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"moult/mesh/crowd"
)

var paceLimits = crowd.PaceLimits{PerSecond: 10, AtOnce: 5, KnownPerSecond: 4, KnownAtOnce: 8, KnownFor: time.Hour, MaxKnown: 3}

// paced runs a test with a pace, in a bubble of its own time.
func paced(t *testing.T, test func(t *testing.T, p *crowd.Pace)) {
	synctest.Test(t, func(t *testing.T) {
		p := crowd.NewPace(paceLimits)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go p.Run(ctx)
		test(t, p)
	})
}

// flood has n strangers wait; each comes from an address of its own. It returns how
// many have had their turn, and what sends the rest away.
func flood(t *testing.T, p *crowd.Pace, n int) (turns *atomic.Int64, leave func()) {
	ctx, cancel := context.WithCancel(t.Context())
	turns = new(atomic.Int64)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			if p.Await(ctx, fmt.Sprint("stranger ", i)) == nil {
				turns.Add(1)
			}
		})
	}
	synctest.Wait()
	return turns, func() { cancel(); all.Wait() }
}

func TestStrangersArePaced(t *testing.T) {
	paced(t, func(t *testing.T, p *crowd.Pace) {
		turns, leave := flood(t, p, 100)
		defer leave()
		for second := range 4 {
			want := int64(paceLimits.AtOnce + second*paceLimits.PerSecond)
			if n := turns.Load(); n != want {
				t.Errorf("after %d s %d strangers had their turn, not %d", second, n, want)
			}
			time.Sleep(time.Second)
			synctest.Wait()
		}
	})
}

// Who is known does not wait, however many do; at more than its own pace, or when it
// was not seen for long, it waits with the others.
func TestKnownOnesDoNotWait(t *testing.T) {
	paced(t, func(t *testing.T, p *crowd.Pace) {
		p.Met("friend")
		_, leave := flood(t, p, 1000)
		defer leave()
		took := func(n int) time.Duration {
			began := time.Now()
			for range n {
				if err := p.Await(t.Context(), "friend"); err != nil {
					t.Fatal(err)
				}
			}
			return time.Since(began)
		}
		if d := took(paceLimits.KnownAtOnce); d != 0 {
			t.Errorf("a known one waited %v", d)
		}
		if d := took(1); d == 0 {
			t.Error("a known one has no pace")
		}
		leave()
		time.Sleep(2 * time.Second)
		if d := took(1); d != 0 {
			t.Errorf("after a rest a known one waited %v", d)
		}
		time.Sleep(paceLimits.KnownFor)
		_, leave = flood(t, p, 1000)
		defer leave()
		if d := took(1); d == 0 {
			t.Error("a known one is known for ever")
		}
	})
}

// Those who go leave no gap in the line: who comes after a flood that has gone does
// not wait for it.
func TestWhoGoesIsNotWaitedFor(t *testing.T) {
	paced(t, func(t *testing.T, p *crowd.Pace) {
		_, leave := flood(t, p, 1000)
		leave()
		began := time.Now()
		if err := p.Await(t.Context(), "newcomer"); err != nil || time.Since(began) > time.Second/time.Duration(paceLimits.PerSecond) {
			t.Errorf("it waited %v: %v", time.Since(began), err)
		}
	})
}

// Of too many known addresses the one that was met the longest ago is forgotten.
func TestKnownAddressesAreBounded(t *testing.T) {
	paced(t, func(t *testing.T, p *crowd.Pace) {
		for _, source := range []string{"a", "b", "c", "a", "d"} {
			p.Met(source)
			time.Sleep(time.Minute)
		}
		_, leave := flood(t, p, 1000)
		defer leave()
		for source, known := range map[string]bool{"a": true, "b": false, "c": true, "d": true} {
			began := time.Now()
			if err := p.Await(t.Context(), source); err != nil || (time.Since(began) == 0) != known {
				t.Errorf("%s waited %v: %v", source, time.Since(began), err)
			}
		}
	})
}
