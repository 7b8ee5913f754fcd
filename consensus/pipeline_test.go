package consensus

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// A follower that refuses entries must not leave the leader's sender waiting:
// Raft reads no further answer after a refusal.
func TestPipelineEndsWhenAFollowerRefuses(t *testing.T) {
	open := func() *transport {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		stream := newStreamLayer(Config{
			Listener: l, Address: l.Addr().String(),
			Dial: func(ctx context.Context, addr string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", addr)
			},
		})
		tr := newTransport(stream, &diskWatch{limit: time.Minute}, time.Second, raftLogger{out: slog.New(slog.DiscardHandler)})
		t.Cleanup(func() { tr.Close(); stream.Close() })
		return tr
	}
	leader, follower := open(), open()
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for {
			select {
			case rpc := <-follower.Consumer():
				rpc.Respond(&raft.AppendEntriesResponse{Term: 1}, nil)
			case <-ended:
				return
			}
		}
	}()
	p, err := leader.AppendEntriesPipeline("s2", follower.LocalAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	stopped := make(chan error, 1)
	go func() {
		for {
			if _, err := p.AppendEntries(&raft.AppendEntriesRequest{Term: 1}, new(raft.AppendEntriesResponse)); err != nil {
				stopped <- err
				return
			}
		}
	}()
	if f := <-p.Consumer(); f.Response().Success { // and, as Raft does, none after it
		t.Fatal("the follower took the entries")
	}
	select {
	case <-stopped:
	case <-time.After(10 * time.Second):
		t.Error("the sender waits on")
	}
}
