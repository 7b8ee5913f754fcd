//go:build linux

package updater

import (
	"bytes"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"moult/consensus/fleet"
	"moult/mesh/identity"
	"moult/updater/install"
	"moult/updater/order"
	"moult/updater/release"
)

// What a host makes of records that are lost, damaged or at odds with each
// other, and that no order runs twice whatever became of them.

func (h *host) spoil(name string) {
	h.t.Helper()
	must(h.t, os.WriteFile(filepath.Join(h.data, name), []byte(`{"job_id":"job-`), 0o600))
}

// accepted counts how often a job was begun from an order.
func (h *host) accepted() (n int) {
	for _, line := range h.lines() {
		if strings.Contains(line, "order accepted") {
			n++
		}
	}
	return n
}

func TestRepeatedOrderRunsOnce(t *testing.T) {
	h := newHost(t)
	stop := h.run()
	p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, saysVersion("6.6.6"))
	sealed := h.order("job-1", "1.1.0", p)
	var senders sync.WaitGroup
	for range 8 {
		senders.Go(func() {
			for range 20 {
				h.updater.HandleOrder(fromServer, sealed)
			}
		})
	}
	senders.Wait()
	h.awaitPhase("failed job-1")
	// A new leader seals it anew, under a higher index.
	h.updater.HandleOrder(fromServer, h.order("job-1", "1.1.0", p))
	must(t, stop())
	h.run()
	for range 3 {
		h.updater.HandleOrder(fromServer, sealed)
		h.updater.HandleOrder(fromServer, h.order("job-1", "1.1.0", p))
	}
	h.await("an answer to the orders", func() bool { return len(h.announcedAll()) >= 3 })
	h.await("the log", func() bool { return len(h.lines()) > 0 })
	if n := h.accepted(); n != 1 {
		t.Errorf("the order was accepted %d times: %q", n, h.lines())
	}
	if slices.ContainsFunc(h.phases(), func(p string) bool { return strings.HasPrefix(p, PhaseFetching) }) {
		t.Errorf("the job ran again after the restart: %q", h.phases())
	}
}

// What is not for this host, from no server, too old or too late has no effect,
// before and after a restart.
func TestOrdersThatAreNotForThisHost(t *testing.T) {
	h := newHost(t)
	p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, saysVersion("6.6.6"))
	older := h.order("job-old", "1.1.0", p)
	sealBy := func(key ed25519.PrivateKey, cert []byte, change func(*order.Order)) []byte {
		o := order.Order{
			Cluster: "cluster-1", HostID: "agent-1", JobID: "job-bad", Attempt: 1, Action: order.ActionUpdate, Version: "1.1.0",
			Manifest: p.manifest, Signature: p.signature, Index: 1000, Expires: time.Now().Add(time.Minute),
		}
		change(&o)
		sealed, err := order.Seal(o, key, cert)
		must(t, err)
		return sealed
	}
	seal := func(change func(*order.Order)) []byte { return sealBy(h.serverKey, h.serverCert, change) }
	foreignKey, err := identity.NewKey()
	must(t, err)
	foreignCA, err := identity.NewCA("cluster-1", time.Now())
	must(t, err)
	certPEM, err := foreignCA.Issue(identity.Identity{Cluster: "cluster-1", HostID: "server-1", Name: "s", Role: identity.RoleServer},
		foreignKey.Public().(ed25519.PublicKey), time.Now(), time.Hour)
	must(t, err)
	foreignCert, _ := pem.Decode(certPEM)
	good := seal(func(*order.Order) {})
	bad := map[string][]byte{
		"another host's":         seal(func(o *order.Order) { o.HostID = "agent-2" }),
		"another cluster's":      seal(func(o *order.Order) { o.Cluster = "cluster-2" }),
		"expired":                seal(func(o *order.Order) { o.Expires = time.Now().Add(-time.Second) }),
		"good for too long":      seal(func(o *order.Order) { o.Expires = time.Now().Add(48 * time.Hour) }),
		"by another CA's server": sealBy(foreignKey, foreignCert.Bytes, func(*order.Order) {}),
		"changed":                bytes.Replace(good, []byte(`"sig":"`), []byte(`"sig":"AA`), 1),
		"of a lower index":       older,
		"of the highest index":   seal(func(o *order.Order) { o.JobID, o.Index = "job-same", 2 }),
	}
	stop := h.run()
	h.ordered("job-1", "1.1.0", p, PhaseFailed) // index 2
	for range 2 {
		for name, sealed := range bad {
			if o, ok := h.updater.judge(t.Context(), received{"server-1", sealed}); ok {
				t.Errorf("an order that is %s was accepted: job %s", name, o.JobID)
			}
		}
		h.updater.HandleOrder(identity.Identity{HostID: "agent-9", Role: identity.RoleAgent}, good)
		if job, phase, _ := h.updater.standing(); job != "job-1" || phase != PhaseFailed {
			t.Errorf("the host stands at %s %s", phase, job)
		}
		must(t, stop())
		stop = h.run()
	}
}

// An agent that was stopped between accepting an order and writing the job down
// does not know how far it came: the job fails with a reason, and does not run.
func TestAcceptedOrderWithoutARecord(t *testing.T) {
	h := newHost(t)
	p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, saysVersion("1.1.0"))
	sealed := h.order("job-1", "1.1.0", p)
	o, err := order.Open(sealed, h.cfg.Verifier, h.cfg.HostID, time.Now())
	must(t, err)
	must(t, h.cfg.Fence.Accept(o))
	h.run()
	h.updater.HandleOrder(fromServer, sealed)
	h.awaitPhase("failed job-1")
	h.await("the reason", func() bool { return strings.Contains(h.lastReport().Error, "lost or damaged; start the update again") })
	if slices.Contains(h.phases(), "fetching job-1") {
		t.Error("the job ran")
	}
	// The next job is not held up by it.
	h.ordered("job-2", "1.1.0", p, PhaseRestarting)
}

func TestCorruptRecordOfTheLastJob(t *testing.T) {
	h := newHost(t)
	p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, saysVersion("6.6.6"))
	stop := h.run()
	sealed := h.order("job-1", "1.1.0", p)
	h.updater.HandleOrder(fromServer, sealed)
	h.awaitPhase("failed job-1")
	must(t, stop())
	h.spoil("last-job.json")
	if phase, job := StartPhase(h.data, nil); phase != PhaseIdle || job != "" {
		t.Errorf("start phase %s %s", phase, job)
	}
	h.run()
	h.updater.HandleOrder(fromServer, sealed)
	h.awaitPhase("failed job-1")
	h.await("the reason", func() bool { return strings.Contains(h.lastReport().Error, "is lost or damaged") })
	if o, err := install.LoadOutcome(h.data); err != nil || o.JobID != "job-1" || o.Result != install.Failed {
		t.Errorf("the record is now %+v, %v", o, err)
	}
}

func TestLostRecordOfACommittedJob(t *testing.T) {
	h := newHost(t)
	binary, err := os.ReadFile(h.cfg.Installed)
	must(t, err)
	p := h.publish(release.Manifest{Version: "1.0.0", Number: 5, Floor: 3}, string(binary))
	sealed := h.order("job-1", "1.0.0", p)
	o, err := order.Open(sealed, h.cfg.Verifier, h.cfg.HostID, time.Now())
	must(t, err)
	must(t, h.cfg.Fence.Accept(o))
	h.run()
	h.updater.HandleOrder(fromServer, sealed)
	h.awaitPhase("idle job-1")
	if tr, err := loadTrust(h.data); err != nil || tr.Highest != 5 || tr.Floor != 3 {
		t.Errorf("trust is %+v, %v", tr, err)
	}
}

// Every flipped byte and every truncation of trust.json is found out: a number
// that has rotted must not let an older release in.
func TestCorruptTrustIsFoundOut(t *testing.T) {
	dir := t.TempDir()
	want := trust{Highest: 77, Floor: 70}
	must(t, raiseTrust(dir, installed{Number: want.Highest}, want.Floor))
	file, err := os.ReadFile(trustPath(dir))
	must(t, err)
	check := func(content []byte, what string) {
		must(t, os.WriteFile(trustPath(dir), content, 0o600))
		if got, err := loadTrust(dir); err == nil && got != want {
			t.Errorf("%s: %+v", what, got)
		} else if err != nil && !strings.Contains(err.Error(), "remove it to trust any signed release once") {
			t.Errorf("%s: the error %q names no next step", what, err)
		}
		if err := raiseTrust(dir, installed{Number: 1}, 1); err == nil {
			if got, _ := loadTrust(dir); got != want {
				t.Errorf("%s: raising made of it %+v", what, got)
			}
		}
	}
	for i := range file {
		flipped := bytes.Clone(file)
		flipped[i] ^= 1
		check(flipped, fmt.Sprintf("byte %d flipped", i))
		check(file[:i], fmt.Sprintf("cut at %d", i))
	}
	for _, content := range []string{"null", "{}", `{"highest_number":1,"floor":0}`} {
		check([]byte(content), content)
	}
}

func TestCorruptMemoryOfFailuresIsBegunAnew(t *testing.T) {
	h := newHost(t)
	h.spoil("failed.json")
	h.run()
	p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, saysVersion("1.1.0"))
	h.ordered("job-1", "1.1.0", p, PhaseRestarting)
	must(t, install.RememberFailure(h.data, install.Failure{JobID: "job-1", Digest: p.digest, Reason: "crashed"}))
	if f, ok := install.FailedBefore(h.data, "job-1", p.digest); !ok || f.Reason != "crashed" {
		t.Errorf("remembered is %+v, %v", f, ok)
	}
}

// dueTrial is a job whose trial was due; nothing says how it ended.
func (h *host) dueTrial(digest string) install.Outcome {
	h.t.Helper()
	p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, saysVersion("1.1.0"))
	o := install.Outcome{
		JobID: "job-1", Attempt: 1, Index: 1, Result: install.Running, Version: "1.1.0", Digest: digest, Number: 5, Floor: 3,
		At: time.Now(), Order: h.order("job-1", "1.1.0", p), Staged: true,
	}
	must(h.t, install.SaveOutcome(h.data, o))
	return o
}

// The binary on trial may have been what took the host down: a job whose trial
// was due is not gone on with, whether its marker is there, corrupt or gone.
func TestJobWhoseTrialWasDueIsNotResumed(t *testing.T) {
	for _, marker := range []string{"gone", "stale", "corrupt"} {
		t.Run(marker, func(t *testing.T) {
			h := newHost(t)
			o := h.dueTrial(strings.Repeat("a", 64))
			switch marker {
			case "stale":
				must(t, install.SaveMarker(h.data, install.Marker{JobID: "job-1", Digest: o.Digest, StagedPath: "/s", State: install.OnTrial}))
			case "corrupt":
				h.spoil("trial.json")
			}
			if phase, job := StartPhase(h.data, nil); phase != PhaseRestarting || job != "job-1" {
				t.Errorf("start phase %s %s", phase, job)
			}
			stop := h.run()
			h.awaitPhase("rolled_back job-1")
			h.await("the reason", func() bool {
				return strings.Contains(h.lastReport().Error, "version 1.0.0 runs on") && strings.Contains(h.lastReport().Error, "start the update again")
			})
			must(t, stop())
			if got, err := install.LoadOutcome(h.data); err != nil || got.Result != install.Interrupted {
				t.Errorf("outcome %+v, %v", got, err)
			}
			if _, err := os.Stat(install.MarkerPath(h.data)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the marker is still there: %v", err)
			}
		})
	}
}

// The swap was done but the disk was too full to say so: what runs tells.
func TestUnrecordedCommitIsSeenByWhatRuns(t *testing.T) {
	h := newHost(t)
	h.dueTrial(h.cfg.Digest)
	h.run()
	h.awaitPhase("idle job-1")
	if o, err := install.LoadOutcome(h.data); err != nil || o.Result != install.Committed {
		t.Errorf("outcome %+v, %v", o, err)
	}
	if tr, err := loadTrust(h.data); err != nil || tr.Highest != 5 || tr.Floor != 3 {
		t.Errorf("trust is %+v, %v", tr, err)
	}
}

// A trial whose marker became unreadable waits for its supervisor's verdict: it
// neither commits itself nor begins the job anew.
func TestTrialWithACorruptMarkerDoesNotJudgeItself(t *testing.T) {
	h := newHost(t)
	o := h.dueTrial(h.cfg.Digest)
	h.spoil("trial.json")
	committed := make(chan struct{})
	h.cfg.Link = &SupervisorLink{trial: true, committed: committed, gone: make(chan struct{})}
	h.run()
	h.awaitPhase("trial job-1")
	if got, err := install.LoadOutcome(h.data); err != nil || got.Result != install.Running {
		t.Errorf("the trial wrote the outcome %+v, %v", got, err)
	}
	if tr, err := loadTrust(h.data); err != nil || tr.Highest != 0 {
		t.Errorf("the trial raised the trust: %+v, %v", tr, err)
	}
	o.Result, o.Order = install.Committed, nil
	must(t, install.SaveOutcome(h.data, o))
	close(committed)
	h.awaitPhase("idle job-1")
}

// Lines that a full disk did not take are written with the next that it does.
func TestJobLogCatchesUpAfterAnError(t *testing.T) {
	dir := t.TempDir()
	l, err := openJobLog(dir, "job-1")
	must(t, err)
	must(t, l.add(time.Now(), fleet.StreamAgent, "one"))
	whole := l.file
	l.file, err = os.Open(whole.Name()) // takes no writes
	must(t, err)
	for _, line := range []string{"two", "three"} {
		if err := l.add(time.Now(), fleet.StreamAgent, line); err == nil {
			t.Error("a line that could not be written is no error")
		}
	}
	must(t, l.close())
	l.file = whole
	must(t, l.add(time.Now(), fleet.StreamAgent, "four"))
	must(t, l.close())
	l, err = openJobLog(dir, "job-1")
	must(t, err)
	_, lines := l.unstored(1 << 20)
	must(t, l.close())
	var got []string
	for _, line := range lines {
		got = append(got, fmt.Sprint(line.Seq, " ", line.Line))
	}
	if want := []string{"1 one", "2 two", "3 three", "4 four"}; !slices.Equal(got, want) {
		t.Errorf("the log holds %q, want %q", got, want)
	}
}
