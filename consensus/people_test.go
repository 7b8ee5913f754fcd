package consensus

import (
	"fmt"
	"testing"
	"time"

	"moult/consensus/fleet"
)

// Where a client is goes along when its change is passed on to the leader.
func TestTheOriginOfAChangeReachesTheAuditFromAnyServer(t *testing.T) {
	c := startCluster(t, 3, nil)
	for i, s := range c.all() {
		ctx := fleet.WithOrigin(c.within(patience), "192.0.2.7")
		result, err := s.Propose(ctx, "user:test", user(string(rune('a'+i))))
		if err != nil {
			t.Fatal(err)
		}
		if e := s.View().Audit(result.Index+1, 1)[0]; e.Index != result.Index || e.From != "192.0.2.7" {
			t.Errorf("%s: %+v", s.id, e)
		}
	}
	c.AwaitEqual()
}

// Attempts that one server counted, and a session that it opened, are
// those of every server, and still so when the leader is gone.
func TestSessionsAndTriedLoginsOutliveTheLeader(t *testing.T) {
	c := startCluster(t, 3, nil)
	admitted := 0
	expires := time.Now().Add(time.Hour)
	for i, s := range c.all() {
		var c fleet.LoginsTried
		for n := range 4 {
			c.Tries = append(c.Tries, fleet.LoginTry{ID: fmt.Sprint(4*i + n), Name: "first", Network: "192.0.2.7"})
		}
		mustPropose(t, s, c)
		for _, try := range c.Tries {
			if s.View().LoginAdmitted(try) {
				admitted++
			}
		}
		mustPropose(t, s, fleet.SessionCreated{Session: fleet.Session{Hash: string(rune('a' + i)), UserID: "id-first", ExpiresAt: expires}})
	}
	if admitted != 10 {
		t.Errorf("%d attempts were admitted", admitted)
	}
	c.AwaitEqual()
	leader := c.AwaitLeader()
	c.Kill(leader)
	c.AwaitLeader()
	for _, s := range c.all() {
		v := s.View()
		if wait := v.LoginWait("first", "192.0.2.7", time.Now()); wait <= 0 {
			t.Errorf("%s lets the guesser go on", s.id)
		}
		for _, hash := range []string{"a", "b", "c"} {
			if _, open := v.Session(hash); !open {
				t.Errorf("%s does not know session %s", s.id, hash)
			}
		}
	}
	rest := c.all()
	mustPropose(t, rest[0], fleet.SessionsEnded{UserID: "id-first"})
	c.AwaitEqual()
	if _, open := rest[1].View().Session("a"); open {
		t.Error("signed out everywhere, and not at another server")
	}
}
