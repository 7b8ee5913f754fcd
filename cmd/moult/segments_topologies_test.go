//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"moult/cmd/internal/nodekit"
)

// The topologies of this file are updated while something is done to them. Each
// story ends with the same questions:
//
//   - did the fleet update complete, and did each host start exactly once in the new
//     release
//   - did the servers see each other, and the relays that nothing was done to, all
//     the time
//   - how often did the binary cross each link between segments
//   - was all of it back in time after healing

const (
	// linkLimit is how many artifacts may come over a link for one fleet update.
	linkLimit = 1.1
	// recoveryLimit is the time from healing until the servers see all hosts again.
	recoveryLimit = 30 * time.Second
	// transferTime is how long a relay takes to get the artifact, at the rate that
	// the stories of a transfer give it.
	transferTime = 8 * time.Second
	// electionLimit is how long a server may look unhealthy: while a leader is elected,
	// which a busy machine alone brings about, no server is ready.
	electionLimit = 5 * time.Second
)

// onlyLong skips a story that takes longer than `make test` has.
func onlyLong(t *testing.T) {
	t.Helper()
	if !longForm() {
		t.Skip("long: run make test-long")
	}
}

// startAllServers runs three servers, and one in the short form.
func (n *segmentedNet) startAllServers(args ...string) {
	n.t.Helper()
	count := 1
	if longForm() {
		count = 3
	}
	n.startServers(count, args...)
}

func (n *segmentedNet) servers() (all []*segmentedHost) {
	for _, h := range n.order {
		if strings.HasPrefix(h.name, "server-") {
			all = append(all, h)
		}
	}
	return all
}

// slowPull makes a relay take transferTime for the artifact.
func slowPull(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("--pull-rate=%d", int64(float64(artifactSize(t))/transferTime.Seconds()))
}

func artifactSize(t testing.TB) int64 {
	t.Helper()
	st, err := os.Stat(binary(t, versionB))
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

// restart starts a host again that has joined before.
func (h *segmentedHost) restart() {
	h.n.t.Helper()
	h.start(h.args("agent")...)
}

// rollout is a fleet update to version B that is watched.
type rollout struct {
	*segmentedNet
	id      string
	links   []*relayLink
	watched func() []string
}

// relayLink is a relay's interface in a segment.
type relayLink struct {
	relay   *segmentedHost
	segment string
	before  int64 // bytes that had come in
}

// rollOut publishes version B and starts the update of hosts in this order.
func (n *segmentedNet) rollOut(order, alone []string) *rollout {
	n.t.Helper()
	n.publish(versionB, binary(n.t, versionB))
	return n.rollOutPublished(order, alone)
}

// rollOutPublished starts it. Servers, and the hosts that the story leaves alone,
// have to stay up in the servers' eyes.
func (n *segmentedNet) rollOutPublished(order, alone []string) *rollout {
	n.t.Helper()
	r := &rollout{segmentedNet: n}
	for _, h := range n.order {
		for _, s := range h.segments {
			if len(h.segments) > 1 {
				in, _ := h.traffic(s)
				r.links = append(r.links, &relayLink{h, s, in})
			}
		}
	}
	hosts := n.testCluster.hosts()
	var ids []string
	for _, name := range order {
		ids = append(ids, hosts[name].ID)
	}
	r.watched = n.watchView(alone)
	r.id = n.startFleetUpdate(map[string]any{"host_ids": ids})
	return r
}

// came is how many artifacts came in by a link since the fleet update began.
func (r *rollout) came(l *relayLink) float64 {
	in, _ := l.relay.traffic(l.segment)
	return float64(in-l.before) / float64(artifactSize(r.t))
}

// midway waits until a relay, one of these if any are named, has this part of the
// artifact, and not all of it, and returns the link that it came by.
func (r *rollout) midway(least float64, of ...*segmentedHost) (on *relayLink) {
	r.t.Helper()
	r.await(time.Minute, "a relay to be in the middle of a transfer", func() error {
		for _, l := range r.links {
			if len(of) > 0 && !slices.Contains(of, l.relay) {
				continue
			}
			switch part := r.came(l); {
			case part > 0.9:
				r.t.Fatalf("%s has %.2f of the artifact already: too late for the story", l.relay.name, part)
			case part > least:
				on = l
				return nil
			}
		}
		return errors.New("nothing came yet")
	})
	return on
}

// goesOn fails when the fleet update has ended.
func (r *rollout) goesOn() {
	r.t.Helper()
	if u := r.fleetUpdate(r.id); u.Status != "running" {
		r.t.Fatalf("the fleet update is %s: %s", u.Status, u.HaltedReason)
	}
}

// completes waits for the end and asks the questions. The links of relays that died
// are told of only.
func (r *rollout) completes(patience time.Duration, died ...*segmentedHost) {
	r.t.Helper()
	r.awaitFleetUpdate(r.id, "completed", patience)
	if seen := r.watched(); len(seen) > 0 {
		r.t.Errorf("looked offline meanwhile: %v", seen)
	}
	for name, h := range r.testCluster.hosts() {
		if h.AgentVersion != versionB {
			r.t.Errorf("%s runs %s", name, h.AgentVersion)
		}
		r.startedOnce(name, versionB)
	}
	for _, l := range r.links {
		part := r.came(l)
		r.t.Logf("%.3f artifacts came to %s from segment %s", part, l.relay.name, l.segment)
		if part > linkLimit && !slices.Contains(died, l.relay) {
			r.t.Errorf("%.3f artifacts came to %s from segment %s, at most %.1f may", part, l.relay.name, l.segment, linkLimit)
		}
	}
}

// recovers waits until the servers see hosts again.
func (n *segmentedNet) recovers(names ...string) {
	n.t.Helper()
	healed := time.Now()
	n.awaitOnline(recoveryLimit, names...)
	n.t.Logf("%s online %v after healing", strings.Join(names, ", "), time.Since(healed).Round(100*time.Millisecond))
}

// awaitGone waits until the servers see none of some hosts.
func (n *segmentedNet) awaitGone(names ...string) {
	n.t.Helper()
	n.await(time.Minute, strings.Join(names, ", ")+" to be seen no more", func() error {
		for name, h := range n.testCluster.hosts() {
			if slices.Contains(names, name) && h.Online {
				return fmt.Errorf("%s is online", name)
			}
		}
		return nil
	})
}

// watchView looks all the time, until stop, whether the servers see hosts as online,
// but those that are just being updated, and each other as healthy.
func (n *segmentedNet) watchView(names []string) (stop func() []string) {
	ctx, cancel := context.WithCancel(n.t.Context())
	seen := make(chan []string, 1)
	go func() {
		var lapses []string
		healthy := map[string]time.Time{} // by server: when it last was, or was first seen
		for ctx.Err() == nil {
			lapse := func(name string) { lapses = append(lapses, time.Now().Format("15:04:05.0 ")+name) }
			var out struct{ Hosts []apiHost }
			if err := n.client.call(ctx, http.MethodGet, "/api/hosts", nil, &out); err == nil {
				for _, h := range out.Hosts {
					if slices.Contains(names, h.Name) && !h.Online && !h.UpdateInProgress {
						lapse(h.Name)
					}
				}
			}
			if servers, err := n.client.servers(ctx); err == nil {
				for _, s := range servers {
					if healthy[s.Name].IsZero() || s.Healthy {
						healthy[s.Name] = time.Now()
					} else if time.Since(healthy[s.Name]) > electionLimit {
						lapse(s.Name)
					}
				}
			}
			nodekit.Sleep(ctx, 200*time.Millisecond)
		}
		seen <- lapses
	}()
	return func() []string {
		cancel()
		return <-seen
	}
}

// poolIsWhole waits until each server holds all that share its segment for alive: its
// pool has not fallen apart.
func (n *segmentedNet) poolIsWhole() {
	n.t.Helper()
	home, members := n.segments[0], 0
	for _, h := range n.order {
		if slices.Contains(h.segments, home) {
			members++
		}
	}
	want := fmt.Sprintf("%d members alive, 0 gone; UDP answers", members-1)
	for _, s := range n.servers() {
		n.await(recoveryLimit, s.name+" to see its whole pool", func() error {
			for _, f := range s.doctor().Findings {
				if f.Check == "segment "+home && f.Detail == want {
					return nil
				}
			}
			return fmt.Errorf("not %s: %+v", want, s.doctor().Findings)
		})
	}
}

// A ring of three segments, a relay between each two. One is cut off from the
// servers while it gets the artifact: the rest of it, and orders and reports, go
// the other way round.
func TestSegmentsRing(t *testing.T) {
	n := newSegmentedNet(t, "default", "east", "west")
	n.startAllServers()
	east := n.startAgent("relay-east", []string{"default", "east"}, n.servers(), slowPull(t))
	west := n.startAgent("relay-west", []string{"default", "west"}, n.servers())
	n.awaitOnline(recoveryLimit, east.name, west.name)
	far := n.startAgent("relay-far", []string{"east", "west"}, []*segmentedHost{east, west})
	n.startAgent("agent-east", []string{"east"}, []*segmentedHost{east})
	n.startAgent("agent-west", []string{"west"}, []*segmentedHost{west})
	n.awaitOnline(recoveryLimit, far.name, "agent-east", "agent-west")

	r := n.rollOut([]string{"agent-east", "agent-west", far.name, east.name, west.name}, []string{west.name, far.name})
	if on := r.midway(0.2, east); on.segment != "default" {
		t.Fatalf("the artifact comes to %s from %s, not the shortest way", east.name, on.segment)
	}
	east.cut("default")
	r.completes(3 * time.Minute)
	east.heal()
	n.recovers(east.name, west.name, far.name, "agent-east", "agent-west")
	n.poolIsWhole()
}

// dmz makes a network of servers, relays into one more segment, and agents that
// reach only that.
func dmz(t *testing.T, relays, agents int, relayFlags, agentFlags, serverFlags []string) (n *segmentedNet, r []*segmentedHost, names []string) {
	t.Helper()
	n = newSegmentedNet(t, "default", "dmz")
	n.startAllServers(serverFlags...)
	var relayNames []string
	for i := range relays {
		h := n.startAgent(fmt.Sprintf("relay-%d", i+1), []string{"default", "dmz"}, n.servers(), relayFlags...)
		r, relayNames = append(r, h), append(relayNames, h.name)
	}
	n.awaitOnline(recoveryLimit, relayNames...)
	for i := range agents {
		h := n.startAgent(fmt.Sprintf("agent-%d", i+1), []string{"dmz"}, r, agentFlags...)
		names = append(names, h.name)
	}
	names = append(names, relayNames...)
	n.awaitOnline(recoveryLimit, names...)
	return n, r, names
}

// Of two relays the one that gets the artifact is killed: the other takes over,
// and the first is back in time for its own turn.
func TestSegmentsRelayKilledInATransfer(t *testing.T) {
	// The second agent soaks while the relay that was killed comes back for its own turn.
	n, relays, names := dmz(t, 2, 2, []string{slowPull(t)}, []string{"--soak", "5s"}, nil)
	r := n.rollOut(names, nil)
	killed := r.midway(0.2).relay
	killed.kill()
	other := relays[0]
	if killed == other {
		other = relays[1]
	}
	lapses := n.watchView([]string{other.name})
	r.awaitTurn(r.id, 1, "succeeded")
	if killed.running() {
		t.Fatalf("%s runs again", killed.name)
	}
	n.awaitGone(killed.name)
	killed.restart()
	n.recovers(killed.name, other.name)
	r.completes(3*time.Minute, killed)
	if seen := lapses(); len(seen) > 0 {
		t.Errorf("the relay that lived looked offline meanwhile: %v", seen)
	}
	n.poolIsWhole()
}

// The only relay of a segment is killed while it gets the artifact, and is back:
// it goes on where it was.
func TestSegmentsOnlyRelayKilledInATransfer(t *testing.T) {
	onlyLong(t)
	n, _, names := dmz(t, 1, 2, []string{slowPull(t)}, nil, nil)
	r := n.rollOut(names, nil)
	on := r.midway(0.5)
	on.relay.kill()
	n.awaitGone(names...)
	r.goesOn()
	on.relay.restart()
	n.recovers(names...)
	r.completes(3*time.Minute, on.relay)
	// What the kernel held for the process that died, which read slowly, is lost.
	if part := r.came(on); part > 1.4 {
		t.Errorf("%.3f artifacts came to %s: it began anew", part, on.relay.name)
	}
}

// Relays are killed while a host behind them is on trial: one, then both, of which
// one comes back and later the other. No trial is judged wrongly.
func TestSegmentsRelayKilledInATrial(t *testing.T) {
	onlyLong(t)
	n, relays, names := dmz(t, 2, 3, nil, []string{"--soak", "8s"}, nil)
	r := n.rollOut(names, nil)
	n.awaitPhase("agent-1", "trial")
	relays[0].kill()
	r.awaitTurn(r.id, 1, "succeeded")
	n.awaitGone(relays[0].name)
	relays[0].restart()
	n.recovers(relays[0].name)

	n.awaitPhase("agent-2", "trial")
	for _, h := range relays {
		h.kill()
	}
	n.awaitGone(names...)
	relays[1].restart()
	n.recovers("agent-1", "agent-2", "agent-3", relays[1].name)
	r.goesOn()
	relays[0].restart()
	n.recovers(relays[0].name)
	r.completes(3*time.Minute, relays...)
	n.poolIsWhole()
}

// All relays of a segment are cut off from the servers in the middle of an update:
// its hosts are unreachable, not offline, and with --unreachable=wait the fleet
// update waits and goes on when the relays are back.
func TestSegmentsAllRelaysCut(t *testing.T) {
	onlyLong(t)
	const away = time.Minute
	n, relays, names := dmz(t, 2, 4, []string{slowPull(t)}, nil, []string{"--unreachable", "wait"})
	r := n.rollOut(names, nil)
	r.midway(0.2)
	for _, h := range relays {
		h.cut("default")
	}
	cut := time.Now()
	n.await(away, "the agents to be unreachable", func() error {
		for name, h := range n.testCluster.hosts() {
			if strings.HasPrefix(name, "agent") && h.Status != "unreachable" {
				return fmt.Errorf("%s is %s", name, h.Status)
			}
		}
		return nil
	})
	n.await(2*away, "the cut to have lasted", func() error {
		r.goesOn()
		if left := away - time.Since(cut); left > 0 {
			return fmt.Errorf("%v are left", left)
		}
		return nil
	})
	for _, h := range relays {
		h.heal()
	}
	n.recovers(names...)
	r.completes(3 * time.Minute)
	n.poolIsWhole()
}

// Firewalls that let connections through in one direction only, between relays and
// agents and between relays and servers, as long as each has some way.
func TestSegmentsOneWayFilters(t *testing.T) {
	onlyLong(t)
	n, relays, names := dmz(t, 2, 3, nil, nil, nil)
	servers := n.servers()
	relays[0].refuse(n.hosts["agent-1"], "dmz")
	n.hosts["agent-2"].refuse(relays[0], "dmz")
	n.hosts["agent-3"].refuse(relays[1], "dmz")
	relays[1].refuse(n.hosts["agent-3"], "dmz")
	for _, s := range servers[:2] {
		s.refuse(relays[0], "default")
	}
	for _, s := range servers[1:] {
		relays[1].refuse(s, "default")
	}
	r := n.rollOut(names, names)
	r.completes(3 * time.Minute)
	for _, h := range n.order {
		h.heal()
	}
	n.recovers(names...)
	n.poolIsWhole()
}

// Two relays join the same segments, and the link of the one that gets the artifact
// becomes too slow for it in the middle: the other one gets it, too.
func TestSegmentsSlowRelay(t *testing.T) {
	onlyLong(t)
	n, _, names := dmz(t, 2, 3, []string{slowPull(t)}, nil, nil)
	r := n.rollOut(names, names)
	on := r.midway(0.2)
	n.throttle(on)
	slowed := time.Now()
	r.awaitTurn(r.id, 1, "succeeded")
	t.Logf("the first host was updated %v after the link had become slow", time.Since(slowed).Round(100*time.Millisecond))
	r.completes(4 * time.Minute)
}

// throttle lets 10 kB a second through to a relay from a segment: gossip has room in
// it, the artifact would take half an hour.
func (n *segmentedNet) throttle(l *relayLink) {
	n.t.Helper()
	port := fmt.Sprintf("p%d-%d", n.segmentNumber(l.segment), l.relay.number)
	n.ip("netns", "exec", n.prefix+"switch", "tc", "qdisc", "add", "dev", port, "root", "tbf", "rate", "80kbit", "burst", "3000", "limit", "6000")
}

// Where the fleet runs a release, the next one goes to a segment behind a relay as
// a patch: over the relay's link, and on to hosts.
func TestSegmentsPatchThroughARelay(t *testing.T) {
	onlyLong(t)
	n, relays, names := dmz(t, 1, 2, nil, nil, nil)
	n.publish(versionA, binary(t, versionA))
	n.publish(versionB, binary(t, versionB))
	patches := func(host string) []string {
		made, err := filepath.Glob(filepath.Join(n.dir, host, "data", "patches", "*-*"))
		if err != nil {
			t.Fatal(err)
		}
		return slices.DeleteFunc(made, func(path string) bool { return strings.HasPrefix(filepath.Base(path), "unverified-") })
	}
	n.await(2*time.Minute, "the leader to have made a patch", func() error {
		for _, s := range n.servers() {
			if len(patches(s.name)) > 0 {
				return nil
			}
		}
		return errors.New("there is none")
	})
	r := n.rollOutPublished(names, nil)
	r.completes(3 * time.Minute)
	for _, l := range r.links {
		if part := r.came(l); part > 0.2 {
			t.Errorf("%.3f artifacts came to %s from segment %s, where a patch was to be had", part, l.relay.name, l.segment)
		}
	}
	for _, name := range names {
		if len(patches(name)) == 0 {
			t.Errorf("%s took no patch", name)
		}
	}
	if len(patches(relays[0].name)) != 1 {
		t.Errorf("the relay has %d patches", len(patches(relays[0].name)))
	}
}
