//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"moult/mesh/identity"
)

// The network does what the stories rely on: hosts reach each other in a shared
// segment only, cuts and filters in one direction hold, and bytes are counted.
func TestSegmentsNetwork(t *testing.T) {
	n := newSegmentedNet(t, "left", "right")
	a, b, far := n.host("a", "left"), n.host("b", "left", "right"), n.host("far", "right")
	listen := func(h *segmentedHost, segment string) net.Listener {
		t.Helper()
		var l net.Listener
		if err := h.inNamespace(func() (err error) {
			l, err = net.Listen("tcp", h.port(segment))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.Copy(conn, conn)
				conn.Close()
			}
		}()
		return l
	}
	const size = 1 << 20
	within := func(patience time.Duration, from, to *segmentedHost, segment string) bool {
		var echo []byte
		err := from.inNamespace(func() error {
			conn, err := net.DialTimeout("tcp", to.port(segment), patience)
			if err != nil {
				return err
			}
			go func() {
				_, _ = conn.Write(make([]byte, size))
				_ = conn.(*net.TCPConn).CloseWrite()
			}()
			defer conn.Close()
			if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
				return err
			}
			echo, err = io.ReadAll(conn)
			return err
		})
		return err == nil && len(echo) == size
	}
	// Where it is to get through, it has the time that a busy machine takes.
	reaches := func(from, to *segmentedHost, segment string) bool {
		return within(20*time.Second, from, to, segment)
	}
	isKeptFrom := func(from, to *segmentedHost, segment string) bool {
		return !within(500*time.Millisecond, from, to, segment)
	}
	listen(a, "left")
	listen(b, "left")
	listen(far, "right")
	if !reaches(a, b, "left") || !reaches(b, a, "left") || !reaches(b, far, "right") || !isKeptFrom(a, far, "right") {
		t.Fatal("hosts do not reach each other in a shared segment, and there only")
	}
	for _, h := range []*segmentedHost{a, b, far} {
		out, err := exec.Command("ip", "-n", h.namespace(), "-4", "neigh", "show").Output()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(out)) {
			if !strings.Contains(line, "PERMANENT") {
				t.Errorf("%s had to ask where others are, and gets no answer when other namespaces fill the machine's table: %s", h.name, line)
			}
		}
	}
	in, out := b.traffic("left")
	if in < 2*size || in > 2*size*12/10 || out < 2*size || out > 2*size*12/10 {
		t.Errorf("2 MiB each way were counted as %d in and %d out", in, out)
	}
	b.refuse(a, "left")
	if !isKeptFrom(a, b, "left") || !reaches(b, a, "left") {
		t.Error("a filter in one direction lets through what it should not, or the other way round")
	}
	b.heal()
	b.cut("left")
	if !isKeptFrom(a, b, "left") || !isKeptFrom(b, a, "left") || !reaches(b, far, "right") {
		t.Error("a cut is none, or one of too much")
	}
	b.heal()
	if !reaches(a, b, "left") {
		t.Error("healing heals nothing")
	}
}

// Servers, two relays, and agents, eight in the long form, that reach only their own segment: all
// join through the relays, are seen through them, and the servers' view of
// themselves and of the relays stays up meanwhile.
func TestSegmentsAgentsBehindTwoRelays(t *testing.T) {
	n := newSegmentedNet(t, "default", "dmz")
	n.startServers(3)
	servers := []*segmentedHost{n.hosts["server-1"], n.hosts["server-2"]}
	relays := []*segmentedHost{
		n.startAgent("relay-1", []string{"default", "dmz"}, servers),
		n.startAgent("relay-2", []string{"default", "dmz"}, servers),
	}
	n.awaitOnline(30*time.Second, "relay-1", "relay-2")
	lapses := n.watchOnline("relay-1", "relay-2")
	agents := 4
	if longForm() {
		agents = 8
	}
	var names []string
	for i := range agents {
		h := n.startAgent(fmt.Sprintf("agent-%d", i+1), []string{"dmz"}, []*segmentedHost{relays[i%2], relays[(i+1)%2]})
		names = append(names, h.name)
	}
	n.awaitOnline(time.Minute, names...)
	for name, h := range n.testCluster.hosts() {
		want, also := "dmz", []string{}
		if strings.HasPrefix(name, "relay") {
			want, also = "default", []string{"dmz"}
		}
		if h.Segment != want || !slices.Equal(h.AlsoSegments, also) {
			t.Errorf("%s is in segment %s and %v, not %s and %v", name, h.Segment, h.AlsoSegments, want, also)
		}
	}
	// An agent reaches nobody but its segment, and servers through the relays.
	agent := n.hosts["agent-1"]
	for _, addr := range []string{servers[0].port("default"), relays[0].port("default")} {
		if err := agent.inNamespace(func() error {
			conn, err := net.DialTimeout("tcp", addr, time.Second)
			if err == nil {
				conn.Close()
			}
			return err
		}); err == nil {
			t.Errorf("%s reaches %s", agent.name, addr)
		}
	}
	n.await(30*time.Second, agent.name+" to have a way to the servers", func() error {
		ways := 0
		d := agent.doctor()
		for _, f := range d.Findings {
			if f.Verdict != findingFailed && strings.HasPrefix(f.Detail, "through relay") {
				ways++
			}
		}
		if ways < 3 {
			return fmt.Errorf("%+v", d.Findings)
		}
		return nil
	})
	if seen := lapses(); len(seen) > 0 {
		t.Errorf("relays looked offline meanwhile: %v", seen)
	}
	// All are updated, and the binary goes once over the link of each relay, which
	// runs it itself: not once for each of those behind it.
	before := [2]int64{crossing(relays[0]), crossing(relays[1])}
	n.publish(versionB, binary(t, versionB))
	n.awaitFleetUpdate(n.startFleetUpdate(map[string]any{}), "completed", 5*time.Minute)
	for name, h := range n.testCluster.hosts() {
		if h.AgentVersion != versionB {
			t.Errorf("%s runs %s", name, h.AgentVersion)
		}
		n.startedOnce(name, versionB)
	}
	size, err := os.Stat(binary(t, versionB))
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range relays {
		came := float64(crossing(r)-before[i]) / float64(size.Size())
		t.Logf("%.3f artifacts came over the link of %s to the servers", came, r.name)
		if came > 1.1 {
			t.Errorf("%.3f artifacts came over the link of %s to the servers, at most 1.1 may", came, r.name)
		}
	}
	n.poolIsWhole()
}

// crossing is how many bytes came in by a relay's link to its home segment.
func crossing(relay *segmentedHost) int64 {
	in, _ := relay.traffic(relay.segments[0])
	return in
}

// A chain of three segments: an agent joins through two relays, one behind the
// other.
func TestSegmentsChainOfThree(t *testing.T) {
	n := newSegmentedNet(t, "default", "middle", "far")
	n.startServers(1)
	near := n.startAgent("relay-1", []string{"default", "middle"}, []*segmentedHost{n.hosts["server-1"]})
	n.awaitOnline(30*time.Second, "relay-1")
	far := n.startAgent("relay-2", []string{"middle", "far"}, []*segmentedHost{near})
	n.awaitOnline(30*time.Second, "relay-2")
	n.startAgent("agent-1", []string{"far"}, []*segmentedHost{far})
	n.awaitOnline(time.Minute, "agent-1")
	if h := n.testCluster.hosts()["agent-1"]; h.Segment != "far" {
		t.Errorf("agent-1 is in segment %s", h.Segment)
	}
	n.publish(versionB, binary(t, versionB))
	n.awaitFleetUpdate(n.startFleetUpdate(map[string]any{}), "completed", 3*time.Minute)
	for name, h := range n.testCluster.hosts() {
		if h.AgentVersion != versionB {
			t.Errorf("%s runs %s", name, h.AgentVersion)
		}
		n.startedOnce(name, versionB)
	}
}

// certificateEnds reads when a host's certificate ends, off its disk.
func (h *segmentedHost) certificateEnds() time.Time {
	h.n.t.Helper()
	return h.credentials().ends
}

type diskCredentials struct {
	identity.Credentials
	ends time.Time
}

func (h *segmentedHost) credentials() diskCredentials {
	h.n.t.Helper()
	store, err := identity.OpenStore(filepath.Join(h.n.dir, h.name, "data", "identity"))
	if err != nil {
		h.n.t.Fatal(err)
	}
	creds, err := store.Load()
	if err != nil {
		h.n.t.Fatal(err)
	}
	_, ends, err := creds.Validity()
	if err != nil {
		h.n.t.Fatal(err)
	}
	return diskCredentials{creds, ends}
}

// Certificates that last seconds are renewed again and again, on the servers, on
// the relay, and through it on the agent behind it, without a restart: all stay
// online, longer than two of them last, or three in the long form. A host that was off when its certificate
// expired gets another; one that was removed does not.
func TestSegmentsCertificatesAreRenewed(t *testing.T) {
	const lifetime = 20 * time.Second // a third of which a busy machine has to renew it
	lives := time.Duration(2)
	if longForm() {
		lives = 3
	}
	n := newSegmentedNet(t, "default", "dmz")
	n.startServers(3, "--certificate-lifetime", lifetime.String())
	relay := n.startAgent("relay-1", []string{"default", "dmz"}, []*segmentedHost{n.hosts["server-1"]})
	n.awaitOnline(30*time.Second, relay.name)
	agent := n.startAgent("agent-1", []string{"dmz"}, []*segmentedHost{relay})
	asleep := n.startAgent("agent-2", []string{"dmz"}, []*segmentedHost{relay})
	n.awaitOnline(30*time.Second, agent.name, asleep.name)
	asleep.stop()
	expires := asleep.certificateEnds()

	watched := n.watchOnline(relay.name, agent.name)
	all := []*segmentedHost{n.hosts["server-1"], n.hosts["server-2"], n.hosts["server-3"], relay, agent}
	until := time.Now().Add(lives * lifetime)
	for _, h := range all {
		n.await(5*lifetime, h.name+"'s certificate to be renewed, and to be renewed again", func() error {
			if ends := h.certificateEnds(); ends.Before(until) {
				return fmt.Errorf("it ends at %v, not after %v", ends, until)
			}
			return nil
		})
	}
	if seen := watched(); len(seen) > 0 {
		t.Errorf("hosts looked offline meanwhile: %v", seen)
	}
	if !time.Now().After(expires) {
		t.Fatalf("the certificate of %s has not expired yet", asleep.name)
	}
	n.moult("host", "show", agent.name) // the servers still talk to each other: a read at the leader
	asleep.start(asleep.args("agent")...)
	n.awaitOnline(30*time.Second, asleep.name)
	// An order needs certificates on both ends: of the server that seals it, and of
	// the agent that reports.
	n.publish(versionB, binary(t, versionB))
	asleep.stop()
	n.await(30*time.Second, asleep.name+" to have left", func() error {
		if n.testCluster.hosts()[asleep.name].Online {
			return errors.New("it is online")
		}
		return nil
	})
	n.moult("host", "remove", asleep.name)
	asleep.start(asleep.args("agent")...)
	n.await(time.Minute, "the removed host to be refused", func() error {
		if text := n.read(asleep.name + "/log"); !strings.Contains(text, "this host was removed") && !strings.Contains(text, "bad certificate") {
			return errors.New("nothing of it in its log")
		}
		return nil
	})
}

// Hosts that were enrolled before get the keys of the segments that they are
// started in by their certificates; two relays that open a segment at the same
// time, knowing nobody there, find each other, and so they do after all hosts were
// killed at once, and after both relays were cut off.
func TestSegmentsRelaysOfANewSegmentFindEachOther(t *testing.T) {
	n := newSegmentedNet(t, "default", "dmz")
	n.startServers(1)
	server := n.hosts["server-1"]
	relays := []*segmentedHost{n.host("relay-1", "default", "dmz"), n.host("relay-2", "default", "dmz")}
	for _, r := range relays { // at first in the home segment only
		both := r.segments
		r.segments = both[:1]
		r.start(append(r.args("agent"), "--join", server.port("default"), "--token-file", n.token(r, "agent", "default"))...)
		n.awaitOnline(30*time.Second, r.name)
		if creds := r.credentials(); len(creds.Also) > 0 || len(creds.GossipKeys) != 1 {
			t.Errorf("%s has keys of other segments", r.name)
		}
		r.stop()
		r.segments = both
	}
	for _, r := range relays {
		r.start(r.args("agent")...)
	}
	pool := "1 members alive" // of the new segment, as each relay sees it
	met := func() error {
		for _, r := range relays {
			if !r.running() {
				t.Fatalf("%s ended:\n%s", r.name, n.read(r.name+"/log"))
			}
			found := false
			for _, f := range r.doctor().Findings {
				found = found || f.Check == "segment dmz" && strings.HasPrefix(f.Detail, pool)
			}
			if !found {
				return fmt.Errorf("%s: %+v", r.name, r.doctor().Findings)
			}
		}
		return nil
	}
	n.await(30*time.Second, "the relays to meet in the new segment", met)
	for _, r := range relays {
		creds := r.credentials()
		dmz, ok := creds.In("dmz")
		if !ok || len(creds.Also) != 1 || slices.EqualFunc(dmz.GossipKeys, creds.GossipKeys, bytes.Equal) {
			t.Errorf("%s: the segment's key is missing, or the home segment's", r.name)
		}
		if h := n.testCluster.hosts()[r.name]; !slices.Equal(h.AlsoSegments, []string{"dmz"}) {
			t.Errorf("%s is recorded in %v", r.name, h.AlsoSegments)
		}
	}
	if out := n.moult("host", "show", "relay-1"); !strings.Contains(out, "dmz") {
		t.Errorf("moult host show does not tell: %s", out)
	}
	agent := n.startAgent("agent-1", []string{"dmz"}, relays)
	n.awaitOnline(30*time.Second, agent.name)

	// Power fails everywhere, and the agent's flags name nobody any more.
	all := []*segmentedHost{server, relays[0], relays[1], agent}
	for _, h := range all {
		h.kill()
	}
	for _, h := range all {
		role := "agent"
		if h == server {
			role = "server"
		}
		h.start(h.args(role)...)
	}
	n.awaitOnline(30*time.Second, "relay-1", "relay-2", "agent-1")
	pool = "2 members alive"
	n.await(30*time.Second, "the relays to meet again", met)

	for _, r := range relays {
		r.cut("default", "dmz")
	}
	if longForm() { // the servers go by what the relays saw of each other for half a minute
		n.awaitGone("relay-1", "relay-2", "agent-1")
	}
	pool = "alone"
	n.await(30*time.Second, "the relays to have lost each other", met)
	healed := time.Now()
	for _, r := range relays {
		r.heal()
	}
	n.awaitOnline(30*time.Second, "relay-1", "relay-2", "agent-1")
	pool = "2 members alive"
	n.await(30*time.Second, "the relays to meet once more", met)
	t.Logf("all were back %v after healing", time.Since(healed).Round(100*time.Millisecond))
}

// Where no relay reaches a server, a joining host is told by whom it was answered,
// and joins with the same token when there is a way again.
func TestSegmentsJoiningWaitsForAWay(t *testing.T) {
	n := newSegmentedNet(t, "default", "dmz")
	n.startServers(1)
	relay := n.startAgent("relay-1", []string{"default", "dmz"}, []*segmentedHost{n.hosts["server-1"]})
	n.awaitOnline(30*time.Second, relay.name)
	agent := n.host("agent-1", "dmz")
	argv := append(agent.args("agent"), "--join", relay.port("dmz"), "--token-file", n.token(agent, "agent", "dmz"))
	relay.cut("default")
	agent.start(argv...)
	select {
	case <-agent.ended:
	case <-time.After(time.Minute):
		t.Fatal("it goes on without having joined")
	}
	if log := n.read("agent-1/log"); !strings.Contains(log, "agent relay-1") || !strings.Contains(log, "passes on to none now") || !strings.Contains(log, "secret was not sent") {
		t.Errorf("the new host is told: %s", log)
	}
	if log := n.read("relay-1/log"); !strings.Contains(log, "no way to a server was found") {
		t.Errorf("the relay's log does not tell why: %s", log)
	}
	relay.heal()
	agent.start(argv...)
	n.awaitOnline(30*time.Second, agent.name)
}
