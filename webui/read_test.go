package webui

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"moult/consensus/fleet"
)

// latest asks for a path with the header that has the server catch up first.
func (w *world) latest(token, path, header string) answer {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.Header.Set(readHeader, header)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return w.Do(r)
}

func TestReadOfTheLatestCatchesUpFirst(t *testing.T) {
	w := StartWorld(t)
	caught := 0
	w.catchUp = func(context.Context) error {
		caught++
		if caught == 1 { // what this server had not applied yet
			w.MustEnrol("late", "1.0.0", true)
		}
		return nil
	}
	if got := w.Call(adminToken, "GET", "/api/hosts", "").Body.String(); strings.Contains(got, "late") || caught != 0 {
		t.Errorf("an ordinary read caught up %d times: %s", caught, got)
	}
	if got := w.latest(adminToken, "/api/hosts", "latest").Body.String(); !strings.Contains(got, "late") || caught != 1 {
		t.Errorf("after catching up %d times: %s", caught, got)
	}
	// Nobody who has no business here makes the servers work.
	if got := w.latest("", "/api/hosts", "latest"); got.Code != http.StatusUnauthorized || caught != 1 {
		t.Errorf("without a login: %d, caught up %d times", got.Code, caught)
	}
	if got := w.latest(adminToken, "/api/hosts", "newest"); got.Code != http.StatusBadRequest || !strings.Contains(got.Body.String(), `Moult-Read: \"newest\" is not latest`) {
		t.Errorf("a value that there is not: %d %s", got.Code, got.Body)
	}
}

func TestReadOfTheLatestGoesByTheLatestLogins(t *testing.T) {
	w := StartWorld(t)
	w.catchUp = func(context.Context) error {
		w.MustPropose("user:admin", fleet.APITokenRevoked{TokenID: "t3"})
		return nil
	}
	if got := w.latest(viewerToken, "/api/hosts", "latest"); got.Code != http.StatusUnauthorized {
		t.Errorf("a token that was revoked elsewhere: %d %s", got.Code, got.Body)
	}
}

func TestReadOfTheLatestFailsWithoutALeader(t *testing.T) {
	w := StartWorld(t)
	w.catchUp = func(context.Context) error { return errors.New("no leader took the request") }
	got := w.latest(adminToken, "/api/hosts", "latest")
	if got.Code != http.StatusServiceUnavailable || !strings.Contains(got.Body.String(), `"not_ready"`) || !strings.Contains(got.Body.String(), "without the header") {
		t.Errorf("%d %s", got.Code, got.Body)
	}
}
