package consensus

import (
	"os"
	"path/filepath"
)

// Stats are the node's own numbers, for monitoring. Those of the log are this
// server's: the others may be ahead.
type Stats struct {
	Leads        bool   // may act as leader
	Knows        bool   // leads, or hears from a leader
	Term         uint64 // of the last election it knows
	LastIndex    uint64 // of its log
	CommitIndex  uint64
	AppliedIndex uint64
	Voters       int
	LogBytes     int64 // of the log on disk; snapshots come on top
}

// Stats asks nobody and does not block.
func (n *Node) Stats() Stats {
	s := Stats{
		Leads: n.IsLeader(), Knows: n.HasLeader(), Term: n.raft.CurrentTerm(), LastIndex: n.raft.LastIndex(),
		CommitIndex: n.raft.CommitIndex(), AppliedIndex: n.AppliedIndex(), Voters: n.voters(),
	}
	if st, err := os.Stat(filepath.Join(n.cfg.Dir, logFile)); err == nil {
		s.LogBytes = st.Size()
	}
	return s
}
