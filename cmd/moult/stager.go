package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/consensus"
	"moult/consensus/fleet"
	"moult/mesh"
	"moult/updater/artifact"
	"moult/updater/order"
)

const (
	// stageEvery is how often the leader looks who lacks what is to be staged.
	stageEvery = time.Second
	// stageResend is after how long a host that still lacks it is told again, the
	// first stageTries times; then every stageSlow: it may run an older version, which
	// knows no staging, or have no room.
	stageResend = 15 * time.Second
	stageTries  = 4
	stageSlow   = 10 * time.Minute
	// stageRest is how many times as long as a round took the next one waits, up to
	// stageEvery: a round looks at all hosts, and a fleet update changes the state often.
	stageRest = 9
	// stageBatch is how many orders are sent in a round.
	stageBatch = 256
	// Those who are told at once begin within stageSpread for each of them, up to what a
	// host draws by itself.
	stageSpread = 5 * time.Millisecond
)

// stager has hosts fetch a release ahead of their turn: those of a fleet update as
// soon as it runs, or all where an admin said so. It commits that it is wanted,
// and sends each host that lacks the artifact a staging order with its place in the
// trees by which the hosts of its segment pass it on. Who has it is what the
// records say. It runs on the leader; a new one begins anew, which costs orders.
type stager struct {
	raft    *consensus.Node
	node    *mesh.Node
	orders  *orderSender
	awaited func(now time.Time) func(running, to string) bool // see patchMaker.awaited
	staging func() map[string]string                          // see observer.staging
	logger  *slog.Logger

	sent map[stageKey]stageSent
}

// stageKey is one host and what it was told.
type stageKey struct {
	host, action, digest string
	index                uint64
	awaitPatch           bool
}

type stageSent struct {
	at    time.Time
	times int
}

func newStager(raft *consensus.Node, node *mesh.Node, orders *orderSender, awaited func(now time.Time) func(running, to string) bool, staging func() map[string]string, logger *slog.Logger) *stager {
	return &stager{raft: raft, node: node, orders: orders, awaited: awaited, staging: staging, logger: logger, sent: map[stageKey]stageSent{}}
}

// run works while this server leads.
func (s *stager) run(ctx context.Context) {
	events, end := s.raft.Subscribe()
	defer end()
	ticker := time.NewTicker(stageEvery)
	defer ticker.Stop()
	for {
		begin := time.Now()
		s.round(ctx)
		rest := time.NewTimer(min(stageRest*time.Since(begin), stageEvery))
		select {
		case <-ctx.Done():
			rest.Stop()
			return
		case <-rest.C:
		}
		select {
		case <-ctx.Done():
			return
		case <-events:
		case <-ticker.C:
		}
	}
}

func (s *stager) round(ctx context.Context) {
	v := s.raft.State().View()
	if version, update := wantsStaging(v); version != "" {
		_, err := s.raft.Propose(ctx, "system", fleet.ReleaseStaged{Version: version, FleetUpdateID: update})
		if refused := (*fleet.Error)(nil); err != nil && !errors.As(err, &refused) && ctx.Err() == nil {
			s.logger.Debug("stage a fleet update's release", "error", err)
		}
		v = s.raft.State().View()
	}
	now := time.Now()
	due := s.due(stagePlan(v, s.node.Roster().Members(), s.staging(), s.awaited(now)), now)
	for _, o := range due {
		if ctx.Err() != nil {
			return
		}
		o.spread = time.Duration(len(due)) * stageSpread
		if err := s.orders.stage(ctx, o); err != nil {
			s.logger.Debug("send a staging order", "host", o.host.ID, "error", err)
		}
	}
}

// wantsStaging returns the release of a fleet update that runs and whose staging is
// not committed yet.
func wantsStaging(v fleet.View) (version, update string) {
	u, active := v.ActiveFleetUpdate()
	if !active || u.Status != fleet.FleetRunning {
		return "", ""
	}
	r, ok := v.Release(u.TargetVersion)
	if !ok || r.Withdrawn || r.StageIndex != 0 && (r.StageFor == "" || r.StageFor == u.ID) {
		return "", ""
	}
	return r.Version, u.ID
}

// stageOrder is what one host is to be told.
type stageOrder struct {
	host    fleet.Host
	rel     fleet.Release
	action  string
	digest  string
	index   uint64
	parents [][]string
	spread  time.Duration
	// awaitPatch: it is to wait for a patch that is being made.
	awaitPatch bool
	next       bool // its turn comes next
}

// stagePlan returns what is to be said, to hosts that are online and have not done
// it: to stage what is staged, and to drop what was withdrawn. Purely by what was
// committed, the roster, what hosts are getting, by host id, and what patches are being
// made.
func stagePlan(v fleet.View, members []mesh.Member, staging map[string]string, awaited func(running, to string) bool) (orders []stageOrder) {
	online := map[string]mesh.Member{}
	for _, m := range members {
		if m.Liveness == mesh.Online {
			online[m.HostID] = m
		}
	}
	update, _ := v.ActiveFleetUpdate()
	for _, r := range v.Releases() {
		switch {
		case r.Withdrawn:
			orders = append(orders, dropOrders(v, r, online, staging)...)
		case r.StageIndex != 0 && (r.StageFor == "" || r.StageFor == update.ID && update.Status.Active()):
			orders = append(orders, stageOrders(stageHosts(v, r, update), r, online, awaited)...)
		}
	}
	return orders
}

// stageHosts are who is to have a staged release: agents, as servers hold every
// release.
func stageHosts(v fleet.View, r fleet.Release, update fleet.FleetUpdate) (hosts []fleet.Host) {
	if r.StageFor == "" {
		for _, h := range v.Hosts() {
			if h.Role != fleet.RoleServer {
				hosts = append(hosts, h)
			}
		}
		return hosts
	}
	for _, t := range update.Hosts.All() {
		h, exists := v.Host(t.HostID)
		if exists && h.Role != fleet.RoleServer && t.Status != fleet.TurnFailed && t.Status != fleet.TurnSkipped {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

// stageOrders gives each host its parents. The trees are of all hosts of a segment
// and a platform that are online, those that have the artifact already among them:
// so they stay as they are while one after the other gets it. Whom a segment gets it
// through has nobody to take it from there, and few to give it to in another one.
func stageOrders(hosts []fleet.Host, r fleet.Release, online map[string]mesh.Member, awaited func(running, to string) bool) (orders []stageOrder) {
	type group struct{ segment, digest string }
	groups := map[group][]string{}
	of := func(h fleet.Host) (group, bool) {
		a, fits := r.Artifact(h.OS, h.Arch)
		m, here := online[h.ID]
		if !fits || !here || len(m.Segments) == 0 {
			return group{}, false
		}
		return group{m.Segments[0], a.SHA256}, true
	}
	var lacking []fleet.Host
	for _, h := range hosts {
		if g, ok := of(h); ok {
			groups[g] = append(groups[g], h.ID)
			if !online[h.ID].HasArtifact(g.digest) {
				lacking = append(lacking, h)
			}
		}
	}
	if len(lacking) == 0 {
		return nil // most of the time
	}
	members := slices.Collect(maps.Values(online))
	feeders := map[group]string{}
	for g, ids := range groups {
		inside := nodekit.PeerView{Own: online[ids[0]].Record, Members: members}
		feeders[g] = artifact.FirstRelay(g.digest, inside.Relays(nil)).HostID
	}
	treesOf := func(g group) map[string][][]string {
		feeder := feeders[g]
		ids := slices.DeleteFunc(groups[g], func(id string) bool { return id == feeder })
		var feeding []string
		for other, id := range feeders {
			if other.digest == g.digest {
				feeding = append(feeding, id)
			}
		}
		trees := artifact.Trees(g.digest, ids, feeding...)
		trees[feeder] = make([][]string, artifact.Stripes) // takes all from beyond the segment
		return trees
	}
	trees := map[group]map[string][][]string{} // of those where somebody lacks it
	for _, h := range lacking {
		g, _ := of(h)
		if trees[g] == nil {
			trees[g] = treesOf(g)
		}
		orders = append(orders, stageOrder{
			host: h, rel: r, action: order.ActionStage, digest: g.digest, index: r.StageIndex, parents: trees[g][h.ID],
			awaitPatch: awaited(online[h.ID].Digest, g.digest),
		})
	}
	return orders
}

// dropOrders are for those who hold what was withdrawn, or are getting it, and do not
// run it. The digest may be another release's, too, which is not withdrawn.
func dropOrders(v fleet.View, r fleet.Release, online map[string]mesh.Member, staging map[string]string) (orders []stageOrder) {
	for _, h := range v.Hosts() {
		m, here := online[h.ID]
		a, fits := r.Artifact(h.OS, h.Arch)
		if !here || !fits || h.Role == fleet.RoleServer || !m.HasArtifact(a.SHA256) && staging[h.ID] != a.SHA256 || m.Digest != "" && strings.HasPrefix(a.SHA256, m.Digest) || offeredElsewhere(v, a.SHA256) {
			continue
		}
		orders = append(orders, stageOrder{host: h, rel: r, action: order.ActionDrop, digest: a.SHA256, index: v.Index()})
	}
	return orders
}

func offeredElsewhere(v fleet.View, digest string) bool {
	return slices.ContainsFunc(v.Releases(), func(r fleet.Release) bool {
		return !r.Withdrawn && slices.ContainsFunc(r.Artifacts, func(a fleet.Artifact) bool { return a.SHA256 == digest })
	})
}

// due are the orders whose time has come, at most stageBatch; it takes note of them.
func (s *stager) due(plan []stageOrder, now time.Time) (due []stageOrder) {
	known := map[stageKey]stageSent{}
	for _, o := range plan {
		key := stageKey{host: o.host.ID, action: o.action, digest: o.digest, awaitPatch: o.awaitPatch}
		if o.action == order.ActionStage { // a renewed one is a new one
			key.index = o.index
		}
		last := s.sent[key]
		wait := stageResend
		if last.times >= stageTries {
			wait = stageSlow
		}
		if len(due) < stageBatch && (last.times == 0 || now.Sub(last.at) >= wait) {
			due = append(due, o)
			last = stageSent{at: now, times: last.times + 1}
		}
		if last.times > 0 {
			known[key] = last
		}
	}
	s.sent = known // what is done is forgotten
	return due
}

// stage seals and sends a staging order.
func (s *orderSender) stage(ctx context.Context, so stageOrder) error {
	creds := s.creds()
	cluster, _ := s.raft.State().View().Cluster()
	sealed, err := order.Seal(order.Order{
		Cluster: creds.Cluster, HostID: so.host.ID, JobID: fmt.Sprintf("%s-%d", so.action, so.index), Attempt: 1,
		Action: so.action, Version: so.rel.Version, Manifest: so.rel.Manifest, Signature: so.rel.Signature,
		Epoch: cluster.Epoch, Statement: cluster.EpochStatement,
		Index: so.index, Expires: time.Now().Add(orderLifetime), Parents: so.parents, Spread: so.spread, AwaitPatch: so.awaitPatch, Next: so.next,
		KeyStatements: statementsAfter(cluster, newest(cluster, order.MaxKeyStatements), order.MaxKeyStatements),
	}, creds.Key, creds.CertDER())
	if err != nil {
		return fmt.Errorf("seal staging order: %w", err)
	}
	return s.node.Send(ctx, so.host.ID, nodekit.TopicOrder, sealed)
}
