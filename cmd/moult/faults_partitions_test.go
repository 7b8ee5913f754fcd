//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"moult/testdata/faultsuite"
)

// Partitions: each host is in a network namespace of its own, and a console, from
// which people and scripts work, in one more. A server is cut off from others in
// one of the ways of partitions while it, and whoever else is on its side, stays
// in reach of the console: so it is asked for writes, and may try to coordinate.

const (
	healLimit    = 30 * time.Second // until all is well again after a partition
	shortestHold = 2 * time.Second  // that a partition lasts
	longestHold  = 12 * time.Second
)

// partition is a way to cut a server off. Rules are for the server's namespace and
// cut it off from other servers; with agents, from some agents as well, those of
// the other side.
type partition struct {
	name   string
	agents bool // some agents are on the server's side, cut off from the others
	mesh   bool // the mesh is cut, not Raft: the server may go on leading
	rules  func(others string) string
}

var partitions = []partition{
	{"majority and minority", true, false, func(others string) string { return dropFrom(others, "") + dropTo(others, "") }},
	{"one-way, nothing from it arrives", false, false, func(others string) string { return dropTo(others, "") }},
	{"one-way, nothing arrives at it", false, false, func(others string) string { return dropFrom(others, "") }},
	{"from Raft, not from the mesh", false, false, func(others string) string { return dropPort(others, nodePort) }},
	{"from the mesh, not from Raft", false, true, func(others string) string { return dropPort(others, gossipPort) }},
}

func dropFrom(others, match string) string {
	return fmt.Sprintf("add rule inet moult filter_in ip saddr { %s } %s drop\n", others, match)
}

func dropTo(others, match string) string {
	return fmt.Sprintf("add rule inet moult filter_out ip daddr { %s } %s drop\n", others, match)
}

func dropPort(others, port string) (rules string) {
	for _, end := range []string{"dport", "sport"} {
		match := "meta l4proto { tcp, udp } th " + end + " " + port
		rules += dropFrom(others, match) + dropTo(others, match)
	}
	return rules
}

func TestFaultsPartitions(t *testing.T) {
	row := faultsuite.Row{Name: "partitions", Long: 100, Short: 1}
	row.MustBeChosen(t)
	n := newSegmentedNet(t, "default")
	n.startServers(3)
	console := n.host("console", "default")
	n.client.http = console.httpClient(n.uiCA(n.hosts["server-1"]))
	n.within = []string{"ip", "netns", "exec", console.namespace()}
	for i := range faultAgents {
		n.startAgent(fmt.Sprintf("agent-%d", i+1), []string{"default"}, []*segmentedHost{n.hosts["server-1"], n.hosts["server-2"]})
	}
	n.awaitOnline(time.Minute, "agent-1", "agent-2", "agent-3")
	p := &partitionRun{faultRun: newFaultRun(t, n.testCluster), n: n}
	p.runAll([]fault{{Row: row, inflict: func(*faultRun) { p.partition() }}})
	t.Logf("leaders cut off: %d; longest until all was well again: %v", p.leaders, p.healed.Round(time.Millisecond))
}

// partitionRun is a faultRun in namespaces.
type partitionRun struct {
	*faultRun
	n       *segmentedNet
	leaders int
	healed  time.Duration
}

func (p *partitionRun) partition() {
	cut := partitions[p.count.Cycles%len(partitions)]
	p.mayFail, p.gapLimit = cut.agents || cut.mesh, failoverLimit
	leader := p.c.leader()
	name := leader
	if p.rng.IntN(4) == 0 && !p.short() {
		name = fmt.Sprintf("server-%d", 1+p.rng.IntN(3))
	}
	x := p.n.hosts[name]
	near, far := p.sides(x, cut)
	p.noteMoment(cut.name)
	for _, h := range near {
		if h != x {
			h.nft(dropFrom(addrsOf(far), "") + dropTo(addrsOf(far), ""))
		}
	}
	x.nft(cut.rules(addrsOf(far)))
	cutAt := time.Now()
	if !cut.mesh && name == leader {
		p.leaders++
		p.c.await(failoverLimit, "another server to lead than "+name, func() error { return p.ledByAnother(name) })
	}
	time.Sleep(shortestHold + time.Duration(p.rng.Int64N(int64(longestHold-shortestHold))))
	healAt := time.Now()
	for _, h := range near {
		h.heal()
	}
	p.well(healLimit)
	p.healed = max(p.healed, time.Since(healAt))
	if !cut.mesh {
		p.minorityDidNothing(x, cutAt, healAt)
	}
}

// sides are the hosts that are cut off, the server first, and those that they are
// cut off from.
func (p *partitionRun) sides(x *segmentedHost, cut partition) (near, far []*segmentedHost) {
	near = []*segmentedHost{x}
	for _, h := range p.n.order {
		agent := strings.HasPrefix(h.name, "agent-")
		switch {
		case h == x || h.name == "console":
		case !agent, cut.mesh:
			far = append(far, h)
		case !cut.agents: // it reaches everybody
		case len(near) == 1 || p.rng.IntN(2) == 0: // one at least, whom the server might give orders
			near = append(near, h)
		default:
			far = append(far, h)
		}
	}
	return near, far
}

func addrsOf(hosts []*segmentedHost) string {
	var addrs []string
	for _, h := range hosts {
		addrs = append(addrs, h.addr("default"))
	}
	return strings.Join(addrs, ", ")
}

// minorityDidNothing fails when a server that reached no majority acknowledged a
// write, or when a host took an order from it that was decided in that time.
func (p *partitionRun) minorityDidNothing(x *segmentedHost, cutAt, healAt time.Time) {
	p.t.Helper()
	for _, w := range p.writer.sofar() {
		if strings.Contains(w.addr, x.addr("default")+":") && w.begun.After(cutAt) && w.ended.Before(healAt) {
			p.t.Errorf("%s acknowledged %s while it reached no majority", x.name, w.name)
		}
	}
	var id string
	servers, err := p.c.client.servers(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	for _, s := range servers {
		if s.Name == x.name {
			id = s.ID
		}
	}
	if id == "" {
		p.t.Fatalf("%s is not among the servers", x.name)
	}
	dispatched := p.dispatches()
	for name, orders := range p.accepted() {
		for _, o := range orders {
			if o.server == id && dispatched[o.index].At.After(cutAt) && o.at.Before(healAt) {
				p.t.Errorf("%s took the order of job %s (index %d) from %s, decided when that reached no majority", name, o.job, o.index, x.name)
			}
		}
	}
}

// well waits until each server takes all others for healthy, sees all agents, and
// acknowledges a write.
func (f *faultRun) well(limit time.Duration) {
	f.t.Helper()
	f.c.await(limit, "all to be well", f.allWell)
}

func (f *faultRun) allWell() error {
	for _, addr := range f.c.client.addrs {
		if err := f.wellAt(addr); err != nil {
			return fmt.Errorf("%s: %w", addr, err)
		}
	}
	return nil
}

func (f *faultRun) wellAt(addr string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	one := f.at(addr, 10*time.Second)
	servers, err := one.servers(ctx)
	if err != nil {
		return err
	}
	for _, s := range servers {
		if !s.Healthy || !s.Voter {
			return fmt.Errorf("%s is not healthy: %+v", s.Name, s)
		}
	}
	hosts, err := one.hosts(ctx, "?status=online")
	if err == nil && len(hosts) < faultAgents {
		return fmt.Errorf("it sees %d agents", len(hosts))
	}
	if err != nil {
		return err
	}
	return one.call(ctx, http.MethodPost, "/api/tokens", map[string]string{"name": "w-well", "role": "viewer"}, nil)
}

// at is a client of one server.
func (f *faultRun) at(addr string, timeout time.Duration) *client {
	return &client{addrs: []string{addr}, token: f.c.client.token, http: &http.Client{Timeout: timeout, Transport: f.c.client.http.Transport}}
}

// A rule that does not cut would make the row pass for nothing.
func TestPartitionsCut(t *testing.T) {
	n := newSegmentedNet(t, "default")
	x, other, third := n.host("x", "default"), n.host("other", "default"), n.host("third", "default")
	for _, h := range n.order {
		for _, port := range []string{gossipPort, nodePort, uiPort} {
			var l net.Listener
			if err := h.inNamespace(func() (err error) {
				l, err = net.Listen("tcp", net.JoinHostPort(h.addr("default"), port))
				return err
			}); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		}
	}
	// Where it is to get through, it has the time that a busy machine takes.
	reaches := func(from, to *segmentedHost, port string, want bool) bool {
		patience := 300 * time.Millisecond
		if want {
			patience = 20 * time.Second
		}
		return from.inNamespace(func() error {
			conn, err := net.DialTimeout("tcp", net.JoinHostPort(to.addr("default"), port), patience)
			if err == nil {
				conn.Close()
			}
			return err
		}) == nil
	}
	for _, cut := range partitions {
		x.nft(cut.rules(addrsOf([]*segmentedHost{other})))
		for _, port := range []string{gossipPort, nodePort, uiPort} {
			want := cut.mesh && port != gossipPort || strings.HasPrefix(cut.name, "from Raft") && port != nodePort
			if got := reaches(x, other, port, want); got != want {
				t.Errorf("%s: x reaches the other's port %s: %v", cut.name, port, got)
			}
			if got := reaches(other, x, port, want); got != want {
				t.Errorf("%s: the other reaches port %s of x: %v", cut.name, port, got)
			}
			if !reaches(x, third, port, true) || !reaches(third, x, port, true) {
				t.Errorf("%s: the third is cut off from x, too", cut.name)
			}
		}
		x.heal()
	}
}
