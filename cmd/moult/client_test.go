package main

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// answering starts a server that gives one answer, and counts who asked.
func answering(t *testing.T, status int, body string) (addr string, asked *int) {
	t.Helper()
	asked = new(int)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		*asked++
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(srv.Close)
	return srv.URL, asked
}

func closedAddress(t *testing.T) string {
	t.Helper()
	srv := httptest.NewServer(http.NotFoundHandler())
	srv.Close()
	return srv.URL
}

const notReadyBody = `{"error":{"code":"not_ready","message":"no leader"}}`

func TestClientGoesOnToAServerThatAnswers(t *testing.T) {
	starting, _ := answering(t, http.StatusServiceUnavailable, notReadyBody)
	healthy, asked := answering(t, http.StatusOK, `{"hosts":[]}`)
	c := &client{addrs: []string{closedAddress(t), starting, healthy}, http: http.DefaultClient}
	if _, err := c.hosts(t.Context(), ""); err != nil || *asked != 1 {
		t.Errorf("%v, asked %d times", err, *asked)
	}
}

// A write that a server may have carried out is not sent to another one.
func TestClientSendsAWriteOnce(t *testing.T) {
	unsure, _ := answering(t, http.StatusServiceUnavailable, `{"error":{"code":"unavailable","message":"the outcome is unknown"}}`)
	other, asked := answering(t, http.StatusOK, `{}`)
	c := &client{addrs: []string{unsure, other}, http: http.DefaultClient}
	write := func() error { return c.call(t.Context(), http.MethodPost, "/api/fleet/update", nil, nil) }
	var refused *apiError
	if err := write(); !errors.As(err, &refused) || refused.Code != "unavailable" || *asked != 0 {
		t.Errorf("%v, the other was asked %d times", err, *asked)
	}
	// One that reached nobody, or nobody who looked at it, is.
	starting, _ := answering(t, http.StatusServiceUnavailable, notReadyBody)
	for i, addr := range []string{closedAddress(t), starting} {
		c.addrs[0] = addr
		if err := write(); err != nil || *asked != i+1 {
			t.Errorf("%v, the other was asked %d times", err, *asked)
		}
	}
}

func TestClientTellsWhatIsWrong(t *testing.T) {
	html, _ := answering(t, http.StatusOK, "<html>")
	plain, _ := answering(t, http.StatusBadGateway, "bad gateway")
	starting, _ := answering(t, http.StatusServiceUnavailable, notReadyBody)
	for addr, want := range map[string]string{
		html: "decode the answer of /api/hosts", plain: "bad gateway (http_502)", starting: "no leader (not_ready)",
		closedAddress(t): "set --addr or MOULT_ADDR",
	} {
		c := &client{addrs: []string{addr}, http: http.DefaultClient}
		if _, err := c.hosts(t.Context(), ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
