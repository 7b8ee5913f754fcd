package consensus

import (
	"testing"

	"github.com/hashicorp/raft"
)

// What a leader says is committed ends with what its message shows the two logs to
// agree on, by either way that messages take.
func TestNothingIsCommittedThatTheMessageDoesNotVouchFor(t *testing.T) {
	leader, follower := plainTransport(t), plainTransport(t)
	ended := make(chan struct{})
	defer close(ended)
	got := make(chan uint64, 1)
	go func() {
		for {
			select {
			case rpc := <-follower.Consumer():
				got <- rpc.Command.(*raft.AppendEntriesRequest).LeaderCommitIndex
				rpc.Respond(&raft.AppendEntriesResponse{Term: 3, Success: true}, nil)
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
	entries := []*raft.Log{{Index: 8, Term: 3}, {Index: 9, Term: 3}}
	for _, tt := range []struct {
		name          string
		args          raft.AppendEntriesRequest
		want, commits uint64
	}{
		{"no entries, though some are committed", raft.AppendEntriesRequest{PrevLogEntry: 7, LeaderCommitIndex: 9}, 7, 9},
		{"some of what is committed", raft.AppendEntriesRequest{PrevLogEntry: 7, Entries: entries[:1], LeaderCommitIndex: 9}, 8, 9},
		{"all of it", raft.AppendEntriesRequest{PrevLogEntry: 7, Entries: entries, LeaderCommitIndex: 9}, 9, 9},
		{"more than is committed", raft.AppendEntriesRequest{PrevLogEntry: 7, Entries: entries, LeaderCommitIndex: 8}, 8, 8},
		{"a heartbeat", raft.AppendEntriesRequest{}, 0, 0},
	} {
		tt.args.Term = 3
		if err := leader.AppendEntries("s2", follower.LocalAddr(), &tt.args, new(raft.AppendEntriesResponse)); err != nil {
			t.Fatal(err)
		}
		if c := <-got; c != tt.want {
			t.Errorf("%s: the message says that %d is committed, want %d", tt.name, c, tt.want)
		}
		if _, err := p.AppendEntries(&tt.args, new(raft.AppendEntriesResponse)); err != nil {
			t.Fatal(err)
		}
		if c := <-got; c != tt.want {
			t.Errorf("%s, in a stream: the message says that %d is committed, want %d", tt.name, c, tt.want)
		}
		<-p.Consumer()
		if tt.args.LeaderCommitIndex != tt.commits {
			t.Errorf("%s: Raft's own message was changed", tt.name)
		}
	}
}
