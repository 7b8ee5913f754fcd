package main

import (
	"container/heap"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"moult/consensus/coordinator"
	"moult/consensus/fleet"
	"moult/mesh"
	"moult/mesh/identity"
	"moult/updater"
)

const (
	scaleServers = 3
	scaleRelays  = 2 // of each segment
	scaleCluster = "scale"
	scaleCore    = "core" // the servers' segment
	scaleToken   = "moult_scale_admin"
	scaleFrom    = "1.0.0"
	scaleTarget  = "2.0.0"
	// scalePatience is how long nothing may happen in a fleet update, in its own time.
	scalePatience = 10 * time.Minute
)

// realTime is a clock that goes on as it does outside, also where testing/synctest
// makes time up.
func realTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return time.Duration(ts.Nano())
}

// cpuTime is what this process has used of all processors.
func cpuTime() time.Duration {
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		panic(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// scaleFleet is a fleet in made-up time: the coordinator as servers run it, each
// server's roster with the observer that joins it with reports, and three replicas
// of the state. Made up are the hosts, which live through the phases of an update and
// sign real records, and the log, which loses nothing: entries are kept as Raft keeps
// them, each replica reads and applies them.
type scaleFleet struct {
	t        testing.TB
	segments int
	hosts    []*scaleHost
	byID     map[string]*scaleHost
	servers  []*scaleServer

	mu      sync.Mutex
	leader  *scaleServer
	log     [][]byte // from index 1
	kinds   map[string]int
	ids     int
	inbox   []fleet.Job // orders that are on their way
	wake    chan struct{}
	halted  map[string]bool // fleet updates with a failure, by the log
	running int             // jobs in flight, by the log
	began   map[string]int  // jobs that hosts began
	problem []string

	events scaleEvents
	took   scaleTimes
}

// scaleTimes are samples of real time, of the leader alone.
type scaleTimes struct {
	plan       []time.Duration // from the look at the roster to the change that is proposed
	turnaround []time.Duration // from a host's last record to the next host's order
	apply      []time.Duration // one entry, read and applied
}

type scaleServer struct {
	*observer
	f       *scaleFleet
	id      string
	state   *fleet.State
	roster  *mesh.FedRoster
	applied int
	stop    func() // ends the coordinator, on the leader

	looked time.Duration // when the coordinator looked at the roster last; 0: it has proposed since
	shown  time.Duration // when a host's success was shown; 0: none waits for the next order
}

// scaleHost is an agent.
type scaleHost struct {
	id, name string
	segments []string
	relays   []string // ids of its segment's
	key      ed25519.PrivateKey
	rec      mesh.Record
	signed   mesh.SignedRecord
	ip       net.IP
	index    uint64 // of the newest order
	fails    bool   // the next release does not start here
	lines    uint64 // of the job's log
}

func newScaleFleet(t testing.TB, segments, perSegment int) *scaleFleet {
	f := &scaleFleet{
		t: t, segments: segments, byID: map[string]*scaleHost{}, kinds: map[string]int{}, wake: make(chan struct{}, 1),
		halted: map[string]bool{}, began: map[string]int{},
	}
	for segment := range segments {
		var relays []string
		for at := range perSegment {
			h := newScaleHost(segment, at)
			if f.hosts, f.byID[h.id] = append(f.hosts, h), h; at < scaleRelays {
				relays = append(relays, h.id)
			}
		}
		for _, h := range f.hosts[segment*perSegment:] {
			h.relays = relays
		}
	}
	for i := range scaleServers {
		s := &scaleServer{f: f, id: fmt.Sprintf("server-%d", i+1), state: fleet.New()}
		s.roster = newScaleRoster(s.id, s.state)
		s.roster.Set(serverRecord(s.id))
		s.observer = newObserver(s.roster.Roster)
		f.servers = append(f.servers, s)
	}
	f.leader = f.servers[0]
	f.enrol()
	for _, s := range f.servers {
		f.follow(s)
		for _, h := range f.hosts {
			f.show(s, h, nil)
		}
	}
	return f
}

// newScaleRoster is that of a server which knows the hosts' keys from the state, as
// servers do.
func newScaleRoster(self string, state *fleet.State) *mesh.FedRoster {
	return mesh.NewFedRoster(mesh.Config{
		Identity: identity.Identity{Cluster: scaleCluster, HostID: self, Role: identity.RoleServer},
		Pools:    []mesh.PoolConfig{{Segment: scaleCore}},
		KeyOf: func(id string) (ed25519.PublicKey, bool) {
			h, ok := state.View().Host(id)
			return h.PublicKey, ok
		},
	})
}

func newScaleHost(segment, at int) *scaleHost {
	seed := sha256.Sum256(fmt.Appendf(nil, "host %d of segment %d", at, segment))
	id := hex.EncodeToString(seed[:16])
	h := &scaleHost{
		id:   strings.Join([]string{id[:8], id[8:12], id[12:16], id[16:20], id[20:]}, "-"),
		name: fmt.Sprintf("web-%02d-%04d", segment, at), key: ed25519.NewKeyFromSeed(seed[:]),
		segments: []string{fmt.Sprintf("segment-%02d", segment)}, ip: net.IPv4(10, byte(segment), byte(at>>8), byte(at)).To4(),
	}
	if at < scaleRelays {
		h.name = fmt.Sprintf("relay-%02d-%d", segment, at)
		h.segments = append(h.segments, scaleCore)
	}
	h.rec = mesh.Record{
		HostID: h.id, Boot: 1, Role: string(identity.RoleAgent), Version: scaleFrom, Digest: scaleDigest(scaleFrom)[:16],
		OS: "linux", Arch: "amd64", Segments: h.segments, PeerPort: 7947, Phase: mesh.PhaseIdle,
	}
	h.sign()
	return h
}

func serverRecord(id string) mesh.SignedRecord {
	return mesh.SignedRecord{Record: mesh.Record{
		HostID: id, Boot: 1, Seq: 1, Role: string(identity.RoleServer), Version: scaleFrom, Segments: []string{scaleCore}, Phase: mesh.PhaseIdle,
	}}
}

func scaleDigest(version string) string {
	return sha256Hex(version)
}

func (h *scaleHost) sign() {
	h.rec.Seq++
	signed, err := h.rec.Sign(scaleCluster, h.key)
	if err != nil {
		panic(err) // a constant of this file
	}
	h.signed = signed
}

// enrol lets all hosts in, as tokens and joins do.
func (f *scaleFleet) enrol() {
	f.must("system", fleet.ClusterInitialized{
		Cluster: fleet.Cluster{ID: scaleCluster}, Server: fleet.Host{ID: "server-1", Name: "server-1", Segment: scaleCore, OS: "linux", Arch: "amd64"},
		Admin: fleet.User{ID: "u", Name: "ann"}, Token: fleet.APIToken{ID: "t", Name: "t", Hash: sha256Hex(scaleToken)},
	})
	for _, h := range f.hosts {
		var also []fleet.HostSegment
		for _, s := range h.segments[1:] {
			also = append(also, fleet.HostSegment{Segment: s, GossipAddr: h.ip.String() + ":7948"})
		}
		f.must("user:ann", fleet.JoinTokenCreated{Token: fleet.JoinToken{ID: h.id, Hash: h.id, Role: fleet.RoleAgent, Segment: h.segments[0], ExpiresAt: time.Now().Add(time.Hour)}})
		f.must("host:"+h.name, fleet.HostEnrolled{TokenHash: h.id, Host: fleet.Host{
			ID: h.id, Name: h.name, OS: "linux", Arch: "amd64", PublicKey: h.key.Public().(ed25519.PublicKey), Also: also,
			GossipAddr: h.ip.String() + ":7946", PeerAddr: h.ip.String() + ":7947", Labels: map[string]string{"env": "production", "rack": h.segments[0]},
		}})
	}
	f.must("user:ann", fleet.ReleasePublished{Release: fleet.Release{
		Version: scaleTarget, Number: 2, Manifest: make([]byte, 1<<10), Signature: make([]byte, 300),
		Artifacts: []fleet.Artifact{{OS: "linux", Arch: "amd64", Size: 24 << 20, SHA256: scaleDigest(scaleTarget)}},
	}})
}

func (f *scaleFleet) must(actor string, c fleet.Change) {
	f.t.Helper()
	if r := f.commit(f.leader, actor, c); r.Err != nil {
		f.t.Fatalf("%s: %v", c.Kind(), r.Err)
	}
}

// commit appends a change and applies it on the leader.
func (f *scaleFleet) commit(s *scaleServer, actor string, c fleet.Change) fleet.Result {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s != f.leader {
		f.complain("%s proposes %s and does not lead", s.id, c.Kind())
	}
	f.ids++
	e, err := fleet.NewEntry(fmt.Sprintf("%032x", f.ids), actor, time.Now(), c)
	if err != nil {
		f.complain("%v", err)
	}
	raw, err := json.Marshal(e)
	if err != nil {
		f.complain("%v", err)
	}
	f.log = append(f.log, raw)
	f.kinds[c.Kind()]++
	begin := realTime()
	r := f.apply(s)
	f.took.apply = append(f.took.apply, realTime()-begin)
	if r.Err == nil {
		f.check(c, s.state.View())
	}
	return r
}

// apply has a replica read and apply its next entry.
func (f *scaleFleet) apply(s *scaleServer) fleet.Result {
	e, err := fleet.DecodeEntry(f.log[s.applied])
	if err != nil {
		f.complain("%v", err)
	}
	s.applied++
	return s.state.Apply(uint64(s.applied), e)
}

// follow has a replica apply all that is committed.
func (f *scaleFleet) follow(s *scaleServer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s.applied < len(f.log) {
		f.apply(s)
	}
}

func (f *scaleFleet) complain(format string, args ...any) {
	f.problem = append(f.problem, fmt.Sprintf(format, args...))
}

// check holds each accepted change to the invariants, by numbers of
// docs/invariants.md.
func (f *scaleFleet) check(c fleet.Change, v fleet.View) {
	switch c := c.(type) {
	case fleet.JobDispatched:
		if f.running++; f.running > fleet.MaxInFlight {
			f.complain("14: %d jobs are in flight", f.running)
		}
		if f.halted[c.FleetUpdateID] {
			f.complain("15: %s is dispatched after a failure", c.JobID)
		}
	case fleet.JobFinished:
		f.running--
		j, _ := v.Job(c.JobID)
		h := f.byID[j.HostID]
		if c.Status == fleet.JobSucceeded && (h.rec.Version != j.TargetVersion || h.rec.Phase != mesh.PhaseIdle) {
			f.complain("19: %s succeeded, and runs %s", h.name, h.rec.Version)
		}
		if c.Status == fleet.JobFailed {
			f.halted[j.FleetUpdateID] = true
		}
	}
}

// Propose, State, Observations, Changed and Send are what the coordinator works with.

func (s *scaleServer) Propose(_ context.Context, actor string, c fleet.Change) (fleet.Result, error) {
	if s.looked != 0 {
		s.f.took.plan = append(s.f.took.plan, realTime()-s.looked)
		s.looked = 0
	}
	r := s.f.commit(s, actor, c)
	if r.Err != nil {
		return r, r.Err
	}
	return r, nil
}

func (s *scaleServer) State() *fleet.State { return s.state }

func (s *scaleServer) Changed() <-chan struct{} {
	s.looked = realTime()
	return s.observer.Changed()
}

func (*scaleServer) Next(context.Context, fleet.Release, fleet.Host) error { return nil }

func (s *scaleServer) Send(_ context.Context, j fleet.Job, _ fleet.Release, _ fleet.Host) error {
	f := s.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.shown != 0 {
		f.took.turnaround = append(f.took.turnaround, realTime()-s.shown)
		s.shown = 0
	}
	if j.DispatchIndex == 0 || j.DispatchIndex > uint64(len(f.log)) {
		f.complain("16: the order of %s has index %d of %d", j.ID, j.DispatchIndex, len(f.log))
	}
	f.inbox = append(f.inbox, j)
	select {
	case f.wake <- struct{}{}:
	default:
	}
	return nil
}

// lead has a server lead, and the one before no longer.
func (f *scaleFleet) lead(s *scaleServer) {
	f.leader.stop()
	f.follow(s)
	f.mu.Lock()
	f.leader = s
	f.mu.Unlock()
	f.start(s)
}

func (f *scaleFleet) start(s *scaleServer) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { s.run(ctx) })
	running.Go(func() {
		err := coordinator.Run(ctx, coordinator.Config{
			Log: s, Roster: s, Orders: s, Self: s.id, Timeouts: coordinator.DefaultTimeouts, Logger: slog.New(slog.DiscardHandler),
		})
		if ctx.Err() == nil {
			f.t.Errorf("the coordinator of %s: %v", s.id, err)
		}
	})
	s.stop = func() {
		cancel()
		running.Wait()
	}
}

// show has a server hear of a host as it is now, and of its report.
func (f *scaleFleet) show(s *scaleServer, h *scaleHost, r *updater.Report) {
	f.t.Helper()
	if err := s.hear(h); err != nil {
		f.t.Fatal(err)
	}
	if r != nil {
		s.store(h.id, *r, s.state.View())
	}
}

func (s *scaleServer) hear(h *scaleHost) error {
	rec, err := mesh.DecodeRecord(h.signed.Raw)
	if err != nil {
		return err
	}
	return feedScale(s.roster, h, rec)
}

// feedScale tells a roster of a host what the relays of its segment tell; who is in
// the servers' segment is seen there, too.
func feedScale(roster *mesh.FedRoster, h *scaleHost, rec mesh.SignedRecord) error {
	seen := mesh.Sighting{Segment: h.segments[0], Alive: !rec.Leaving, IP: h.ip, Record: rec}
	for _, seen.Relay = range h.relays {
		if err := roster.Feed(seen); err != nil {
			return err
		}
	}
	if len(h.segments) > 1 {
		seen.Relay, seen.Segment = "", scaleCore
		return roster.Feed(seen)
	}
	return nil
}

// tell has the servers hear of a host, the leader first, and commits the lines that it
// reports.
func (f *scaleFleet) tell(h *scaleHost, r *updater.Report, lines ...string) {
	h.sign()
	f.show(f.leader, h, r)
	synctest.Wait()
	for _, s := range f.servers {
		if s != f.leader {
			f.show(s, h, r)
		}
	}
	if len(lines) == 0 {
		return
	}
	c := fleet.JobLogAppended{JobID: h.rec.JobID, First: h.lines + 1}
	for _, text := range lines {
		c.Lines = append(c.Lines, fleet.LogLine{At: time.Now().UTC(), Stream: "agent", Line: text})
	}
	h.lines += uint64(len(lines))
	f.must("host:"+h.name, c)
}

// begin is a host that gets an order: it has the artifact already, as hosts have that
// stage it ahead, and lives through its turn.
func (f *scaleFleet) begin(j fleet.Job) {
	h := f.byID[j.HostID]
	if j.DispatchIndex <= h.index {
		return // as its fence does
	}
	if f.began[j.ID]++; f.began[j.ID] > 1 {
		f.complain("13: %s runs %s again", h.name, j.ID)
	}
	h.index, h.lines = j.DispatchIndex, 0
	at := time.Now()
	then := func(after time.Duration, report *updater.Report, change func(*mesh.Record), lines ...string) {
		at = at.Add(after)
		heap.Push(&f.events, scaleEvent{at, func() {
			change(&h.rec)
			f.tell(h, report, lines...)
		}})
	}
	start := func(r *mesh.Record, version string) {
		r.Boot, r.Seq, r.Leaving = r.Boot+1, 0, false
		r.Version, r.Digest = version, scaleDigest(version)[:16]
	}
	report := &updater.Report{JobID: j.ID, Done: 24 << 20, Total: 24 << 20, Sources: []fleet.Source{{HostID: h.relays[0], Name: "relay", Role: "agent", Bytes: 24 << 20}}}
	then(100*time.Millisecond, report, func(r *mesh.Record) { r.JobID, r.Phase = j.ID, mesh.PhaseVerifying }, "order accepted: "+j.TargetVersion, "the artifact is here; verifying it")
	then(400*time.Millisecond, nil, func(r *mesh.Record) { r.Phase = mesh.PhasePreflight })
	then(800*time.Millisecond, report, func(r *mesh.Record) { r.Phase = mesh.PhaseRestarting }, "preflight passed", "restarting into "+j.TargetVersion)
	then(200*time.Millisecond, nil, func(r *mesh.Record) { r.Leaving = true })
	then(2*time.Second, nil, func(r *mesh.Record) {
		start(r, j.TargetVersion)
		r.Phase = mesh.PhaseTrial
	})
	if h.fails {
		broken := &updater.Report{JobID: j.ID, Error: "it stopped with exit status 3", LastOutput: "panic: no such table"}
		then(3*time.Second, broken, func(r *mesh.Record) {
			start(r, j.FromVersion)
			r.Phase = mesh.PhaseRolledBack
		}, "the trial failed", "back to "+j.FromVersion)
		return
	}
	then(5*time.Second, report, func(r *mesh.Record) {
		r.Phase = mesh.PhaseIdle
		f.mu.Lock()
		f.leader.shown = realTime()
		f.mu.Unlock()
	}, "committed: this host runs "+j.TargetVersion+" now")
}

// run plays the fleet until something holds.
func (f *scaleFleet) run(until func() bool) {
	f.t.Helper()
	for !until() {
		if len(f.problem) > 0 {
			f.t.Fatal(strings.Join(f.problem, "\n"))
		}
		f.mu.Lock()
		orders := f.inbox
		f.inbox = nil
		f.mu.Unlock()
		for _, j := range orders {
			f.begin(j)
		}
		wait := scalePatience
		if len(f.events) > 0 {
			wait = time.Until(f.events[0].at)
		}
		if wait <= 0 {
			heap.Pop(&f.events).(scaleEvent).do()
		} else {
			select {
			case <-f.wake:
			case <-time.After(wait):
				if wait == scalePatience {
					f.t.Fatalf("nothing happens any more: %+v", f.leader.state.View().OpenJobs())
				}
			}
		}
		synctest.Wait()
		for _, s := range f.servers {
			f.follow(s)
		}
	}
}

// compare holds the replicas' states to each other.
func (f *scaleFleet) compare() {
	f.t.Helper()
	want := f.leader.state.Hash()
	for _, s := range f.servers {
		f.follow(s)
		if s.state.Hash() != want {
			f.t.Fatalf("11: %s has another state than %s at index %d", s.id, f.leader.id, s.applied)
		}
	}
}

// scaleEvent is what a host does at a time.
type scaleEvent struct {
	at time.Time
	do func()
}

type scaleEvents []scaleEvent

func (e scaleEvents) Len() int           { return len(e) }
func (e scaleEvents) Less(i, j int) bool { return e[i].at.Before(e[j].at) }
func (e scaleEvents) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *scaleEvents) Push(x any)        { *e = append(*e, x.(scaleEvent)) }
func (e *scaleEvents) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}
