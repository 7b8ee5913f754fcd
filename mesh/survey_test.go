package mesh

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"moult/mesh/identity"
)

func TestSurveyTellsTheWayToEachServer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		c.node("s1", "left")
		r := c.node("r1", "left", "right")
		a := c.node("a1", "right")
		c.net.Cut("s1", "a1")
		awaitLiveness(t, 10*time.Second, "s1", Online, a)

		got := a.Survey(t.Context())
		if len(got.Ways) != 1 || len(got.Pools) != 1 {
			t.Fatalf("survey: %+v", got)
		}
		way := got.Ways[0]
		if way.HostID != "s1" || way.Direct || !slices.Equal(way.Relays, []string{"r1"}) || way.Error != "" || way.RoundTrip < 0 {
			t.Errorf("way to the server behind a relay: %+v", way)
		}
		pool := got.Pools[0]
		if pool.Segment != "right" || pool.Alive != 1 || len(pool.Pings) != 1 || pool.Pings[0].HostID != "r1" || pool.Pings[0].Error != "" {
			t.Errorf("pool: %+v", pool)
		}
		for _, w := range r.Survey(t.Context()).Ways {
			if !w.Direct || len(w.Relays) > 0 || w.Error != "" {
				t.Errorf("the relay's way: %+v", w)
			}
		}
	})
}

func TestSurveySaysWhatIsCutOff(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		c.node("s1", "left")
		a := c.node("a1", "left")
		awaitLiveness(t, 10*time.Second, "s1", Online, a)
		c.net.Cut("s1", "a1")

		got := a.Survey(t.Context()) // before memberlist notices
		if w := got.Ways[0]; !w.Direct || w.Error == "" || w.RoundTrip != 0 {
			t.Errorf("way that was just cut: %+v", w)
		}
		if p := got.Pools[0].Pings[0]; p.Error == "" {
			t.Errorf("ping that was just cut: %+v", p)
		}
	})
}

func TestSurveyEndsWithItsContext(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s := c.node("s1", "left")
		a := c.node("a1", "left")
		awaitLiveness(t, 10*time.Second, "s1", Online, a)
		// It takes the message and never answers.
		s.handlers.handle(topicPing, func(identity.Identity, []byte) {})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		got := a.Survey(ctx)
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("it took %v", took)
		}
		if w := got.Ways[0]; !strings.Contains(w.Error, "no answer") {
			t.Errorf("way to a server that does not answer: %+v", w)
		}
		if n := len(a.pings.waiting); n != 0 {
			t.Errorf("%d pings still wait", n)
		}
	})
}
