package notifier

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"moult/consensus/fleet"
)

// Client sends to receivers. It verifies TLS by the system's roots, goes through
// the proxy that the environment names, and follows no redirect: what a receiver
// is sent is for it alone. Safe for concurrent use.
type Client struct {
	http  *http.Client
	agent string
}

// NewClient returns a client that presents itself with the running version.
func NewClient(version string) *Client {
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true,
		DisableKeepAlives:      true, // alerts are rare, and nothing is left behind
		MaxResponseHeaderBytes: maxAnswer,
	}
	return &Client{agent: "moult/" + version, http: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// alertsPath is where an Alertmanager takes alerts, below its own address.
const alertsPath = "/api/v2/alerts"

// endpoint is the address that a webhook's requests go to.
func endpoint(w fleet.Webhook) (string, error) {
	u, err := url.Parse(w.URL)
	if err != nil || u.Host == "" {
		return "", errors.New("the url is not one; set it anew") // the error would repeat it
	}
	if w.Format == fleet.WebhookAlertmanager && !strings.HasSuffix(u.Path, alertsPath) {
		u = u.JoinPath(alertsPath)
	}
	return u.String(), nil
}

// Send makes one request. A status of 2xx is a success.
func (c *Client) Send(ctx context.Context, w fleet.Webhook, r Request) Outcome {
	ctx, cancel := context.WithTimeout(ctx, AttemptTimeout)
	defer cancel()
	address, err := endpoint(w)
	if err != nil {
		return Outcome{Err: err}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(r.Body))
	if err != nil {
		return Outcome{Err: errors.New("the url is not one; set it anew")}
	}
	sign(req, w, r, time.Now())
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", c.agent)
	if w.BearerToken != "" {
		req.Header.Set("Authorization", "Bearer "+w.BearerToken)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return Outcome{Err: reason(err)}
	}
	defer resp.Body.Close()
	_, err = io.CopyN(io.Discard, resp.Body, maxAnswer)
	if err != nil && ctx.Err() != nil {
		return Outcome{Status: resp.StatusCode, Err: reason(ctx.Err())}
	}
	return Outcome{Status: resp.StatusCode, Err: judge(resp.StatusCode), RetryAfter: asked(resp.Header.Get("Retry-After"))}
}

// sign adds the headers of the Standard Webhooks specification
// (https://www.standardwebhooks.com): an id that is the same in each attempt, the
// time of this one, and, with a secret, a signature of both and the body.
func sign(req *http.Request, w fleet.Webhook, r Request, now time.Time) {
	at := strconv.FormatInt(now.Unix(), 10)
	req.Header.Set("Webhook-Id", r.ID)
	req.Header.Set("Webhook-Timestamp", at)
	req.Header.Set("Idempotency-Key", r.ID)
	if key := w.SigningKey(); len(key) > 0 {
		mac := hmac.New(sha256.New, key)
		fmt.Fprintf(mac, "%s.%s.", r.ID, at)
		mac.Write(r.Body)
		req.Header.Set("Webhook-Signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
}

// judge says what a status means for who set the webhook up.
func judge(status int) error {
	hint := ""
	switch {
	case status >= 200 && status < 300:
		return nil
	case status >= 300 && status < 400:
		hint = ", a redirect, which is not followed; set the url that it leads to"
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		hint = "; check the bearer token, or whatever in the url lets moult in"
	case status == http.StatusNotFound, status == http.StatusGone:
		hint = "; check the whole url"
	case status == http.StatusBadRequest, status == http.StatusUnprocessableEntity:
		hint = "; check that the format is the receiver's"
	}
	return fmt.Errorf("the receiver answered %d%s", status, hint)
}

// asked reads how long a receiver wants to be left alone, in seconds.
func asked(header string) time.Duration {
	seconds, err := strconv.ParseUint(header, 10, 31)
	if err != nil {
		return 0
	}
	return time.Duration(seconds) * time.Second
}

// reason says why there was no answer. Only errors that are known to hold no more
// than host and port are repeated: net/url's hold the whole address, and others
// what the receiver sent.
func reason(err error) error {
	var (
		timeout  interface{ Timeout() bool }
		lookup   *net.DNSError
		dial     *net.OpError
		cert     *tls.CertificateVerificationError
		alert    tls.AlertError
		hostname x509.HostnameError
	)
	switch {
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer within %s", AttemptTimeout)
	case errors.Is(err, context.Canceled):
		return errors.New("broken off")
	case errors.As(err, &lookup):
		return fmt.Errorf("the name %s is not found; check the url and this server's name service", lookup.Name)
	case errors.As(err, &hostname):
		return fmt.Errorf("its certificate is for another name: %w", hostname)
	case errors.As(err, &cert):
		return fmt.Errorf("its certificate is not trusted here: %w", cert.Err)
	case errors.Is(err, http.ErrSchemeMismatch):
		return errors.New("it does not speak TLS; check whether the url is http, not https")
	case errors.As(err, &alert):
		return fmt.Errorf("TLS: %w", alert)
	case errors.As(err, &dial):
		return dial
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("it closed the connection without an answer")
	}
	return errors.New("it did not answer in HTTP, or the proxy in this server's environment is wrong")
}

// Test sends a webhook a message that is about nothing, and returns the status
// that the receiver answered, 0 for none.
func (c *Client) Test(ctx context.Context, cluster string, w fleet.Webhook) (status int, err error) {
	now, id := time.Now().UTC(), uuid.NewString()
	m := message{
		ID: messageID(cluster, id, testEvent), Event: testEvent, At: now, Cluster: cluster,
		Alert: fleet.Alert{
			ID: id, Kind: string(testEvent), Status: fleet.AlertStatusOpen, OpenedAt: now,
			Message: "This is a test of the webhook " + w.Name + ". Alerts of moult will come here.",
		},
	}
	b, err := body(w.Format, m, now)
	if err != nil {
		return 0, err
	}
	out := c.Send(ctx, w, Request{ID: m.ID, Body: b})
	return out.Status, out.Err
}
