package consensus

import (
	"errors"
	"sync"
	"testing"
	"time"

	"moult/consensus/fleet"
)

// A leader that is unfit gives up leadership though it could go on, appends nothing
// from the first moment on, and is not elected until it is fit again.
func TestUnfitServerDoesNotLead(t *testing.T) {
	var mu sync.Mutex
	unfit := map[string]error{}
	set := func(id string, err error) {
		mu.Lock()
		defer mu.Unlock()
		unfit[id] = err
	}
	c := startCluster(t, 3, func(cfg *Config) {
		id := cfg.ServerID
		cfg.Unfit = func() error {
			mu.Lock()
			defer mu.Unlock()
			return unfit[id]
		}
	})
	leader := c.AwaitLeader()
	ill := errors.New("it is ill")
	set(leader.id, ill)
	before := leader.raft.LastIndex()
	if _, err := leader.appendEntry(c.within(time.Second), entryOf(t, user("from-the-ill"))); !errors.Is(err, errNotAppended) {
		t.Errorf("an unfit leader appends: %v", err)
	}
	awaitSoon(t, "another leader", func() bool { return c.AwaitLeader() != leader })
	if !errors.Is(leader.Ready(), ill) {
		t.Errorf("an unfit server is ready: %v", leader.Ready())
	}
	mustPropose(t, leader, user("by-the-new-one")) // forwarded, and it follows
	if before == leader.raft.LastIndex() {
		t.Error("an unfit server does not follow")
	}
	// The only other one that could lead goes: the unfit one must not take over.
	next := c.AwaitLeader()
	for _, s := range c.Followers(next) {
		set(s.id, ill)
	}
	c.Cut(next)
	time.Sleep(20 * fast.Election)
	for _, s := range c.all() {
		if s != next && s.IsLeader() {
			t.Errorf("%s leads, though unfit", s.id)
		}
	}
	set(leader.id, nil)
	awaitSoon(t, "the fit one to lead", leader.IsLeader)
	c.Heal(next)
	for _, s := range c.all() {
		set(s.id, nil)
	}
	c.AwaitEqual()
}

// Alone, a server leads whatever it is.
func TestUnfitServerLeadsAlone(t *testing.T) {
	c := startCluster(t, 1, func(cfg *Config) { cfg.Unfit = func() error { return errors.New("it is ill") } })
	mustPropose(t, c.AwaitLeader(), user("alone"))
}

func entryOf(t *testing.T, c fleet.Change) fleet.Entry {
	t.Helper()
	e, err := fleet.NewEntry("p-unfit", "user:test", time.Now(), c)
	if err != nil {
		t.Fatal(err)
	}
	return e
}
