//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/consensus/fleet"
	"moult/testdata/faultsuite"
)

// The fault suite: a cluster of real processes updates its fleet again and again
// to a new release while something is done to it, and writes go on all the
// time. Each cycle ends with the same questions:
//
//   - did the fleet update complete, and in what time
//   - did each agent start exactly once in the new release
//   - does every server have every write that was acknowledged
//   - are the states of all servers equal at the same index
//
// Package faultsuite says how rows are chosen, cut in pieces and repeated.
type fault struct {
	faultsuite.Row
	inflict func(f *faultRun)
	atOnce  bool              // it finds its own moment in the fleet update
	before  func(f *faultRun) // what it does before the fleet update; nil: nothing
}

var faults = []fault{
	{Row: faultsuite.Row{Name: "kill -9 of a server", Long: 200, Short: 2}, inflict: (*faultRun).killServer},
	{Row: faultsuite.Row{Name: "SIGSTOP of the leader", Long: 100, Short: 1}, inflict: (*faultRun).stopLeader},
	{Row: faultsuite.Row{Name: "slow fsync on the leader", Long: 20, Short: 1}, inflict: (*faultRun).slowLeaderDisk},
	{Row: faultsuite.Row{Name: "kill -9 of an agent and its supervisor", Long: 500, Short: 2}, inflict: (*faultRun).killAgent},
	{Row: faultsuite.Row{Name: "restart of all agents at once", Long: 50, Short: 1}, inflict: (*faultRun).restartAgents},
	{Row: faultsuite.Row{Name: "restart of all servers at once", Long: 50, Short: 1}, inflict: (*faultRun).restartServers},
	{Row: faultsuite.Row{Name: "follower far behind: snapshot install", Long: 50, Short: 1}, inflict: (*faultRun).leaveBehind},
	{Row: faultsuite.Row{Name: "leader change at each step of a dispatch", Long: stepCycles * len(dispatchSteps), Short: 2}, inflict: (*faultRun).changeLeader, atOnce: true},
}

// Limits of a cycle.
const (
	faultAgents     = 3
	cyclePatience   = 3 * time.Minute  // for one fleet update
	failoverLimit   = 10 * time.Second // without a write acknowledged, for kill -9
	catchUpLimit    = time.Minute      // until each server has each write
	slowDiskLimit   = 25 * time.Second // the same, for a disk that hangs
	faultMomentSpan = 3 * time.Second  // within which of the start the fault comes
)

func TestFaults(t *testing.T) {
	t.Parallel()
	rows := chosenFaults(t, faults)
	newFaultRun(t, startCluster(t, 3, faultAgents, compaction...)).runAll(rows)
}

// chosenFaults returns those rows that are to run, and skips the test when none is.
func chosenFaults(t *testing.T, rows []fault) []fault {
	t.Helper()
	chosen := slices.DeleteFunc(slices.Clone(rows), func(ft fault) bool { return !ft.Chosen() })
	if len(chosen) == 0 {
		rows[0].MustBeChosen(t)
	}
	return chosen
}

// faultRun is a cluster under faults.
type faultRun struct {
	t       *testing.T
	c       *testCluster
	rng     *rand.Rand
	writer  *ackedWriter
	pattern []byte
	release int
	// mayFail: the fault hits hosts, so that an update of one may fail, if with a
	// true reason. How often an agent starts then says nothing.
	mayFail  bool
	gapLimit time.Duration // 0: none
	update   string        // the cycle's fleet update
	digest   string        // of its release's binary

	count   faultsuite.Count // of the row, and
	halted  int              // fleet updates that the fault ended
	moments map[string]int   // what the fault met, when there is a choice
}

func newFaultRun(t *testing.T, c *testCluster) *faultRun {
	t.Helper()
	return &faultRun{t: t, c: c, writer: &ackedWriter{c: c}, pattern: patternBinary(t)}
}

// runAll runs rows until one fails: what comes after says nothing.
func (f *faultRun) runAll(rows []fault) {
	for _, ft := range rows {
		if !f.t.Failed() {
			f.run(ft)
		}
	}
}

// run does the cycles of one fault and prints its row.
func (f *faultRun) run(ft fault) {
	cycles := ft.Cycles(f.t)
	f.rng, f.count, f.halted, f.moments = ft.Rand(f.t), faultsuite.Count{}, 0, nil
	defer func() {
		ft.Print(f.t, f.count)
		f.t.Logf("%s: %d fleet updates were halted by it; it met %v", ft.Name, f.halted, f.moments)
	}()
	for f.count.Cycles < cycles && !f.t.Failed() {
		f.cycle(ft)
		f.count.Cycles++
		ft.Progress(f.t, f.count, cycles)
	}
}

func (f *faultRun) cycle(ft fault) {
	f.t.Helper()
	f.mayFail, f.gapLimit = false, 0
	version := f.publishNext()
	f.allSeen()
	f.writer.start()
	if ft.before != nil {
		ft.before(f)
	}
	start := time.Now()
	id := f.c.startFleetUpdate(nil)
	if hosts := len(f.c.fleetUpdate(id).Hosts); hosts != faultAgents {
		f.t.Fatalf("the fleet update has %d hosts, want %d", hosts, faultAgents)
	}
	f.update = id
	if !ft.atOnce {
		time.Sleep(time.Duration(f.rng.Int64N(int64(faultMomentSpan))))
	}
	ft.inflict(f)
	u := f.end(id)
	f.count.Update = max(f.count.Update, time.Since(start))
	gap := f.writer.stop()
	f.count.Gap, f.count.Acked = max(f.count.Gap, gap), f.count.Acked+len(f.writer.acked)
	if f.gapLimit > 0 && gap > f.gapLimit {
		f.t.Errorf("no write was acknowledged for %v, want at most %v", gap, f.gapLimit)
	}
	if u.Status == "completed" {
		f.allRun(version)
	} else {
		f.halted++
		f.failedTruly(u, version)
	}
	f.ordersDecided()
	f.nothingLost()
	f.statesEqual()
	f.withdrawOthers(version)
}

// allSeen waits until every server sees every agent: one that has just started
// leaves out of a fleet update whom it has not heard of yet.
func (f *faultRun) allSeen() {
	f.t.Helper()
	for _, addr := range f.c.client.addrs {
		one := &client{addrs: []string{addr}, token: f.c.client.token, http: f.c.client.http}
		f.c.await(time.Minute, addr+" to see all agents", func() error {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			hosts, err := one.hosts(ctx, "?status=online")
			if err == nil && len(hosts) < faultAgents {
				err = fmt.Errorf("it sees %d", len(hosts))
			}
			return err
		})
	}
}

// end waits for the end of a fleet update. One that the fault has halted is as
// good, if hosts were hit; what is left is then updated.
func (f *faultRun) end(id string) apiFleetUpdate {
	f.t.Helper()
	return f.endAt(f.c.client, id)
}

// endAt is end as some servers see it: one that is cut off knows nothing new.
func (f *faultRun) endAt(servers *client, id string) apiFleetUpdate {
	f.t.Helper()
	var u apiFleetUpdate
	f.c.await(cyclePatience, "the fleet update to end", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := servers.call(ctx, "GET", "/api/fleet-updates/"+id, nil, &u); err != nil {
			return err
		}
		if u.Status == "running" {
			return fmt.Errorf("%+v", u)
		}
		return nil
	})
	if u.Status != "completed" && !f.mayFail {
		f.t.Fatalf("the fleet update is %s: %+v", u.Status, u)
	}
	return u
}

// allRun fails unless each agent is online in the version and was started in it
// exactly once.
func (f *faultRun) allRun(version string) {
	f.t.Helper()
	f.c.await(time.Minute, "all agents to be online in "+version, func() error {
		for name, h := range f.c.hosts() {
			if h.AgentVersion != version || !h.Online {
				return fmt.Errorf("%s runs %s, online %v", name, h.AgentVersion, h.Online)
			}
		}
		return nil
	})
	for i := range faultAgents {
		name := fmt.Sprintf("agent-%d", i+1)
		if !f.mayFail {
			f.c.startedOnce(name, version)
		}
	}
}

// failedTruly fails unless the verdict on the failed host is true: it does not
// run the version. The next cycle updates it to a newer one.
func (f *faultRun) failedTruly(u apiFleetUpdate, version string) {
	f.t.Helper()
	f.c.await(time.Minute, "all agents to be online again", func() error {
		for name, h := range f.c.hosts() {
			if !h.Online {
				return fmt.Errorf("%s is offline", name)
			}
		}
		return nil
	})
	hosts := f.c.hosts()
	for _, turn := range u.Hosts {
		if turn.Status == "failed" && hosts[turn.Name].AgentVersion == version {
			f.t.Logf("%s was failed (%s) and came to run %s after all", turn.Name, turn.FailedReason, version)
		}
		if turn.Status == "succeeded" && hosts[turn.Name].AgentVersion != version {
			f.t.Errorf("%s succeeded and runs %s, want %s", turn.Name, hosts[turn.Name].AgentVersion, version)
		}
	}
}

// acceptedOrder is an order that an agent says in its log to have accepted.
type acceptedOrder struct {
	at          time.Time
	job, server string
	index       uint64
}

// accepted are the orders of the cycle's fleet update, by agent.
func (f *faultRun) accepted() map[string][]acceptedOrder {
	f.t.Helper()
	out := map[string][]acceptedOrder{}
	u := f.c.fleetUpdate(f.update)
	for _, turn := range u.Hosts {
		for line := range strings.SplitSeq(f.c.read(turn.Name+"/log"), "\n") {
			if turn.JobID == "" || !strings.Contains(line, `msg="order accepted"`) || !strings.Contains(line, "job="+turn.JobID+" ") {
				continue
			}
			o := acceptedOrder{job: turn.JobID}
			for field := range strings.FieldsSeq(line) {
				key, value, _ := strings.Cut(field, "=")
				var err error
				switch key {
				case "time":
					o.at, err = time.Parse(time.RFC3339Nano, value)
				case "index":
					o.index, err = strconv.ParseUint(value, 10, 64)
				case "server":
					o.server = value // the last one: the host that the order came from
				}
				if err != nil {
					f.t.Fatalf("%s: %v: %s", turn.Name, err, line)
				}
			}
			out[turn.Name] = append(out[turn.Name], o)
		}
	}
	return out
}

// dispatches are the newest intents that the cluster has committed, by index.
func (f *faultRun) dispatches() map[uint64]fleet.AuditEntry {
	f.t.Helper()
	var answer struct{ Entries []fleet.AuditEntry }
	f.c.get("/api/audit?limit=100&action="+fleet.JobDispatched{}.Kind(), &answer)
	out := map[uint64]fleet.AuditEntry{}
	for _, e := range answer.Entries {
		out[e.Index] = e
	}
	return out
}

// ordersDecided fails unless each order that an agent accepted in the cycle has its
// intent in the log at the index that it bears, and each agent accepted but one.
func (f *faultRun) ordersDecided() {
	f.t.Helper()
	dispatched := f.dispatches()
	for name, orders := range f.accepted() {
		if len(orders) > 1 {
			f.t.Errorf("%s accepted %d orders of one job: %+v", name, len(orders), orders)
		}
		for _, o := range orders {
			if e, ok := dispatched[o.index]; !ok || !strings.Contains(e.Detail, o.job) {
				f.t.Errorf("%s accepted the order of job %s with index %d, where the log has %+v", name, o.job, o.index, e)
			}
		}
	}
}

// nothingLost fails unless every server comes to have every acknowledged write.
func (f *faultRun) nothingLost() {
	f.t.Helper()
	for _, addr := range f.c.client.addrs {
		one := &client{addrs: []string{addr}, token: f.c.client.token, http: f.c.client.http}
		var missing []string
		var err error
		for deadline := time.Now().Add(catchUpLimit); ; time.Sleep(100 * time.Millisecond) {
			missing, err = f.missingOn(one)
			if err == nil && len(missing) == 0 || time.Now().After(deadline) {
				break
			}
		}
		if err != nil || len(missing) > 0 {
			f.count.Lost += len(missing)
			f.t.Errorf("%s lacks %d acknowledged writes: %v (%v)", addr, len(missing), missing, err)
		}
	}
	f.writer.forget()
}

// missingOn returns the acknowledged writes that a server does not have.
func (f *faultRun) missingOn(server *client) (missing []string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var got struct{ Tokens []struct{ Name string } }
	if err := server.call(ctx, "GET", "/api/tokens", nil, &got); err != nil {
		return nil, err
	}
	have := map[string]bool{}
	for _, tok := range got.Tokens {
		have[tok.Name] = true
	}
	for _, w := range f.writer.acked {
		if !have[w.name] {
			missing = append(missing, w.name)
		}
	}
	return missing, nil
}

// statesEqual fails unless the states of all servers are equal.
func (f *faultRun) statesEqual() {
	f.t.Helper()
	var answer struct {
		Verdict string
		Servers []map[string]any
	}
	f.c.await(time.Minute, "the states to be comparable", func() error {
		if err := f.c.try("GET", "/api/servers/state", nil, &answer); err != nil {
			return err
		}
		if answer.Verdict == "undecided" {
			return fmt.Errorf("%v", answer.Servers)
		}
		return nil
	})
	if answer.Verdict != "equal" {
		f.count.Divergent++
		f.t.Errorf("the states %s: %v", answer.Verdict, answer.Servers)
	}
}

// publishNext publishes a release that there was not yet: the same program under
// the next version.
func (f *faultRun) publishNext() string {
	f.t.Helper()
	f.release++
	version := fmt.Sprintf("2.0.%05d", f.release)
	path := filepath.Join(f.t.TempDir(), "moult-"+version)
	text := strings.ReplaceAll(string(f.pattern), patternVersion, version)
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		f.t.Fatal(err)
	}
	defer os.Remove(path)
	var err error
	if f.digest, err = nodekit.FileDigest(path); err != nil {
		f.t.Fatal(err)
	}
	f.c.publish(version, path)
	return version
}

// withdrawOthers keeps the disk from filling up with releases.
func (f *faultRun) withdrawOthers(version string) {
	f.t.Helper()
	var out struct{ Releases []struct{ Version string } }
	f.c.get("/api/releases", &out)
	for _, r := range out.Releases {
		if r.Version != version {
			f.c.await(30*time.Second, "withdraw "+r.Version, func() error {
				err := f.c.try("DELETE", "/api/releases/"+r.Version, nil, nil)
				var refused *apiError
				if errors.As(err, &refused) && refused.Status < 500 {
					return nil // it is gone, or some host's update still names it
				}
				return err
			})
		}
	}
}

// patternVersion stands in the pattern binary, to be replaced by another version
// of the same length.
const patternVersion = "2.0.99999"

func patternBinary(t *testing.T) []byte {
	t.Helper()
	text, err := os.ReadFile(buildVersion(t, patternVersion))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), patternVersion) {
		t.Fatal("the version is not in the binary as it is")
	}
	return text
}

// ackedWriter makes API tokens, one after the other and through one server after
// the other, and notes those whose making was acknowledged.
type ackedWriter struct {
	c      *testCluster
	next   int
	gap    time.Duration
	ended  chan struct{}
	cancel context.CancelFunc

	mu    sync.Mutex
	acked []ackedWrite
}

// sofar are the writes that were acknowledged in this cycle.
func (w *ackedWriter) sofar() []ackedWrite {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.acked)
}

// ackedWrite is one: whose making was asked of a server at a time.
type ackedWrite struct {
	name, addr   string
	begun, ended time.Time
}

const (
	writePause   = 50 * time.Millisecond
	writeTimeout = 2 * time.Second
)

func (w *ackedWriter) start() {
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel, w.ended, w.gap = cancel, make(chan struct{}), 0
	go func() {
		defer close(w.ended)
		last := time.Now()
		for ; ctx.Err() == nil; w.next++ {
			name := fmt.Sprintf("w-%d", w.next)
			addr := w.c.client.addrs[w.next%len(w.c.client.addrs)]
			one := &client{addrs: []string{addr}, token: w.c.client.token, http: w.c.client.http}
			call, done := context.WithTimeout(ctx, writeTimeout)
			begun := time.Now()
			err := one.call(call, "POST", "/api/tokens", map[string]string{"name": name, "role": "viewer"}, nil)
			done()
			if err == nil {
				now := time.Now()
				w.mu.Lock()
				w.acked = append(w.acked, ackedWrite{name, addr, begun, now})
				w.mu.Unlock()
				w.gap, last = max(w.gap, now.Sub(last)), now
			}
			select {
			case <-ctx.Done():
			case <-time.After(writePause):
			}
		}
		w.gap = max(w.gap, time.Since(last))
	}()
}

// stop ends the writing and returns the longest time without an acknowledgement.
func (w *ackedWriter) stop() time.Duration {
	w.cancel()
	<-w.ended
	return w.gap
}

// forget revokes the tokens of the cycle: the state takes only so many.
func (w *ackedWriter) forget() {
	w.acked = nil
	w.revokeAll(func(string) bool { return true })
}

// revoke revokes the tokens that others than the writer made meanwhile.
func (w *ackedWriter) revoke() {
	w.revokeAll(func(name string) bool { return strings.Trim(name, "w-0123456789") != "" })
}

func (w *ackedWriter) revokeAll(of func(name string) bool) {
	var got struct{ Tokens []struct{ ID, Name string } }
	w.c.get("/api/tokens", &got)
	for _, tok := range got.Tokens {
		if strings.HasPrefix(tok.Name, "w-") && of(tok.Name) {
			w.c.await(30*time.Second, "revoke "+tok.Name, func() error {
				err := w.c.try("DELETE", "/api/tokens/"+tok.ID, nil, nil)
				var refused *apiError
				if errors.As(err, &refused) && refused.Status == 404 {
					return nil
				}
				return err
			})
		}
	}
}
