package consensus

import (
	"testing"
)

func TestStatsTellHowAServerIs(t *testing.T) {
	c := startCluster(t, 3, nil)
	leader := c.AwaitLeader()
	result, err := leader.Propose(c.within(patience), "user:admin", user("ann"))
	if err != nil {
		t.Fatal(err)
	}
	index := result.Index
	for _, s := range c.all() {
		awaitSoon(t, "the entry is applied", func() bool { return s.Stats().AppliedIndex >= index })
		st := s.Stats()
		if !st.Knows || st.Voters != 3 || st.Term == 0 || st.LastIndex < index || st.LogBytes == 0 {
			t.Errorf("%s: %+v", s.id, st)
		}
	}
	awaitSoon(t, "one leads", func() bool { // not two, while an election goes on
		leads := 0
		for _, s := range c.all() {
			if s.Stats().Leads {
				leads++
			}
		}
		return leads == 1
	})
	leader = c.AwaitLeader()
	if st := leader.Stats(); st.CommitIndex < index {
		t.Errorf("%d is committed, and the leader knows of %d", index, st.CommitIndex)
	}
	for _, s := range c.all() {
		if s != leader {
			c.Cut(s)
		}
	}
	awaitSoon(t, "a leader without a majority says so", func() bool {
		st := leader.Stats()
		return !st.Leads && !st.Knows
	})
}
