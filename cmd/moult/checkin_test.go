package main

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"moult/consensus/fleet"
	"moult/mesh"
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
	j.lifted(state.View())
	at(0, "a")
	at(5, "b")
	at(10, "a")
	<-j.clones
	apply(fleet.HostQuarantined{HostID: "a1", Why: "w"})
	j.isolated("a1")
	at(12, "b") // the last word of the one that goes
	if ids := j.lifted(state.View()); len(ids) != 0 {
		t.Errorf("lifted are %v", ids)
	}
	for len(j.clones) > 0 {
		<-j.clones
	}
	apply(fleet.HostQuarantineLifted{HostID: "a1"})
	if ids := j.lifted(state.View()); len(ids) != 1 || ids[0] != "a1" {
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
	next.lifted(state.View())
	apply(fleet.HostQuarantineLifted{HostID: "a1"})
	if ids := next.lifted(state.View()); len(ids) != 1 {
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
				j.hear([]checkIn{{HostID: "a1", Instance: fmt.Sprint("only"), Addr: "x:1"}, {HostID: fmt.Sprint("a", i%5+1), Instance: "only", Addr: "x:1"}}, time.Now())
				if k%50 == 0 {
					j.lifted(v)
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
