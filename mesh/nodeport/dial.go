package nodeport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"

	"moult/mesh/identity"
)

// Client returns an HTTP client for other hosts' node ports. Its URLs are
// https://HOST:PORT/PATH; it follows no redirect and uses no proxy. want (nil:
// any host of the cluster) may refuse who answers, by its certificate.
// creds is asked at each connection, so that a renewed certificate takes effect.
// Connecting takes at most 5 s; the rest of a call is bounded by its context.
func Client(creds func() identity.Credentials, want func(identity.Identity) error) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext: func(context.Context, string, string) (net.Conn, error) {
				return nil, errors.New("node ports speak TLS; the URL must begin with https://")
			},
			DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
				return dial(ctx, addr, creds().ClientTLS(identity.ALPNHTTP, want))
			},
			MaxIdleConnsPerHost:    clientIdlePerHop,
			IdleConnTimeout:        clientIdle,
			MaxResponseHeaderBytes: maxHeaderBytes,
			DisableCompression:     true,
		},
		// A peer's answer does not decide whom this host talks to next.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Probe connects to the node port at addr, within 5 s, and returns whose it is.
func Probe(ctx context.Context, creds identity.Credentials, addr string) (identity.Identity, error) {
	conn, err := dial(ctx, addr, creds.ClientTLS(identity.ALPNHTTP, nil))
	if err != nil {
		return identity.Identity{}, err
	}
	defer conn.Close()
	return identity.PeerIdentity(conn.(*tls.Conn).ConnectionState())
}

// DialRaft opens a Raft connection to the server at addr (HOST:PORT of its node
// port), within 5 s. It errs when something else than a server of the cluster
// answers. A server that refuses this host shows that on the first read only. Once
// the CA by which the server was believed is retired, the connection ends.
func DialRaft(ctx context.Context, creds identity.Credentials, addr string) (net.Conn, error) {
	conn, err := dial(ctx, addr, creds.ClientTLS(identity.ALPNRaft, nil))
	if err != nil {
		return nil, err
	}
	shown := conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
	return &dialledRaft{Conn: conn, trusted: creds.Verifier().Recheck(shown)}, nil
}

// dialledRaft is a Raft connection to another server. They live for days.
type dialledRaft struct {
	net.Conn
	trusted func() error
}

// Write sends nothing to a server that is no longer believed.
func (c *dialledRaft) Write(b []byte) (int, error) {
	if err := c.trusted(); err != nil {
		_ = c.Close()
		return 0, fmt.Errorf("this Raft connection is cut: %w", err)
	}
	return c.Conn.Write(b)
}

// Read believes nothing of it either.
func (c *dialledRaft) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if refused := c.trusted(); refused != nil {
		_ = c.Close()
		return 0, fmt.Errorf("this Raft connection is cut: %w", refused)
	}
	return n, err
}

func dial(ctx context.Context, addr string, cfg *tls.Config) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	d := tls.Dialer{Config: cfg}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("dial node port %s: %w", addr, err)
	}
	return conn, nil
}
