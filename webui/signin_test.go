package webui

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"moult/consensus/fleet"
)

// another is a further server with the same replicated state.
func (w *world) another() *world {
	w.tb.Helper()
	other := *w
	var err error
	if other.handler, err = New(w.config); err != nil {
		w.tb.Fatal(err)
	}
	return &other
}

// signInFrom posts the login form from an address.
func (w *world) signInFrom(address, name, password string) answer {
	form := url.Values{"username": {name}, "password": {password}}
	r := httptest.NewRequest("POST", "/login", strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("X-Forwarded-For", "203.0.113.9") // what a client says of itself
	r.RemoteAddr = address
	return w.Do(r)
}

// Whoever goes from server to server has no more attempts than one server gives,
// nor has a server that was started anew forgotten anything.
func TestWrongPasswordsCountAtAllServers(t *testing.T) {
	w := StartWorld(t)
	servers := []*world{w, w.another(), w.another()}
	for i := range loginBurst {
		if a := servers[i%3].signInFrom("192.0.2.7:1", "admin", "wrong password"); a.Code != http.StatusUnauthorized {
			t.Fatalf("attempt %d: %d", i, a.Code)
		}
	}
	for i, s := range append(servers, w.another()) {
		a := s.signInFrom("192.0.2.7:1", "admin", adminPassword)
		if a.Code != http.StatusTooManyRequests || a.Header().Get("Retry-After") != "6" {
			t.Errorf("server %d: %d %v", i, a.Code, a.Header())
		}
	}
	if a := servers[1].signInFrom("198.51.100.1:1", "admin", adminPassword); a.Code != http.StatusSeeOther {
		t.Errorf("the admin, from another address: %d", a.Code)
	}
	w.clock.Advance(6 * time.Second)
	if a := servers[1].signInFrom("192.0.2.7:1", "admin", "wrong again"); a.Code != http.StatusUnauthorized {
		t.Errorf("after waiting: %d", a.Code)
	}
	w.clock.Advance(11 * time.Second)
	if a := servers[2].signInFrom("192.0.2.7:1", "admin", adminPassword); a.Code != http.StatusTooManyRequests || a.Header().Get("Retry-After") != "1" {
		t.Errorf("the wait does not grow: %d %v", a.Code, a.Header())
	}
	w.clock.Advance(time.Second)
	if a := servers[2].signInFrom("192.0.2.7:1", "admin", adminPassword); a.Code != http.StatusSeeOther {
		t.Errorf("who waits gets in: %d", a.Code)
	}
	entries := w.Admin("GET", "/api/audit?action=logins_tried", "").OK()["entries"]
	if from := column(entries, "from"); len(from) != 1 || from[0] != "192.0.2.7" {
		t.Errorf("%v", entries)
	}
	w.Admin("GET", "/audit?action=logins_tried", "").Shows("logins tried", "10 passwords tried for admin from 192.0.2.7", "192.0.2.7")
}

// One who holds a whole IPv6 network is one client.
func TestNetworksOfClients(t *testing.T) {
	for remote, want := range map[string][2]string{
		"192.0.2.7:1234":                 {"192.0.2.7", "192.0.2.7"},
		"[::ffff:192.0.2.7]:1234":        {"192.0.2.7", "192.0.2.7"},
		"[2001:db8:1:2:3:4:5:6]:1":       {"2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"},
		"[2001:db8:1:2:ffff::]:1":        {"2001:db8:1:2:ffff::", "2001:db8:1:2::/64"},
		"[fe80::1%eth0]:1":               {"fe80::1", "fe80::/64"},
		"[::1]:1":                        {"::1", "::1"},
		"@":                              {"", "unknown"},
		"not an address, but some words": {"", "unknown"},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = remote
		r.Header.Set("X-Forwarded-For", "203.0.113.9")
		if got := [2]string{clientAddress(r), clientNetwork(r)}; got != want {
			t.Errorf("%s: %v, want %v", remote, got, want)
		}
	}
}

// Others' guesses, from wherever, let a user in who has signed in from the same
// address before, also where that is the guessers' address.
func TestGuessersKeepNobodyOut(t *testing.T) {
	w := StartWorld(t)
	if a := w.signInFrom("192.0.2.7:1", "admin", adminPassword); a.Code != http.StatusSeeOther {
		t.Fatal(a.Code)
	}
	for i := range 60 {
		w.MustPropose("system", fleet.LoginsTried{Tries: []fleet.LoginTry{{ID: "x", Name: "admin", Network: fmt.Sprintf("198.51.100.%d", i)}}})
	}
	for range loginBurst + 5 {
		w.signInFrom("192.0.2.7:1", "somebody", "wrong password")
	}
	if a := w.signInFrom("203.0.113.1:1", "admin", adminPassword); a.Code != http.StatusTooManyRequests {
		t.Errorf("the name is not limited: %d", a.Code)
	}
	if a := w.signInFrom("192.0.2.7:1", "somebody", "x"); a.Code != http.StatusTooManyRequests {
		t.Errorf("the address is not limited: %d", a.Code)
	}
	if a := w.signInFrom("192.0.2.7:1", "admin", adminPassword); a.Code != http.StatusSeeOther {
		t.Errorf("the admin at the usual address: %d", a.Code)
	}
}

// What is typed as a name may be a password: it goes into no entry of the log.
func TestUnknownNamesAreNotWrittenDown(t *testing.T) {
	w := StartWorld(t)
	for range loginBurst {
		w.SignIn("Tr0ub4dor-and-3", "x", "/")
	}
	w.log.mu.Lock()
	defer w.log.mu.Unlock()
	for _, e := range w.log.entries {
		if text, _ := json.Marshal(e); strings.Contains(string(text), "Tr0ub4dor") {
			t.Errorf("%s", text)
		}
	}
}

// Where nothing can be committed, the answer does not tell whether the password
// was right, and there is none for whoever left without waiting for it.
func TestWithoutALeaderRightAndWrongPasswordsAreAnsweredAlike(t *testing.T) {
	w := StartWorld(t)
	w.log.fail = errNoLeaderInTest
	right, wrong := w.SignIn("admin", adminPassword, "/"), w.SignIn("admin", "wrong password", "/")
	if right.Code != http.StatusServiceUnavailable || wrong.Code != right.Code || wrong.Body.String() != right.Body.String() {
		t.Errorf("right: %d, wrong: %d %s", right.Code, wrong.Code, wrong.Body)
	}
	mine := w.mustSessionWithoutLeader(t)
	w.as(mine, "POST", "/api/account/password", `{"current_password":"wrong","new_password":"long enough"}`).Refused(503, "unavailable")

	// A server of before does not know the change: each counts by itself.
	w.log.fail = refuse(fleet.CodeUnknownChange, "update all servers")
	if a := w.SignIn("admin", "wrong password", "/"); a.Code != http.StatusUnauthorized {
		t.Errorf("beside an older leader: %d", a.Code)
	}
}

func (w *world) mustSessionWithoutLeader(t *testing.T) *http.Cookie {
	t.Helper()
	fail := w.log.fail
	w.log.fail = nil
	defer func() { w.log.fail = fail }()
	return w.MustSession(t, "u1")
}

func TestALeavingClientsFailureCounts(t *testing.T) {
	w := StartWorld(t)
	ctx, leave := context.WithCancel(t.Context())
	r := httptest.NewRequestWithContext(ctx, "POST", "/login", strings.NewReader("username=admin&password=wrong"))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	w.log.before = leave // while the failure is on its way
	w.Do(r)
	w.log.before = nil
	for range loginBurst - 1 {
		w.another().SignIn("admin", "wrong password", "/")
	}
	if a := w.another().SignIn("admin", adminPassword, "/"); a.Code != http.StatusTooManyRequests {
		t.Errorf("%d", a.Code)
	}
}

// Concurrent guesses, at all servers at once, get no further than those that come
// one after the other at one.
func TestConcurrentGuessesCount(t *testing.T) {
	w := StartWorld(t)
	servers := []*world{w, w.another(), w.another()}
	guess := func() int64 {
		var looked atomic.Int64
		var all sync.WaitGroup
		for i := range 6 * loginBurst {
			all.Go(func() {
				if servers[i%3].SignIn("admin", "wrong password", "/").Code == http.StatusUnauthorized {
					looked.Add(1)
				}
			})
		}
		all.Wait()
		return looked.Load()
	}
	if n := guess(); n != loginBurst {
		t.Errorf("%d guesses were looked at", n)
	}
	w.clock.Advance(time.Minute)
	if n := guess(); n != 1 {
		t.Errorf("after the wait %d guesses were looked at", n)
	}
}

// A flood of guesses is a few entries a second, and each guess hears whether it
// was admitted.
func TestTriesAreGathered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		state, index := fleet.New(), uint64(0)
		var counted int
		tr := newTries(state.View, func(_ context.Context, c fleet.Change) error {
			index++
			counted += len(c.(fleet.LoginsTried).Tries)
			e, err := fleet.NewEntry(fmt.Sprint(index), "system", time.Now(), c)
			if err != nil {
				return err
			}
			if refused := state.Apply(index, e).Err; refused != nil {
				return refused
			}
			time.Sleep(time.Millisecond)
			return nil
		})
		begin := time.Now()
		var all sync.WaitGroup
		var admitted atomic.Int64
		const seconds, perSecond = 10, 100
		for i := range seconds * perSecond {
			all.Go(func() {
				time.Sleep(time.Duration(i) * time.Second / perSecond)
				ok, err := tr.admit(t.Context(), "admin", fmt.Sprint("10.0.0.", i%4))
				if err != nil {
					t.Error(err)
				}
				if ok {
					admitted.Add(1)
				}
			})
		}
		all.Wait()
		if took := time.Since(begin); took > (seconds+1)*time.Second {
			t.Errorf("took %s", took)
		}
		if most := tryEntriesBurst + tryEntriesPerSecond*(seconds+1); int(index) > most || counted != seconds*perSecond {
			t.Errorf("%d entries, at most %d; %d attempts of %d", index, most, counted, seconds*perSecond)
		}
		if n := admitted.Load(); n < 40 || n > 4*(loginBurst+2) {
			t.Errorf("%d admitted", n)
		}
	})
}

func TestTriesOfOneEntryAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blocked := make(chan struct{})
		sizes := []int{}
		tr := newTries(fleet.New().View, func(_ context.Context, c fleet.Change) error {
			sizes = append(sizes, len(c.(fleet.LoginsTried).Tries))
			<-blocked
			return nil
		})
		var all sync.WaitGroup
		var busy atomic.Int64
		try := func() {
			all.Go(func() {
				if _, err := tr.admit(t.Context(), "admin", "10.0.0.1"); codeOf(err) == codeBusy {
					busy.Add(1)
				}
			})
		}
		try()
		synctest.Wait()
		for range fleet.MaxLoginTries + 7 {
			try()
		}
		synctest.Wait()
		close(blocked)
		all.Wait()
		if len(sizes) != 2 || sizes[1] != fleet.MaxLoginTries || busy.Load() != 7 {
			t.Errorf("entries of %v, %d turned away", sizes, busy.Load())
		}
	})
}

func TestAnAttemptThatIsNotCommittedIsNotAdmitted(t *testing.T) {
	tr := newTries(fleet.New().View, func(context.Context, fleet.Change) error { return errNoLeaderInTest })
	if ok, err := tr.admit(t.Context(), "admin", "10.0.0.1"); ok || !errors.Is(err, errNoLeaderInTest) {
		t.Error(ok, err)
	}
}
