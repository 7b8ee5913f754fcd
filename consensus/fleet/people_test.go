package fleet

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// by applies a change in somebody's name.
func (s *script) by(actor, from string, c Change) Result {
	s.tb.Helper()
	index := uint64(len(s.log) + 1)
	e, err := NewEntry(fmt.Sprintf("b%d", index), actor, epoch.Add(time.Duration(index)*time.Second), c)
	if err != nil {
		s.tb.Fatal(err)
	}
	e.From = from
	s.log = append(s.log, e)
	return s.state.Apply(index, e)
}

// What somebody else set is to be changed, and only the user's own password ends that.
func TestOnlyTheOwnPasswordEndsTheDutyToChangeIt(t *testing.T) {
	s := fleetOf(t, 0)
	must := func() bool { u, _ := s.state.View().User("u2"); return u.MustChangePassword }
	s.must(UserCreated{User: User{ID: "u2", Name: "bob", Role: Viewer, PasswordHash: "x", MustChangePassword: true}})
	for _, step := range []struct {
		actor string
		c     UserChanged
		want  bool
	}{
		{"user:admin", UserChanged{Role: Operator}, true},
		{"user:admin", UserChanged{PasswordHash: "y"}, true}, // of an older server, or a mistake
		{"token:bob", UserChanged{PasswordHash: "y"}, true},  // a token is not the user
		{"user:bob", UserChanged{Role: Viewer}, true},
		{"user:bob", UserChanged{PasswordHash: "z"}, false},
		{"user:admin", UserChanged{PasswordHash: "y"}, false}, // what an older server's entry says
		{"user:admin", UserChanged{PasswordHash: "y", MustChange: true}, true},
	} {
		step.c.UserID = "u2"
		if r := s.by(step.actor, "", step.c); r.Err != nil {
			t.Fatal(r.Err)
		}
		if must() != step.want {
			t.Errorf("after %+v by %s: %v", step.c, step.actor, must())
		}
	}
	if e := s.state.View().Audit(0, 1)[0]; e.Detail != "password, to be changed at first use" {
		t.Errorf("%+v", e)
	}
	if again := reopened(t, s.state); again.Hash() != s.state.Hash() {
		t.Error("a snapshot loses it")
	}
}

// Entries and snapshots of before know no such duty, no networks and no addresses.
func TestOlderEntriesAndSnapshotsAreRead(t *testing.T) {
	s := newScript(t)
	s.must(cluster())
	for i, text := range []string{
		`{"type":"user_created","version":1,"id":"o1","actor":"user:ann","at":"2026-01-02T03:05:00Z","body":{"user":{"id":"u9","name":"old","role":"viewer","password_hash":"x","created_at":"2026-01-02T03:05:00Z"}}}`,
		`{"type":"session_created","version":1,"id":"o2","actor":"user:old","at":"2026-01-02T03:05:01Z","body":{"session":{"hash":"h","user_id":"u9","created_at":"2026-01-02T03:05:00Z","expires_at":"2026-02-02T03:05:00Z"}}}`,
		`{"type":"user_changed","version":1,"id":"o3","actor":"user:ann","at":"2026-01-02T03:05:02Z","body":{"user_id":"u9","password_hash":"y"}}`,
	} {
		e, err := DecodeEntry([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if r := s.state.Apply(uint64(10+i), e); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	u, _ := s.state.View().User("u9")
	if u.MustChangePassword || u.KnownFrom != nil || s.state.View().Audit(0, 1)[0].From != "" {
		t.Errorf("%+v", u)
	}
	snap := snapshotOf(t, s.state)
	for _, word := range []string{"must_change", "known_from", `"from"`, "logins"} {
		if bytes.Contains(snap, []byte(word)) {
			t.Errorf("a state without %s is written with it: older servers would differ", word)
		}
	}
	if reopened(t, s.state).Hash() != s.state.Hash() {
		t.Error("another state")
	}
}

func TestAuditTellsFromWhere(t *testing.T) {
	s := fleetOf(t, 0)
	if r := s.by("user:admin", "2001:db8::7", UserChanged{UserID: "u1", Role: Admin}); r.Err != nil {
		t.Fatal(r.Err)
	}
	if e := s.state.View().Audit(0, 1)[0]; e.From != "2001:db8::7" {
		t.Errorf("%+v", e)
	}
	long := strings.Repeat("1", MaxFromBytes+1)
	if r := s.by("user:admin", long, UserChanged{UserID: "u1", Role: Admin}); r.Err == nil || r.Err.Code != CodeBadRequest || !strings.Contains(r.Err.Message, "from") {
		t.Errorf("%+v", r)
	}
	if from := Origin(WithOrigin(context.Background(), "10.0.0.1")); from != "10.0.0.1" || Origin(context.Background()) != "" {
		t.Error(from)
	}
}

func TestSessionsEndEverywhere(t *testing.T) {
	s := fleetOf(t, 0)
	session := func(hash string) Change {
		return SessionCreated{Session: Session{Hash: hash, UserID: "u1", ExpiresAt: epoch.AddDate(1, 0, 0)}}
	}
	s.must(UserCreated{User: User{ID: "u2", Name: "bob", Role: Viewer, PasswordHash: "x"}}, session("a"), session("b"),
		SessionCreated{Session: Session{Hash: "c", UserID: "u2", ExpiresAt: epoch.AddDate(1, 0, 0)}}, SessionsEnded{UserID: "u1"})
	v := s.state.View()
	for hash, want := range map[string]bool{"a": false, "b": false, "c": true} {
		if _, open := v.Session(hash); open != want {
			t.Errorf("session %s: %v", hash, open)
		}
	}
	if e := v.Audit(0, 1)[0]; e.Action != "sessions_ended" || e.Subject != "user admin" {
		t.Errorf("%+v", e)
	}
	s.refused(CodeUserNotFound, SessionsEnded{UserID: "nobody"})
}
