package consensus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// A server goes by the newest configuration in its own log when it decides who may
// speak Raft with it. One that was away while others joined knows no better than
// it did then, and would refuse the very leader that could bring it up to date. So
// servers tell such a member the present configuration, and it asks around before
// it believes them (see DESIGN.md).

// Membership is the group's configuration as one server knows it, and how far that
// server's log is: of two servers the one whose log is further, in the sense in
// which Raft counts votes, knows the newer configuration.
type Membership struct {
	Epoch   uint64         `json:"epoch"` // of the cluster
	Term    uint64         `json:"term"`  // of the last entry of the log
	Index   uint64         `json:"index"` // of the last entry of the log
	Servers []ServerStatus `json:"servers"`
}

// newer tells whether m's log is further than o's.
func (m Membership) newer(o Membership) bool {
	return cmp.Or(cmp.Compare(m.Term, o.Term), cmp.Compare(m.Index, o.Index)) > 0
}

func (m Membership) has(id string) bool {
	return slices.ContainsFunc(m.Servers, func(s ServerStatus) bool { return s.ID == id })
}

// same tells whether both have the same servers, with the same votes.
func (m Membership) same(o Membership) bool {
	return len(m.Servers) == len(o.Servers) && !slices.ContainsFunc(m.Servers, func(s ServerStatus) bool {
		return !slices.ContainsFunc(o.Servers, func(t ServerStatus) bool { return s.ID == t.ID && s.Voter == t.Voter })
	})
}

// Membership returns what this server knows.
func (n *Node) Membership() Membership {
	cluster, _ := n.View().Cluster()
	m := Membership{Epoch: cluster.Epoch, Servers: n.Servers()}
	stats := n.raft.Stats()
	for _, end := range []string{"last_log", "last_snapshot"} { // the log may be empty behind a snapshot
		term, _ := strconv.ParseUint(stats[end+"_term"], 10, 64) // Raft writes numbers
		index, _ := strconv.ParseUint(stats[end+"_index"], 10, 64)
		if e := (Membership{Term: term, Index: index}); e.newer(m) {
			m.Term, m.Index = term, index
		}
	}
	return m
}

// vouched are the servers that may speak Raft besides those of the configuration,
// until this server's log is as far as that of whoever told of them.
type vouched struct {
	listening atomic.Bool // one claim at a time is looked into
	now       atomic.Pointer[Membership]
}

func (v *vouched) has(id string) bool {
	m := v.now.Load()
	return m != nil && m.has(id)
}

// ErrNotBelieved: what a server told of the configuration is not borne out.
var ErrNotBelieved = errors.New("the configuration is not believed")

// Hear takes what another server, whose id the caller has authenticated, tells of
// the configuration. If it is news, and a majority of that configuration's voters
// bears it out, its servers may speak Raft with this one from now on. It errs with
// ErrNotBelieved otherwise.
func (n *Node) Hear(ctx context.Context, from string, claim Membership) error {
	mine := n.Membership()
	if n.IsMember(from) || !n.Configured() {
		return nil
	}
	if n.cfg.Ask == nil {
		return fmt.Errorf("%w: there is no way to ask others", ErrNotBelieved)
	}
	if err := plausible(n.cfg.ServerID, mine, from, claim); err != nil {
		return err
	}
	if !n.vouched.listening.CompareAndSwap(false, true) {
		return fmt.Errorf("%w: another claim is being looked into", ErrNotBelieved)
	}
	defer n.vouched.listening.Store(false)
	if err := borneOut(n.cfg.ServerID, mine, from, claim, n.askAround(ctx, mine, claim)); err != nil {
		return err
	}
	n.logger.Info("the servers are others than this one knew", "from", from, "index", claim.Index)
	n.vouched.now.Store(&claim)
	return nil
}

// plausible tells whether a claim is worth asking about.
func plausible(self string, mine Membership, from string, claim Membership) error {
	switch {
	case claim.Epoch != mine.Epoch:
		return fmt.Errorf("%w: it is of epoch %d, this server is in %d", ErrNotBelieved, claim.Epoch, mine.Epoch)
	case !claim.has(self):
		return fmt.Errorf("%w: this server is not in it", ErrNotBelieved)
	case !claim.has(from):
		return fmt.Errorf("%w: who tells it is not in it", ErrNotBelieved)
	case !claim.newer(mine):
		return fmt.Errorf("%w: it is not newer than what this server knows", ErrNotBelieved)
	}
	return nil
}

// askAround asks every server of two configurations for what it knows.
func (n *Node) askAround(ctx context.Context, mine, claim Membership) map[string]Membership {
	ctx, cancel := context.WithTimeout(ctx, n.timing.Probe)
	defer cancel()
	var (
		mu      sync.Mutex
		answers = make(map[string]Membership)
		asked   sync.WaitGroup
	)
	addrs := make(map[string]string)
	for _, s := range slices.Concat(mine.Servers, claim.Servers) { // the claim's addresses are newer
		addrs[s.ID] = s.Address
	}
	delete(addrs, n.cfg.ServerID)
	for id, addr := range addrs {
		asked.Go(func() {
			if m, err := n.cfg.Ask(ctx, id, addr); err == nil {
				mu.Lock()
				defer mu.Unlock()
				answers[id] = m
			}
		})
	}
	asked.Wait()
	return answers
}

// borneOut tells whether a claim holds against the answers of the servers that were
// asked, by id. The newest answer counts: a server that was removed and does not
// know it is found out by any that does. This server's own vote does not count: else
// one that was removed and is in other hands could make up a configuration of the
// two, as far ahead of everybody as it likes.
func borneOut(self string, mine Membership, from string, claim Membership, answers map[string]Membership) error {
	newest := claim
	for _, m := range answers {
		if m.Epoch == mine.Epoch && m.newer(newest) {
			newest = m
		}
	}
	if !newest.has(from) || !newest.has(self) {
		return fmt.Errorf("%w: a server knows of a newer one, in which %s or this server is not", ErrNotBelieved, from)
	}
	voters, agree := 0, 0
	for _, s := range claim.Servers {
		if !s.Voter {
			continue
		}
		voters++
		if m, ok := answers[s.ID]; s.ID != self && ok && m.Epoch == mine.Epoch && m.same(claim) {
			agree++
		}
	}
	if agree < voters/2+1 {
		return fmt.Errorf("%w: %d of its %d voters bear it out beside this server, which is no majority", ErrNotBelieved, agree, voters)
	}
	return nil
}

// tellMembers tells the configuration to members that may not know it: those that a
// leader does not reach, and all of them while there is no leader.
func (n *Node) tellMembers() {
	failed := make(chan raft.Observation, 16) // more than there are members
	observer := raft.NewObserver(failed, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.FailedHeartbeatObservation)
		return ok
	})
	n.raft.RegisterObserver(observer)
	defer n.raft.DeregisterObserver(observer)
	tick := time.NewTicker(n.timing.Probe)
	defer tick.Stop()
	unreached := make(map[string]bool)
	for {
		select {
		case o := <-failed:
			unreached[string(o.Data.(raft.FailedHeartbeatObservation).PeerID)] = true
			continue
		case <-n.ctx.Done():
			return
		case <-tick.C:
		}
		if m := n.vouched.now.Load(); m != nil && !m.newer(n.Membership()) {
			n.vouched.now.Store(nil) // this server's own configuration says it now
		}
		n.tell(func(id string) bool { return unreached[id] || !n.HasLeader() })
		clear(unreached)
	}
}

func (n *Node) tell(whom func(id string) bool) {
	var told sync.WaitGroup
	ctx, cancel := context.WithTimeout(n.ctx, n.timing.Probe)
	defer cancel()
	for _, s := range n.configuration() {
		if id := string(s.ID); id != n.cfg.ServerID && whom(id) {
			told.Go(func() {
				if err := n.cfg.Tell(ctx, id, string(s.Address), n.Membership()); err != nil {
					n.logger.Debug("tell the configuration", "server", id, "error", err)
				}
			})
		}
	}
	told.Wait()
}
