package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/gob"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"moult/consensus/coordinator"
	"moult/consensus/fleet"
	"moult/mesh"
	"moult/mesh/identity"
	"moult/updater/artifact"
	"moult/updater/order"
	"moult/webui"
)

// scaleFigure is one number of a fleet.
type scaleFigure struct {
	Part, What, Unit string
	Value            float64
}

// figures collects them in the order in which they are measured.
type figures struct {
	t    *testing.T
	part string
	all  []scaleFigure
}

func (f *figures) say(what, unit string, value float64) {
	f.all = append(f.all, scaleFigure{f.part, what, unit, value})
}

// spread tells of samples of time.
func (f *figures) spread(what string, took []time.Duration) {
	slices.Sort(took)
	f.say(what+", median", "ms", milliseconds(quantile(took, 50)))
	f.say(what+", p95", "ms", milliseconds(quantile(took, 95)))
	f.say(what+", p99", "ms", milliseconds(quantile(took, 99)))
	f.say(what+", worst", "ms", milliseconds(took[len(took)-1]))
}

func quantile(sorted []time.Duration, percent int) time.Duration {
	return sorted[min(len(sorted)-1, len(sorted)*percent/100)]
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// repeated returns the median time of some calls.
func repeated(times int, do func()) time.Duration {
	var took []time.Duration
	for range times {
		begin := realTime()
		do()
		took = append(took, realTime()-begin)
	}
	slices.Sort(took)
	return quantile(took, 50)
}

// heapOf returns what make leaves on the heap, in bytes.
func heapOf[T any](build func() T) (T, float64) {
	before := liveHeap()
	made := build()
	after := liveHeap()
	runtime.KeepAlive(build) // and what it was made of
	return made, float64(after) - float64(before)
}

// liveHeap is what is left after some collections: what has a finalizer, or lies in a
// pool, takes more than one.
func liveHeap() uint64 {
	const rounds = 6
	var m runtime.MemStats
	for range rounds {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// measureScale measures what a fleet costs a server.
func measureScale(t *testing.T, r scaleRun) []scaleFigure {
	f := &figures{t: t}
	f.update(r)
	f.memory(r)
	f.snapshots(r)
	f.gossip(r)
	f.staging(r)
	f.pages(r)
	return f.all
}

func (f *figures) update(r scaleRun) {
	n, entries, bytes := float64(len(r.hosts)), float64(len(r.log)-r.atFirst), 0
	for _, raw := range r.log[r.atFirst:] {
		bytes += len(raw)
	}
	f.part = "fleet update"
	f.say("hosts' time for it", "hours", r.lasted.Hours())
	f.say("processor time, three servers and all hosts", "s", r.cpu.Seconds())
	f.say("the same, per host", "ms", milliseconds(r.cpu)/n)
	f.say("log entries per host", "", entries/n)
	f.say("log per host", "B", float64(bytes)/n)
	f.part = "coordinator"
	f.spread("from a look to the change that it proposes", r.took.plan)
	f.spread("from a success to the next order, two commits without their disk", r.took.turnaround)
	f.spread("from another host's record to rest", r.look)
	f.part = "state"
	f.spread("one entry of the log read and applied", r.took.apply)
}

func (f *figures) memory(r scaleRun) {
	f.part = "memory of a server"
	n := float64(len(r.hosts))
	restored := func(snapshot []byte) func() *fleet.State {
		return func() *fleet.State {
			s := fleet.New()
			must(f.t, s.Restore(bytes.NewReader(snapshot)))
			return s
		}
	}
	state, before := heapOf(restored(r.enrolled))
	roster, seen := heapOf(func() *mesh.FedRoster { return r.fed(f.t, state) })
	o := newObserver(roster.Roster)
	_, looked := heapOf(func() map[string]coordinator.Observation {
		all, _, _ := o.Observations(0)
		return all
	})
	_, after := heapOf(restored(r.after))
	raw := 0
	for _, h := range r.hosts {
		raw += len(h.signed.Raw)
	}
	f.say("state per host, before the first fleet update", "B", before/n)
	f.say("state per host, after it", "B", after/n)
	f.say("that ÷ its snapshot's bytes", "×", after/float64(len(r.after)))
	f.say("roster per host", "B", seen/n)
	f.say("that ÷ the signed record's bytes", "×", seen/float64(raw))
	f.say("the coordinator's copy per host, on the leader", "B", looked/n)
	f.say("all of these", "MB", (after+seen+looked)/1e6)
}

// fed is a server's roster as it is in the end of a run.
func (r scaleRun) fed(t testing.TB, state *fleet.State) *mesh.FedRoster {
	t.Helper()
	roster := newScaleRoster("server-1", state)
	roster.Set(serverRecord("server-1"))
	for _, h := range r.hosts {
		rec, err := mesh.DecodeRecord(h.signed.Raw)
		must(t, err)
		must(t, feedScale(roster, h, rec))
	}
	return roster
}

// plainState is a state's content for encoders that know nothing of it.
type plainState struct {
	Hosts    []fleet.Host
	Releases []fleet.Release
	Updates  []plainUpdate
	Jobs     []fleet.Job
	Lines    map[string][]fleet.LogLine
	Alerts   []fleet.Alert
	Audit    []fleet.AuditEntry
	Tokens   []fleet.JoinToken
}

// plainUpdate is a fleet update with its turns as a slice.
type plainUpdate struct {
	ID, TargetVersion, CurrentHostID, HaltedReason, StartedBy string
	Status                                                    fleet.FleetUpdateStatus
	StartedAt                                                 time.Time
	CompletedAt                                               *time.Time
	Hosts                                                     []fleet.FleetUpdateHost
}

func plainOf(v fleet.View) plainState {
	p := plainState{
		Hosts: v.Hosts(), Releases: v.Releases(), Alerts: v.Alerts(), Audit: v.Audit(0, fleet.MaxAuditEntries),
		Tokens: v.JoinTokens(), Lines: map[string][]fleet.LogLine{},
	}
	for _, u := range v.FleetUpdates() {
		plain := plainUpdate{
			ID: u.ID, TargetVersion: u.TargetVersion, CurrentHostID: u.CurrentHostID, HaltedReason: u.HaltedReason, StartedBy: u.StartedBy,
			Status: u.Status, StartedAt: u.StartedAt, CompletedAt: u.CompletedAt,
		}
		for _, turn := range u.Hosts.All() {
			plain.Hosts = append(plain.Hosts, turn)
		}
		p.Updates = append(p.Updates, plain)
	}
	for _, h := range p.Hosts {
		for _, j := range v.Jobs(h.ID) {
			p.Jobs = append(p.Jobs, j)
			p.Lines[j.ID] = v.JobLog(j.ID, 0, fleet.MaxJobLogLines)
		}
	}
	return p
}

func (f *figures) snapshots(r scaleRun) {
	f.part = "snapshot after the update"
	state := fleet.New()
	must(f.t, state.Restore(bytes.NewReader(r.after)))
	var buf bytes.Buffer
	written := repeated(5, func() {
		buf.Reset()
		must(f.t, state.Snapshot(&buf))
	})
	read := repeated(3, func() { must(f.t, fleet.New().Restore(bytes.NewReader(r.after))) })
	plain := plainOf(state.View())
	var viaJSON, viaGob bytes.Buffer
	jsonTook := repeated(3, func() {
		viaJSON.Reset()
		must(f.t, json.NewEncoder(&viaJSON).Encode(plain))
	})
	gobTook := repeated(3, func() {
		viaGob.Reset()
		must(f.t, gob.NewEncoder(&viaGob).Encode(plain))
	})
	replayed := repeated(1, func() {
		again := fleet.New()
		for i, raw := range r.log {
			e, err := fleet.DecodeEntry(raw)
			must(f.t, err)
			again.Apply(uint64(i+1), e)
		}
		if got, want := again.Hash(), state.Hash(); got != want {
			f.t.Errorf("12: the log gives the state %s, its snapshot %s", got, want)
		}
	})
	f.say("size", "MB", float64(len(r.after))/1e6)
	f.say("size per host", "B", float64(len(r.after))/float64(len(r.hosts)))
	f.say("written in", "ms", milliseconds(written))
	f.say("that ÷ encoding/json of the content as one value", "×", float64(written)/float64(jsonTook))
	f.say("that ÷ encoding/gob of the content", "×", float64(written)/float64(gobTook))
	f.say("size ÷ encoding/gob's", "×", float64(len(r.after))/float64(viaGob.Len()))
	f.say("read, checked and restored in", "ms", milliseconds(read))
	f.say("the whole log read and applied in", "ms", milliseconds(replayed))
	f.say("entries a second of that", "", float64(len(r.log))/replayed.Seconds())
}

// gossip measures what a server does for the records that relays tell.
func (f *figures) gossip(r scaleRun) {
	f.part = "gossip on a server"
	state := fleet.New()
	must(f.t, state.Restore(bytes.NewReader(r.after)))
	roster := r.fed(f.t, state)
	tell := func() {
		for _, h := range r.hosts {
			rec, err := mesh.DecodeRecord(h.signed.Raw)
			must(f.t, err)
			must(f.t, feedScale(roster, h, rec))
		}
	}
	again := repeated(3, tell)
	for _, h := range r.hosts {
		h.sign()
	}
	renewed := repeated(1, tell)
	every, renew := mesh.DefaultTiming.Exchange, mesh.DefaultTiming.Renew
	f.say("an exchange of all hosts by two relays each, nothing new", "ms", milliseconds(again))
	f.say("all records renewed", "ms", milliseconds(renewed))
	f.say("both at their pace: share of a core", "%", 100*(again.Seconds()/every.Seconds()+max(0, renewed.Seconds()-again.Seconds())/renew.Seconds()))
	f.say("all members copied and sorted", "ms", milliseconds(repeated(5, func() { roster.Members() })))
}

// staging measures what the leader does to have a whole fleet stage a release.
func (f *figures) staging(r scaleRun) {
	f.part = "staging on the leader"
	groups := map[string][]string{}
	for _, h := range r.hosts {
		groups[h.segments[0]] = append(groups[h.segments[0]], h.id)
	}
	digest := scaleDigest("3.0.0")
	trees := func() {
		for _, ids := range groups {
			artifact.Trees(digest, ids)
		}
	}
	f.say("trees of all segments", "ms", milliseconds(repeated(5, trees)))
	f.say("allocations of that, per host", "", testing.AllocsPerRun(1, trees)/float64(len(r.hosts)))

	state, index := fleet.New(), uint64(len(r.log))
	must(f.t, state.Restore(bytes.NewReader(r.after)))
	for _, c := range []fleet.Change{
		fleet.ReleasePublished{Release: fleet.Release{
			Version: "3.0.0", Number: 3, Manifest: make([]byte, 1<<10), Signature: make([]byte, 300),
			Artifacts: []fleet.Artifact{{OS: "linux", Arch: "amd64", Size: 24 << 20, SHA256: digest}},
		}},
		fleet.ReleaseStaged{Version: "3.0.0"},
	} {
		index++
		e, err := fleet.NewEntry(fmt.Sprint("staging-", index), "user:ann", time.Now(), c)
		must(f.t, err)
		if got := state.Apply(index, e); got.Err != nil {
			f.t.Fatal(got.Err)
		}
	}
	v, members := state.View(), r.fed(f.t, state).Members()
	var plan []stageOrder
	f.say("who is to be told, and of whom", "ms", milliseconds(repeated(3, func() { plan = stagePlan(v, members, nil, noPatch) })))
	if len(plan) != len(r.hosts) {
		f.t.Errorf("%d of %d hosts are told to stage", len(plan), len(r.hosts))
	}
	creds := scaleCredentials(f.t)
	sealed := repeated(1, func() {
		for _, so := range plan {
			_, err := order.Seal(order.Order{
				Cluster: scaleCluster, HostID: so.host.ID, JobID: fmt.Sprintf("%s-%d", so.action, so.index), Attempt: 1, Action: so.action,
				Version: so.rel.Version, Manifest: so.rel.Manifest, Signature: so.rel.Signature, Index: so.index,
				Expires: time.Now().Add(orderLifetime), Parents: so.parents,
			}, creds.Key, creds.CertDER())
			must(f.t, err)
		}
	})
	f.say("all orders sealed", "ms", milliseconds(sealed))
	f.say("orders sealed a second", "", float64(len(plan))/sealed.Seconds())
}

// scaleCredentials are those of a server, which orders are signed with.
func scaleCredentials(t testing.TB) identity.Credentials {
	t.Helper()
	now := time.Now()
	ca, err := identity.NewCA(scaleCluster, now)
	must(t, err)
	key, err := identity.NewKey()
	must(t, err)
	who := identity.Identity{Cluster: scaleCluster, HostID: "server-1", Name: "server-1", Role: identity.RoleServer}
	cert, err := ca.Issue(who, key.Public().(ed25519.PublicKey), now, time.Hour)
	must(t, err)
	return identity.Credentials{Identity: who, Key: key, CertPEM: cert, CAPEM: ca.CertPEM()}
}

// scaleServerList is the servers of the fleet as pages ask for them.
type (
	otherOfServers  webui.Servers
	scaleServerList struct{ otherOfServers }
)

func (scaleServerList) Servers(context.Context) []webui.ServerStatus {
	return []webui.ServerStatus{{ID: "server-1", Name: "server-1", Version: scaleFrom, Leader: true, Voter: true, Healthy: true, CaughtUp: true}}
}

// scaleProposer applies to the state at once.
type scaleProposer struct {
	mu    sync.Mutex
	state *fleet.State
	index uint64
}

func (p *scaleProposer) Propose(_ context.Context, actor string, c fleet.Change) (fleet.Result, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.index++
	e, err := fleet.NewEntry(fmt.Sprint("p", p.index), actor, time.Now(), c)
	if err != nil {
		return fleet.Result{}, err
	}
	r := p.state.Apply(p.index, e)
	if r.Err != nil {
		return r, r.Err
	}
	return r, nil
}

// pages measures lists and pages of a server in the middle of the fleet update, over
// the roster and the observer that it has.
func (f *figures) pages(r scaleRun) {
	state := fleet.New()
	must(f.t, state.Restore(bytes.NewReader(r.midway)))
	log := &scaleProposer{state: state, index: state.View().Index()}
	o := newObserver(r.fed(f.t, state).Roster)
	handler, err := webui.New(webui.Config{
		Version: scaleFrom, View: state.View, Subscribe: state.Subscribe, Proposer: log, Started: time.Now().Add(-time.Hour),
		Observed: o.observed, Changed: o.Changed, Servers: scaleServerList{},
		// What lists and pages of hosts ask nothing of.
		Trust: struct{ webui.Trust }{}, Publisher: struct{ webui.Publisher }{}, CAs: struct{ webui.CAs }{},
		Binaries: struct{ webui.Binaries }{}, Webhooks: struct{ webui.WebhookTester }{}, Backups: struct{ webui.Backups }{},
		Problems: func() []webui.Problem { return nil }, CatchUp: func(context.Context) error { return nil },
		Metrics: []prometheus.Collector{}, Logger: slog.New(slog.DiscardHandler),
	})
	must(f.t, err)
	u, _ := state.View().ActiveFleetUpdate()
	f.part = "lists and pages"
	for _, path := range []string{
		"/", "/?sort=-version&page=7", "/?q=-0099", "/settings/fleet-update", "/alerts", "/audit", "/releases", "/hosts/" + r.hosts[77].id,
		"/api/hosts", "/api/hosts?limit=100&sort=version", "/api/hosts?updates=behind&limit=100", "/api/fleet-updates", "/api/fleet-updates/" + u.ID, "/api/alerts", "/api/audit", "/api/segments",
		"/metrics",
	} {
		var took []time.Duration
		size := 0
		for begin := time.Now(); len(took) < 20 || len(took) < 200 && time.Since(begin) < 2*time.Second; {
			req := httptest.NewRequest(http.MethodGet, path, nil)
			req.Header.Set("Authorization", "Bearer "+scaleToken)
			rec := httptest.NewRecorder()
			at := realTime()
			handler.ServeHTTP(rec, req)
			took = append(took, realTime()-at)
			if size = rec.Body.Len(); rec.Code != http.StatusOK {
				f.t.Fatalf("%s: %d %s", path, rec.Code, rec.Body)
			}
		}
		slices.Sort(took)
		name := strings.NewReplacer(r.hosts[77].id, "ID", u.ID, "ID").Replace(path)
		for _, percent := range []int{50, 95, 99} {
			f.say(fmt.Sprintf("GET %s, p%d", name, percent), "ms", milliseconds(quantile(took, percent)))
		}
		f.say("GET "+name, "kB", float64(size)/1e3)
	}
	f.events(handler, log)
}

// scaleStreams is how many event streams are open, spread over as many callers as are
// needed for them.
const (
	scaleStreams   = 200
	scalePerCaller = 100
	scaleChanges   = 10
)

// events measures what a change costs that all open event streams tell of.
func (f *figures) events(handler http.Handler, log *scaleProposer) {
	f.part = "event streams"
	srv := httptest.NewServer(handler)
	defer srv.Close()
	told := make(chan time.Duration, scaleStreams)
	var readers sync.WaitGroup
	defer readers.Wait()
	for i := range scaleStreams {
		if i%scalePerCaller == 0 {
			_, err := log.Propose(f.t.Context(), "user:ann", fleet.APITokenCreated{Token: fleet.APIToken{
				ID: fmt.Sprint("reader-", i), Name: fmt.Sprint("reader-", i), Role: fleet.Viewer, Hash: sha256Hex(fmt.Sprint("moult_reader_", i)),
			}})
			must(f.t, err)
		}
		conn, err := net.Dial("tcp", srv.Listener.Addr().String())
		must(f.t, err)
		defer conn.Close()
		fmt.Fprintf(conn, "GET /api/events HTTP/1.1\r\nHost: moult\r\nAuthorization: Bearer moult_reader_%d\r\n\r\n", i/scalePerCaller*scalePerCaller)
		lines := bufio.NewScanner(conn)
		for lines.Scan() && !strings.HasPrefix(lines.Text(), "data:") { // the first event
		}
		readers.Go(func() {
			for lines.Scan() {
				if strings.HasPrefix(lines.Text(), "data:") {
					told <- realTime()
				}
			}
		})
	}
	var last []time.Duration
	used := cpuTime()
	for i := range scaleChanges {
		begin := realTime()
		_, err := log.Propose(f.t.Context(), "host:server-1", fleet.HostAddressesChanged{HostID: "server-1", PeerAddr: fmt.Sprintf("10.0.0.1:%d", 1000+i)})
		must(f.t, err)
		var at time.Duration
		for range scaleStreams {
			at = max(at, <-told)
		}
		last = append(last, at-begin)
	}
	slices.Sort(last)
	f.say(fmt.Sprintf("a change, until the last of %d has it, of which 150 ms gather changes", scaleStreams), "ms", milliseconds(quantile(last, 50)))
	f.say("processor time per stream, its reader's too", "ms", milliseconds(cpuTime()-used)/scaleChanges/scaleStreams)
}
