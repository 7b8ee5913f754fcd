package identity

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"sync/atomic"
	"time"
)

// Limits of the join protocol.
const (
	joinPath     = "/join"
	joinTimeout  = 20 * time.Second // the whole exchange: the server may be amid an election
	maxJoinBody  = 64 << 10         // bytes of a request
	maxJoinField = 255              // bytes of each text field
	// maxJoinAnswer is the bytes of an answer: as many as a request's, and a full
	// deny-list in base64.
	maxJoinAnswer = maxJoinBody + (maxDeniedBytes+2)/3*4
)

// joinContext begins what a join's signature covers, so that it is good for
// nothing else.
const joinContext = "moult join 1"

// JoinRequest is what a new host asks with: POST /join on moult-join, as JSON.
// Unknown fields are ignored, so that a newer host can ask an older server.
type JoinRequest struct {
	Secret     string        `json:"secret,omitempty"`    // the token's; set by Join, cleared before enroll sees it
	HostID     string        `json:"host_id"`             // a UUID; set by Join
	Role       Role          `json:"role,omitempty"`      // what it means to be; the token decides, and refuses another
	Name       string        `json:"name"`                // for people
	OS         string        `json:"os"`                  // Go's name of it
	Arch       string        `json:"arch"`                // Go's name of it
	Version    string        `json:"version"`             // what the host runs
	GossipAddr string        `json:"gossip_addr"`         // HOST:PORT as others reach it
	PeerAddr   string        `json:"peer_addr"`           // HOST:PORT of its node port
	HTTPAddr   string        `json:"http_addr,omitempty"` // HOST:PORT of its UI; servers only
	Also       []SegmentAddr `json:"also,omitempty"`      // segments besides the one that the token names
	PublicKey  []byte        `json:"public_key"`          // ed25519, 32 bytes; set by Join
	Signature  []byte        `json:"signature,omitempty"` // proves the private key; set by Join
	// TakesDenied says that this host reads an answer with a deny-list in it, which
	// can be longer than older hosts read; set by Join.
	TakesDenied bool `json:"takes_denied,omitempty"`
}

// signed is what Signature covers: that the holder of this key wants to be this
// host by this token. The rest of the request is protected by TLS alone. None
// of the fields can contain a newline.
func (r JoinRequest) signed() []byte {
	return fmt.Appendf(nil, "%s\n%s\n%s\n%x", joinContext, hashSecret(r.Secret), r.HostID, r.PublicKey)
}

// String names the host that asks. Neither it nor a log line shows the secret.
func (r JoinRequest) String() string {
	return fmt.Sprintf("join request of %s (%s)", r.Name, r.HostID)
}

// GoString is String, for %#v.
func (r JoinRequest) GoString() string { return r.String() }

// LogValue keeps the secret out of logs.
func (r JoinRequest) LogValue() slog.Value { return slog.StringValue(r.String()) }

// CodedError is a refusal of a join: Code is stable, Message tells a person what
// to do next.
type CodedError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Status  int    `json:"-"` // HTTP
}

func (e *CodedError) Error() string { return e.Message }

// joinRefusal is the body of an answer that is no Enrolment.
type joinRefusal struct {
	Error *CodedError `json:"error"`
}

// Join asks the server at addr (HOST:PORT of its node port, or of a relay's, which
// passes the bytes on and learns none of the secrets) for a certificate,
// keeps the answer in the store and returns the credentials. It takes at most
// 20 s. HostID, Secret, PublicKey and Signature of req are filled in.
//
// A token that was made before the cluster's CA was changed is good as long as the
// cluster takes it: its CA's signature leads to the new one.
//
// Errors: ErrUntrustedServer when the server is not of the token's cluster, and
// the secret was not sent; ErrOtherCluster when the store is of another cluster,
// and nobody was asked; *CodedError when the server refuses. After any other
// error the token may have been used for this very host: call Join again with
// the same token and store, here or at another server, and it gives the same
// host.
func Join(ctx context.Context, addr string, tok Token, s *Store, req JoinRequest) (Credentials, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	if tok.secret == "" {
		return Credentials{}, errors.New("no join token given; create one on a server with: moult token create")
	}
	// Before the token is spent on it.
	if err := s.refuseOtherCA(tok.CAHash); err != nil {
		return Credentials{}, err
	}
	hostID, key, err := s.HostKey()
	if err != nil {
		return Credentials{}, err
	}
	req.HostID, req.Secret, req.PublicKey = hostID, tok.secret, publicOf(key)
	req.Signature, req.TakesDenied = ed25519.Sign(key, req.signed()), true
	cas := []string{tok.CAHash}
	e, err := askToJoin(ctx, addr, cas, req)
	if errors.Is(err, errNotPinned) {
		// The CA may have been changed since the token was made: then the one in the
		// token vouches for the one after it.
		if chain, fetchErr := FetchChain(ctx, addr); fetchErr == nil {
			if after, sinceErr := chain.since(tok.CAHash); sinceErr == nil {
				cas = after
				e, err = askToJoin(ctx, addr, cas, req)
			}
		}
	}
	if err != nil {
		return Credentials{}, err
	}
	if hash, err := CAHash(e.CAPEM); err != nil || !slices.Contains(cas, hash) {
		return Credentials{}, errors.New("the server answered with another CA than the join token's; update that server, or join through another one")
	}
	if err := s.Save(e); err != nil {
		return Credentials{}, err
	}
	return s.Load()
}

// askToJoin does the exchange with the server.
func askToJoin(ctx context.Context, addr string, cas []string, req JoinRequest) (Enrolment, error) {
	if err := checkAddress(addr); err != nil {
		return Enrolment{}, fmt.Errorf("%q %w; give --join a server's node port as HOST:PORT", addr, err)
	}
	var e Enrolment
	err := ask(ctx, askClient(joinTLS(cas...)), "https://"+addr+joinPath, req, &e)
	var coded *CodedError
	if err == nil || errors.Is(err, ErrUntrustedServer) || errors.As(err, &coded) {
		return e, err
	}
	return Enrolment{}, fmt.Errorf("%w; check that %s is the node port (7947 by default) of a server, or of a relay, and can be reached from here", err, addr)
}

// ask posts a request and reads the answer. A *CodedError is the server's refusal;
// an error for want of time tells how far it got.
func ask(ctx context.Context, client *http.Client, url string, req, into any) error {
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	var so atomic.Value // far
	so.Store("no TCP connection came about")
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		ConnectDone: func(_, _ string, err error) {
			if err == nil {
				so.Store("the TCP connection was taken, and TLS not answered")
			}
		},
		GotConn: func(httptrace.GotConnInfo) { so.Store("TLS was answered, and the request not") },
	})
	hr, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	hr.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(hr)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %s", err, so.Load())
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxJoinAnswer+1))
	if err != nil {
		return fmt.Errorf("read the server's answer: %w; try again", err)
	}
	if len(answer) > maxJoinAnswer {
		return fmt.Errorf("the server's answer is longer than %d bytes; update this host's moult", maxJoinAnswer)
	}
	if resp.StatusCode != http.StatusOK {
		var refusal joinRefusal
		if json.Unmarshal(answer, &refusal) == nil && refusal.Error != nil && refusal.Error.Message != "" {
			refusal.Error.Status = resp.StatusCode
			return refusal.Error
		}
		return &CodedError{Code: "unknown", Message: fmt.Sprintf("%s answers %s; look at that server's log", hr.URL.Host, resp.Status), Status: resp.StatusCode}
	}
	if err := json.Unmarshal(answer, into); err != nil {
		return fmt.Errorf("read the server's answer: %w; try again", err)
	}
	return nil
}

// askClient makes one request, over one connection, and follows no redirect: a
// body with a secret in it goes nowhere else.
func askClient(cfg *tls.Config) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				d := tls.Dialer{Config: cfg}
				return d.DialContext(ctx, network, addr)
			},
			DisableKeepAlives:      true,
			MaxResponseHeaderBytes: maxJoinBody,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
