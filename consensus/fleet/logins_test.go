package fleet

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// guesses is a state whose time a test sets.
type guesses struct {
	*script
	now time.Time
}

func startGuessing(t *testing.T) *guesses {
	s := newScript(t)
	s.must(cluster())
	return &guesses{s, epoch.Add(time.Hour)}
}

// at applies a change at the present time.
func (g *guesses) at(c Change) {
	g.tb.Helper()
	index := uint64(len(g.log) + 1)
	e, err := NewEntry(fmt.Sprint("g", index), "system", g.now, c)
	if err != nil {
		g.tb.Fatal(err)
	}
	g.log = append(g.log, e)
	if r := g.state.Apply(index, e); r.Err != nil {
		g.tb.Fatalf("%s: %s", c.Kind(), r.Err.Message)
	}
}

// try makes n attempts, and returns how many are admitted.
func (g *guesses) try(name, network string, n int) (admitted int) {
	g.tb.Helper()
	var c LoginsTried
	for i := range n {
		c.Tries = append(c.Tries, LoginTry{ID: fmt.Sprintf("%d-%d", len(g.log), i), Name: name, Network: network})
	}
	g.at(c)
	for _, try := range c.Tries {
		if g.state.View().LoginAdmitted(try) {
			admitted++
		}
	}
	return admitted
}

func (g *guesses) wait(name, network string) time.Duration {
	return g.state.View().LoginWait(name, network, g.now)
}

func (g *guesses) wants(name, network string, wait time.Duration) {
	g.tb.Helper()
	if got := g.wait(name, network); got != wait {
		g.tb.Errorf("%s from %s waits %s, want %s", name, network, got, wait)
	}
}

// The numbers that docs/web-ui.md tells.
func TestWaitsGrowUpToALimitAndFade(t *testing.T) {
	g := startGuessing(t)
	if n := g.try("admin", "10.0.0.1", 9); n != 9 {
		t.Errorf("%d of 9 admitted", n)
	}
	g.wants("admin", "10.0.0.1", 0)
	for _, want := range []time.Duration{6, 12, 24, 48, 96, 192, 300, 300, 300, 300} {
		if n := g.try("admin", "10.0.0.1", 3); n != 1 { // all at once, at whatever server
			t.Errorf("%d admitted", n)
		}
		g.wants("admin", "10.0.0.1", want*time.Second)
		g.now = g.now.Add(want*time.Second - 1)
		if n := g.try("admin", "10.0.0.1", 1); n != 0 {
			t.Error("admitted too early")
		}
		g.now = g.now.Add(1)
		g.wants("admin", "10.0.0.1", 0) // whoever waits gets his turn
	}
	g.now = g.now.Add(100 * time.Minute)
	g.try("admin", "10.0.0.1", 1)
	g.wants("admin", "10.0.0.1", 0) // of 18, 10 have faded
	g.now = g.now.Add(loginForget)
	if n := g.try("admin", "10.0.0.1", 20); n != 10 {
		t.Errorf("%d admitted after all is forgotten", n)
	}

	// Whatever the name, from one network.
	for i := range 10 {
		g.try(fmt.Sprintf("~%03x", i), "10.0.0.2", 1)
	}
	g.wants("admin", "10.0.0.2", 6*time.Second)
	for _, want := range []time.Duration{6, 12, 24, 30, 30} {
		g.wants("bob", "10.0.0.2", want*time.Second)
		g.now = g.now.Add(want * time.Second)
		g.try("~abc", "10.0.0.2", 1)
	}
	g.now = g.now.Add(10 * time.Minute)
	g.try("bob", "10.0.0.2", 1)
	g.wants("carl", "10.0.0.2", 0)

	// For one name, from wherever.
	for i := range 50 {
		g.wants("vera", "10.9.9.9", 0)
		g.try("vera", fmt.Sprintf("10.1.0.%d", i), 1)
	}
	for i, want := range []time.Duration{6, 12, 24, 30, 30} {
		g.wants("vera", "10.9.9.9", want*time.Second)
		g.wants("carl", "10.9.9.9", 0)
		g.now = g.now.Add(want * time.Second)
		g.try("vera", fmt.Sprintf("10.2.0.%d", i), 1)
	}
}

// Others' guesses do not hold a user up where that user has signed in from before.
func TestOthersGuessesDoNotHoldUpWhoIsKnown(t *testing.T) {
	g := startGuessing(t)
	signIn := func(hash, network string) {
		t.Helper()
		g.at(SessionCreated{Session: Session{Hash: hash, UserID: "u1", ExpiresAt: g.now.Add(time.Hour)}, Network: network})
	}
	signIn("a", "10.0.0.1")
	for i := range 50 {
		g.try("admin", fmt.Sprintf("10.1.0.%d", i), 1)
		g.try("~abc", "10.0.0.1", 1)
	}
	g.wants("admin", "10.0.0.1", 0)
	g.wants("bob", "10.0.0.1", 6*time.Second)
	g.wants("admin", "10.0.0.9", 6*time.Second)
	// The own count holds there too, and success ends it.
	g.try("admin", "10.0.0.1", 10)
	g.wants("admin", "10.0.0.1", 6*time.Second)
	signIn("b", "10.0.0.1")
	g.wants("admin", "10.0.0.1", 0)
	for i := range MaxKnownNetworks {
		signIn(fmt.Sprint("c", i), fmt.Sprintf("10.2.0.%d", i))
	}
	u, _ := g.state.View().User("u1")
	if len(u.KnownFrom) != MaxKnownNetworks || slices.Contains(u.KnownFrom, "10.0.0.1") || u.KnownFrom[0] != "10.2.0.7" {
		t.Errorf("known from %v", u.KnownFrom)
	}
	g.at(UserChanged{UserID: "u1", PasswordHash: "y"}) // whoever had the old password is not known any more
	if g.state.View().KnownFrom("admin", "10.2.0.7") {
		t.Error("still known after a new password")
	}
}

// Clocks that disagree keep nobody out for good.
func TestWaitsWithWrongClocks(t *testing.T) {
	g := startGuessing(t)
	g.try("admin", "10.0.0.1", 10)
	g.now = g.now.Add(-2 * time.Second) // the other server is ahead
	g.wants("admin", "10.0.0.1", 6*time.Second)
	g.now = g.now.AddDate(-1, 0, 0) // it was, by a year
	g.wants("admin", "10.0.0.1", 0)
	if n := g.try("admin", "10.0.0.1", 1); n != 1 {
		t.Error("not admitted")
	}
}

// A right password takes back what it cost: people who sign in and out again and
// again do not hold up others at their address.
func TestRightPasswordsCostNothing(t *testing.T) {
	g := startGuessing(t)
	g.try("~abc", "10.0.0.1", 9)
	for i := range 60 {
		if n := g.try("admin", "10.0.0.1", 1); n != 1 {
			t.Fatalf("sign-in %d is not admitted", i)
		}
		g.at(SessionCreated{Session: Session{Hash: fmt.Sprint("s", i), UserID: "u1", ExpiresAt: g.now.Add(time.Hour)}, Network: "10.0.0.1"})
	}
	g.wants("bob", "10.0.0.1", 0)
	g.wants("admin", "10.9.9.9", 0)
	g.try("bob", "10.0.0.1", 1)
	g.wants("carl", "10.0.0.1", 6*time.Second) // those of others were not forgotten
}

func TestTriedLoginsAreAuditedWithinBounds(t *testing.T) {
	g := startGuessing(t)
	told := func() (entries []AuditEntry) {
		for _, e := range g.state.View().Audit(0, 1000) {
			if e.Action == "logins_tried" {
				entries = append(entries, e)
			}
		}
		return entries
	}
	g.try("admin", "10.0.0.1", 9)
	if len(told()) != 0 {
		t.Error("told before anybody has to wait")
	}
	g.try("admin", "10.0.0.1", 1)
	e := told()
	if len(e) != 1 || e[0].From != "10.0.0.1" || e[0].Subject != "sign-in" || !strings.Contains(e[0].Detail, "10 passwords tried for admin from 10.0.0.1, the next attempt after 6s") {
		t.Fatalf("%+v", e)
	}
	g.try("admin", "10.0.0.1", 1)
	for i := range 100 { // a flood from many networks
		g.now = g.now.Add(500 * time.Millisecond)
		g.try(fmt.Sprintf("~%03x", i), fmt.Sprintf("10.1.0.%d", i), 10)
	}
	if n := len(told()); n != 1 {
		t.Errorf("%d entries within a minute", n)
	}
	g.now = g.now.Add(loginAuditEvery)
	g.try("~abc", "2001:db8::/64", 10)
	e = told()
	if len(e) != 2 || !strings.HasPrefix(e[0].Detail, "since the entry before 200 more; ") || !strings.Contains(e[0].Detail, "for a name that nobody has from 2001:db8::/64") {
		t.Errorf("%+v", e)
	}
}

func TestTriedLoginsAreForgotten(t *testing.T) {
	g := startGuessing(t)
	rows := func() int { return len(all[loginRow](g.state.View().txn, false, tableLogins, "id")) }
	g.state.bounds.loginRows = 20
	for i := range 30 {
		g.try("admin", fmt.Sprintf("10.1.0.%d", i), 1)
	}
	if n := rows(); n != 20 {
		t.Errorf("%d rows", n)
	}
	g.now = g.now.Add(loginForget)
	g.try("admin", "10.0.0.1", 1)
	if n := rows(); n != 3 {
		t.Errorf("%d rows after all the others are over", n)
	}
	if name := g.state.View().LoginName("admin"); name != "admin" {
		t.Error(name)
	}
	if name := g.state.View().LoginName("my secret password"); len(name) != 4 || name[0] != '~' || name != g.state.View().LoginName("my secret password") {
		t.Error(name)
	}
}

func TestBadTriesAreRefused(t *testing.T) {
	s := fleetOf(t, 0)
	good := LoginTry{ID: "a", Name: "admin", Network: "10.0.0.1"}
	for field, change := range map[string]func(*LoginTry){
		"tries.id":      func(c *LoginTry) { c.ID = "" },
		"tries.name":    func(c *LoginTry) { c.Name = "" },
		"tries.network": func(c *LoginTry) { c.Network = "10.0.0.1 x" },
	} {
		bad := good
		change(&bad)
		before := decided(s.state)
		err := s.apply(LoginsTried{Tries: []LoginTry{good, bad}})
		if err == nil || err.Code != CodeBadRequest || !strings.Contains(err.Message, field) || decided(s.state) != before {
			t.Errorf("%s: %v", field, err)
		}
	}
	s.refused(CodeBadRequest, LoginsTried{})
	s.refused(CodeBadRequest, LoginsTried{Tries: slices.Repeat([]LoginTry{good}, MaxLoginTries+1)})
	s.refused(CodeBadRequest, SessionCreated{Session: Session{Hash: "x", UserID: "u1", ExpiresAt: epoch.AddDate(1, 0, 0)}, Network: "<b>"})
}
