package consensus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// promoteSlack is how many entries behind the leader still counts as caught up.
const promoteSlack = 64

// ServerStatus is one member of the group.
type ServerStatus struct {
	ID      string `json:"id"`
	Address string `json:"address"`
	Voter   bool   `json:"voter"`
	Leader  bool   `json:"-"` // as far as this server knows
}

// Servers returns the members by the newest configuration this server has, in
// the order in which they were added.
func (n *Node) Servers() []ServerStatus {
	leader, _ := n.Leader()
	var out []ServerStatus
	for _, s := range n.configuration() {
		out = append(out, ServerStatus{
			ID: string(s.ID), Address: string(s.Address),
			Voter: s.Suffrage == raft.Voter, Leader: string(s.ID) == leader,
		})
	}
	return out
}

// configuration reads the newest configuration, committed or not.
func (n *Node) configuration() []raft.Server {
	return n.raft.GetConfiguration().Configuration().Servers
}

func (n *Node) server(id string) (raft.Server, bool) {
	servers := n.configuration()
	i := slices.IndexFunc(servers, func(s raft.Server) bool { return string(s.ID) == id })
	if i < 0 {
		return raft.Server{}, false
	}
	return servers[i], true
}

func (n *Node) voters() int {
	count := 0
	for _, s := range n.configuration() {
		if s.Suffrage == raft.Voter {
			count++
		}
	}
	return count
}

// IsMember tells whether a server is in the newest configuration this server
// has, or in a newer one that others bore out (Hear).
func (n *Node) IsMember(id string) bool {
	_, ok := n.server(id)
	return ok || n.vouched.has(id)
}

// Configured tells whether this server belongs to a group: it bootstrapped one,
// or a leader has reached it.
func (n *Node) Configured() bool { return len(n.configuration()) > 0 }

// AddServer adds a server as a non-voter, wherever the leader is; the leader
// makes it a voter when it has caught up. Repeating it is harmless, and with a
// new address moves the server there. ErrRefused when another server has the
// address.
func (n *Node) AddServer(ctx context.Context, id, addr string) error {
	_, err := n.atLeader(ctx, request{Op: opAddServer, ID: id, Address: addr})
	if err != nil {
		return fmt.Errorf("add server %s at %s: %w", id, addr, err)
	}
	return nil
}

// DemoteServer takes a voter's vote, wherever the leader is; a leader first hands
// leadership over. A server that does not vote is left as it is. The leader would
// make it a voter again unless the state says that it is on standby. ErrRefused
// when the remaining voters could not go on.
func (n *Node) DemoteServer(ctx context.Context, id string) error {
	_, err := n.atLeader(ctx, request{Op: opDemoteServer, ID: id})
	if err != nil {
		return fmt.Errorf("demote server %s: %w", id, err)
	}
	return nil
}

// RemoveServer removes a server, wherever the leader is; a leader to be removed
// first hands leadership over. Removing a server that is not a member does
// nothing. ErrRefused when the remaining voters could not go on.
func (n *Node) RemoveServer(ctx context.Context, id string) error {
	_, err := n.atLeader(ctx, request{Op: opRemoveServer, ID: id})
	if err != nil {
		return fmt.Errorf("remove server %s: %w", id, err)
	}
	return nil
}

// maxTransfers is how often TransferLeadership tries: the target of a transfer
// has to win an election, and on a busy machine the old leader may win it.
const maxTransfers = 3

// TransferLeadership lets another voter lead, and returns when one is known to.
// ErrRefused when none can.
func (n *Node) TransferLeadership(ctx context.Context) error {
	before, _ := n.Leader()
	for range maxTransfers {
		if _, err := n.atLeader(ctx, request{Op: opTransfer}); err != nil {
			return fmt.Errorf("transfer leadership: %w", err)
		}
		if n.awaitOtherLeader(ctx, before) {
			return nil
		}
	}
	return fmt.Errorf("transfer leadership: %w: it came back to %s each time; look at the others' load, and try again", ErrRefused, before)
}

// awaitOtherLeader tells whether another server than before is known to lead,
// waiting as long as a transfer may take.
func (n *Node) awaitOtherLeader(ctx context.Context, before string) bool {
	timer := time.NewTimer(n.timing.Transfer)
	defer timer.Stop()
	for {
		changed := n.leader.changes()
		if now, _ := n.Leader(); now != "" && now != before {
			return true
		}
		select {
		case <-changed:
		case <-timer.C:
			return false
		case <-ctx.Done():
			return false
		case <-n.ctx.Done():
			return false
		}
	}
}

func (n *Node) serveAddServer(ctx context.Context, id, addr string) response {
	if id == "" || addr == "" {
		return response{Refused: "a server needs an id and an address"}
	}
	if err := n.acquire(ctx, n.members); err != nil {
		return n.outcome(fmt.Errorf("%w: %w", errNotAppended, err))
	}
	defer func() { <-n.members }()
	for _, s := range n.configuration() {
		switch {
		case string(s.ID) == id && string(s.Address) == addr:
			return response{}
		case string(s.ID) != id && string(s.Address) == addr:
			return response{Refused: fmt.Sprintf("server %s has the address %s; remove it first with: moult servers remove", s.ID, addr)}
		case string(s.ID) == id:
			if reason := n.answersAt(ctx, s, addr); reason != "" {
				return response{Refused: reason}
			}
		}
	}
	return n.changed(ctx, n.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(addr), 0, n.timing.Enqueue))
}

// answersAt says why a member is not taken for moved: to dial it where it does not
// answer would cost its vote.
func (n *Node) answersAt(ctx context.Context, s raft.Server, addr string) string {
	if string(s.ID) == n.cfg.ServerID || n.cfg.Progress == nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, n.timing.Probe)
	defer cancel()
	if _, err := n.cfg.Progress(ctx, string(s.ID), addr); err != nil {
		return fmt.Sprintf("server %s does not answer at %s (%v), so it stays at %s; start it there first", s.ID, addr, err, s.Address)
	}
	return ""
}

func (n *Node) serveDemoteServer(ctx context.Context, id string) response {
	if err := n.acquire(ctx, n.members); err != nil {
		return n.outcome(fmt.Errorf("%w: %w", errNotAppended, err))
	}
	defer func() { <-n.members }()
	s, ok := n.server(id)
	switch {
	case !ok:
		return response{Refused: fmt.Sprintf("server %s is not a member; see: moult servers", id)}
	case s.Suffrage != raft.Voter:
		return response{}
	}
	if reason := n.keepsMajority(ctx, id); reason != "" {
		return response{Refused: reason}
	}
	if id == n.cfg.ServerID {
		if resp := n.serveTransfer(ctx); resp != (response{}) {
			return resp
		}
		return n.notLeader() // the new one demotes this server
	}
	return n.changed(ctx, n.raft.DemoteVoter(raft.ServerID(id), 0, n.timing.Enqueue))
}

func (n *Node) serveRemoveServer(ctx context.Context, id string) response {
	if err := n.acquire(ctx, n.members); err != nil {
		return n.outcome(fmt.Errorf("%w: %w", errNotAppended, err))
	}
	defer func() { <-n.members }()
	s, ok := n.server(id)
	if !ok {
		return response{}
	}
	if s.Suffrage == raft.Voter {
		if reason := n.keepsMajority(ctx, id); reason != "" {
			return response{Refused: reason}
		}
	}
	if id == n.cfg.ServerID {
		if resp := n.serveTransfer(ctx); resp != (response{}) {
			return resp
		}
		return n.notLeader() // the new one removes this server
	}
	return n.changed(ctx, n.raft.RemoveServer(raft.ServerID(id), 0, n.timing.Enqueue))
}

// changed waits for a change of the configuration.
func (n *Node) changed(ctx context.Context, f raft.IndexFuture) response {
	if err := await(ctx, f.Error); err != nil {
		return n.outcome(err)
	}
	return response{}
}

// keepsMajority says why the voters without one of them could not go on, or
// nothing when they can.
func (n *Node) keepsMajority(ctx context.Context, without string) string {
	left := n.voters() - 1
	if left == 0 {
		return "it is the only voter; add another server first"
	}
	up := 0
	var missing []string
	for id, p := range n.probe(ctx, raft.Voter) {
		switch {
		case id == without:
		case p.err == nil:
			up++
		default:
			missing = append(missing, id)
		}
	}
	if up >= left/2+1 {
		return ""
	}
	slices.Sort(missing)
	return fmt.Sprintf("only %d of the %d remaining voters would answer, which is no majority; first bring back %s",
		up, left, strings.Join(missing, ", "))
}

// serveTransfer hands leadership over; the zero response when that was done.
func (n *Node) serveTransfer(ctx context.Context) response {
	err := n.transferFromHere(ctx)
	switch {
	case err == nil, errors.Is(err, raft.ErrNotLeader): // lost meanwhile: another one leads or will
		return response{}
	case errors.Is(err, errNoTarget):
		return response{Refused: err.Error()}
	}
	// Who asked stopped waiting, or the other one's connections were just ended, as
	// they are when a server is removed: it bears repetition.
	return response{Unknown: err.Error()}
}

var errNoTarget = errors.New("no other voter answers that could lead; see: moult servers")

// transferFromHere hands leadership from this server to the voter that answers
// and is furthest. Left to itself Raft may pick one that is down.
func (n *Node) transferFromHere(ctx context.Context) error {
	var (
		target raft.Server
		best   uint64
	)
	for id, p := range n.probe(ctx, raft.Voter) {
		if id != n.cfg.ServerID && p.err == nil && (target.ID == "" || p.applied > best) {
			target, best = p.server, p.applied
		}
	}
	transfer := func() error { return n.raft.LeadershipTransferToServer(target.ID, target.Address).Error() }
	if n.cfg.Progress == nil && n.voters() > 1 {
		transfer = func() error { return n.raft.LeadershipTransfer().Error() }
	} else if target.ID == "" {
		return errNoTarget
	}
	if err := await(ctx, transfer); err != nil {
		return fmt.Errorf("hand leadership to %s: %w", target.ID, err)
	}
	return nil
}

// progress is a server's answer to a probe.
type progress struct {
	server  raft.Server
	applied uint64
	err     error
}

// probe asks the members of one suffrage how far they are, all at once. This
// server answers itself.
func (n *Node) probe(ctx context.Context, suffrage raft.ServerSuffrage) map[string]progress {
	ctx, cancel := context.WithTimeout(ctx, n.timing.Probe)
	defer cancel()
	var (
		mu    sync.Mutex
		out   = make(map[string]progress)
		asked sync.WaitGroup
	)
	for _, s := range n.configuration() {
		if s.Suffrage != suffrage {
			continue
		}
		asked.Go(func() {
			p := progress{server: s, applied: n.AppliedIndex()}
			switch {
			case string(s.ID) == n.cfg.ServerID:
			case n.cfg.Progress == nil:
				p.err = errors.New("no way to ask")
			default:
				p.applied, p.err = n.cfg.Progress(ctx, string(s.ID), string(s.Address))
			}
			mu.Lock()
			defer mu.Unlock()
			out[string(s.ID)] = p
		})
	}
	asked.Wait()
	return out
}

// promoteCaughtUp makes voters of non-voters while this server leads: each round
// looks at all of them and promotes at most one.
func (n *Node) promoteCaughtUp(ctx context.Context) {
	since := make(map[string]time.Time)
	tick := time.NewTicker(n.timing.Probe)
	defer tick.Stop()
	for {
		mine := n.AppliedIndex() // before the probes: what they must have reached
		answers := n.probe(ctx, raft.Nonvoter)
		for id := range answers {
			if h, ok := n.View().Host(id); ok && h.Standby {
				delete(answers, id)
			}
		}
		if id := promotable(answers, mine, since, time.Now(), n.timing.Promote); id != "" {
			if err := n.promote(ctx, answers[id].server); err != nil {
				n.logger.Warn("promote server", "server", id, "error", err)
			} else {
				n.logger.Info("server is a voter", "server", id)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// promotable returns the id of a server that has been caught up with the leader
// since stable ago, or "". since holds when each one's present spell of being
// caught up began; a server that does not answer or falls behind starts anew.
func promotable(answers map[string]progress, leader uint64, since map[string]time.Time, now time.Time, stable time.Duration) string {
	best := ""
	for id, p := range answers {
		// Nothing applied yet: it has not shown that this server reaches it by Raft.
		if p.err != nil || p.applied == 0 || p.applied+promoteSlack < leader {
			delete(since, id)
			continue
		}
		if _, ok := since[id]; !ok {
			since[id] = now
		}
		if now.Sub(since[id]) >= stable && (best == "" || id < best) {
			best = id
		}
	}
	for id := range since {
		if _, ok := answers[id]; !ok {
			delete(since, id)
		}
	}
	return best
}

// promote makes a voter of a server that is still the non-voter it was.
func (n *Node) promote(ctx context.Context, s raft.Server) error {
	if err := n.acquire(ctx, n.members); err != nil {
		return err
	}
	defer func() { <-n.members }()
	if now, ok := n.server(string(s.ID)); !ok || now != s {
		return nil // removed or moved meanwhile: the next round looks again
	}
	if h, ok := n.View().Host(string(s.ID)); ok && h.Standby {
		return nil
	}
	f := n.raft.AddVoter(s.ID, s.Address, 0, n.timing.Enqueue)
	return await(ctx, f.Error)
}
