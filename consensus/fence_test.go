package consensus

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"

	"moult/consensus/fleet"
)

// A leader may lose its office and win it again before its callback hears of it.
// What the callback still proposes must not follow what another leader wrote
// in between: it is void on every server.
func TestProposalOfAnEarlierTermIsVoid(t *testing.T) {
	c := startCluster(t, 3, nil)
	// propose has the leader propose for a callback of this term or of the one before. A
	// term that ended by chance meanwhile does not count.
	propose := func(name string, before uint64) (*server, fleet.Result, error) {
		for {
			leader := c.AwaitLeader()
			term := leader.raft.CurrentTerm()
			office := context.WithValue(c.within(10*time.Second), termNumber{}, term-before)
			result, err := leader.Propose(context.WithValue(office, termKey{}, office), "coordinator", user(name))
			if leader.raft.CurrentTerm() == term && leader.IsLeader() {
				return leader, result, err
			}
			name += "x" // the first one may have been applied
		}
	}
	leader, result, err := propose("late", 1)
	var refused *fleet.Error
	if !errors.As(err, &refused) || refused.Code != fleet.CodeConflict || result.Index == 0 {
		t.Fatalf("got %+v, %v; want a refusal with %s", result, err, fleet.CodeConflict)
	}
	// It was appended all the same: the fence is in the log, not in front of it.
	var l raft.Log
	if err := leader.store.GetLog(result.Index, &l); err != nil || l.Term != binary.BigEndian.Uint64(l.Extensions)+1 {
		t.Errorf("entry %d of term %d: %v", result.Index, l.Term, err)
	}
	c.AwaitEqual()
	for _, s := range c.all() {
		for _, e := range s.View().Audit(0, 100) {
			if strings.HasPrefix(e.Subject, "user late") {
				t.Errorf("%s applied it", s.id)
			}
		}
		if got := s.View().Index(); got < result.Index {
			t.Errorf("%s is at %d, before the void entry %d", s.id, got, result.Index)
		}
	}
	if _, _, err := propose("in-time", 0); err != nil {
		t.Error(err)
	}
}

// Nor may an ordinary proposal of such a moment be applied: it was stamped by a
// state that lacks what the other leader wrote, so times would go back. It is void,
// and made anew.
func TestOrdinaryProposalOfAnEarlierTermIsMadeAnew(t *testing.T) {
	c := startCluster(t, 1, nil)
	s := c.all()[0]
	office, _ := s.term.get()
	s.term.begin(context.WithValue(office, termNumber{}, s.raft.CurrentTerm()-1)) // it has not noticed yet
	before := s.AppliedIndex()
	done := make(chan error, 1)
	go func() {
		_, err := s.Propose(c.within(patience), "user:test", user("ann"))
		done <- err
	}()
	awaitSoon(t, "an entry is appended", func() bool { return s.AppliedIndex() > before })
	if hasUser(s, "ann") {
		t.Error("what was stamped in an earlier term is applied")
	}
	s.term.begin(office)
	if err := <-done; err != nil || !hasUser(s, "ann") {
		t.Errorf("the proposal was not made anew: %v", err)
	}
}

// A server with a clock years ahead must not take the whole cluster there: no
// join token would be good until then.
func TestTimesOfAWrongClockAreLeftBehind(t *testing.T) {
	ahead := 70 * 365 * 24 * time.Hour
	c := startCluster(t, 1, func(cfg *Config) {
		cfg.now = func() time.Time { return time.Now().Add(ahead) }
	})
	s := c.all()[0]
	mustPropose(t, s, user("then"))
	c.Stop(s)
	ahead = 0
	s = c.open(s.id, s.addr)
	c.AwaitLeader()
	mustPropose(t, s, user("now"))
	if at := s.View().Audit(0, 1)[0].At; time.Since(at) > time.Minute || time.Since(at) < 0 {
		t.Errorf("the entry after the clock was set is of %s", at)
	}
	// Small steps back are still held off, by entries and by the log.
	ahead = -time.Hour
	mustPropose(t, s, user("later"))
	audit := s.View().Audit(0, 2)
	if audit[0].At.Before(audit[1].At) {
		t.Errorf("times went back from %s to %s", audit[1].At, audit[0].At)
	}
}

func TestOversizedForwardedChangeIsRefused(t *testing.T) {
	c := startCluster(t, 1, nil)
	big := user("big")
	big.User.PasswordHash = strings.Repeat("x", MaxEntry)
	e, err := fleet.NewEntry(uuid.NewString(), "user:test", time.Now(), big)
	if err != nil {
		t.Fatal(err)
	}
	req, err := json.Marshal(request{Op: opPropose, Entry: &e})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := c.all()[0].ServeForwarded(c.within(5*time.Second), req)
	var resp response
	if err != nil || json.Unmarshal(answer, &resp) != nil || !strings.Contains(resp.Refused, "bytes") {
		t.Errorf("answer %s, %v", answer, err)
	}
}

// The listener asks for membership when a connection is opened (invariant 18).
// A server that is removed must not go on over one that it has.
func TestRemovedServersConnectionsEnd(t *testing.T) {
	c := startCluster(t, 3, nil)
	leader := c.AwaitLeader()
	others := c.Followers(leader)
	conn, err := net.Dial("tcp", others[0].addr) // as the server that is about to be removed has one
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	accepted := func() (n int) {
		s := others[0].stream
		s.mu.Lock()
		defer s.mu.Unlock()
		for open := range s.conns {
			if open.accepted && open.RemoteAddr().String() == conn.LocalAddr().String() {
				n++
			}
		}
		return n
	}
	awaitSoon(t, "the connection is accepted", func() bool { return accepted() == 1 })
	// Adding one ends nothing.
	s4 := c.open("s4", "")
	if err := leader.AddServer(c.within(patience), s4.id, s4.addr); err != nil {
		t.Fatal(err)
	}
	awaitSoon(t, "s4 is a voter everywhere", func() bool { return others[0].voters() == 4 && s4.voters() == 4 })
	if accepted() != 1 {
		t.Error("a connection was ended though nobody was removed")
	}
	if err := leader.RemoveServer(c.within(patience), others[1].id); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) || err == nil {
		t.Errorf("the connection goes on: %v", err)
	} else if !errors.Is(err, io.EOF) {
		t.Logf("it ended with %v", err)
	}
	c.Stop(others[1])
	mustPropose(t, c.AwaitLeader(), user("after"))
	c.AwaitEqual()
}
