package nodeport

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"moult/mesh/crowd"
	"moult/mesh/identity"
)

// Way is a node port that may be nearer to a server: a server's own, or a relay's.
type Way struct {
	HostID string // "": not known, an address from the configuration
	Addr   string // HOST:PORT
}

// Relay makes the port pass on connections of moult-join and moult-renew, which
// are for servers, along the first of the ways that leads to one. ways lists them,
// the best first, without the hosts visited; it must not block. A server needs
// none of this: it takes such connections itself, directly and from relays. Call
// it before the port is told to others, and once.
func (p *Port) Relay(ways func(visited []string) []Way) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ways = ways
}

func (p *Port) relayWays() func(visited []string) []Way {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ways
}

// passage is what goes before the bytes of a connection that is passed on. Nobody
// signs it: each host believes the one before it, whose certificate it knows. What
// it steers is where the bytes go, and they are TLS between others.
type passage struct {
	Visited []string `json:"visited"` // host ids of the relays so far, the sender last
	Budget  int      `json:"budget"`  // milliseconds in which to find a way
	From    string   `json:"from"`    // IP:PORT of the host that asks, as the first relay saw it
}

// verdict answers a passage: empty when the bytes may follow.
type verdict struct {
	Error string `json:"error,omitempty"`
}

func (h passage) validate(self string) error {
	switch {
	case len(h.Visited) == 0 || len(h.Visited) > maxHops:
		return fmt.Errorf("it was passed on by %d relays; 1 to %d may", len(h.Visited), maxHops)
	case slices.Contains(h.Visited, self):
		return errors.New("it was here already")
	case h.Budget <= 0:
		return errors.New("no time is left to find a way")
	}
	if _, _, err := net.SplitHostPort(h.From); err != nil || len(h.From) > maxAddress {
		return errors.New("it does not say where it comes from")
	}
	return nil
}

// writeMessage writes a JSON message with its length before it.
func writeMessage(w io.Writer, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(text))), text...))
	return err
}

// readMessage reads what writeMessage wrote, and not a byte beyond it.
func readMessage(r io.Reader, v any) error {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint16(length[:])
	if n > maxMessage {
		return fmt.Errorf("a message of %d bytes; at most %d", n, maxMessage)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(r, text); err != nil {
		return err
	}
	return json.Unmarshal(text, v)
}

// onward opens a stream towards a server, along the first way that gets there.
func (p *Port) onward(ctx context.Context, creds identity.Credentials, visited []string, from string) (net.Conn, error) {
	visited = append(slices.Clone(visited), creds.HostID)
	ways := p.relayWays()(visited)
	var failures []error
	tried := map[string]bool{}
	for _, w := range ways[:min(len(ways), maxWays)] {
		if tried[w.Addr] || w.HostID != "" && slices.Contains(visited, w.HostID) {
			continue
		}
		tried[w.Addr] = true
		if err := ctx.Err(); err != nil {
			failures = append(failures, err)
			break
		}
		conn, err := along(ctx, creds, w, visited, from)
		if err == nil {
			return conn, nil
		}
		failures = append(failures, fmt.Errorf("by %s: %w", w.Addr, err))
	}
	if len(failures) == 0 {
		return nil, errors.New("no server and no further relay is known here")
	}
	return nil, errors.Join(failures...)
}

// along asks one host to take a connection, or to pass it on.
func along(ctx context.Context, creds identity.Credentials, w Way, visited []string, from string) (net.Conn, error) {
	budget := passageBudget
	if deadline, ok := ctx.Deadline(); ok {
		// Half of what is left: a way that hangs must leave time for the others.
		left := time.Until(deadline)
		budget = min(left, max(left/2, minWayTime))
	}
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	conn, err := dial(ctx, w.Addr, creds.ClientTLS(identity.ALPNRelay, func(id identity.Identity) error {
		if w.HostID != "" && id.HostID != w.HostID {
			return fmt.Errorf("%s answers, not host %s", id, w.HostID)
		}
		if slices.Contains(visited, id.HostID) {
			return fmt.Errorf("it was at %s already", id)
		}
		return nil
	}))
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	// The next one gets less time, so that its verdict arrives while it is awaited.
	err = writeMessage(conn, passage{Visited: visited, Budget: int((budget * 3 / 4).Milliseconds()), From: from})
	var v verdict
	if err == nil {
		err = readMessage(conn, &v)
	}
	if err == nil && v.Error != "" {
		err = fmt.Errorf("it says: %q", v.Error)
	}
	if err == nil && !stop() {
		err = ctx.Err() // the connection is being closed
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// relayConn is a connection of moult-relay.
type relayConn struct {
	*tls.Conn
	by      identity.Identity // the relay at the other end
	release func()
}

// Close closes the connection and counts it out.
func (c *relayConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// passed is the connection that one of moult-relay carries.
type passed struct {
	*relayConn
	remote net.Addr
}

// RemoteAddr is where the first relay saw the host that asks: it stands for that
// host, as far as it named no address of its own.
func (c *passed) RemoteAddr() net.Addr { return c.remote }

// claimed is an address by a relay's word.
type claimed string

func (claimed) Network() string  { return "tcp" }
func (a claimed) String() string { return string(a) }

// takePassage serves a connection of moult-relay: on a server what it carries is
// taken like any other connection, on a relay it is passed on to its end.
func (p *Port) takePassage(c *relayConn) error {
	creds, ok := p.creds()
	if !ok {
		return errors.New("this host has no certificate yet")
	}
	if err := c.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return err
	}
	var h passage
	if err := readMessage(c, &h); err != nil {
		return fmt.Errorf("read what %s passes on: %w", c.by, err)
	}
	if refusal := p.refusePassage(h, creds, c.by); refusal != nil {
		return errors.Join(fmt.Errorf("passed on by %s: %w", c.by, refusal), writeMessage(c, verdict{Error: clip(refusal.Error())}))
	}
	if creds.Role == identity.RoleServer {
		if err := p.goAhead(c); err != nil {
			return err
		}
		inner := &passed{relayConn: c, remote: claimed(h.From)}
		ctx, end := p.begin(inner)
		p.serveConn(ctx, inner, end)
		return nil
	}
	ctx, cancel := context.WithTimeout(p.accepting, min(time.Duration(h.Budget)*time.Millisecond, passageBudget))
	defer cancel()
	next, err := p.onward(ctx, creds, h.Visited, h.From)
	if err != nil {
		p.logLost(err)
		return errors.Join(err, c.SetDeadline(time.Now().Add(handshakeTimeout)), writeMessage(c, verdict{Error: clip("it reaches no server: " + err.Error())}))
	}
	if err := p.goAhead(c); err != nil {
		next.Close()
		return err
	}
	p.splice(c, next)
	return nil
}

// goAhead says that the bytes may follow.
func (p *Port) goAhead(c *relayConn) error {
	if err := c.SetDeadline(time.Time{}); err != nil {
		return err
	}
	return writeMessage(c, verdict{})
}

func (p *Port) refusePassage(h passage, creds identity.Credentials, by identity.Identity) error {
	if err := h.validate(creds.HostID); err != nil {
		return err
	}
	switch {
	case h.Visited[len(h.Visited)-1] != by.HostID:
		return errors.New("the last relay it names is not the one that passes it on")
	case creds.Role == identity.RoleServer:
		return nil
	case p.relayWays() == nil:
		return errors.New("this host is no relay; relays are in several segments, see --also-segment")
	case len(h.Visited) == maxHops:
		return fmt.Errorf("there are %d relays behind it already", maxHops)
	}
	return nil
}

// clip keeps an error within a message.
func clip(s string) string { return s[:min(len(s), maxMessage/8)] }

// passOn serves a stranger's connection for a server, of which the first bytes
// were read already. It returns an error when there is no way, and nothing was
// answered.
func (p *Port) passOn(creds identity.Credentials, conn net.Conn, read []byte) error {
	release, err := p.limits.admit(spliceKey, crowd.Source(conn.RemoteAddr()))
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithTimeout(p.accepting, passageBudget)
	defer cancel()
	next, err := p.onward(ctx, creds, nil, conn.RemoteAddr().String())
	if err != nil {
		p.logLost(err)
		return err
	}
	defer next.Close()
	p.splice(&replay{Conn: conn, read: bytes.NewReader(read)}, next)
	return nil
}

// logLost tells that no way was found, once in a while: strangers can bring it
// about as often as they like.
func (p *Port) logLost(err error) {
	p.mu.Lock()
	due := time.Since(p.lastLost) > lostInterval
	if due {
		p.lastLost = time.Now()
	}
	p.mu.Unlock()
	if due {
		p.logger.Warn("a host wants to join or to renew its certificate through this one, and no way to a server was found", "error", err)
	}
}
