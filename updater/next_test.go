//go:build linux

package updater

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"moult/updater/install"
	"moult/updater/order"
	"moult/updater/release"
)

// counted is a release's binary that counts, in a file, how often it is executed, and
// takes until the file gate is gone.
type counted struct {
	t           *testing.T
	count, gate string
}

func newCounted(t *testing.T) counted {
	t.Helper()
	dir := t.TempDir()
	return counted{t, filepath.Join(dir, "count"), filepath.Join(dir, "gate")}
}

func (c counted) binary(version string) string {
	return fmt.Sprintf("#!/bin/sh\necho >>%s\nwhile [ -e %s ]; do sleep 0.01; done\necho '{\"version\":%q}'\n", c.count, c.gate, version)
}

func (c counted) runs() int {
	text, _ := os.ReadFile(c.count)
	return strings.Count(string(text), "\n")
}

func (c counted) shut() { must(c.t, os.WriteFile(c.gate, nil, 0o600)) }
func (c counted) open() { must(c.t, os.Remove(c.gate)) }

func isNext(o *order.Order) { o.Next = true }

// stagedNext is a host that has staged a release, and its binary.
func stagedNext(t *testing.T) (*host, published, counted) {
	t.Helper()
	h, c := newHost(t), newCounted(t)
	h.run()
	p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, c.binary("1.1.0"))
	h.stage("1.1.0", p)
	return h, p, c
}

func (h *host) proven() bool {
	s := &h.updater.staged
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proof != nil && s.proving == nil
}

const provenAhead = "asked for its version, shortly before this job"

// awaitLog waits for the line of a job's log that follows its preflight.
func (h *host) awaitLog() {
	h.await("the job's log", func() bool { return h.saysOfJob("preflight passed") })
}

func (h *host) saysOfJob(text string) bool {
	return strings.Contains(strings.Join(h.lines(), "\n"), text)
}

// What is only staged is not executed; who is told that its turn is next does its
// preflight then, once, and not in its turn.
func TestPreflightAheadOfTheTurn(t *testing.T) {
	h, p, c := stagedNext(t)
	h.again("that it is staged", h.stageOrder("1.1.0", p, asIs), func() bool { return h.staging().State == StageDone })
	h.updater.judge(t.Context(), received{"server-1", h.stageOrder("1.1.0", p, asIs)})
	h.updater.staged.mu.Lock()
	if s := &h.updater.staged; s.proving != nil || s.proof != nil || c.runs() != 0 {
		t.Errorf("what is staged was executed %d times", c.runs())
	}
	h.updater.staged.mu.Unlock()
	h.again("the preflight", h.stageOrder("1.1.0", p, isNext), h.proven)
	h.ordered("job-1", "1.1.0", p, PhaseRestarting)
	h.awaitLog()
	if !h.saysOfJob(provenAhead) || c.runs() != 1 {
		t.Errorf("it was executed %d times; the job's log: %q", c.runs(), h.lines())
	}
	if h.proven() {
		t.Error("a proof serves twice")
	}
}

// A turn that begins meanwhile waits for it.
func TestTurnWaitsForItsPreflight(t *testing.T) {
	h, p, c := stagedNext(t)
	c.shut()
	h.again("its start", h.stageOrder("1.1.0", p, isNext), func() bool { return c.runs() == 1 })
	h.give(h.stageOrder("1.1.0", p, isNext)) // again, as servers may
	h.ordered("job-1", "1.1.0", p, PhasePreflight)
	c.open()
	h.awaitPhase(PhaseRestarting + " job-1")
	h.awaitLog()
	if !h.saysOfJob(provenAhead) || c.runs() != 1 {
		t.Errorf("it was executed %d times; the job's log: %q", c.runs(), h.lines())
	}
}

// An agent that stops meanwhile ends what it has started, and remembers nothing of it.
func TestStopDuringPreflightAhead(t *testing.T) {
	h, c := newHost(t), newCounted(t)
	stop := h.run()
	p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, c.binary("1.1.0"))
	h.stage("1.1.0", p)
	c.shut()
	h.again("its start", h.stageOrder("1.1.0", p, isNext), func() bool { return c.runs() == 1 })
	begin := time.Now()
	must(t, stop()) // the gate is shut
	if d := time.Since(begin); d > install.SelfTestTimeout/2 {
		t.Errorf("it took %v to stop", d)
	}
	c.open()
	h.run()
	h.ordered("job-1", "1.1.0", p, PhaseRestarting)
	h.awaitLog()
	if h.saysOfJob(provenAhead) || c.runs() != 2 {
		t.Errorf("it was executed %d times; the job's log: %q", c.runs(), h.lines())
	}
}

// What changed since is not taken for what was proven.
func TestProvenBytesThatChanged(t *testing.T) {
	h, p, c := stagedNext(t)
	h.again("the preflight", h.stageOrder("1.1.0", p, isNext), h.proven)
	path := h.cfg.Store.Path(p.digest)
	text, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, []byte(strings.Replace(string(text), "1.1.0", "6.6.6", 1)), 0o700))
	h.ordered("job-1", "1.1.0", p, PhaseRestarting)
	h.awaitLog()
	must(t, h.cfg.Store.Verify(p.digest))
	if !h.saysOfJob("fetched anew") || h.saysOfJob(provenAhead) || c.runs() != 2 {
		t.Errorf("it was executed %d times; the job's log: %q", c.runs(), h.lines())
	}
}

// What fails ahead of the turn fails in the turn: it is not for staging to judge.
func TestPreflightThatFailsAhead(t *testing.T) {
	h, c := newHost(t), newCounted(t)
	h.run()
	p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, c.binary("1.1.0")+"echo broken >&2\nexit 7\n")
	h.stage("1.1.0", p)
	h.again("the preflight", h.stageOrder("1.1.0", p, isNext), func() bool { return c.runs() > 0 })
	h.mustFail("job-1", "1.1.0", p, "broken")
}

// No order but one that could stage a release has it executed.
func TestNextThatIsPassedOver(t *testing.T) {
	h, p, c := stagedNext(t)
	forged := p
	forged.manifest = []byte(strings.Replace(string(p.manifest), `"number":5`, `"number":9`, 1))
	late := h.stageOrder("1.1.0", p, func(o *order.Order) { o.Next, o.Index = true, 1 })
	other := h.publish(release.Manifest{Version: "1.2.0", Number: 6}, "#!/bin/sh\nexit 7\n")
	h.index = 10
	h.mustFail("job-1", "1.2.0", other, "exit status 7") // raises the fence
	must(t, raiseTrust(h.data, installed{Version: "1.0.0", Number: 4}, 0))
	for _, sealed := range [][]byte{late, h.stageOrder("1.1.0", forged, isNext)} {
		h.updater.judge(t.Context(), received{"server-1", sealed})
	}
	must(t, raiseTrust(h.data, installed{Version: "1.0.0", Number: 4}, 6))
	h.updater.judge(t.Context(), received{"server-1", h.stageOrder("1.1.0", p, isNext)}) // below the floor
	s := &h.updater.staged
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proving != nil || s.proof != nil || c.runs() != 0 {
		t.Errorf("it was executed %d times", c.runs())
	}
}
