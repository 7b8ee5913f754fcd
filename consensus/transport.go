package consensus

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// transport is Raft's network transport with three changes: heartbeats take the
// same way as every other message, a leader whose disk hangs, or that is unfit, falls
// silent, and no message has a follower commit more than the message vouches for.
type transport struct {
	*raft.NetworkTransport
	disk  *diskWatch
	unfit func() error // Config.Unfit
}

func newTransport(stream *streamLayer, disk *diskWatch, unfit func() error, timeout time.Duration, logger hclog.Logger) *transport {
	return &transport{
		disk: disk, unfit: unfit,
		NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream: stream, MaxPool: 3, Timeout: timeout, Logger: logger,
		}),
	}
}

// SetHeartbeatHandler declines the fast path, on which the connection's
// goroutine would change term and state beside Raft's main goroutine; that can
// diverge logs (hashicorp/raft issue 695, see DESIGN.md). Without a handler
// heartbeats arrive by Consumer, in turn.
func (*transport) SetHeartbeatHandler(func(raft.RPC)) {}

// AppendEntries sends a heartbeat or entries. With a hung disk it refuses:
// heartbeats come from goroutines of their own and would go on for ever, and
// no follower would stand for election.
func (t *transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if err := errors.Join(t.disk.stalled(), t.unfit(), sendable(args.Entries)); err != nil {
		return err
	}
	return t.NetworkTransport.AppendEntries(id, target, capped(args), resp)
}

// capped is a message that says "committed" of no entry behind those that it shows
// the follower's log to agree on: the one before its entries, and its entries. Raft
// has a follower commit up to the leader's index whatever the rest of its log is,
// and so apply entries of a deposed leader that are about to be replaced (see
// DESIGN.md).
func capped(args *raft.AppendEntriesRequest) *raft.AppendEntriesRequest {
	last := args.PrevLogEntry
	if n := len(args.Entries); n > 0 {
		last = args.Entries[n-1].Index
	}
	if args.LeaderCommitIndex <= last {
		return args
	}
	c := *args
	c.LeaderCommitIndex = last
	return &c
}

// AppendEntriesPipeline opens a stream of entries that stops likewise.
func (t *transport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	if err := errors.Join(t.disk.stalled(), t.unfit()); err != nil {
		return nil, err
	}
	p, err := t.NetworkTransport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	return newPipeline(p, t.disk, t.unfit), nil
}

// RequestPreVote asks for a vote before an election, which a server that is unfit
// does not.
func (t *transport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	if err := t.unfit(); err != nil {
		return err
	}
	return t.NetworkTransport.RequestPreVote(id, target, args, resp)
}

// RequestVote asks for a vote, likewise.
func (t *transport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if err := t.unfit(); err != nil {
		return err
	}
	return t.NetworkTransport.RequestVote(id, target, args, resp)
}

// pipeline is Raft's stream of entries to one follower with the transport's changes,
// and one of its own: it ends at the first answer that is not a success.
//
// Raft stops reading answers there, too, but its sender may already wait for the
// next one to be read. Both then wait for ever: the leader goes on sending
// heartbeats but no entries, and cannot be shut down (see DESIGN.md).
type pipeline struct {
	raft.AppendPipeline
	disk    *diskWatch
	unfit   func() error
	answers chan raft.AppendFuture
	closed  chan struct{}
	close   func()
}

func newPipeline(p raft.AppendPipeline, disk *diskWatch, unfit func() error) *pipeline {
	closed := make(chan struct{})
	w := &pipeline{
		AppendPipeline: p, disk: disk, unfit: unfit, closed: closed, close: sync.OnceFunc(func() { close(closed) }),
		answers: make(chan raft.AppendFuture, 1),
	}
	go w.passAnswers()
	return w
}

// passAnswers ends with Close, which Raft calls for every pipeline.
func (p *pipeline) passAnswers() {
	for {
		select {
		case <-p.closed:
			return
		case f := <-p.AppendPipeline.Consumer():
			select {
			case p.answers <- f:
			case <-p.closed:
				return
			}
			if r := f.Response(); !r.Success || r.Term > f.Request().Term {
				_ = p.AppendPipeline.Close() // wakes the sender
			}
		}
	}
}

// Consumer returns the channel of answers.
func (p *pipeline) Consumer() <-chan raft.AppendFuture { return p.answers }

// Close ends the pipeline. It is idempotent.
func (p *pipeline) Close() error {
	p.close()
	return p.AppendPipeline.Close()
}

// AppendEntries sends entries; an idle leader's pipeline sends empty ones, which
// followers count as contact.
func (p *pipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if err := errors.Join(p.disk.stalled(), p.unfit(), sendable(args.Entries)); err != nil {
		return nil, err
	}
	return p.AppendPipeline.AppendEntries(capped(args), resp)
}

// streamLayer gives Raft its connections and remembers them, because
// NetworkTransport.Close leaves accepted ones open and their goroutines reading.
type streamLayer struct {
	listener net.Listener
	dial     func(ctx context.Context, addr string) (net.Conn, error)
	address  string

	ctx  context.Context // ends pending dials
	stop context.CancelFunc

	mu    sync.Mutex
	conns map[*trackedConn]struct{} // nil once closed

	closing sync.WaitGroup
}

func newStreamLayer(cfg Config) *streamLayer {
	s := &streamLayer{listener: cfg.Listener, dial: cfg.Dial, address: cfg.Address, conns: make(map[*trackedConn]struct{})}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// Accept implements net.Listener.
func (s *streamLayer) Accept() (net.Conn, error) {
	c, err := s.listener.Accept()
	if err != nil {
		return nil, err
	}
	return s.track(c, true)
}

// Dial implements raft.StreamLayer.
func (s *streamLayer) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	c, err := s.dial(ctx, string(addr))
	if err != nil {
		return nil, err
	}
	return s.track(c, false)
}

// Addr returns the address that the others dial, which is what Raft puts in its
// messages; the listener's own may be unspecified.
func (s *streamLayer) Addr() net.Addr { return advertised(s.address) }

// Close closes the listener and every connection. It is idempotent; that the
// listener was closed before, by its owner, is no error.
func (s *streamLayer) Close() error {
	s.stop()
	err := s.listener.Close()
	s.mu.Lock()
	conns := s.conns
	s.conns = nil
	s.mu.Unlock()
	for c := range conns {
		c.Conn.Close()
	}
	s.closing.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// dropAccepted closes the connections that others opened. Who is a member opens
// new ones; who was removed is kept out by the listener, which only looks at the
// beginning of a connection.
func (s *streamLayer) dropAccepted() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if c.accepted {
			s.closing.Go(func() { _ = c.Close() }) // TLS may take seconds over its goodbye
		}
	}
}

func (s *streamLayer) track(c net.Conn, accepted bool) (net.Conn, error) {
	t := &trackedConn{Conn: c, layer: s, accepted: accepted}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		c.Close()
		return nil, net.ErrClosed
	}
	s.conns[t] = struct{}{}
	return t, nil
}

type trackedConn struct {
	net.Conn
	layer    *streamLayer
	accepted bool // others opened it
}

// Close closes the connection and forgets it.
func (t *trackedConn) Close() error {
	t.layer.mu.Lock()
	delete(t.layer.conns, t) // a no-op on the nil map
	t.layer.mu.Unlock()
	return t.Conn.Close()
}

// advertised is a host:port as a net.Addr.
type advertised string

func (advertised) Network() string  { return "tcp" }
func (a advertised) String() string { return string(a) }
