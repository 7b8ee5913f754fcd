package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"moult/consensus"
	"moult/consensus/fleet"
	"moult/mesh"
	"moult/mesh/identity"
	"moult/mesh/nodeport"
)

// Each agent shows itself to some server now and then, by TLS and not by gossip.
// The servers pass that on to the leader, which learns of two things by it: two
// machines that answer as one host, and hosts that look online and reach no server.
const (
	checkInEvery = 5 * time.Minute
	checkInFirst = 10 * time.Second // after the start, at most
	checkInRetry = time.Minute
	checkInAsked = 8 // hosts asked in one attempt

	// maxCheckInAge is how old a check-in may be when the leader hears of it, and
	// checkInCall how long the server that took it tries to tell.
	maxCheckInAge = 10 * time.Second
	checkInCall   = 5 * time.Second
	checkInQueue  = 1024

	// silentAfter is how long a host may look online without a check-in.
	silentAfter = 4 * checkInEvery
	silentTick  = 30 * time.Second
	maxSilent   = 20 // hosts for which an alert each is opened at a time
)

// pathCheckIns tells the leader of hosts that showed themselves: POST, with
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

// newInstance names this process.
func newInstance() string { return rand.Text() }

// shower is an agent's side.
type shower struct {
	instance string
	peer     string // node port, as advertised
	current  *identity.Current
	ways     func(visited []string) []nodeport.Way
	logger   *slog.Logger
}

// run checks in until ctx ends.
func (s *shower) run(ctx context.Context) {
	wait := mathrand.N(checkInFirst)
	for sleep(ctx, wait) {
		wait = checkInEvery*4/5 + mathrand.N(checkInEvery/5)
		if err := s.once(ctx); err != nil && ctx.Err() == nil {
			s.logger.Debug("no server was reached to check in", "error", err)
			wait = checkInRetry
		}
	}
}

// once shows the host to the first server that is reached.
func (s *shower) once(ctx context.Context) error {
	ways := s.ways(nil)
	var errs []error
	for _, w := range ways[:min(len(ways), checkInAsked)] {
		err := identity.CheckIn(ctx, w.Addr, s.current.Get(), identity.CheckInRequest{Instance: s.instance, PeerAddr: s.peer})
		var coded *identity.CodedError
		if err == nil || errors.As(err, &coded) && coded.Status < 500 && coded.Status != 404 { // 404: a server of an older version
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// checkInDesk is a server's side: it takes check-ins and passes them to the leader.
type checkInDesk struct {
	raft   *consensus.Node
	others *serverClient
	self   string
	logger *slog.Logger
	queue  chan checkIn

	mu    sync.Mutex
	judge *cloneJudge // while this server leads
}

func newCheckInDesk(raft *consensus.Node, others *serverClient, self string, logger *slog.Logger) *checkInDesk {
	return &checkInDesk{raft: raft, others: others, self: self, logger: logger, queue: make(chan checkIn, checkInQueue)}
}

// take takes one host's check-in. What does not fit is dropped: the next one comes.
func (d *checkInDesk) take(ctx context.Context, req identity.CheckInRequest) error {
	id := nodeport.PeerFrom(ctx)
	h, ok := d.raft.State().View().Host(id.HostID)
	if !ok || !bytes.Equal(nodeport.PeerKeyFrom(ctx), h.PublicKey) {
		return &identity.CodedError{Code: fleet.CodeHostNotFound, Message: "this host was removed; join it again with a new token", Status: 403}
	}
	select {
	case d.queue <- checkIn{HostID: id.HostID, Instance: req.Instance, Addr: req.PeerAddr, began: nodeport.HandshakeFrom(ctx)}:
	default:
	}
	return nil
}

// run passes on what was taken, until ctx ends.
func (d *checkInDesk) run(ctx context.Context) {
	for {
		var batch []checkIn
		select {
		case <-ctx.Done():
			return
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
		if err := d.pass(ctx, batch); err != nil && ctx.Err() == nil {
			d.logger.Debug("tell the leader of check-ins", "hosts", len(batch), "error", err)
		}
	}
}

func (d *checkInDesk) pass(ctx context.Context, batch []checkIn) error {
	for i := range batch {
		batch[i].Age = time.Since(batch[i].began)
	}
	if d.raft.IsLeader() {
		d.hear(batch)
		return nil
	}
	for _, s := range d.raft.Servers() {
		if s.Leader && s.ID != d.self {
			ctx, cancel := context.WithTimeout(ctx, checkInCall)
			defer cancel()
			return d.others.postJSON(ctx, s.Address, pathCheckIns, checkInsMessage{batch}, nil)
		}
	}
	return errors.New("no leader is known")
}

// heard takes what another server passes on.
func (d *checkInDesk) heard(_ context.Context, _ identity.Identity, m checkInsMessage) (struct{}, error) {
	d.hear(m.CheckIns)
	return struct{}{}, nil
}

func (d *checkInDesk) hear(batch []checkIn) {
	d.mu.Lock()
	judge := d.judge
	d.mu.Unlock()
	if judge != nil {
		judge.hear(batch, time.Now())
	}
}

// lead judges while this server leads.
func (d *checkInDesk) lead(ctx context.Context, roster *mesh.Roster) {
	judge := newCloneJudge()
	d.mu.Lock()
	d.judge = judge
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.judge = nil
	}()
	propose := func(c fleet.Change) bool {
		_, err := d.raft.Propose(ctx, "coordinator", c)
		if err != nil && ctx.Err() == nil {
			d.logger.Warn("act on what check-ins tell", "change", c.Kind(), "error", err)
		}
		return err == nil
	}
	events, stop := d.raft.State().Subscribe()
	defer stop()
	ticker := time.NewTicker(silentTick)
	defer ticker.Stop()
	judge.lifted(d.raft.State().View())
	for {
		select {
		case <-ctx.Done():
			return
		case <-events:
			judge.lifted(d.raft.State().View())
		case c := <-judge.clones:
			v := d.raft.State().View()
			if h, ok := v.Host(c.hostID); ok && h.Quarantine == nil && !slices.Contains(judge.lifted(v), c.hostID) {
				if propose(fleet.HostQuarantined{HostID: c.hostID, Why: c.told(h.Name)}) {
					judge.isolated(c.hostID)
				}
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

// cloneJudge is what the leader knows of check-ins. Its methods are safe for
// concurrent use.
type cloneJudge struct {
	clones chan clone // found; capacity bounds how many wait

	mu          sync.Mutex
	hosts       map[string]*shown
	quarantined map[string]bool // hosts, as of the last look at the state; nil: there was none
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
			select {
			case j.clones <- clone{c.HostID, [2]string{c.Addr, other}}:
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

// lifted forgets what it knew of hosts that are in quarantine no more, and returns
// them: one of the two machines is another host by now, and the one that stays must
// not be held against it.
func (j *cloneJudge) lifted(v fleet.View) (ids []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.quarantined == nil {
		j.quarantined = map[string]bool{}
		for _, h := range v.Hosts() {
			if h.Quarantine != nil {
				j.quarantined[h.ID] = true
			}
		}
	}
	for id := range j.quarantined {
		if h, _ := v.Host(id); h.Quarantine == nil {
			delete(j.quarantined, id)
			delete(j.hosts, id)
			ids = append(ids, id)
		}
	}
	return ids
}

// isolated notes that a host is in quarantine.
func (j *cloneJudge) isolated(id string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.quarantined[id] = true
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
