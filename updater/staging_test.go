//go:build linux

package updater

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"moult/consensus/fleet"
	"moult/updater/artifact"
	"moult/updater/install"
	"moult/updater/order"
	"moult/updater/patch"
	"moult/updater/release"
)

func (h *host) staging() Staging {
	if s := h.lastReport().Staging; s != nil {
		return *s
	}
	return Staging{}
}

// release is a published one, whose binary is size bytes at least.
func (h *host) release(version string, number uint64, size int) published {
	binary := saysVersion(version)
	return h.publish(release.Manifest{Version: version, Number: number}, binary+strings.Repeat("#", max(0, size-len(binary)-1))+"\n")
}

func (h *host) stage(version string, p published) {
	h.t.Helper()
	h.again("staged "+version, h.stageOrder(version, p, asIs), func() bool { return h.cfg.Store.Has(p.digest) })
}

// A host tells how far it is: what it waits for, that it has it, and why not, then
// that it has it after all; and how much it keeps.
func TestStagingIsTold(t *testing.T) {
	h := newHost(t)
	var err error
	h.cfg.Patches, err = patch.OpenStore(filepath.Join(h.data, "patches"))
	must(t, err)
	h.run()
	p := h.release("1.1.0", 5, 1000)
	h.updater.HandleOrder(fromServer, h.stageOrder("1.1.0", p, func(o *order.Order) { o.AwaitPatch = true }))
	h.await("that it awaits a patch", func() bool { return h.staging() == Staging{Digest: p.digest, State: StageAwaitsPatch, Total: 1000} })
	if h.cfg.Store.Has(p.digest) {
		t.Error("it did not wait")
	}
	h.stage("1.1.0", p)
	h.await("that it is staged", func() bool {
		return h.staging() == Staging{Digest: p.digest, State: StageDone, Done: 1000, Total: 1000}
	})
	h.await("what it keeps", func() bool { return h.lastReport().Stored == 1000 })
	if job := h.lastReport().JobID; job != "" {
		t.Errorf("a report names the job %q", job)
	}

	h.cfg.Store.SetLimit(1500)
	big := h.release("1.2.0", 6, 1501)
	h.updater.HandleOrder(fromServer, h.stageOrder("1.2.0", big, asIs))
	h.await("why it is not staged", func() bool {
		s := h.staging()
		return s.Digest == big.digest && s.State == StageFailed && strings.Contains(s.Error, "store_limit")
	})
	h.cfg.Store.SetLimit(1501)
	h.stage("1.2.0", big)
	h.await("that it is staged", func() bool { return h.staging().State == StageDone })

	expired := time.Now().Add(-time.Hour)
	old := h.publish(release.Manifest{Version: "1.3.0", Number: 7, Expires: &expired}, saysVersion("1.3.0"))
	h.updater.HandleOrder(fromServer, h.stageOrder("1.3.0", old, asIs))
	h.await("why the next is not", func() bool { return strings.Contains(h.staging().Error, "expired") })
}

// At its turn a host fetches what had no room ahead of it.
func TestNoLimitKeepsAHostFromItsUpdate(t *testing.T) {
	h := newHost(t)
	h.run()
	h.cfg.Store.SetLimit(10)
	p := h.release("1.1.0", 5, 1000)
	h.updater.HandleOrder(fromServer, h.stageOrder("1.1.0", p, asIs))
	h.await("why it is not staged", func() bool { return h.staging().State == StageFailed })
	h.ordered("job-1", "1.1.0", p, PhaseRestarting)
}

// What is staged stays until another release is; what this host replaced, and what it
// runs while another one is on trial, stays in any case.
func TestRetentionSparesWhatIsNeeded(t *testing.T) {
	h := newHost(t)
	h.cfg.Spare = 1
	previous, installedNow := h.release("0.9.0", 3, 100), h.release("1.0.0", 4, 101)
	h.cfg.Store.Keep(previous.digest, installedNow.digest)
	h.run()
	for i, p := range []published{previous, installedNow} {
		h.stage([]string{"0.9.0", "1.0.0"}[i], p)
	}
	must(t, raiseTrust(h.data, installed{Version: "1.0.0", Number: 4, Digest: installedNow.digest, Previous: previous.digest}, 0))
	var newer []published
	for i := range 4 {
		version := fmt.Sprint("1.1.", i)
		newer = append(newer, h.release(version, uint64(5+i), 200+i))
		h.stage(version, newer[i])
		time.Sleep(10 * time.Millisecond) // the age of files counts
	}
	list, err := h.cfg.Store.List()
	want := []string{previous.digest, installedNow.digest, newer[2].digest, newer[3].digest}
	slices.Sort(want)
	if err != nil || !slices.Equal(list, want) {
		t.Errorf("kept are %.6s, %v; want what it can go back to, one spare one, and what is staged: %.6s", list, err, want)
	}
	// The limit takes the spare one, not what can be gone back to.
	h.cfg.Store.SetLimit(100 + 101 + 203 + 204)
	last := h.release("1.2.0", 10, 204)
	h.stage("1.2.0", last)
	list, err = h.cfg.Store.List()
	want = []string{previous.digest, installedNow.digest, newer[3].digest, last.digest}
	slices.Sort(want)
	if err != nil || !slices.Equal(list, want) {
		t.Errorf("kept within the limit are %.6s, %v; want %.6s", list, err, want)
	}
}

// An agent that is restarted between its staging and its turn, and in its turn, still
// tells who sent the artifact.
func TestSourcesSurviveRestarts(t *testing.T) {
	h := newHost(t)
	stop := h.run()
	p := h.release("1.1.0", 5, 1000)
	h.stage("1.1.0", p)
	h.await("that it is staged", func() bool { return h.staging().State == StageDone })
	must(t, stop())
	stop = h.run()
	want := []fleet.Source{{HostID: "agent-2", Name: "two", Role: "agent", Bytes: 1000}}
	h.await("that it is staged, after a restart", func() bool {
		return h.staging() == Staging{Digest: p.digest, State: StageDone, Done: 1000, Total: 1000}
	})
	h.ordered("job-1", "1.1.0", p, PhaseRestarting)
	_ = stop()
	o, err := install.LoadOutcome(h.data)
	if err != nil || !slices.Equal(o.Sources, want) {
		t.Fatalf("on record are the sources %v, %v", o.Sources, err)
	}
	m, err := install.LoadMarker(h.data)
	must(t, err)
	committed := make(chan struct{})
	h.cfg.Link = &SupervisorLink{trial: true, committed: committed, gone: make(chan struct{})}
	h.cfg.Version, h.cfg.Digest = "1.1.0", p.digest
	stop = h.run()
	h.await("who sent what is on trial", func() bool { return slices.Equal(h.lastReport().Sources, want) })
	must(t, install.SaveVerdict(h.data, install.OutcomeOf(m, install.Committed, time.Now())))
	must(t, install.RemoveMarker(h.data))
	close(committed)
	h.awaitPhase(PhaseIdle + " job-1")
	if got := h.lastReport().Sources; !slices.Equal(got, want) {
		t.Errorf("after the commit the sources are %v", got)
	}
	if tr, err := loadTrust(h.data); err != nil || tr.Installed == nil || tr.Installed.Previous != m.FromDigest {
		t.Errorf("what can be gone back to is not on record: %+v, %v", tr.Installed, err)
	}
	must(t, stop())
	h.cfg.Link = nil
	h.run() // the supervisor's record of the verdict has them too
	h.await("who sent it, after one more restart", func() bool { return slices.Equal(h.lastReport().Sources, want) })
}

// What a fleet begins at one moment is spread, as the order says and for no longer than
// a second.
func TestStagingIsSpread(t *testing.T) {
	for _, tc := range []struct{ spread, most time.Duration }{{time.Nanosecond, 0}, {0, stageJitter}, {time.Hour, stageJitter}} {
		h := newHost(t)
		started := make(chan time.Time, 1)
		h.cfg.Candidates = func(string) []artifact.Peer {
			select {
			case started <- time.Now():
			default:
			}
			return nil
		}
		h.cfg.HTTP = &http.Client{}
		h.run()
		p := h.release("1.1.0", 5, 1000)
		begin := time.Now()
		h.updater.HandleOrder(fromServer, h.stageOrder("1.1.0", p, func(o *order.Order) { o.Spread = tc.spread }))
		const slack = 20 * time.Second // a busy machine
		if d := (<-started).Sub(begin); d > tc.most+slack {
			t.Errorf("with a spread of %v it began after %v", tc.spread, d)
		}
	}
}

// A note that cannot be read costs a line in a job's log.
func TestDamagedNoteOfWhatIsStaged(t *testing.T) {
	h := newHost(t)
	must(t, os.WriteFile(filepath.Join(h.data, stagedFile), []byte("{"), 0o600))
	h.run()
	p := h.release("1.1.0", 5, 1000)
	h.stage("1.1.0", p)
	h.ordered("job-1", "1.1.0", p, PhaseRestarting)
}
