//go:build linux

package updater

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/time/rate"

	"moult/updater/install"
	"moult/updater/order"
	"moult/updater/release"
)

func (h *host) stageOrder(version string, p published, also func(*order.Order)) []byte {
	return h.orderWith("stage-"+version, version, p, func(o *order.Order) {
		o.Action = order.ActionStage
		also(o)
	})
}

// again sends an order until it has shown effect, as servers do.
func (h *host) again(what string, sealed []byte, condition func() bool) {
	h.t.Helper()
	h.await(what, func() bool {
		h.updater.HandleOrder(fromServer, sealed)
		return condition()
	})
}

func asIs(*order.Order) {}

// A host that has staged a release needs nobody at its turn; and staging voids no
// order, also not one with a lower index.
func TestStagedHostsNeedNobodyAtTheirTurn(t *testing.T) {
	h := newHost(t)
	h.run()
	p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, saysVersion("1.1.0"))
	h.index = 10
	update := h.order("job-1", "1.1.0", p) // index 11
	h.index = 10
	sealed := h.stageOrder("1.1.0", p, func(o *order.Order) {
		o.Parents = [][]string{{"agent-2", "gone"}, {"gone"}}
		o.Index = 11
	})
	h.updater.HandleOrder(fromServer, sealed)
	h.await("the staged artifact", func() bool { return h.staging().State == StageDone }) // and who sent it is known
	if job, phase, _ := h.updater.standing(); job != "" || phase != PhaseIdle {
		t.Errorf("staging shows as %s %s", phase, job)
	}
	if _, err := install.LoadMarker(h.data); !errors.Is(err, install.ErrNoMarker) {
		t.Errorf("staging left a marker: %v", err)
	}
	h.peer.Close() // whom it has the bytes from
	h.give(update)
	h.awaitPhase(PhaseRestarting + " job-1")
	h.await("who sent it, in a report", func() bool {
		s := h.lastReport().Sources
		return len(s) == 1 && s[0].HostID == "agent-2" && s[0].Bytes == int64(len(saysVersion("1.1.0")))
	})
}

// What was staged is not taken on trust at the turn: bytes that changed since are
// noticed before anything is executed, and fetched anew.
func TestStagedBytesThatChangedAreFetchedAnew(t *testing.T) {
	h := newHost(t)
	h.run()
	p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, saysVersion("1.1.0"))
	h.again("the staged artifact", h.stageOrder("1.1.0", p, asIs), func() bool { return h.cfg.Store.Has(p.digest) })
	evil := strings.Replace(saysVersion("1.1.0"), "1.1.0", "6.6.6", 1)
	must(t, os.WriteFile(h.cfg.Store.Path(p.digest), []byte(evil), 0o700))
	h.ordered("job-1", "1.1.0", p, PhaseRestarting)
	h.awaitLastLine()
	if err := h.cfg.Store.Verify(p.digest); err != nil {
		t.Errorf("the staged file: %v", err)
	}
	if log := strings.Join(h.lines(), "\n"); !strings.Contains(log, "fetched anew") {
		t.Errorf("the job's log does not tell of it:\n%s", log)
	}
}

// A staging order that comes after the order of the host's own turn, replayed or
// late, changes nothing; nor does one that the release keys or the floor forbid.
func TestStagingOrdersThatArePassedOver(t *testing.T) {
	h := newHost(t)
	h.run()
	bad := h.publish(release.Manifest{Version: "0.9.0", Number: 1}, "#!/bin/sh\nexit 1\n")
	late := h.stageOrder("0.9.0", bad, asIs) // index 1
	must(t, raiseTrust(h.data, installed{Version: "1.0.0", Number: 4}, 3))
	h.mustFail("job-1", "0.9.0", bad, "below the floor") // index 2
	forged := bad
	forged.manifest = []byte(strings.Replace(string(bad.manifest), `"number":1`, `"number":9`, 1))
	good := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, saysVersion("1.1.0"))
	for i, sealed := range [][]byte{ // each judged, whatever room the queue has
		late,
		h.stageOrder("0.9.0", bad, asIs),    // below the floor
		h.stageOrder("0.9.0", forged, asIs), // not signed
		h.stageOrder("1.1.0", bad, asIs),    // another version
		h.stageOrder("1.1.0", good, func(o *order.Order) { o.Index = 2 }),
	} {
		if _, ok := h.updater.judge(t.Context(), received{"server-1", sealed}); ok {
			t.Error("a staging order became a job")
		}
		h.updater.staged.mu.Lock()
		if h.updater.staged.running {
			t.Errorf("order %d is followed", i)
		}
		h.updater.staged.mu.Unlock()
	}
	h.again("the good one", h.stageOrder("1.1.0", good, asIs), func() bool { return h.cfg.Store.Has(good.digest) })
}

// What is staged of a withdrawn release is dropped, what runs is not.
func TestDroppingWhatWasStaged(t *testing.T) {
	h := newHost(t)
	h.run()
	p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, saysVersion("1.1.0"))
	h.updater.HandleOrder(fromServer, h.stageOrder("1.1.0", p, asIs))
	h.await("the staged artifact", func() bool { return h.cfg.Store.Has(p.digest) })
	drop := func(version string, p published) []byte {
		return h.orderWith("drop", version, p, func(o *order.Order) { o.Action = order.ActionDrop })
	}
	h.again("its end", drop("1.1.0", p), func() bool { return !h.cfg.Store.Has(p.digest) })
	own, err := os.ReadFile(h.cfg.Installed)
	must(t, err)
	running := h.publish(release.Manifest{Version: "1.0.0", Number: 4}, string(own))
	_, err = h.cfg.Store.Import(strings.NewReader(string(own)), 1<<20, func(string, int64) bool { return true })
	must(t, err)
	h.updater.judge(t.Context(), received{"server-1", drop("1.0.0", running)})
	if list, err := h.cfg.Store.List(); err != nil || !slices.Equal(list, []string{running.digest}) {
		t.Errorf("held are %v, %v", list, err)
	}
}

// A release that is withdrawn while it is being staged: the fetch ends, nothing is left
// of it, and what is staged next comes.
func TestDroppingWhatIsBeingStaged(t *testing.T) {
	h := newHost(t)
	const at = 1 << 18 // bytes; then it hardly gets on
	h.cfg.Limiter = rate.NewLimiter(1, at)
	h.run()
	p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, saysVersion("1.1.0")+"#"+strings.Repeat("x", 2*at))
	staging := func() Staging {
		h.updater.staged.mu.Lock()
		defer h.updater.staged.mu.Unlock()
		return h.updater.staged.state
	}
	h.again("some of it", h.stageOrder("1.1.0", p, asIs), func() bool { return staging().Done > 0 })
	part := filepath.Join(filepath.Dir(h.cfg.Store.Path(p.digest)), "unverified-"+p.digest)
	if _, err := os.Stat(part); err != nil {
		t.Fatal(err)
	}
	h.give(h.orderWith("drop", "1.1.0", p, func(o *order.Order) { o.Action = order.ActionDrop }))
	h.await("its end", func() bool { return staging() == Staging{} })
	h.await("the room that it took", func() bool {
		_, err := os.Stat(part)
		return errors.Is(err, fs.ErrNotExist)
	})
	h.cfg.Limiter.SetLimit(rate.Inf)
	next := h.publish(release.Manifest{Version: "1.2.0", Number: 6}, saysVersion("1.2.0"))
	h.again("the next release", h.stageOrder("1.2.0", next, asIs), func() bool { return h.cfg.Store.Has(next.digest) })
}
