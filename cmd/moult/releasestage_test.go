package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// awaitIn waits in made-up time for hosts that are as far as at tells, and returns
// what it wrote, without the times of day, its error, and how long it took.
func awaitIn(t *testing.T, at func(since time.Duration) (apiReleaseStaging, error)) (shown string, took time.Duration, err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var out bytes.Buffer
		_, err = awaitStaged(t.Context(), func(context.Context) (apiReleaseStaging, error) { return at(time.Since(began)) }, &out)
		took = time.Since(began)
		for line := range strings.Lines(out.String()) {
			shown += strings.TrimSpace(line[len("15:04:05 "):]) + "; "
		}
	})
	return shown, took, err
}

func stagedOn(staged, failed, hosts int) apiReleaseStaging {
	s := apiReleaseStaging{Hosts: hosts, Staged: staged, Failed: failed, Done: int64(staged), Total: int64(hosts)}
	for i := range min(failed, 2) {
		s.Reasons = append(s.Reasons, apiStagingReason{Name: fmt.Sprintf("web-%d", i), Reason: "no \x1b[31mroom"})
	}
	return s
}

func TestWaitingForStagedHostsEndsWhenAllHaveIt(t *testing.T) {
	shown, took, err := awaitIn(t, func(since time.Duration) (apiReleaseStaging, error) {
		switch {
		case since < time.Second: // a server that has not heard of the order
			return apiReleaseStaging{}, errNotStaged
		case since < 5*time.Second:
			return stagedOn(0, 1, 3), nil // failed before, and told again
		case since < 8*time.Second:
			return apiReleaseStaging{}, errors.New("no server answers")
		case since < time.Hour: // slowly
			s := stagedOn(1, 0, 3)
			s.Done = int64(since / time.Minute)
			return s, nil
		}
		return stagedOn(3, 0, 3), nil
	})
	if want := "staged on 0 of 3 hosts, 1 cannot; staged on 1 of 3 hosts; staged on 3 of 3 hosts; "; shown != want || err != nil || took < time.Hour || took > time.Hour+time.Second {
		t.Errorf("%s after %v: %v", shown, took, err)
	}
	if _, took, err := awaitIn(t, func(time.Duration) (apiReleaseStaging, error) { return stagedOn(0, 0, 0), nil }); err != nil || took > 0 {
		t.Errorf("nobody is behind: %v after %v", err, took)
	}
}

func TestWaitingForStagedHostsTellsWhoCannot(t *testing.T) {
	_, took, err := awaitIn(t, func(since time.Duration) (apiReleaseStaging, error) {
		if since < time.Minute {
			return stagedOn(0, 3, 4), nil // one is on its way
		}
		return stagedOn(1, 3, 4), nil
	})
	if err == nil || took < time.Minute+stagingStuck || took > time.Minute+stagingStuck+time.Second {
		t.Fatalf("%v after %v", err, took)
	}
	want := "staged on 1 of 4 hosts, 3 cannot; they are told again every ten minutes, and fetch it at their turn:\n  web-0: no ?[31mroom\n  web-1: no ?[31mroom\n  and 1 more"
	if err.Error() != want {
		t.Errorf("%v", err)
	}
}

func TestWaitingForStagedHostsEndsWhenNobodySaysAnything(t *testing.T) {
	_, took, err := awaitIn(t, func(time.Duration) (apiReleaseStaging, error) { return stagedOn(2, 0, 3), nil })
	if err == nil || !strings.HasSuffix(err.Error(), "  1 more did not say for 2m0s that they are getting it") || took < stagingSilent || took > stagingSilent+time.Second {
		t.Errorf("%v after %v", err, took)
	}
}

func TestWaitingForStagedHostsGivesUp(t *testing.T) {
	for name, row := range map[string]struct {
		err   error
		after time.Duration
	}{
		"withdrawn":         {fmt.Errorf("%w 2.0.0", errNotStaged), stagingUnheard},
		"no server answers": {errors.New("connection refused"), watchPatience},
		"signed out":        {&apiError{Status: http.StatusUnauthorized}, 0},
	} {
		_, took, err := awaitIn(t, func(time.Duration) (apiReleaseStaging, error) { return apiReleaseStaging{}, row.err })
		if !errors.Is(err, row.err) || took < row.after || took > row.after+time.Second {
			t.Errorf("%s: %v after %v", name, err, took)
		}
	}
}

// TestStagingOfARelease reads it from the list of releases.
func TestStagingOfARelease(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"releases":[{"version":"3.0.0","staged":false},{"version":"2.0.0","staged":true,"staging":{"hosts":4,"staged":1,"failed":2,"done":5,"total":20,"reasons":[{"name":"a","reason":"full"}]}},{"version":"1.0.0","staged":true}]}`)
	}))
	defer srv.Close()
	c := &client{http: srv.Client(), addrs: []string{srv.URL}}
	s, err := stagingOf(t.Context(), c, "2.0.0")
	if err != nil || s.Hosts != 4 || s.Staged != 1 || s.Failed != 2 || s.Done != 5 || s.Total != 20 || len(s.Reasons) != 1 {
		t.Errorf("%+v: %v", s, err)
	}
	for version, want := range map[string]string{"3.0.0": "was withdrawn, or another one is staged", "4.0.0": "was withdrawn", "1.0.0": "older moult"} {
		if _, err := stagingOf(t.Context(), c, version); !errors.Is(err, errNotStaged) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", version, err)
		}
	}
}
