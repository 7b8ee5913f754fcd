package notifier

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"moult/consensus/fleet"
)

// receiver keeps the last request.
type receiver struct {
	*httptest.Server
	path   string
	header http.Header
	body   []byte
	calls  atomic.Int32
}

func startReceiver(t *testing.T, status int) *receiver {
	r := &receiver{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.path, r.header = req.Method+" "+req.URL.RequestURI(), req.Header
		r.body, _ = io.ReadAll(req.Body)
		r.calls.Add(1)
		w.WriteHeader(status)
		fmt.Fprint(w, "it says S3CRET back")
	}))
	t.Cleanup(r.Close)
	return r
}

func TestRequestIsSignedAsTheSpecificationSays(t *testing.T) {
	r := startReceiver(t, 202)
	key := []byte("twenty-four bytes of key")
	w := fleet.Webhook{
		Name: "pager", Format: fleet.WebhookJSON, URL: r.URL + "/in/S3CRET?key=K3Y", BearerToken: "B34RER",
		SigningSecret: "whsec_" + base64.StdEncoding.EncodeToString(key),
	}
	out := NewClient("1.2.3").Send(t.Context(), w, Request{ID: "c1-1-x-opened", Body: []byte(`{"a":1}`)})
	if out.Err != nil || out.Status != 202 {
		t.Fatalf("%+v", out)
	}
	if r.path != "POST /in/S3CRET?key=K3Y" || string(r.body) != `{"a":1}` || r.header.Get("Content-Type") != "application/json" ||
		r.header.Get("Authorization") != "Bearer B34RER" || r.header.Get("User-Agent") != "moult/1.2.3" || r.header.Get("Idempotency-Key") != "c1-1-x-opened" {
		t.Errorf("%s %s %v", r.path, r.body, r.header)
	}
	for secret, key := range map[string][]byte{w.SigningSecret: key, "sixteen-characters-of-secret": []byte("sixteen-characters-of-secret")} {
		w.SigningSecret = secret
		NewClient("1").Send(t.Context(), w, Request{ID: "id", Body: []byte("body")})
		mac := hmac.New(sha256.New, key)
		fmt.Fprintf(mac, "id.%s.body", r.header.Get("Webhook-Timestamp"))
		if want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)); r.header.Get("Webhook-Signature") != want {
			t.Errorf("%s: signature %q, want %q", secret, r.header.Get("Webhook-Signature"), want)
		}
	}
	w.SigningSecret, w.BearerToken = "", ""
	NewClient("1").Send(t.Context(), w, Request{ID: "id"})
	if r.header.Get("Webhook-Signature") != "" || r.header.Get("Authorization") != "" || r.header.Get("Webhook-Id") != "id" {
		t.Errorf("%v", r.header)
	}
}

func TestAlertmanagersPathIsAdded(t *testing.T) {
	r := startReceiver(t, 200)
	for given, want := range map[string]string{
		"": "/api/v2/alerts", "/": "/api/v2/alerts", "/am": "/am/api/v2/alerts", "/am/": "/am/api/v2/alerts", "/api/v2/alerts": "/api/v2/alerts", "/?x=1": "/api/v2/alerts?x=1",
	} {
		out := NewClient("1").Send(t.Context(), fleet.Webhook{Format: fleet.WebhookAlertmanager, URL: r.URL + given}, Request{ID: "id"})
		if out.Err != nil || r.path != "POST "+want {
			t.Errorf("%q became %s (%v)", given, r.path, out.Err)
		}
	}
}

// A redirect would take the secrets, and the alerts, to somebody else.
func TestNoRedirectIsFollowed(t *testing.T) {
	other := startReceiver(t, 200)
	for _, status := range []int{301, 302, 303, 307, 308} {
		r := httptest.NewServer(http.RedirectHandler(other.URL+"/elsewhere", status))
		out := NewClient("1").Send(t.Context(), fleet.Webhook{Format: fleet.WebhookJSON, URL: r.URL, BearerToken: "B34RER"}, Request{ID: "id"})
		r.Close()
		if out.Status != status || out.Err == nil || !strings.Contains(out.Err.Error(), "redirect") {
			t.Errorf("%d: %+v", status, out)
		}
	}
	if n := other.calls.Load(); n != 0 {
		t.Errorf("%d requests went on", n)
	}
}

func TestStatusesAreJudged(t *testing.T) {
	for status, says := range map[int]string{400: "format", 401: "bearer token", 403: "bearer token", 404: "whole url", 410: "whole url", 429: "429", 500: "500", 503: "503"} {
		r := startReceiver(t, status)
		out := NewClient("1").Send(t.Context(), fleet.Webhook{Format: fleet.WebhookJSON, URL: r.URL}, Request{ID: "id"})
		if out.Err == nil || out.Status != status || !strings.Contains(out.Err.Error(), says) {
			t.Errorf("%d: %+v", status, out)
		}
	}
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "30")
		w.WriteHeader(429)
	}))
	defer slow.Close()
	if out := NewClient("1").Send(t.Context(), fleet.Webhook{Format: fleet.WebhookSlack, URL: slow.URL}, Request{}); out.RetryAfter != 30*time.Second {
		t.Errorf("%+v", out)
	}
}

// Whatever goes wrong, what is told of it holds no secret and says what it was.
func TestErrorsHoldNoSecrets(t *testing.T) {
	const refused = "127.0.0.1:1" // nobody takes it, unlike a port that was free a moment ago
	garbage := startRaw(t, "S3CRET is what you sent me, not HTTP\r\n\r\n")
	silent := startRaw(t, "")
	selfSigned := httptest.NewUnstartedServer(http.NotFoundHandler())
	selfSigned.Config.ErrorLog = log.New(io.Discard, "", 0)
	selfSigned.StartTLS()
	defer selfSigned.Close()
	plain := startReceiver(t, 500)
	for address, says := range map[string]string{
		"http://" + refused:           "connection refused",
		"http://" + garbage:           "did not answer in HTTP",
		"http://" + silent:            "closed the connection",
		"http://no-such-host.invalid": "no-such-host.invalid",
		selfSigned.URL:                "certificate is not trusted",
		"https://" + strings.TrimPrefix(plain.URL, "http://"): "does not speak TLS",
		plain.URL:     "answered 500",
		"http://[::1": "not one",
	} {
		w := fleet.Webhook{Name: "x", Format: fleet.WebhookJSON, URL: address + "/P4TH/S3CRET?key=K3Y", BearerToken: "B34RER", SigningSecret: "S1GNING-S3CRET-OF-16"}
		out := NewClient("1").Send(t.Context(), w, Request{ID: "id", Body: []byte("{}")})
		if out.Err == nil {
			t.Errorf("%s: taken", address)
			continue
		}
		if !strings.Contains(out.Err.Error(), says) {
			t.Errorf("%s: %v, want it to say %q", address, out.Err, says)
		}
		for _, secret := range []string{"P4TH", "S3CRET", "K3Y", "B34RER", "S1GNING"} {
			if strings.Contains(out.Err.Error(), secret) {
				t.Errorf("%s: %v", address, out.Err)
			}
		}
	}
}

// startRaw answers each connection with a text, and closes it.
func startRaw(t *testing.T, text string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 64<<10))
			_, _ = io.WriteString(conn, text)
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-ended })
	return l.Addr().String()
}

// A receiver that never ends its answer is left.
func TestEndlessAnswersAreLeft(t *testing.T) {
	endless := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 4096)); err != nil {
				return
			}
		}
	}))
	defer endless.Close()
	if out := NewClient("1").Send(t.Context(), fleet.Webhook{Format: fleet.WebhookJSON, URL: endless.URL}, Request{}); out.Err != nil {
		t.Errorf("%+v", out) // it said 200
	}
	stuck := make(chan struct{})
	mute := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(stuck)
		<-r.Context().Done()
	}))
	defer mute.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-stuck; cancel() }()
	if out := NewClient("1").Send(ctx, fleet.Webhook{Format: fleet.WebhookJSON, URL: mute.URL}, Request{}); out.Err == nil || out.Err.Error() != "broken off" {
		t.Errorf("%+v", out)
	}
}

func TestTestSaysThatItIsOne(t *testing.T) {
	r := startReceiver(t, 200)
	for format, want := range map[fleet.WebhookFormat]string{fleet.WebhookJSON: `"type":"test"`, fleet.WebhookSlack: ":bell: *Test*: This is a test of the webhook pager", fleet.WebhookAlertmanager: `"alertname":"moult_test"`} {
		status, err := NewClient("1").Test(t.Context(), "c1", fleet.Webhook{Name: "pager", Format: format, URL: r.URL})
		if err != nil || status != 200 || !strings.Contains(string(r.body), want) {
			t.Errorf("%s: %d %v %s", format, status, err, r.body)
		}
		if format == fleet.WebhookAlertmanager {
			mustPostable(t, r.body)
		}
	}
}
