package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/consensus/fleet"
	"moult/mesh"
	"moult/mesh/identity"
	"moult/mesh/nodeport"
)

// shows is a history of check-ins, each by what the leader's clock says.
type shows struct {
	judge *cloneJudge
	start time.Time
}

func newShows() *shows { return &shows{newCloneJudge(), time.Now()} }

func (s *shows) at(when time.Duration, instance, addr string, age time.Duration) {
	s.judge.hear([]checkIn{{HostID: "h", Instance: instance, Addr: addr, Age: age}}, s.start.Add(when))
}

func (s *shows) found() (clones int) {
	for {
		select {
		case <-s.judge.clones:
			clones++
		default:
			return clones
		}
	}
}

// Two machines that alternate are found at the first return of either, wherever
// they listen.
func TestClonesAreFound(t *testing.T) {
	for _, addr := range []string{"10.0.0.9:7947", "10.0.0.5:7947"} { // the latter: behind one address
		s := newShows()
		s.at(0, "a", "10.0.0.5:7947", 0)
		s.at(5*time.Minute, "b", addr, 0)
		if s.found() != 0 {
			t.Error("a second instance alone is taken for a clone: it may be a restart")
		}
		s.at(8*time.Minute, "a", "10.0.0.5:7947", time.Second)
		select {
		case c := <-s.judge.clones:
			told := c.told("web-1")
			if !strings.Contains(told, "10.0.0.5:7947") || !strings.Contains(told, addr) || !strings.Contains(told, "moult host readmit web-1") || len(told) > fleet.MaxDetailBytes {
				t.Errorf("it says %q", told)
			}
		default:
			t.Error("an instance that came back is not noticed")
		}
	}
}

// What one machine can bring about is never taken for two: restarts, however many,
// other addresses, messages that lag behind, come twice or overtake each other.
func TestOneMachineIsNoClone(t *testing.T) {
	s := newShows()
	for i := range 50 { // restarts, each at another address
		for k := range 3 {
			s.at(time.Duration(3*i+k)*time.Minute, fmt.Sprint("i", i), fmt.Sprintf("10.0.0.%d:7947", i+k), 0)
		}
	}
	if n := s.found(); n != 0 {
		t.Errorf("%d restarts are taken for clones", n)
	}
	for _, lag := range []struct{ when, age time.Duration }{
		{time.Second, 2 * time.Second},                                 // its server was slow to tell
		{time.Second, 0},                                               // or the call was
		{checkInCall, 0},                                               // for as long as it may
		{checkInCall + maxCheckInAge, maxCheckInAge},                   // both
		{time.Minute, maxCheckInAge + time.Second}, {time.Hour, -1e15}, // out of bounds
	} {
		s := newShows()
		s.at(0, "a", "x:1", 0)
		s.at(time.Minute, "b", "x:1", 0) // a has ended by now
		s.at(time.Minute+lag.when, "a", "x:1", lag.age)
		if s.found() != 0 {
			t.Errorf("a message of before the restart that comes %v after it, %v old, is taken for a clone", lag.when, lag.age)
		}
	}

	// Random histories of one machine, through servers that are slow to tell.
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := newShows()
		type sent struct {
			arrives, age time.Duration
			instance     string
		}
		var all []sent
		now := time.Duration(0)
		for i := range 30 {
			for range r.IntN(4) {
				age := time.Duration(r.Int64N(int64(maxCheckInAge)))
				all = append(all, sent{now + age + time.Duration(r.Int64N(int64(checkInCall))), age, fmt.Sprint("i", i)})
				now += time.Duration(r.Int64N(int64(time.Minute)))
			}
			now += time.Millisecond // it restarts
		}
		for len(all) > 0 { // in the order of arrival
			first := 0
			for i := range all {
				if all[i].arrives < all[first].arrives {
					first = i
				}
			}
			s.at(all[first].arrives, all[first].instance, "x:1", all[first].age)
			all = append(all[:first], all[first+1:]...)
		}
		if s.found() != 0 {
			t.Fatalf("seed %d: one machine is taken for two", seed)
		}
	}
}

// After the quarantine is lifted the machine that stays is not held against the one
// that got another identity; if both stay, they are found again.
func TestLiftedQuarantineBeginsAnew(t *testing.T) {
	state := ringState(t)
	apply := func(c fleet.Change) {
		t.Helper()
		e, err := fleet.NewEntry(fmt.Sprint("q", state.View().Index()), "x", time.Now(), c)
		must(t, err)
		if r := state.Apply(state.View().Index()+1, e); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	j, start := newCloneJudge(), time.Now()
	at := func(minute int, instance string) {
		j.hear([]checkIn{{HostID: "a1", Instance: instance, Addr: "x:1"}}, start.Add(time.Duration(minute)*time.Minute))
	}
	j.follow(state.View())
	at(0, "a")
	at(5, "b")
	at(10, "a")
	found := <-j.clones
	if !j.stands(found) {
		t.Error("what was found does not stand")
	}
	apply(fleet.HostQuarantined{HostID: "a1", Why: "w"})
	if ids := j.follow(state.View()); len(ids) != 0 || j.stands(found) {
		t.Errorf("in quarantine: lifted are %v", ids)
	}
	at(12, "b") // the last word of the one that goes
	if len(j.clones) != 0 {
		t.Error("what is in quarantine is found again")
	}
	apply(fleet.HostQuarantineLifted{HostID: "a1"})
	if ids := j.follow(state.View()); len(ids) != 1 || ids[0] != "a1" || j.stands(found) {
		t.Errorf("lifted are %v", ids)
	}
	at(15, "a")
	at(20, "a")
	if len(j.clones) != 0 {
		t.Error("the machine that stays is taken for a clone")
	}
	at(21, "b")
	at(25, "a")
	if len(j.clones) != 1 {
		t.Error("the clone is not found again")
	}
	// A new leader learns from the state who is in quarantine.
	apply(fleet.HostQuarantined{HostID: "a1", Why: "w"})
	next := newCloneJudge()
	next.follow(state.View())
	apply(fleet.HostQuarantineLifted{HostID: "a1"})
	if ids := next.follow(state.View()); len(ids) != 1 {
		t.Errorf("a new leader sees lifted %v", ids)
	}
}

// Many servers tell at once; the race detector looks.
func TestCheckInsAtOnce(t *testing.T) {
	j := newCloneJudge()
	v := ringState(t).View()
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for k := range 200 {
				j.hear([]checkIn{{HostID: "a1", Instance: "only", Addr: "x:1"}, {HostID: fmt.Sprint("a", i%5+1), Instance: "only", Addr: "x:1"}}, time.Now())
				if k%50 == 0 {
					j.follow(v)
					j.silence(v, nil, time.Now())
				}
			}
		})
	}
	all.Wait()
	if len(j.clones) != 0 {
		t.Error("one instance is taken for two")
	}
}

// A host that looks online and shows itself no more is told of, once, and no more
// when it is back; one that is off, or was never heard of, is not.
func TestSilentHosts(t *testing.T) {
	state := ringState(t)
	apply := func(changes []fleet.Change) {
		t.Helper()
		for i, c := range changes {
			e, err := fleet.NewEntry(fmt.Sprint("s", i, "-", state.View().Index()), "x", time.Now(), c)
			must(t, err)
			if r := state.Apply(state.View().Index()+1, e); r.Err != nil {
				t.Fatal(r.Err)
			}
		}
	}
	j, start := newCloneJudge(), time.Now()
	hear := func(when time.Duration, hosts ...string) {
		for _, h := range hosts {
			j.hear([]checkIn{{HostID: h, Instance: "i", Addr: "x:1"}}, start.Add(when))
		}
	}
	live := map[string]mesh.Liveness{"a1": mesh.Online, "a2": mesh.Online, "a3": mesh.Offline, "a4": mesh.Online}
	look := func(when time.Duration) []fleet.Change { return j.silence(state.View(), live, start.Add(when)) }
	hear(0, "a1", "a2", "a3", "gone")
	if c := look(silentAfter); len(c) != 0 {
		t.Errorf("too early: %+v", c)
	}
	hear(silentAfter, "a2")
	first := look(silentAfter + time.Second)
	if len(first) != 1 || first[0].(fleet.AlertRaised).HostID != "a1" || !strings.Contains(first[0].(fleet.AlertRaised).Message, "for 20m") {
		t.Fatalf("it tells of %+v", first)
	}
	apply(first)
	if c := look(silentAfter + time.Minute); len(c) != 0 {
		t.Errorf("once more: %+v", c)
	}
	hear(silentAfter+2*time.Minute, "a1")
	back := look(silentAfter + 3*time.Minute)
	if len(back) != 1 {
		t.Fatalf("it is back, and there is %+v", back)
	}
	apply(back)
	if open := state.View().OpenAlerts(); len(open) != 0 {
		t.Errorf("open are %+v", open)
	}
}

// Real handshakes, a real state: one identity at work in two processes by turns is
// quarantined; the restarts of one machine are not.
func TestCloneIsQuarantined(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	raft := startLoneRaft(t)
	must(t, raft.Bootstrap(ctx))
	certify := startCertifier(t).mustCertify
	server := certify("s1", identity.RoleServer)
	hosts := map[string]identity.Credentials{"a1": certify("a1", identity.RoleAgent), "a2": certify("a2", identity.RoleAgent)}
	propose := func(c fleet.Change) {
		t.Helper()
		_, err := raft.Propose(ctx, "system", c)
		must(t, err)
	}
	propose(fleet.ClusterInitialized{
		Cluster: fleet.Cluster{ID: "cluster-1"}, Server: fleet.Host{ID: "s1", Name: "s1", OS: "linux", Arch: "amd64"},
		Admin: fleet.User{ID: "u1", Name: "admin"}, Token: fleet.APIToken{ID: "t1", Name: "t", Hash: "h"},
	})
	for id, creds := range hosts {
		propose(fleet.JoinTokenCreated{Token: fleet.JoinToken{ID: id, Hash: id, Role: fleet.RoleAgent, ExpiresAt: time.Now().Add(time.Hour)}})
		propose(fleet.HostEnrolled{TokenHash: id, Host: fleet.Host{ID: id, Name: id, OS: "linux", Arch: "amd64", PublicKey: publicKey(creds.Key)}})
	}
	port, err := nodeport.Listen("127.0.0.1:0", func() (identity.Credentials, bool) { return server, true }, nil, quiet)
	must(t, err)
	defer nodekit.CloseWithin(port.Close, quiet, "node port")
	desk := newCheckInDesk(raft, nil, "s1", func(identity.DenyListNumber) []byte { return nil }, quiet)
	port.ServeHTTP(nodeport.Handlers{Peer: http.NotFoundHandler(), Renew: identity.CheckInHandler(http.NotFoundHandler(), desk.take)})
	node, err := mesh.Start(ctx, mesh.Config{
		Identity: server.Identity, Key: server.Key, CertDER: server.CertDER(), Verifier: server.Verifier(), Boot: 1, OS: "linux", Arch: "amd64",
		Version: "1", Digest: strings.Repeat("ab", 32), PeerAddr: "127.0.0.1:1",
		Pools: []mesh.PoolConfig{{Segment: "default", Bind: "127.0.0.1:0", Keys: [][]byte{make([]byte, 32)}}},
	})
	must(t, err)
	defer node.Close()
	running, stop := context.WithCancel(ctx)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer stop()
	tasks.Go(func() { desk.run(running) })
	tasks.Go(func() { raft.Lead(running, func(ctx context.Context) { desk.lead(ctx, node.Roster()) }) })

	process := func(host, peer string) *nodekit.Shower {
		creds := hosts[host]
		return &nodekit.Shower{
			Instance: nodekit.NewInstance(), Peer: peer, Current: identity.NewCurrent(nil, creds), Logger: quiet,
			Ways: func([]string) []nodeport.Way { return []nodeport.Way{{Addr: port.Addr().String()}} },
		}
	}
	original, copied := process("a1", "10.0.0.5:7947"), process("a1", "10.0.0.9:7947")
	quarantined := func(id string) bool {
		h, _ := raft.State().View().Host(id)
		return h.Quarantine != nil
	}
	for turn := 0; !quarantined("a1"); turn++ {
		if ctx.Err() != nil {
			t.Fatal("the clone is not noticed")
		}
		must(t, []*nodekit.Shower{original, copied}[turn%2].Once(ctx))
		must(t, process("a2", "10.0.0.7:7947").Once(ctx)) // a new process each time
		nodekit.Sleep(ctx, checkInCall+time.Second)
	}
	if h, _ := raft.State().View().Host("a1"); !strings.Contains(h.Quarantine.Why, "10.0.0.5:7947") || !strings.Contains(h.Quarantine.Why, "10.0.0.9:7947") {
		t.Errorf("it says %q", h.Quarantine.Why)
	}
	if quarantined("a2") {
		t.Error("a host that restarts is taken for two")
	}
	stranger := certify("a9", identity.RoleAgent)
	if _, err := identity.CheckIn(ctx, port.Addr().String(), stranger, identity.CheckInRequest{Instance: "x"}); err == nil {
		t.Error("a host that is not enrolled checks in")
	}
}
