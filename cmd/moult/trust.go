package main

import (
	"cmp"
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/consensus"
	"moult/consensus/fleet"
	"moult/mesh"
	"moult/mesh/identity"
	"moult/webui"
)

// How the deny-list and new gossip keys reach the hosts. A server sends the signed
// list itself, and of the keys only their number, to each host that has not said
// that it has them; a host gets keys by renewing its certificate, over TLS, and
// says what it follows, to each server that it sees for the first time, too. Joins
// and renewals bring the list with them. Lost messages are made good by the next round, and a host
// that gossip does not reach asks by itself (trustFollower.watch).
const (
	trustEvery = 10 * time.Second // a round
	trustPause = time.Second      // between two rounds, whatever hosts say

	trustAtOnce = 16 // messages on their way at a time
)

// Times of a rotation of gossip keys, on the leader.
const (
	rotationTick = time.Second
	// rotationDwell is how long each stage lasts at least: a host that restarts
	// meanwhile must not miss one.
	rotationDwell = 10 * time.Second
	// rotationUnheard is how long a server, since its start, waits for hosts that it has
	// not seen at all.
	rotationUnheard = time.Minute
)

// trustKeeper is a server's side.
type trustKeeper struct {
	raft     *consensus.Node
	roster   *mesh.Roster
	current  *identity.Current
	lifetime time.Duration // of certificates
	send     func(ctx context.Context, host, topic string, payload []byte) error
	own      *nodekit.TrustFollower // this server follows, too
	logger   *slog.Logger

	behind chan struct{} // capacity 1: a host has said that it lacks something

	mu      sync.Mutex
	follows map[string]nodekit.TrustFollowed // by host id, as the hosts say
	list    []byte                           // signed, of
	listOf  [3]uint64                        // this epoch and number, and by this CA
}

// handle takes a host's word on what it follows.
func (k *trustKeeper) handle(from identity.Identity, payload []byte) {
	var said nodekit.TrustFollowed
	if json.Unmarshal(payload, &said) != nil || len(said.Rings) > mesh.MaxSegments || len(said.CAs) > identity.MaxCAStatements+1 {
		k.logger.Warn("a host's word on what it follows is refused", "host", from.HostID)
		return
	}
	k.mu.Lock()
	before, heard := k.follows[from.HostID]
	k.follows[from.HostID] = said
	k.mu.Unlock()
	v := k.raft.State().View()
	h, enrolled := v.Host(from.HostID)
	_, epoch, number := k.signedList(v)
	// What a host repeats is for the next round: it may be unable to follow.
	if !enrolled || heard && reflect.DeepEqual(said, before) || !said.Behind(epoch, number) && !said.Lacks(wantedRings(v, h)) {
		return
	}
	select {
	case k.behind <- struct{}{}:
	default:
	}
}

// listAfter is the signed deny-list as of now, for a host that follows an older one;
// else nil.
func (k *trustKeeper) listAfter(follows identity.DenyListNumber) []byte {
	raw, epoch, number := k.signedList(k.raft.State().View())
	if !follows.Before(identity.DenyListNumber{Epoch: epoch, Number: number}) {
		return nil
	}
	return raw
}

// newestList is the signed deny-list as of now; nil when there never was one.
func (k *trustKeeper) newestList() []byte {
	raw, _, _ := k.signedList(k.raft.State().View())
	return raw
}

// followed returns what the hosts say that they follow, this one included.
func (k *trustKeeper) followed() map[string]nodekit.TrustFollowed {
	k.mu.Lock()
	all := maps.Clone(k.follows)
	k.mu.Unlock()
	creds := k.current.Get()
	all[creds.HostID] = nodekit.FollowedBy(creds)
	return all
}

// signedList returns the deny-list of a view; nil when there never was one. A
// restored cluster has one, be it empty: hosts may follow one of the lost servers.
// Equal lists have equal bytes on all servers.
func (k *trustKeeper) signedList(v fleet.View) (raw []byte, epoch, number uint64) {
	cluster, _ := v.Cluster()
	number, hosts := v.DenyList()
	if number == 0 && cluster.Epoch == 0 {
		return nil, 0, 0
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if is := [3]uint64{cluster.Epoch, number, cluster.CANumber}; k.list == nil || k.listOf != is {
		raw, err := signDenyList(cluster, number, hosts)
		if err != nil {
			k.logger.Error("sign the deny-list", "error", err)
			return nil, cluster.Epoch, 0
		}
		k.list, k.listOf = raw, is
	}
	return k.list, cluster.Epoch, number
}

func signDenyList(cluster fleet.Cluster, number uint64, hosts []fleet.DeniedHost) ([]byte, error) {
	ca, err := identity.LoadCA(cluster.CACert, cluster.CAKey)
	if err != nil {
		return nil, err
	}
	l := identity.DenyList{Cluster: cluster.ID, Epoch: cluster.Epoch, Number: number}
	for _, h := range hosts {
		l.Hosts = append(l.Hosts, identity.DeniedHost{HostID: h.HostID, Key: h.PublicKey})
	}
	return ca.SignDenyList(l)
}

// run follows the state itself and tells the hosts, until ctx ends.
func (k *trustKeeper) run(ctx context.Context) {
	events, stop := k.raft.State().Subscribe()
	defer stop()
	ticker := time.NewTicker(trustEvery)
	defer ticker.Stop()
	for {
		v := k.raft.State().View()
		k.follow(v)
		k.round(ctx, v)
		if !nodekit.Sleep(ctx, trustPause) {
			return
		}
		for due := false; !due; {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				due = true
			case <-k.behind:
				due = true
			case e := <-events:
				due = slices.ContainsFunc(e.Topics, func(t string) bool { return t == "denied" || t == "gossip" || t == "ca" || t == "*" })
			}
		}
	}
}

// follow has this server do what it tells others.
func (k *trustKeeper) follow(v fleet.View) {
	// Before the deny-list, which the new CA may have signed.
	if cluster, _ := v.Cluster(); cluster.CARotation != nil {
		if wanted, err := wantedCAs(cluster); err == nil {
			k.own.TakeCAs(nodekit.CasNotice{Chain: chainOf(cluster), Signer: wanted.signer})
		}
	}
	if raw, _, _ := k.signedList(v); raw != nil {
		k.own.TakeDenied(raw)
	}
	if h, ok := v.Host(k.current.Get().HostID); ok {
		k.own.TakeRings(wantedRings(v, h))
	}
}

// wantedRings is the revision of the keys that a host should have, by segment;
// segments whose keys never changed are left out.
func wantedRings(v fleet.View, h fleet.Host) map[string]uint64 {
	rings := map[string]uint64{}
	for _, segment := range h.Segments() {
		if r, ok := v.GossipRing(segment); ok {
			rings[segment] = r.Revision
		}
	}
	return rings
}

// round sends what they lack to the hosts that are online.
func (k *trustKeeper) round(ctx context.Context, v fleet.View) {
	list, epoch, number := k.signedList(v)
	cas, wanted := k.casOf(v)
	if list == nil && cas == nil && len(v.GossipRings()) == 0 {
		return
	}
	follows, self := k.followed(), k.current.Get().HostID
	var sends sync.WaitGroup
	slots := make(chan struct{}, trustAtOnce)
	tell := func(host, topic string, payload []byte) {
		slots <- struct{}{}
		sends.Go(func() {
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(ctx, nodekit.TrustTimeout)
			defer cancel()
			if err := k.send(ctx, host, topic, payload); err != nil {
				k.logger.Debug("tell a host whom to trust", "host", host, "topic", topic, "error", err)
			}
		})
	}
	for _, m := range k.roster.Members() {
		h, enrolled := v.Host(m.HostID)
		if !enrolled || m.Liveness != mesh.Online || m.HostID == self || ctx.Err() != nil {
			continue
		}
		f := follows[m.HostID]
		if cas != nil && !wanted.followedBy(f) {
			tell(m.HostID, nodekit.TopicCAs, cas)
		}
		if list != nil && (f.Epoch != epoch || f.Denied != number) {
			tell(m.HostID, nodekit.TopicDenied, list)
		}
		if rings := wantedRings(v, h); f.Lacks(rings) {
			payload, err := json.Marshal(nodekit.RingsNotice{Rings: rings})
			if err == nil {
				tell(m.HostID, nodekit.TopicRings, payload)
			}
		}
	}
	sends.Wait()
}

// Until is when no certificate that was issued up to now can be valid, or be
// renewed, any more.
func (k *trustKeeper) Until() time.Time {
	return time.Now().Add(max(k.lifetime, defaultCertificateLifetime) + identity.RenewalGrace)
}

// NewKeys makes a new gossip key for each of these segments.
func (k *trustKeeper) NewKeys(segments []string) ([]fleet.SegmentKey, error) {
	cluster, _ := k.raft.State().View().Cluster()
	var keys []fleet.SegmentKey
	for _, segment := range segments {
		base, err := identity.GossipKeys(cluster.GossipKeys, cluster.GossipRoot(), cluster.ID, segment)
		if err != nil {
			return nil, err
		}
		key, err := identity.NewGossipKey()
		if err != nil {
			return nil, err
		}
		keys = append(keys, fleet.SegmentKey{Segment: segment, Key: key, Base: base})
	}
	return keys, nil
}

// DeniedBehind names the hosts that are online and have not said that they follow
// the newest deny-list.
func (k *trustKeeper) DeniedBehind() []string {
	v := k.raft.State().View()
	list, epoch, number := k.signedList(v)
	names := []string{}
	if list == nil {
		return names
	}
	follows := k.followed()
	for _, m := range k.roster.Members() {
		f := follows[m.HostID]
		if h, ok := v.Host(m.HostID); ok && m.Liveness == mesh.Online && (f.Epoch != epoch || f.Denied != number) {
			names = append(names, h.Name)
		}
	}
	slices.Sort(names)
	return names
}

// Rotations tells how each segment's gossip keys are, by name.
func (k *trustKeeper) Rotations() []webui.Rotation {
	v := k.raft.State().View()
	live := map[string]mesh.Liveness{}
	for _, m := range k.roster.Members() {
		live[m.HostID] = m.Liveness
	}
	return rotations(v, live, k.followed())
}

// rotations joins what was decided about the gossip keys with who has them.
func rotations(v fleet.View, live map[string]mesh.Liveness, follows map[string]nodekit.TrustFollowed) []webui.Rotation {
	all := map[string]*webui.Rotation{}
	for _, h := range v.Hosts() {
		for _, segment := range h.Segments() {
			r := all[segment]
			if r == nil {
				r = &webui.Rotation{Pending: []webui.RotationHost{}, Offline: []string{}}
				r.Ring, _ = v.GossipRing(segment)
				r.Ring.Segment = segment
				all[segment] = r
			}
			r.Hosts++
			state, seen := live[h.ID]
			if state == mesh.Online {
				r.Online++
			}
			switch {
			case follows[h.ID].Rings[segment] == r.Ring.Revision && state == mesh.Online:
				r.Confirmed++
			case r.Ring.Revision == 0:
			case state == mesh.Online:
				r.Pending = append(r.Pending, webui.RotationHost{Name: h.Name, Why: "online, and has not said that it has the keys"})
			case state == mesh.Unreachable:
				r.Pending = append(r.Pending, webui.RotationHost{Name: h.Name, Why: "no relay of its segment is online: nobody knows how it is"})
			case !seen:
				r.Pending = append(r.Pending, webui.RotationHost{Name: h.Name, Why: "not seen since this server started", Unseen: true})
			default:
				r.Offline = append(r.Offline, h.Name)
			}
		}
	}
	out := make([]webui.Rotation, 0, len(all))
	for _, r := range all {
		slices.SortFunc(r.Pending, func(a, b webui.RotationHost) int { return cmp.Compare(a.Name, b.Name) })
		slices.Sort(r.Offline)
		out = append(out, *r)
	}
	slices.SortFunc(out, func(a, b webui.Rotation) int { return cmp.Compare(a.Ring.Segment, b.Ring.Segment) })
	return out
}

// rotor carries rotations on whenever this server leads. It lasts as long as the server,
// so that a change of leader makes nobody wait anew for hosts that are off.
type rotor struct {
	keeper  *trustKeeper
	propose func(ctx context.Context, actor string, c fleet.Change) (fleet.Result, error)
	logger  *slog.Logger

	began time.Time            // of this server
	since map[string]time.Time // when it first saw a stage as the leader, by segment
	seen  map[string]uint64    // which one: its revision
}

func newRotor(k *trustKeeper, logger *slog.Logger) *rotor {
	return &rotor{keeper: k, propose: k.raft.Propose, logger: logger, began: time.Now(), since: map[string]time.Time{}, seen: map[string]uint64{}}
}

func (r *rotor) run(ctx context.Context) {
	for nodekit.Sleep(ctx, rotationTick) {
		v := r.keeper.raft.State().View()
		if !slices.ContainsFunc(v.GossipRings(), func(g fleet.GossipRing) bool { return g.Stage != fleet.RotationNone }) {
			continue
		}
		busy := slices.ContainsFunc(v.OpenJobs(), func(j fleet.Job) bool { return j.Status == fleet.JobRunning })
		for _, c := range r.due(v.GossipRings(), r.keeper.Rotations(), busy, time.Now()) {
			if _, err := r.propose(ctx, "coordinator", c); err != nil && ctx.Err() == nil {
				r.logger.Warn("go on with the rotation of gossip keys", "segment", c.Segment, "error", err)
			}
		}
	}
}

// due returns the rotations that can go on. While a job runs none does: its host
// restarts, and would miss a stage.
func (r *rotor) due(rings []fleet.GossipRing, states []webui.Rotation, busy bool, now time.Time) (next []fleet.GossipRotationAdvanced) {
	for _, ring := range rings {
		if ring.Stage == fleet.RotationNone {
			continue
		}
		if r.seen[ring.Segment] != ring.Revision {
			r.seen[ring.Segment], r.since[ring.Segment] = ring.Revision, now
		}
		waits := busy || now.Sub(r.since[ring.Segment]) < rotationDwell
		for _, s := range states { // none: nobody is in that segment any more
			if s.Ring.Segment == ring.Segment && (s.Ring.Revision != ring.Revision || s.Waits(now.Sub(r.began) >= rotationUnheard) > 0) {
				waits = true
			}
		}
		if !waits {
			next = append(next, fleet.GossipRotationAdvanced{Segment: ring.Segment, Revision: ring.Revision})
		}
	}
	return next
}
