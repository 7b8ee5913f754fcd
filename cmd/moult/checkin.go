package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/consensus"
	"moult/consensus/fleet"
	"moult/mesh"
	"moult/mesh/identity"
	"moult/mesh/nodeport"
)

// Each agent shows itself to some server now and then, by TLS and not by gossip.
// The servers tell each other, so that each remembers the same; the leader acts on
// what that tells: two machines that answer as one host, and hosts that look online
// and reach no server. And a host hears by it whom the deny-list names by now.
const (

	// maxCheckInAge is how old a check-in may be when another server hears of it, and
	// checkInCall how long the server that took it tries to tell.
	maxCheckInAge = 10 * time.Second
	checkInCall   = 5 * time.Second
	checkInQueue  = 1024

	// silentAfter is how long a host may look online without a check-in.
	silentAfter = 4 * nodekit.CheckInEvery
	silentTick  = 30 * time.Second
	maxSilent   = 20 // hosts for which an alert each is opened at a time
)

// pathCheckIns tells another server of hosts that showed themselves: POST, with
// checkInsMessage. Servers only.
const pathCheckIns = "/node/check-ins"

// checkIn is one host's showing itself.
type checkIn struct {
	HostID   string        `json:"host_id"`
	Instance string        `json:"instance"`
	Addr     string        `json:"addr"` // of its node port, for people
	Age      time.Duration `json:"age"`  // since its handshake began, when this is sent

	began time.Time
}

type checkInsMessage struct {
	CheckIns []checkIn `json:"check_ins"`
}

// checkInDesk is a server's side: it takes check-ins, remembers them and tells the
// other servers.
type checkInDesk struct {
	raft     *consensus.Node
	others   *serverClient
	self     string
	denyList func(follows identity.DenyListNumber) []byte // nil for who follows the newest
	logger   *slog.Logger
	queue    chan checkIn
	judge    *cloneJudge
}

func newCheckInDesk(raft *consensus.Node, others *serverClient, self string, denyList func(identity.DenyListNumber) []byte, logger *slog.Logger) *checkInDesk {
	return &checkInDesk{raft: raft, others: others, self: self, denyList: denyList, logger: logger, queue: make(chan checkIn, checkInQueue), judge: newCloneJudge()}
}

// take takes one host's check-in. What does not fit is dropped: the next one comes.
func (d *checkInDesk) take(ctx context.Context, req identity.CheckInRequest) (answer identity.CheckInAnswer, err error) {
	id := nodeport.PeerFrom(ctx)
	h, ok := d.raft.State().View().Host(id.HostID)
	if !ok || !bytes.Equal(nodeport.PeerKeyFrom(ctx), h.PublicKey) {
		return answer, &identity.CodedError{Code: fleet.CodeHostNotFound, Message: "this host was removed; join it again with a new token", Status: 403}
	}
	select {
	case d.queue <- checkIn{HostID: id.HostID, Instance: req.Instance, Addr: req.PeerAddr, began: nodeport.HandshakeFrom(ctx)}:
	default:
	}
	if req.Denied != nil {
		answer.Denied = d.denyList(*req.Denied)
	}
	return answer, nil
}

// run remembers and passes on what was taken, until ctx ends.
func (d *checkInDesk) run(ctx context.Context) {
	events, stop := d.raft.State().Subscribe()
	defer stop()
	d.judge.follow(d.raft.State().View())
	for {
		var batch []checkIn
		select {
		case <-ctx.Done():
			return
		case <-events:
			d.judge.follow(d.raft.State().View())
			continue
		case c := <-d.queue:
			batch = append(batch, c)
		}
		for more := true; more && len(batch) < checkInQueue; {
			select {
			case c := <-d.queue:
				batch = append(batch, c)
			default:
				more = false
			}
		}
		d.pass(ctx, batch)
	}
}

// pass tells all servers, within checkInCall. One that is down meanwhile hears of
// the same hosts when they show themselves the next time.
func (d *checkInDesk) pass(ctx context.Context, batch []checkIn) {
	for i := range batch {
		batch[i].Age = time.Since(batch[i].began)
	}
	d.judge.hear(batch, time.Now())
	ctx, cancel := context.WithTimeout(ctx, checkInCall)
	defer cancel()
	var calls sync.WaitGroup
	defer calls.Wait()
	for _, s := range d.raft.Servers() {
		if s.ID == d.self {
			continue
		}
		calls.Go(func() {
			if err := d.others.PostJSON(ctx, s.Address, pathCheckIns, checkInsMessage{batch}, nil); err != nil && ctx.Err() == nil {
				d.logger.Debug("tell a server of check-ins", "server", s.Address, "hosts", len(batch), "error", err)
			}
		})
	}
}

// heard takes what another server passes on.
func (d *checkInDesk) heard(_ context.Context, _ identity.Identity, m checkInsMessage) (struct{}, error) {
	d.judge.hear(m.CheckIns, time.Now())
	return struct{}{}, nil
}

// lead acts on what this server remembers, while it leads.
func (d *checkInDesk) lead(ctx context.Context, roster *mesh.Roster) {
	judge := d.judge
	propose := func(c fleet.Change) bool {
		_, err := d.raft.Propose(ctx, "coordinator", c)
		if err != nil && ctx.Err() == nil {
			d.logger.Warn("act on what check-ins tell", "change", c.Kind(), "error", err)
		}
		return err == nil
	}
	ticker := time.NewTicker(silentTick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case c := <-judge.clones:
			v := d.raft.State().View()
			judge.follow(v)
			if h, ok := v.Host(c.hostID); ok && judge.stands(c) {
				propose(fleet.HostQuarantined{HostID: c.hostID, Why: c.told(h.Name)})
			}
		case now := <-ticker.C:
			live := map[string]mesh.Liveness{}
			for _, m := range roster.Members() {
				live[m.HostID] = m.Liveness
			}
			for _, change := range judge.silence(d.raft.State().View(), live, now) {
				propose(change)
			}
		}
	}
}

// cloneJudge is what a server knows of check-ins. Its methods are safe for
// concurrent use.
type cloneJudge struct {
	clones chan clone // found; capacity bounds how many wait for this server to lead

	mu          sync.Mutex
	hosts       map[string]*shown
	quarantined map[string]bool // hosts, as of the last look at the state
	version     any             // of the hosts in it
}

// shown is one host's check-ins.
type shown struct {
	last  time.Time // heard of
	faces []face    // of the last instances, the present one last
}

// face is one instance of a host.
type face struct {
	instance, addr string
	first          time.Time // when it was heard of first: it was at work before that
	// after has the instances that were at work, provably, before this one was, with
	// the time by when this one was known to have been.
	after map[string]time.Time
}

// maxFaces is how many instances of a host are remembered.
const maxFaces = 4

// clone is a host as which two machines answer.
type clone struct {
	hostID string
	addrs  [2]string
	of     *shown // what it was found in
}

func newCloneJudge() *cloneJudge {
	return &cloneJudge{clones: make(chan clone, 64), hosts: map[string]*shown{}}
}

// hear takes check-ins. Of a check-in two times are known that what it proves lies
// between: when its handshake began, at the earliest, and now. Where an instance was
// at work, then another one, and then the first one again, there are two machines: a
// process that has ended does not come back. Where it listens says nothing.
func (j *cloneJudge) hear(batch []checkIn, now time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, c := range batch {
		if c.Age < 0 || c.Age > maxCheckInAge {
			continue // too late to prove what came after what
		}
		h := j.hosts[c.HostID]
		if h == nil {
			h = &shown{}
			j.hosts[c.HostID] = h
		}
		h.last = now
		if other, found := h.show(c, now.Add(-c.Age-checkInCall), now); found {
			if j.quarantined[c.HostID] {
				continue
			}
			select {
			case j.clones <- clone{c.HostID, [2]string{c.Addr, other}, h}:
			default:
			}
		}
	}
}

// show takes a check-in that proves that its instance was at work between earliest
// and now. It returns where the other machine listens, if there is one.
func (h *shown) show(c checkIn, earliest, now time.Time) (other string, found bool) {
	at := slices.IndexFunc(h.faces, func(f face) bool { return f.instance == c.Instance })
	own := face{instance: c.Instance, first: now, after: map[string]time.Time{}}
	if at >= 0 {
		own = h.faces[at]
		h.faces = slices.Delete(h.faces, at, at+1)
	}
	own.addr = c.Addr
	for _, f := range h.faces {
		if known, ok := f.after[own.instance]; ok && earliest.After(known) {
			other, found = f.addr, true
		}
		if _, ok := own.after[f.instance]; !ok && earliest.After(f.first) {
			own.after[f.instance] = now
		}
	}
	h.faces = append(h.faces, own)
	for len(h.faces) > maxFaces {
		gone := h.faces[0].instance
		h.faces = h.faces[1:]
		for _, f := range h.faces {
			delete(f.after, gone)
		}
	}
	return other, found
}

// follow looks at the state. It forgets hosts that are no more, and what it knew of
// hosts that are in quarantine no more, which it returns: one of the two machines is
// another host by now, and the one that stays must not be held against it.
func (j *cloneJudge) follow(v fleet.View) (lifted []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	version := v.HostsVersion()
	if j.version == version {
		return nil
	}
	j.version = version
	quarantined, enrolled := map[string]bool{}, map[string]bool{}
	for _, h := range v.Hosts() {
		enrolled[h.ID] = true
		if h.Quarantine != nil {
			quarantined[h.ID] = true
		}
	}
	for id := range j.quarantined {
		if !quarantined[id] {
			delete(j.hosts, id)
			lifted = append(lifted, id)
		}
	}
	for id := range j.hosts {
		if !enrolled[id] {
			delete(j.hosts, id)
		}
	}
	j.quarantined = quarantined
	return lifted
}

// stands tells whether what was found still counts: the host is not in quarantine,
// and was not since.
func (j *cloneJudge) stands(c clone) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.hosts[c.hostID] == c.of && !j.quarantined[c.hostID]
}

// told says for people what was seen, and what to do.
func (c clone) told(name string) string {
	where := "at " + c.addrs[0] + " and at " + c.addrs[1]
	if c.addrs[0] == c.addrs[1] {
		where = "both at " + c.addrs[0]
	}
	return fmt.Sprintf("two machines answer as %s, %s: one is a copy of the other; on one of them stop the agent, delete the folder identity in its data directory and join it with a new token and name, then: moult host readmit %s", name, where, name)
}

// silence returns the alerts over hosts that look online and have not checked in
// for long, though they did before, and ends those over hosts that have again.
func (j *cloneJudge) silence(v fleet.View, live map[string]mesh.Liveness, now time.Time) (changes []fleet.Change) {
	j.mu.Lock()
	defer j.mu.Unlock()
	open := map[string]string{}
	for _, a := range v.OpenAlerts() {
		if a.Kind == fleet.AlertHostSilent {
			open[a.HostID] = a.ID
		}
	}
	for id, h := range j.hosts {
		host, enrolled := v.Host(id)
		switch silent := now.Sub(h.last) > silentAfter; {
		case !enrolled:
			delete(j.hosts, id)
		case !silent && open[id] != "":
			changes = append(changes, fleet.AlertResolved{AlertID: open[id]})
		case silent && open[id] == "" && live[id] == mesh.Online && len(open) < maxSilent:
			open[id] = "new"
			changes = append(changes, fleet.AlertRaised{AlertKind: fleet.AlertHostSilent, HostID: id, Message: fmt.Sprintf(
				"%s looks online and has shown itself to no server for %s: it may not hear of updates, removals and new keys; run moult doctor on it", host.Name, strings.TrimSuffix(now.Sub(h.last).Round(time.Minute).String(), "0s"))})
		}
	}
	return changes
}
