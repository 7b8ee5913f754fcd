//go:build linux

package updater

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"moult/consensus/fleet"
	"moult/mesh/identity"
	"moult/updater/artifact"
	"moult/updater/install"
	"moult/updater/order"
	"moult/updater/release"
)

// host is an agent's updater among real orders, manifests and peers; only the
// mesh is played by the test.
type host struct {
	t    *testing.T
	data string
	cfg  Config

	serverKey  ed25519.PrivateKey
	serverCert []byte
	releaseKey string // secret
	index      uint64

	peer  *httptest.Server
	serve *artifact.Store

	mu        sync.Mutex
	announced []string // "phase job"
	reports   []Report
	acks      bool
	updater   *Updater
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{t: t, data: t.TempDir(), acks: true}
	now := time.Now()
	ca, err := identity.NewCA("cluster-1", now)
	must(t, err)
	h.serverKey, err = identity.NewKey()
	must(t, err)
	certPEM, err := ca.Issue(identity.Identity{Cluster: "cluster-1", HostID: "server-1", Name: "s", Role: identity.RoleServer},
		h.serverKey.Public().(ed25519.PublicKey), now, time.Hour)
	must(t, err)
	block, _ := pem.Decode(certPEM)
	h.serverCert = block.Bytes
	verifier, err := identity.NewVerifier("cluster-1", ca.CertPEM())
	must(t, err)
	public, secret, err := release.GenerateKey()
	must(t, err)
	h.releaseKey = secret
	fence, err := order.OpenFence(filepath.Join(h.data, "fence.json"))
	must(t, err)

	h.serve, err = artifact.OpenStore(filepath.Join(t.TempDir(), "artifacts"), "", "")
	must(t, err)
	h.peer = httptest.NewTLSServer(artifact.Handler(h.serve, artifact.DefaultLimits))
	t.Cleanup(h.peer.Close)

	installed := filepath.Join(t.TempDir(), "moult")
	must(t, os.WriteFile(installed, []byte("#!/bin/sh\necho old\n"), 0o755))
	own := mustDigest(t, installed)
	store, err := artifact.OpenStore(filepath.Join(h.data, "artifacts"), own, installed)
	must(t, err)
	h.cfg = Config{
		HostID: "agent-1", Cluster: "cluster-1", Verifier: verifier, ReleaseKeys: release.Pinned(public), Fence: fence,
		DataDir: h.data, Installed: installed, Version: "1.0.0", Digest: own, Store: store, Mesh: h, HTTP: h.peer.Client(),
		Candidates: func(string) []artifact.Peer {
			return []artifact.Peer{{HostID: "agent-2", Name: "two", Role: "agent", Addr: h.peer.Listener.Addr().String()}}
		},
	}
	return h
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Announce and Report make the host its own mesh.
func (h *host) Announce(phase, job string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.announced = append(h.announced, phase+" "+job)
}

func (h *host) Report(_ context.Context, r Report) {
	h.mu.Lock()
	h.reports = append(h.reports, r)
	acks, u := h.acks, h.updater
	h.mu.Unlock()
	if n := len(r.Lines); n > 0 && acks {
		u.HandleAck(r.JobID, r.First+uint64(n)-1)
	}
}

func (h *host) phases() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Compact(slices.Clone(h.announced))
}

func (h *host) lastReport() Report {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.reports) == 0 {
		return Report{}
	}
	return h.reports[len(h.reports)-1]
}

// lines returns the job's log as the servers would store it, resends dropped.
func (h *host) lines() (out []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.reports {
		for i, l := range r.Lines {
			if n := r.First + uint64(i); n == uint64(len(out))+1 {
				out = append(out, l.Stream+": "+l.Line)
			}
		}
	}
	return out
}

// published is a release of one artifact, held by the peer.
type published struct {
	manifest, signature []byte
	digest              string
}

func (h *host) publish(m release.Manifest, binary string) published {
	h.t.Helper()
	sum := sha256.Sum256([]byte(binary))
	digest := hex.EncodeToString(sum[:])
	m.Product, m.Created = release.Product, time.Now().UTC()
	m.Artifacts = []release.Artifact{{OS: runtime.GOOS, Arch: runtime.GOARCH, Size: int64(len(binary)), SHA256: digest}}
	text, err := json.Marshal(m)
	must(h.t, err)
	sig, err := release.Sign(h.releaseKey, text)
	must(h.t, err)
	_, err = h.serve.Import(strings.NewReader(binary), 1<<20, func(string, int64) bool { return true })
	must(h.t, err)
	return published{text, sig, digest}
}

func saysVersion(v string) string { return fmt.Sprintf("#!/bin/sh\necho '{\"version\":%q}'\n", v) }

// order seals an order for a published release under the next index.
func (h *host) order(job, version string, p published) []byte {
	h.t.Helper()
	return h.orderWith(job, version, p, func(*order.Order) {})
}

// orderWith lets the test add to the order before it is sealed.
func (h *host) orderWith(job, version string, p published, also func(*order.Order)) []byte {
	h.t.Helper()
	h.index++
	o := order.Order{
		Cluster: "cluster-1", HostID: "agent-1", JobID: job, Attempt: 1, Action: order.ActionUpdate, Version: version,
		Manifest: p.manifest, Signature: p.signature, Index: h.index, Expires: time.Now().Add(5 * time.Minute),
	}
	also(&o)
	sealed, err := order.Seal(o, h.serverKey, h.serverCert)
	must(h.t, err)
	return sealed
}

var fromServer = identity.Identity{Cluster: "cluster-1", HostID: "server-1", Role: identity.RoleServer}

// run starts an updater on the host's files; stop ends it and returns its error.
func (h *host) run() (stop func() error) {
	h.t.Helper()
	var err error
	h.cfg.Fence, err = order.OpenFence(filepath.Join(h.data, "fence.json")) // as a new process does
	must(h.t, err)
	u, err := New(h.cfg)
	must(h.t, err)
	h.mu.Lock()
	h.updater, h.announced, h.reports = u, nil, nil
	h.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- u.Run(ctx) }()
	stop = sync.OnceValue(func() error { cancel(); return <-ended })
	h.t.Cleanup(func() { _ = stop() })
	h.awaitPhase("")
	return stop
}

// awaitPhase waits for an announcement that begins with prefix.
func (h *host) awaitPhase(prefix string) {
	h.t.Helper()
	h.await("phase "+prefix, func() bool {
		return slices.ContainsFunc(h.phases(), func(p string) bool { return strings.HasPrefix(p, prefix) })
	})
}

func (h *host) await(what string, condition func() bool) {
	h.t.Helper()
	defer func() {
		if h.t.Failed() {
			h.t.Logf("phases %q, lines %q", h.phases(), h.lines())
		}
	}()
	awaitCondition(h.t, what, condition)
}

// give delivers an order once no job is under way and the queue has room, as the servers do by sending
// theirs again: a job is announced as failed a moment before it makes room.
func (h *host) give(sealed []byte) {
	h.t.Helper()
	h.await("the end of the job before", func() bool {
		_, _, busy := h.updater.standing()
		return !busy && len(h.updater.orders) == 0
	})
	h.updater.HandleOrder(fromServer, sealed)
}

// ordered gives the order and waits for the phase.
func (h *host) ordered(job, version string, p published, phase string) {
	h.t.Helper()
	h.give(h.order(job, version, p))
	h.awaitPhase(phase + " " + job)
}

func (h *host) mustFail(job, version string, p published, reason string) {
	h.t.Helper()
	h.ordered(job, version, p, PhaseFailed)
	h.await("the reason in a report", func() bool { return strings.Contains(h.lastReport().Error, reason) })
	if _, err := install.LoadMarker(h.data); !errors.Is(err, install.ErrNoMarker) {
		h.t.Errorf("a failed job left a marker: %v", err)
	}
}

// awaitLastLine waits for the report of a job that comes to its trial.
func (h *host) awaitLastLine() {
	h.t.Helper()
	h.await("the log's last line", func() bool { return slices.Contains(h.lines(), "agent: restarting on trial") })
}

func TestJobEndsInAStagedTrial(t *testing.T) {
	h := newHost(t)
	stop := h.run()
	p := h.publish(release.Manifest{Version: "1.1.0", Number: 5, Floor: 2}, saysVersion("1.1.0"))
	h.ordered("job-1", "1.1.0", p, PhaseRestarting)
	h.awaitLastLine()
	if err := stop(); !errors.Is(err, ErrRestart) && err != nil {
		t.Fatalf("Run returned %v", err)
	}
	want := []string{"idle ", "fetching job-1", "verifying job-1", "preflight job-1", "restarting job-1"}
	if got := h.phases(); !slices.Equal(got, want) {
		t.Errorf("phases %q, want %q", got, want)
	}
	m, err := install.LoadMarker(h.data)
	must(t, err)
	if m.JobID != "job-1" || m.Version != "1.1.0" || m.Digest != p.digest || m.Number != 5 || m.Floor != 2 || m.Index != 1 || m.FromDigest != h.cfg.Digest || m.State != install.Staged {
		t.Errorf("marker is %+v", m)
	}
	if got := mustDigest(t, m.StagedPath); got != p.digest {
		t.Errorf("staged is %s", got)
	}
	// With this on record no later start resumes the job, whatever becomes of the marker.
	if o, err := install.LoadOutcome(h.data); err != nil || !o.Staged || o.Result != install.Running || o.Digest != p.digest || o.Number != 5 || o.Floor != 2 {
		t.Errorf("outcome is %+v, %v", o, err)
	}
	if r := h.lastReport(); len(r.Sources) != 1 || r.Sources[0].HostID != "agent-2" || r.Sources[0].Bytes != r.Total || r.Done != r.Total {
		t.Errorf("report is %+v", r)
	}
}

// A host that may not restart yet stays as it is, and says why.
func TestJobOfAHostThatMayNotRestart(t *testing.T) {
	h := newHost(t)
	h.cfg.MayRestart = func(context.Context) error { return errors.New("the other servers are no majority") }
	h.run()
	p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, saysVersion("1.1.0"))
	h.mustFail("job-1", "1.1.0", p, "the other servers are no majority")
}

// Where somebody else prunes the store, the updater deletes nothing in it.
func TestJobKeepsAllArtifacts(t *testing.T) {
	h := newHost(t)
	h.cfg.Spare = -1
	var digests []string
	for i := range 2 * spareArtifacts {
		digest, err := h.cfg.Store.Import(strings.NewReader(fmt.Sprint("release ", i)), 1<<20, func(string, int64) bool { return true })
		must(t, err)
		digests = append(digests, digest)
	}
	h.run()
	h.ordered("job-1", "1.1.0", h.publish(release.Manifest{Version: "1.1.0", Number: 5}, saysVersion("1.1.0")), PhaseRestarting)
	for _, digest := range digests {
		if !h.cfg.Store.Has(digest) {
			t.Errorf("artifact %.12s was deleted", digest)
		}
	}
}

func TestRunReturnsErrRestart(t *testing.T) {
	h := newHost(t)
	u, err := New(h.cfg)
	must(t, err)
	h.updater = u
	p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, saysVersion("1.1.0"))
	u.HandleOrder(fromServer, h.order("job-1", "1.1.0", p))
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := u.Run(ctx); !errors.Is(err, ErrRestart) {
		t.Fatalf("Run returned %v, want ErrRestart", err)
	}
	if lines := h.lines(); len(lines) < 5 || lines[len(lines)-1] != "agent: restarting on trial" {
		t.Errorf("the servers have %q", lines)
	}
}

func TestRefusedReleases(t *testing.T) {
	for name, tt := range map[string]struct {
		manifest release.Manifest
		binary   string
		spoil    func(*host, *published)
		reason   string
	}{
		"older":         {release.Manifest{Version: "0.9.0", Number: 4}, "", nil, "is older than number 5"},
		"below floor":   {release.Manifest{Version: "0.1.0", Number: 2, Rollback: true}, "", nil, "below the floor 3"},
		"expired":       {release.Manifest{Version: "1.2.0", Number: 6, Expires: new(time.Unix(1, 0))}, "", nil, "expired"},
		"bad signature": {release.Manifest{Version: "1.2.0", Number: 6}, "", func(_ *host, p *published) { p.manifest = append(p.manifest, ' ') }, "not by a pinned release key"},
		"other version": {release.Manifest{Version: "1.3.0", Number: 6}, "", nil, "its manifest is of 1.3.0"},
		"lying binary":  {release.Manifest{Version: "1.2.0", Number: 6}, saysVersion("6.6.6"), nil, `says it is version "6.6.6"`},
		"rolled back before": {release.Manifest{Version: "1.2.0", Number: 6}, "", func(h *host, p *published) {
			must(h.t, install.RememberFailure(h.data, install.Failure{JobID: "job-1", Digest: p.digest, Reason: "exit status 3"}))
		}, "rolled back before in this job: exit status 3"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			must(t, raiseTrust(h.data, installed{Number: 5}, 3))
			h.run()
			if tt.binary == "" {
				tt.binary = saysVersion(tt.manifest.Version)
			}
			p := h.publish(tt.manifest, tt.binary)
			if tt.spoil != nil {
				tt.spoil(h, &p)
			}
			version := tt.manifest.Version
			if name == "other version" {
				version = "1.2.0"
			}
			h.mustFail("job-1", version, p, tt.reason)
		})
	}
}

func TestSignedRollbackIsTaken(t *testing.T) {
	h := newHost(t)
	must(t, raiseTrust(h.data, installed{Number: 5}, 3))
	h.run()
	p := h.publish(release.Manifest{Version: "0.9.0", Number: 4, Rollback: true}, saysVersion("0.9.0"))
	h.ordered("job-1", "0.9.0", p, PhaseRestarting)
}

func TestUnreadableTrustRefusesReleases(t *testing.T) {
	h := newHost(t)
	must(t, os.WriteFile(trustPath(h.data), []byte("{"), 0o600))
	h.run()
	h.mustFail("job-1", "1.1.0", h.publish(release.Manifest{Version: "1.1.0", Number: 9}, saysVersion("1.1.0")), "trust.json")
}

func TestOrdersThatChangeNothing(t *testing.T) {
	h := newHost(t)
	h.run()
	p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, saysVersion("6.6.6"))
	old := h.order("job-0", "1.1.0", p)
	sealed := h.order("job-1", "1.1.0", p)
	h.updater.HandleOrder(identity.Identity{HostID: "agent-9", Role: identity.RoleAgent}, sealed)
	h.updater.HandleOrder(fromServer, []byte("junk"))
	h.updater.HandleOrder(fromServer, sealed)
	h.awaitPhase("failed job-1")
	// A lower index, then the same order again: only a new announcement of the same.
	before := len(h.announcedAll())
	h.updater.HandleOrder(fromServer, old)
	h.updater.HandleOrder(fromServer, sealed)
	h.await("the repeated announcement", func() bool { return len(h.announcedAll()) > before })
	if all := h.announcedAll(); all[len(all)-1] != "failed job-1" || slices.Contains(all, "fetching job-0") {
		t.Errorf("announced %q", all)
	}
}

func (h *host) announcedAll() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.announced)
}

func TestAlreadyInstalledDigestSucceedsAtOnce(t *testing.T) {
	h := newHost(t)
	h.run()
	binary, err := os.ReadFile(h.cfg.Installed)
	must(t, err)
	h.ordered("job-1", "1.0.0", h.publish(release.Manifest{Version: "1.0.0", Number: 5}, string(binary)), PhaseIdle)
	if tr, err := loadTrust(h.data); err != nil || tr.Highest != 5 {
		t.Errorf("trust is %+v, %v", tr, err)
	}
}

// The same bytes under another version would be judged as a host that came back
// in the wrong one, long after the fact.
func TestRunningBinaryUnderAnotherVersionIsRefused(t *testing.T) {
	h := newHost(t)
	h.run()
	binary, err := os.ReadFile(h.cfg.Installed)
	must(t, err)
	h.mustFail("job-1", "2.0.0", h.publish(release.Manifest{Version: "2.0.0", Number: 5}, string(binary)), "says that it is version 1.0.0")
	if tr, err := loadTrust(h.data); err != nil || tr.Highest != 0 {
		t.Errorf("trust is %+v, %v: nothing was installed", tr, err)
	}
}

// Bytes that proved bad are nobody's part of the artifact.
func TestBadBytesCountForNobody(t *testing.T) {
	u := newHost(t)
	u.run()
	report := func() Report { r, _ := u.updater.compose(); return r }
	u.updater.mu.Lock()
	u.updater.status = status{job: "job-1", sources: map[string]fleet.Source{}}
	u.updater.mu.Unlock()
	u.updater.progress("job-1", 1000, 900, artifact.Peer{HostID: "bad"})
	u.updater.progress("job-1", 1000, 100, artifact.Peer{HostID: "good"})
	u.updater.progress("job-1", 1000, 300, artifact.Peer{HostID: "good"})
	if s := report().Sources; len(s) != 1 || s[0].HostID != "good" || s[0].Bytes != 300 {
		t.Errorf("sources are %+v", s)
	}
}

// A job goes on where the agent was stopped; the order behind it is fenced, so
// its resend alone would not start it again.
func TestJobGoesOnAfterARestart(t *testing.T) {
	h := newHost(t)
	gate := make(chan struct{})
	candidates := h.cfg.Candidates
	h.cfg.Candidates = func(d string) []artifact.Peer {
		select {
		case <-gate:
			return candidates(d)
		default:
			return nil
		}
	}
	stop := h.run()
	p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, saysVersion("1.1.0"))
	h.ordered("job-1", "1.1.0", p, PhaseFetching)
	must(t, stop())
	if o, err := install.LoadOutcome(h.data); err != nil || o.Result != install.Running {
		t.Fatalf("outcome %+v, %v", o, err)
	}
	if phase, job := StartPhase(h.data, nil); phase != PhaseFetching || job != "job-1" {
		t.Errorf("start phase %s %s", phase, job)
	}
	close(gate)
	h.run()
	h.awaitPhase("restarting job-1")
	h.await("the log", func() bool {
		return slices.Contains(h.lines(), "agent: the agent was restarted; going on with the update")
	})
}

func TestJobIsGivenUpAfterManyRestarts(t *testing.T) {
	h := newHost(t)
	must(t, install.SaveOutcome(h.data, install.Outcome{JobID: "job-1", Result: install.Running, Resumes: maxResumes, At: time.Now()}))
	h.run()
	h.awaitPhase("failed job-1")
}

func TestRollBackIsReportedByTheOldBinary(t *testing.T) {
	h := newHost(t)
	must(t, install.SaveOutcome(h.data, install.Outcome{
		JobID: "job-1", Result: install.RolledBack, Version: "1.1.0", Number: 9,
		Reason: "exit status 3: panic", LastOutput: []string{"starting", "panic"},
	}))
	if phase, job := StartPhase(h.data, nil); phase != PhaseRolledBack || job != "job-1" {
		t.Errorf("start phase %s %s", phase, job)
	}
	stop := h.run()
	h.awaitPhase("rolled_back job-1")
	want := []string{"output: starting", "output: panic", "agent: rolled back: exit status 3: panic"}
	h.await("the log", func() bool { return slices.Equal(h.lines(), want) })
	if r := h.lastReport(); r.Error != "exit status 3: panic" || r.LastOutput != "panic" {
		t.Errorf("report is %+v", r)
	}
	if tr, err := loadTrust(h.data); err != nil || tr.Highest != 0 {
		t.Errorf("a rolled back release raised the trust: %+v, %v", tr, err)
	}
	// The next start says the same, without writing it twice.
	must(t, stop())
	h.run()
	h.await("the log again", func() bool { return slices.Equal(h.lines(), want) })
}

func TestTrialIsAnnouncedThenCommitted(t *testing.T) {
	h := newHost(t)
	m := install.Marker{JobID: "job-1", Version: "1.1.0", Digest: h.cfg.Digest, Number: 7, Floor: 2, StagedPath: "/s", Starts: 1, State: install.OnTrial}
	must(t, install.SaveMarker(h.data, m))
	committed := make(chan struct{})
	h.cfg.Link = &SupervisorLink{trial: true, committed: committed, gone: make(chan struct{})}
	if phase, job := StartPhase(h.data, h.cfg.Link); phase != PhaseTrial || job != "job-1" {
		t.Errorf("start phase %s %s", phase, job)
	}
	h.run()
	h.awaitPhase("trial job-1")
	if slices.ContainsFunc(h.phases(), func(p string) bool { return strings.HasPrefix(p, PhaseIdle) }) {
		t.Error("a trial was announced as idle")
	}
	must(t, install.SaveOutcome(h.data, install.OutcomeOf(m, install.Committed, time.Now())))
	must(t, install.RemoveMarker(h.data))
	close(committed)
	h.awaitPhase("idle job-1")
	if tr, err := loadTrust(h.data); err != nil || tr.Highest != 7 || tr.Floor != 2 {
		t.Errorf("trust is %+v, %v", tr, err)
	}
}

func TestUnacknowledgedLinesAreSentAgain(t *testing.T) {
	h := newHost(t)
	h.acks = false
	must(t, install.SaveOutcome(h.data, install.Outcome{JobID: "job-1", Result: install.Failed, Reason: "no space"}))
	h.run()
	withLines := func() (n int) {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, r := range h.reports {
			if r.First == 1 && len(r.Lines) == 1 {
				n++
			}
		}
		return n
	}
	h.await("resends", func() bool { return withLines() >= 3 })
	h.updater.HandleAck("another-job", 1)
	h.updater.HandleAck("job-1", 1)
	if r, _ := h.updater.compose(); len(r.Lines) != 0 {
		t.Errorf("acknowledged lines are still sent: %+v", r.Lines)
	}
}

func TestJobLogSurvivesATornLineAndIsBounded(t *testing.T) {
	dir := t.TempDir()
	l, err := openJobLog(dir, "job-1")
	must(t, err)
	must(t, l.add(time.Now(), fleet.StreamAgent, "one"))
	must(t, l.close())
	path := filepath.Join(dir, "job-log-job-1.jsonl")
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteString(`{"seq":2,"line":"to`)
	must(t, err)
	must(t, f.Close())
	l, err = openJobLog(dir, "job-1")
	must(t, err)
	for range 3000 {
		must(t, l.add(time.Now(), fleet.StreamOutput, strings.Repeat("x", 2000)))
	}
	must(t, l.close())
	if st, err := os.Stat(path); err != nil || st.Size() > maxJobLog {
		t.Errorf("size %v, %v", st.Size(), err)
	}
	l, err = openJobLog(dir, "job-1")
	must(t, err)
	first, lines := l.unstored(1 << 30)
	if first != 1 || lines[0].Line != "one" || lines[1].Seq != 2 || lines[len(lines)-1].Line != logFull {
		t.Errorf("lines %d from %d, last %+v", len(lines), first, lines[len(lines)-1])
	}
	must(t, l.close())
	if _, err := openJobLog(dir, "../evil"); err == nil {
		t.Error("a job id that is a path was taken")
	}
	l, err = openJobLog(dir, "job-2")
	must(t, err)
	must(t, l.close())
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("another job's log was kept: %v", err)
	}
}
