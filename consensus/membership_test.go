package consensus

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"moult/consensus/fleet"
)

// AwaitVoters waits until these servers, and no others, are voters and ready.
func (c *cluster) AwaitVoters(servers ...*server) {
	c.tb.Helper()
	awaitSoon(c.tb, fmt.Sprintf("%d voters", len(servers)), func() bool {
		for _, s := range servers {
			if s.voters() != len(servers) || len(s.Servers()) != len(servers) || s.Ready() != nil {
				return false
			}
		}
		return true
	})
}

// add opens a new server and waits until it is a voter.
func (c *cluster) add(id string, by *server) *server {
	c.tb.Helper()
	s := c.open(id, "")
	if err := by.AddServer(c.within(patience), s.id, s.addr); err != nil {
		c.tb.Fatal(err)
	}
	awaitSoon(c.tb, id+" is a voter", func() bool {
		for _, m := range by.Servers() {
			if m.ID == id && m.Voter {
				return s.Ready() == nil
			}
		}
		return false
	})
	return s
}

// remove removes a server that runs, and stops it.
func (c *cluster) remove(s *server, by *server) {
	c.tb.Helper()
	if err := by.RemoveServer(c.within(patience), s.id); err != nil {
		c.tb.Fatal(err)
	}
	c.Kill(s)
}

// Three to five and back, and down to one and up again: what is acknowledged in
// between is there at the end.
func TestGroupGrowsAndShrinks(t *testing.T) {
	c := startCluster(t, 3, nil)
	s1 := c.all()[0]
	mustPropose(t, s1, user("three"))
	c.add("s4", s1)
	s5 := c.add("s5", s1)
	c.AwaitVoters(c.all()...)
	mustPropose(t, s5, user("five"))
	leader := c.AwaitLeader()
	c.Kill(leader) // five take the loss of two
	others := c.all()
	c.Kill(others[0])
	mustPropose(t, others[3], user("three-of-five"))
	c.open(leader.id, leader.addr)
	c.open(others[0].id, others[0].addr)
	c.AwaitVoters(c.all()...)
	for len(c.all()) > 1 {
		left := c.all()
		c.remove(left[0], left[1])
		c.AwaitVoters(left[1:]...)
		mustPropose(t, left[1], user(fmt.Sprintf("left-%d", len(left)-1)))
	}
	last := c.all()[0]
	c.add("n2", last)
	c.add("n3", last)
	c.AwaitVoters(c.all()...)
	c.AwaitEqual()
	for _, name := range []string{"three", "five", "three-of-five", "left-4", "left-3", "left-2", "left-1"} {
		if !hasUser(last, name) {
			t.Errorf("%s is lost", name)
		}
	}
}

// A demoted server keeps its state and gives up its vote, until it is wanted again.
func TestDemotedServerStaysOnStandby(t *testing.T) {
	c := startCluster(t, 3, nil)
	leader := c.AwaitLeader()
	mustCluster(t, leader)
	s1 := c.all()[0] // the state knows it as a server
	mustPropose(t, leader, fleet.ServerStandbyChanged{HostID: s1.id, Standby: true})
	if err := leader.DemoteServer(c.within(patience), s1.id); err != nil {
		t.Fatal(err)
	}
	leader = c.AwaitLeader() // another one, if it was s1
	if leader == s1 || leader.voters() != 2 || !leader.IsMember(s1.id) {
		t.Fatalf("the leader is %s, with %d voters", leader.id, leader.voters())
	}
	if err := leader.DemoteServer(c.within(patience), s1.id); err != nil {
		t.Errorf("demoting it again: %v", err)
	}
	// It follows, and would be promoted long since.
	for i := range 20 {
		mustPropose(t, leader, user(fmt.Sprintf("u%d", i)))
	}
	awaitSoon(t, "it follows", func() bool { return hasUser(s1, "u19") && s1.Ready() == nil })
	s4 := c.add("s4", leader) // is promoted, and s1 would have been before it
	if leader.voters() != 3 {
		t.Fatal("it was promoted though it is on standby")
	}
	c.remove(s4, leader)
	mustPropose(t, leader, fleet.ServerStandbyChanged{HostID: s1.id})
	awaitSoon(t, "it votes again", func() bool { return leader.voters() == 3 })

	if err := leader.DemoteServer(c.within(patience), "nobody"); !errors.Is(err, ErrRefused) {
		t.Errorf("demoting nobody: %v", err)
	}
	followers := c.Followers(leader)
	c.Cut(followers[0])
	if err := leader.DemoteServer(c.within(patience), followers[1].id); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), followers[0].id) {
		t.Errorf("demoting one of the two that answer: %v", err)
	}
}

// A server that listens elsewhere is dialled there, with its vote, once it answers
// there, and not before.
func TestServerMovesToAnotherAddress(t *testing.T) {
	c := startCluster(t, 3, nil)
	leader := c.AwaitLeader()
	moving := c.Followers(leader)[0]
	old := moving.addr
	c.Kill(moving)
	err := leader.AddServer(c.within(patience), moving.id, "127.0.0.1:1")
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "does not answer at 127.0.0.1:1") {
		t.Errorf("moved to where nobody is: %v", err)
	}
	moved := c.open(moving.id, "")
	if moved.addr == old {
		t.Skip("the system gave the same port again")
	}
	mustPropose(t, leader, user("meanwhile"))
	if err := leader.AddServer(c.within(patience), moved.id, moved.addr); err != nil {
		t.Fatal(err)
	}
	c.AwaitVoters(c.all()...)
	c.AwaitEqual()
	for _, s := range leader.Servers() {
		if s.ID == moved.id && (s.Address != moved.addr || !s.Voter) {
			t.Errorf("it is at %s, voter %t", s.Address, s.Voter)
		}
	}
}

// A single server that moved leads on, at its new address.
func TestOnlyServerMoves(t *testing.T) {
	c := startCluster(t, 1, nil)
	s := c.all()[0]
	c.Kill(s)
	moved := c.open(s.id, "")
	awaitSoon(t, "it leads", moved.IsLeader)
	if err := moved.AddServer(c.within(patience), moved.id, moved.addr); err != nil {
		t.Fatal(err)
	}
	if got := moved.Servers()[0]; got.Address != moved.addr || !got.Voter {
		t.Errorf("it is %+v", got)
	}
}

// A server that was away while all others were replaced knows nobody who is left.
func TestServerComesBackAmongStrangers(t *testing.T) {
	c := startCluster(t, 3, nil)
	all := c.all()
	away := all[0]
	c.Kill(away)
	for i, old := range all[1:] {
		c.add(fmt.Sprintf("n%d", i), c.AwaitLeader())
		c.remove(old, c.Followers(old)[0])
	}
	leader := c.AwaitLeader()
	mustPropose(t, leader, user("replaced"))
	back := c.open(away.id, away.addr)
	for _, s := range back.Servers() {
		if s.ID[0] == 'n' {
			t.Fatal("it knows the new ones already")
		}
	}
	c.AwaitVoters(c.all()...)
	c.AwaitEqual()
	awaitSoon(t, "it goes by its own configuration again", func() bool { return back.vouched.now.Load() == nil })
	// It counts: with one of the new ones gone the two others go on.
	c.Kill(c.Followers(back)[0])
	mustPropose(t, c.AwaitLeader(), user("after"))
}

func members(voters ...string) (out []ServerStatus) {
	for _, id := range voters {
		out = append(out, ServerStatus{ID: id, Voter: true})
	}
	return out
}

// What is believed, and what is not. The server is A; it knows A, B and C.
func TestClaimsAreHeldAgainstTheOthers(t *testing.T) {
	know := func(epoch, term, index uint64, voters ...string) Membership {
		return Membership{Epoch: epoch, Term: term, Index: index, Servers: members(voters...)}
	}
	mine := know(0, 2, 10, "A", "B", "C")
	for name, tc := range map[string]struct {
		from    string
		claim   Membership
		answers map[string]Membership
		ok      bool
	}{
		"all others were replaced": {"D", know(0, 5, 90, "A", "D", "E"), map[string]Membership{"D": know(0, 5, 90, "A", "D", "E"), "E": know(0, 5, 91, "A", "D", "E")}, true},
		"one of them is down":      {"D", know(0, 5, 90, "A", "D", "E"), map[string]Membership{"D": know(0, 5, 90, "A", "D", "E")}, false},
		"made up by one alone, far ahead": {
			"D", know(0, 99, 1<<40, "A", "D"),
			map[string]Membership{"D": know(0, 99, 1<<40, "A", "D"), "B": know(0, 5, 60, "A", "B", "C"), "C": know(0, 5, 60, "A", "B", "C")},
			false,
		},
		"of five two are up": {
			"D", know(0, 5, 90, "A", "D", "E", "F", "G"),
			map[string]Membership{"D": know(0, 5, 90, "A", "D", "E", "F", "G")},
			false,
		},
		"of five three are up, this one among them": {
			"D", know(0, 5, 90, "A", "D", "E", "F", "G"),
			map[string]Membership{"D": know(0, 5, 90, "A", "D", "E", "F", "G"), "G": know(0, 5, 90, "A", "D", "E", "F", "G")},
			false,
		},
		"of five three others are up": {
			"D", know(0, 5, 90, "A", "D", "E", "F", "G"),
			map[string]Membership{"D": know(0, 5, 90, "A", "D", "E", "F", "G"), "F": know(0, 5, 90, "A", "D", "E", "F", "G"), "G": know(0, 5, 90, "A", "D", "E", "F", "G")},
			true,
		},
		"removed, and does not know it": {
			"D", know(0, 5, 50, "A", "B", "C", "D"),
			map[string]Membership{"D": know(0, 5, 50, "A", "B", "C", "D"), "B": know(0, 5, 60, "A", "B", "C"), "C": know(0, 5, 60, "A", "B", "C")},
			false,
		},
		"removed, and the others are cut off": {"D", know(0, 5, 50, "A", "B", "C", "D"), map[string]Membership{"D": know(0, 5, 50, "A", "B", "C", "D")}, false},
		"one that knows of the removal is enough": {
			"D", know(0, 5, 50, "A", "C", "D"),
			map[string]Membership{"D": know(0, 5, 50, "A", "C", "D"), "C": know(0, 5, 50, "A", "C", "D"), "B": know(0, 5, 60, "A", "B", "C")},
			false,
		},
		"this one was removed itself": {
			"D", know(0, 5, 50, "A", "C", "D"),
			map[string]Membership{"D": know(0, 5, 50, "A", "C", "D"), "C": know(0, 5, 60, "C", "D")},
			false,
		},
		"this one is not in it":     {"D", know(0, 5, 90, "D", "E"), map[string]Membership{"D": know(0, 5, 90, "D", "E")}, false},
		"who tells is not in it":    {"D", know(0, 5, 90, "A", "E"), map[string]Membership{"E": know(0, 5, 90, "A", "E")}, false},
		"older":                     {"D", know(0, 2, 9, "A", "D"), map[string]Membership{"D": know(0, 2, 9, "A", "D")}, false},
		"of an earlier term":        {"D", know(0, 1, 99, "A", "D"), map[string]Membership{"D": know(0, 1, 99, "A", "D")}, false},
		"of another epoch":          {"D", know(7, 5, 90, "A", "D"), map[string]Membership{"D": know(7, 5, 90, "A", "D")}, false},
		"answers of another epoch":  {"D", know(0, 5, 90, "A", "D", "E", "F"), map[string]Membership{"D": know(7, 5, 90, "A", "D", "E", "F"), "E": know(7, 5, 90, "A", "D", "E", "F")}, false},
		"the others know it not so": {"D", know(0, 5, 90, "A", "D", "E"), map[string]Membership{"E": know(0, 2, 10, "A", "B", "C")}, false},
	} {
		err := plausible("A", mine, tc.from, tc.claim)
		if err == nil {
			err = borneOut("A", mine, tc.from, tc.claim, tc.answers)
		}
		if (err == nil) != tc.ok || err != nil && !errors.Is(err, ErrNotBelieved) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
