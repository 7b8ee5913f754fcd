//go:build linux

package updater

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"moult/updater/install"
	"moult/updater/order"
	"moult/updater/release"
)

// newKey makes a release key pair.
func newKey(t *testing.T) (public, secret string) {
	t.Helper()
	text, secret, err := release.GenerateKey()
	must(t, err)
	public, err = release.ParsePublicKey(text)
	must(t, err)
	return public, secret
}

// state signs a key statement for the host's cluster with the key that signs its
// releases now.
func (h *host) state(number uint64, threshold int, keys ...string) release.SignedStatement {
	h.t.Helper()
	signed, err := release.SignStatement(h.releaseKey, release.Statement{
		Cluster: "cluster-1", Number: number, Threshold: threshold, Keys: keys, Created: time.Now(),
	})
	must(h.t, err)
	return signed
}

// The whole rotation as a host lives it: a new key comes in by the old one's
// word, the old one goes by the new one's, and stays out over a restart.
func TestReleaseKeysRotate(t *testing.T) {
	h := newHost(t)
	stop := h.run()
	oldKey, old := h.releaseKey, h.cfg.ReleaseKeys.Keys[0]
	newPublic, newSecret := newKey(t)
	both := h.state(1, 1, old, newPublic)
	h.releaseKey = newSecret
	onlyNew := h.state(2, 1, newPublic)
	p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, saysVersion("6.6.6"))
	h.mustFail("job-1", "1.1.0", p, "not by a pinned release key")

	// With the order come the statements that the host has not heard of.
	h.give(h.orderWith("job-2", "1.1.0", p, func(o *order.Order) { o.KeyStatements = []release.SignedStatement{both} }))
	h.awaitPhase("preflight job-2")
	h.awaitPhase("failed job-2")
	if n, err := h.updater.TakeKeyStatements([]release.SignedStatement{both, onlyNew}); n != 2 || err != nil {
		t.Fatalf("the host follows statement %d, %v", n, err)
	}
	must(t, stop())
	if now := PinnedKeys(h.data, "cluster-1", h.cfg.ReleaseKeys); now.Number != 2 || len(now.Keys) != 1 || now.Keys[0] != newPublic {
		t.Errorf("beside the updater the keys are %+v", now)
	}
	if other := PinnedKeys(h.data, "cluster-2", h.cfg.ReleaseKeys); !other.Equal(h.cfg.ReleaseKeys) {
		t.Errorf("in another cluster they are %+v", other)
	}
	h.run()
	h.releaseKey = oldKey
	h.mustFail("job-3", "1.2.0", h.publish(release.Manifest{Version: "1.2.0", Number: 6}, saysVersion("1.2.0")), "not by a pinned release key")
	// Back in by its own word, or by the first statement again: no.
	for name, list := range map[string][]release.SignedStatement{
		"its own word":        {h.state(3, 1, old)},
		"the first statement": {both},
	} {
		if n, _ := h.updater.TakeKeyStatements(list); n != 2 {
			t.Errorf("%s: the host follows statement %d", name, n)
		}
	}
	h.releaseKey = newSecret
	h.ordered("job-4", "1.3.0", h.publish(release.Manifest{Version: "1.3.0", Number: 7}, saysVersion("1.3.0")), PhaseRestarting)
}

// Of two statements with one number a host keeps to the first, and tells the servers,
// a restart later too. What nobody signed who could is no second one.
func TestForkedKeyStatements(t *testing.T) {
	h := newHost(t)
	stop := h.run()
	oldKey, old := h.releaseKey, h.cfg.ReleaseKeys.Keys[0]
	second, secondSecret := newKey(t)
	evil, evilSecret := newKey(t)
	first, forged := h.state(1, 1, old, second), h.state(1, 1, evil)
	h.releaseKey = evilSecret
	unsigned, elsewhere := h.state(1, 1, evil), h.state(2, 1, evil)
	h.releaseKey = secondSecret
	next := h.state(2, 1, second)
	if n, err := h.updater.TakeKeyStatements([]release.SignedStatement{first}); n != 1 || err != nil {
		t.Fatalf("the host follows statement %d, %v", n, err)
	}
	resigned := first // by others who may: the same statement
	var err error
	resigned.Signature, err = release.AddSignature(oldKey, first.Statement, nil)
	must(t, err)
	for name, s := range map[string]release.SignedStatement{"the same": first, "signed anew": resigned, "by no key of ours": unsigned} {
		if n, err := h.updater.TakeKeyStatements([]release.SignedStatement{s}); n != 1 || err != nil {
			t.Errorf("%s: the host follows statement %d, %v", name, n, err)
		}
	}
	if r, _ := h.updater.compose(); r.KeyFork != nil {
		t.Fatalf("a fork is reported of %+v", r.KeyFork)
	}

	// What follows on the first goes on to be followed, and is looked at further back.
	if n, err := h.updater.TakeKeyStatements([]release.SignedStatement{forged, next, elsewhere}); n != 2 || !errors.Is(err, ErrForkedKeys) {
		t.Errorf("the host follows statement %d, %v", n, err)
	}
	want := &KeyFork{Number: 1, Follows: statementHash(first), Refused: statementHash(forged)}
	reported := func() bool { return reflect.DeepEqual(h.lastReport().KeyFork, want) && h.lastReport().JobID == "" }
	h.await("the report", reported)
	keys := func() release.KeySet { return PinnedKeys(h.data, "cluster-1", h.cfg.ReleaseKeys) }
	if now := keys(); now.Number != 2 || !slices.Equal(now.Keys, []string{second}) {
		t.Errorf("the keys are %+v", now)
	}
	must(t, stop())
	h.mu.Lock()
	h.reports = nil
	h.mu.Unlock()
	h.run()
	h.await("the report after a restart", reported)
}

// A host that got its keys when it joined cannot tell who signed a statement of their
// number, and tells of one that names other keys.
func TestForkOfTheKeysOfTheJoining(t *testing.T) {
	h := newHost(t)
	other, _ := newKey(t)
	h.cfg.ReleaseKeys.Number = 3
	stop := h.run()
	same, differs, before := h.state(3, 1, h.cfg.ReleaseKeys.Keys...), h.state(3, 1, other), h.state(2, 1, other)
	if n, err := h.updater.TakeKeyStatements([]release.SignedStatement{same, before}); n != 3 || err != nil {
		t.Errorf("the host follows statement %d, %v", n, err)
	}
	if n, err := h.updater.TakeKeyStatements([]release.SignedStatement{differs}); n != 3 || !errors.Is(err, ErrForkedKeys) {
		t.Errorf("the host follows statement %d, %v", n, err)
	}
	reported := func() bool {
		return reflect.DeepEqual(h.lastReport().KeyFork, &KeyFork{Number: 3, Refused: statementHash(differs)})
	}
	h.await("the report", reported)
	must(t, stop())
	h.mu.Lock()
	h.reports = nil
	h.mu.Unlock()
	h.run()
	h.await("the report after a restart", reported)
}

// What a server says when the host starts, or joins again, moves no pin.
func TestPinsOutliveWhatServersSay(t *testing.T) {
	h := newHost(t)
	stop := h.run()
	must(t, stop())
	evil, evilSecret := newKey(t)
	good := h.releaseKey
	h.cfg.ReleaseKeys = release.KeySet{Number: 99, Threshold: 1, Keys: []string{evil}}
	h.run()
	h.releaseKey = evilSecret
	h.mustFail("job-1", "1.1.0", h.publish(release.Manifest{Version: "1.1.0", Number: 5}, saysVersion("1.1.0")), "not by a pinned release key")
	h.releaseKey = good
	h.ordered("job-2", "1.2.0", h.publish(release.Manifest{Version: "1.2.0", Number: 6}, saysVersion("1.2.0")), PhaseRestarting)
}

// A host that was moved to another cluster believes that one's keys.
func TestPinsAreOfOneCluster(t *testing.T) {
	h := newHost(t)
	other, _ := newKey(t)
	must(t, install.SaveSealed(trustPath(h.data), trust{Highest: 3, Keys: &pinnedKeys{Cluster: "cluster-0", KeySet: release.Pinned(other)}}))
	h.run()
	h.ordered("job-1", "1.1.0", h.publish(release.Manifest{Version: "1.1.0", Number: 5}, saysVersion("1.1.0")), PhaseRestarting)
	tr, err := loadTrust(h.data)
	if err != nil || tr.Highest != 3 || tr.Keys == nil || tr.Keys.Cluster != "cluster-1" {
		t.Errorf("trust is %+v, %v", tr, err)
	}
}

// One key of two is not enough, whoever of the two it is; and to lower the
// threshold takes as many as to release.
func TestThresholdOfTwo(t *testing.T) {
	h := newHost(t)
	second, secondSecret := newKey(t)
	h.cfg.ReleaseKeys = release.KeySet{Threshold: 2, Keys: []string{h.cfg.ReleaseKeys.Keys[0], second}}
	h.run()
	p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, saysVersion("1.1.0"))
	h.mustFail("job-1", "1.1.0", p, "too few of the pinned release keys signed")
	if n, err := h.updater.TakeKeyStatements([]release.SignedStatement{h.state(1, 1, second)}); n != 0 || !errors.Is(err, release.ErrTooFewSignatures) {
		t.Errorf("the host follows statement %d, %v", n, err)
	}
	var err error
	p.signature, err = release.AddSignature(secondSecret, p.manifest, p.signature)
	must(t, err)
	h.ordered("job-2", "1.1.0", p, PhaseRestarting)
}

// Statements that cannot be written down are not followed: after a restart they
// would be forgotten.
func TestStatementsThatCannotBeWritten(t *testing.T) {
	h := newHost(t)
	h.run()
	next, _ := newKey(t)
	s := h.state(1, 1, next)
	must(t, os.WriteFile(trustPath(h.data), []byte("{"), 0o600))
	if n, err := h.updater.TakeKeyStatements([]release.SignedStatement{s}); n != 0 || err == nil || !strings.Contains(err.Error(), "trust.json") {
		t.Errorf("with a damaged file: %d, %v", n, err)
	}
	if k := PinnedKeys(h.data, "cluster-1", h.cfg.ReleaseKeys); len(k.Keys) > 0 {
		t.Errorf("with a damaged file these keys are believed: %+v", k)
	}
	must(t, os.Remove(trustPath(h.data)))
	must(t, os.Mkdir(filepath.Join(h.data, ".trust.json.new"), 0o700)) // the file that would be renamed
	if n, err := h.updater.TakeKeyStatements([]release.SignedStatement{s}); n != 0 || err == nil {
		t.Errorf("with a file that cannot be written: %d, %v", n, err)
	}
}

// min_from is held against the number of the release that runs, which the host
// knows by itself or by the signed manifest that comes with the order.
func TestLowestNumberToReplace(t *testing.T) {
	h := newHost(t)
	h.run()
	binary, err := os.ReadFile(h.cfg.Installed)
	must(t, err)
	own := h.publish(release.Manifest{Version: "1.0.0", Number: 4}, string(binary))
	young := h.publish(release.Manifest{Version: "0.9.0", Number: 9}, saysVersion("0.9.0"))
	from4 := h.publish(release.Manifest{Version: "1.1.0", Number: 10, MinFrom: 4}, saysVersion("6.6.6"))
	from5 := h.publish(release.Manifest{Version: "1.2.0", Number: 11, MinFrom: 5}, saysVersion("6.6.6"))
	offer := func(job, version string, p published, from published, phase string) {
		h.t.Helper()
		h.give(h.orderWith(job, version, p, func(o *order.Order) { o.FromManifest, o.FromSignature = from.manifest, from.signature }))
		h.awaitPhase(phase + " " + job)
		h.awaitPhase("failed " + job)
		if passed := slices.Contains(h.phases(), PhasePreflight+" "+job); passed != (phase == PhasePreflight) {
			h.t.Errorf("%s passed: %t; phases %q", job, passed, h.phases())
		}
	}
	h.mustFail("job-1", "1.1.0", from4, "is not known here")
	offer("job-2", "1.1.0", from4, young, PhaseFailed) // not the manifest of what runs
	offer("job-3", "1.1.0", from4, published{manifest: own.manifest, signature: young.signature}, PhaseFailed)
	offer("job-4", "1.1.0", from4, own, PhasePreflight)
	offer("job-5", "1.2.0", from5, own, PhaseFailed)
	h.await("the reason", func() bool { return strings.Contains(h.lastReport().Error, "this host runs number 4") })

	must(t, raiseTrust(h.data, installed{Version: "1.0.0", Number: 5, Digest: h.cfg.Digest}, 0))
	h.give(h.order("job-6", "1.2.0", from5))
	h.awaitPhase("preflight job-6")
	// Put in place by hand since: what the host remembers is of another binary.
	must(t, raiseTrust(h.data, installed{Version: "1.0.0", Number: 6, Digest: strings.Repeat("a", 64)}, 0))
	h.awaitPhase("failed job-6")
	h.mustFail("job-7", "1.2.0", from5, "is not known here")
}

// A release that has expired while it runs is told of, day after day, and runs on.
func TestFrozenHostSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log syncBuffer
		data, digest := t.TempDir(), strings.Repeat("d", 64)
		u := &Updater{cfg: Config{DataDir: data, Digest: digest}, slog: slog.New(slog.NewTextHandler(&log, nil))}
		expires := time.Now().Add(10 * time.Hour)
		must(t, raiseTrust(data, installed{Version: "1.1.0", Number: 5, Digest: digest, Expires: &expires}, 0))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { u.watchExpiry(ctx); close(ended) }()
		said := func() int { synctest.Wait(); return strings.Count(log.String(), "has expired and no newer one came") }
		time.Sleep(9 * time.Hour)
		if n := said(); n != 0 {
			t.Errorf("said %d times before it expired", n)
		}
		time.Sleep(2 * time.Hour)
		if n := said(); n != 1 {
			t.Errorf("said %d times when it had expired", n)
		}
		time.Sleep(3 * expiryReminder)
		if n := said(); n != 4 {
			t.Errorf("said %d times three days later", n)
		}
		cancel()
		<-ended
	})
}

// The expiry is on record when the trial has committed.
func TestExpiryIsRememberedWithTheRelease(t *testing.T) {
	h := newHost(t)
	h.run()
	binary, err := os.ReadFile(h.cfg.Installed)
	must(t, err)
	expires := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	p := h.publish(release.Manifest{Version: "1.0.0", Number: 5, Expires: &expires}, string(binary))
	h.ordered("job-1", "1.0.0", p, PhaseIdle)
	tr, err := loadTrust(h.data)
	want := &installed{Version: "1.0.0", Number: 5, Digest: h.cfg.Digest, Expires: &expires}
	if err != nil || !reflect.DeepEqual(tr.Installed, want) {
		t.Errorf("trust is %s, %v", mustJSON(t, tr), err)
	}
	m := install.Marker{JobID: "j", Digest: p.digest, StagedPath: "x", Expires: &expires}
	if o := install.OutcomeOf(m, install.Committed, time.Now()); o.Expires == nil || !o.Expires.Equal(expires) {
		t.Errorf("a trial's outcome is %+v", o)
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	must(t, err)
	return string(b)
}
