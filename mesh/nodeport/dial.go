package nodeport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"

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
				c := creds()
				return dialTrusted(ctx, addr, c, c.ClientTLS(identity.ALPNHTTP, want))
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
// answers, or one that want (nil: any will do) refuses. A server that refuses this
// host shows that on the first read only.
func DialRaft(ctx context.Context, creds identity.Credentials, addr string, want func(identity.Identity) error) (net.Conn, error) {
	return dialTrusted(ctx, addr, creds, creds.ClientTLS(identity.ALPNRaft, want))
}

func dial(ctx context.Context, addr string, cfg *tls.Config) (net.Conn, error) {
	conn, err := connect(ctx, addr, cfg, func(raw net.Conn) net.Conn { return raw })
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// dialTrusted is dial for connections that live long: it ends once the CA by which the
// other side was believed is retired.
func dialTrusted(ctx context.Context, addr string, creds identity.Credentials, cfg *tls.Config) (net.Conn, error) {
	var under *trustedConn
	conn, err := connect(ctx, addr, cfg, func(raw net.Conn) net.Conn {
		under = &trustedConn{Conn: raw}
		return under
	})
	if err != nil {
		return nil, err
	}
	recheck := creds.Verifier().Recheck(conn.ConnectionState().PeerCertificates[0])
	under.recheck.Store(&recheck)
	return conn, nil
}

func connect(ctx context.Context, addr string, cfg *tls.Config, under func(net.Conn) net.Conn) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("dial node port %s: %w", addr, err)
	}
	conn := tls.Client(under(raw), cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("dial node port %s: %w", addr, err)
	}
	return conn, nil
}

// trustedConn is beneath TLS, which net/http and Raft want to have on top.
type trustedConn struct {
	net.Conn
	recheck atomic.Pointer[func() error] // nil during the handshake
}

// Read reads nothing from who is no longer believed.
func (c *trustedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if refused := c.refused(); refused != nil {
		return 0, refused
	}
	return n, err
}

// Write sends it nothing.
func (c *trustedConn) Write(b []byte) (int, error) {
	if refused := c.refused(); refused != nil {
		return 0, refused
	}
	return c.Conn.Write(b)
}

func (c *trustedConn) refused() error {
	recheck := c.recheck.Load()
	if recheck == nil {
		return nil
	}
	err := (*recheck)()
	if err != nil {
		c.Close()
		return fmt.Errorf("this connection is cut: %w", err)
	}
	return nil
}
