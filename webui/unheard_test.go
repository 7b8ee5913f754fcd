package webui

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"moult/consensus/fleet"
)

// justStarted is a world whose server was started a second ago and has heard of one
// of its two agents.
func justStarted(t *testing.T) *world {
	t.Helper()
	w := StartWorld(t)
	w.config.Started = w.clock.Now().Add(-time.Second)
	var err error
	if w.handler, err = New(w.config); err != nil {
		t.Fatal(err)
	}
	w.MustEnrol("a", "1.0.0", true)
	w.MustEnrol("b", "", false)
	w.MustRelease("2.0.0", 2)
	return w
}

func (w *world) planned() (names []string, warnings string) {
	w.tb.Helper()
	var plan planJSON
	if err := json.Unmarshal(w.Call(adminToken, "GET", "/api/fleet/plan", "").Body.Bytes(), &plan); err != nil {
		w.tb.Fatal(err)
	}
	for _, h := range plan.Hosts {
		names = append(names, h.Name)
	}
	return names, strings.Join(plan.Warnings, "; ")
}

func TestFleetUpdateWaitsForHostsThatThisServerHasNotHeardOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := justStarted(t)
		if names, warnings := w.planned(); !slices.Equal(names, []string{"a"}) || !strings.Contains(warnings, "has not heard of 1 host yet (b)") {
			t.Errorf("planned for %v, warned of %q", names, warnings)
		}
		go func() {
			time.Sleep(3 * time.Second)
			w.roster.set(w.agents["b"], Observation{Online: true, Version: "1.0.0"})
		}()
		began := time.Now()
		got := w.Call(adminToken, "POST", "/api/fleet/update", "{}")
		if u, _ := w.state.View().ActiveFleetUpdate(); got.Code != http.StatusOK || u.Hosts.Len() != 2 || time.Since(began) != 3*time.Second {
			t.Errorf("%d %s after %v: %+v", got.Code, got.Body, time.Since(began), u.Hosts)
		}
	})
}

func TestSilentHostsHoldNothingUpForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := justStarted(t)
		w.MustPropose("user:admin", fleet.FleetUpdateStarted{ID: "past", TargetVersion: "2.0.0", HostIDs: []string{w.agents["a"]}})
		w.MustPropose("user:admin", fleet.FleetUpdateCancelled{ID: "past"})
		for _, path := range []string{"/api/fleet/update", "/api/fleet-updates/past/retry", "/api/hosts/" + w.agents["b"] + "/update"} {
			got := w.Call(adminToken, "POST", path, "")
			if body := got.Body.String(); got.Code != http.StatusServiceUnavailable || got.Header().Get("Retry-After") == "" || !strings.Contains(body, `"hosts_unheard"`) || !strings.Contains(body, "who is silent in 29s counts as offline") {
				t.Errorf("%s: %d %s", path, got.Code, body)
			}
		}
		// A host that this server has heard of, or that is named, waits for no other.
		if got := w.Call(adminToken, "POST", "/api/hosts/"+w.agents["a"]+"/update", ""); got.Code != http.StatusOK {
			t.Errorf("a's own update: %d %s", got.Code, got.Body)
		}
		if got := w.Call(adminToken, "POST", "/api/fleet/update", `{"host_ids":["`+w.agents["b"]+`"]}`); got.Code != http.StatusOK {
			t.Errorf("b by name: %d %s", got.Code, got.Body)
		}
	})
}

func TestWhoIsSilentForLongIsOffline(t *testing.T) {
	w := justStarted(t)
	w.clock.Advance(heardBy)
	if names, warnings := w.planned(); !slices.Equal(names, []string{"a"}) || warnings != "" {
		t.Errorf("planned for %v, warned of %q", names, warnings)
	}
	w.Admin("POST", "/api/fleet/update", "").OK()
	if u, _ := w.state.View().ActiveFleetUpdate(); u.Hosts.Len() != 1 {
		t.Errorf("the fleet update has %+v", u.Hosts)
	}
}
