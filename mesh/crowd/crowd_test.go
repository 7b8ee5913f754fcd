package crowd_test

import (
	"fmt"
	"slices"
	"testing"

	"moult/mesh/crowd"
)

const (
	total     = 64
	perSource = 8
)

type conn struct{ closed bool }

func (c *conn) Close() error {
	c.closed = true
	return nil
}

func admit(t *testing.T, c *crowd.Crowd, source string) (*conn, *crowd.Member) {
	t.Helper()
	cn := &conn{}
	m, ok := c.Admit(cn, source)
	if !ok {
		t.Fatalf("one of %s is not admitted", source)
	}
	return cn, m
}

func TestPushesOutTheOldestOfTheCrowd(t *testing.T) {
	c := crowd.New(crowd.Limits{Total: total, PerSource: perSource})
	quiet, endQuiet := admit(t, c, "quiet")
	var flood []*conn
	for range perSource {
		cn, _ := admit(t, c, "flood")
		flood = append(flood, cn)
	}
	if slices.ContainsFunc(flood, func(cn *conn) bool { return cn.closed }) {
		t.Fatal("pushed out before the limit")
	}
	// One more of the same address costs that address its oldest.
	admit(t, c, "flood")
	if !flood[0].closed || flood[1].closed || quiet.closed {
		t.Error("not its own oldest was pushed out")
	}
	// Full by many addresses: the most crowded one pays, whoever comes.
	for i := 0; c.Len() < total; i++ {
		admit(t, c, fmt.Sprint("stranger ", i))
	}
	late, endLate := admit(t, c, "late")
	if !flood[1].closed || flood[2].closed || quiet.closed || late.closed || c.Len() != total {
		t.Errorf("the crowd did not pay; %d connections", c.Len())
	}
	endQuiet.End()
	endLate.End()
	endLate.End()
	if c.Len() != total-2 {
		t.Errorf("%d connections after two ended", c.Len())
	}
}

func TestWhatIsWorthMoreStaysLonger(t *testing.T) {
	c := crowd.New(crowd.Limits{Total: total, PerSource: perSource})
	known, m := admit(t, c, "a")
	m.Keep(crowd.Known)
	working, m := admit(t, c, "a")
	m.Keep(crowd.Working)
	for range perSource - 2 {
		admit(t, c, "a")
	}
	for range 3 * perSource {
		admit(t, c, "a")
		if known.closed || working.closed {
			t.Fatal("one that is served was pushed out before those of which nothing is known")
		}
	}
	// Where all are served, strangers give way; where all are known, nobody does.
	busy := crowd.New(crowd.Limits{Total: 3, PerSource: 3})
	first, m1 := admit(t, busy, "a")
	second, m2 := admit(t, busy, "b")
	third, m3 := admit(t, busy, "b")
	m1.Keep(crowd.Known)
	m2.Keep(crowd.Working)
	m3.Keep(crowd.Known)
	_, m4 := admit(t, busy, "c")
	if first.closed || !second.closed || third.closed {
		t.Error("not the stranger's was pushed out")
	}
	m4.Keep(crowd.Known)
	if _, ok := busy.Admit(&conn{}, "d"); ok || busy.Len() != 3 {
		t.Error("admitted where all are known")
	}
	m4.Keep(crowd.Silent) // its request is done
	if _, ok := busy.Admit(&conn{}, "d"); !ok || busy.Len() != 3 {
		t.Error("not admitted where one is idle")
	}
	// The most crowded address may be all known: the next one pays.
	mixed := crowd.New(crowd.Limits{Total: 3, PerSource: 3})
	for range 2 {
		_, m := admit(t, mixed, "a")
		m.Keep(crowd.Known)
	}
	idle, _ := admit(t, mixed, "b")
	admit(t, mixed, "c")
	if !idle.closed || mixed.Len() != 3 {
		t.Error("the idle one of the other address did not pay")
	}
}

type addr string

func (addr) Network() string  { return "tcp" }
func (a addr) String() string { return string(a) }

func TestSources(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.1:7947": "10.0.0.1", "[::ffff:10.0.0.1]:7947": "10.0.0.1",
		"[2001:db8:1:2:3:4:5:6]:7947": "2001:db8:1:2::/64", "[2001:db8:1:2::9]:1": "2001:db8:1:2::/64",
		"[fe80::1%eth0]:7947": "fe80::/64",
		"pipe":                "pipe", // an address without a port
	} {
		if got := crowd.Source(addr(text)); got != want {
			t.Errorf("%s counts as %s", text, got)
		}
	}
}
