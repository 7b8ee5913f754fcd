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

// A write that a server answered, however it did, is not sent to another one.
func TestClientSendsAWriteOnce(t *testing.T) {
	starting, _ := answering(t, http.StatusServiceUnavailable, notReadyBody)
	other, asked := answering(t, http.StatusOK, `{}`)
	c := &client{addrs: []string{starting, other}, http: http.DefaultClient}
	var refused *apiError
	err := c.call(t.Context(), http.MethodPost, "/api/fleet/update", nil, nil)
	if !errors.As(err, &refused) || refused.Code != "not_ready" || *asked != 0 {
		t.Errorf("%v, the other was asked %d times", err, *asked)
	}
	// One that reached nobody is.
	c.addrs[0] = closedAddress(t)
	if err := c.call(t.Context(), http.MethodPost, "/api/fleet/update", nil, nil); err != nil || *asked != 1 {
		t.Errorf("%v, the other was asked %d times", err, *asked)
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
