package consensus

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// A follower that refuses entries must not leave the leader's sender waiting:
// Raft reads no further answer after a refusal.
func TestPipelineEndsWhenAFollowerRefuses(t *testing.T) {
	leader, follower := plainTransport(t), plainTransport(t)
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
