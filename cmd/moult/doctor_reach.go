package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"moult/mesh"
	"moult/mesh/identity"
	"moult/mesh/nodeport"
)

// portToDial is a node port that should answer.
type portToDial struct {
	who, addr string
}

// serversToDial is where a host whose process does not run would begin.
func serversToDial(addrs []string) (targets []portToDial) {
	for _, a := range addrs {
		targets = append(targets, portToDial{who: "server", addr: a})
	}
	return targets
}

// hostNames are the names of hosts, from their certificates.
type hostNames map[string]string

// of returns a host's name, else the beginning of its id.
func (n hostNames) of(hostID string) string {
	return cmp.Or(n[hostID], fmt.Sprintf("%.8s…", hostID))
}

// namesOf learns the names of those that a survey mentions.
func namesOf(ctx context.Context, creds identity.Credentials, s mesh.Survey) hostNames {
	names := hostNames{}
	for _, w := range s.Ways {
		names[w.HostID] = w.Name
	}
	var mu sync.Mutex
	var asked sync.WaitGroup
	for _, b := range s.Neighbours[:min(len(s.Neighbours), maxDials)] {
		asked.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, dialTimeout)
			defer cancel()
			if id, err := nodeport.Probe(ctx, creds, b.NodePort); err == nil && id.HostID == b.HostID {
				mu.Lock()
				names[b.HostID] = id.Name
				mu.Unlock()
			}
		})
	}
	asked.Wait()
	return names
}

// lookAtPools tells of each segment whether the host is alone in it, and whether
// UDP gets through.
func (d *diagnosis) lookAtPools(role identity.Role, s mesh.Survey, names hostNames) {
	for _, p := range s.Pools {
		check := "segment " + p.Segment
		if p.Alive+p.Gone == 0 && role == identity.RoleServer {
			d.ok(check, "nobody else is in it yet")
			continue
		}
		if p.Alive == 0 {
			d.fail(check, "let UDP and TCP to the gossip port (7946) through, both ways, between the hosts of the segment",
				"alone: none of its members answers at their gossip addresses; this host's is %s (%d members are gone)", p.Address, p.Gone)
			continue
		}
		var silent []string
		for _, ping := range p.Pings {
			if ping.Error != "" {
				silent = append(silent, fmt.Sprintf("%s (%s)", names.of(ping.HostID), ping.Address))
			}
		}
		if len(silent) > 0 {
			d.warn(check, "let UDP to the gossip port through, both ways: without it news are slow and hosts flap",
				"%d of %d members asked do not answer by UDP: %s", len(silent), len(p.Pings), strings.Join(silent, ", "))
			continue
		}
		d.ok(check, "%d members alive, %d gone; UDP answers", p.Alive, p.Gone)
	}
	if c := s.Counters; c.UnverifiedRecords+c.UnverifiedMessages+c.MalformedRecords+c.MalformedMessages > 0 {
		d.warn("gossip", "look at the log for where they come from; a host of another cluster, or one that was removed, may still run",
			"refused since the start: %d records and %d messages that do not verify, %d that do not parse",
			c.UnverifiedRecords, c.UnverifiedMessages, c.MalformedRecords+c.MalformedMessages)
	}
}

// lookAtWays tells how each server is reached. One server within reach is
// enough for an agent.
func (d *diagnosis) lookAtWays(role identity.Role, s mesh.Survey, names hostNames) {
	if len(s.Ways) == 0 && role == identity.RoleServer {
		d.ok("servers", "no other is known: this is the only one")
		return
	}
	if len(s.Ways) == 0 {
		d.fail("servers", "is a relay of this segment up? Start the agent there, or start this one with --join RELAY:7947",
			"no server is known to this host, directly or through a relay")
		return
	}
	var skews []time.Duration
	reached := 0
	for _, w := range s.Ways {
		if w.Error == "" {
			reached++
		}
	}
	for _, w := range s.Ways {
		check := "server " + names.of(w.HostID)
		if w.Error != "" {
			say := d.fail
			if reached > 0 {
				say = d.warn
			}
			say(check, "is it up? See: moult servers. If it is, look at the relays and at the firewall between them", "%s: %s", way(w, names), w.Error)
			continue
		}
		skews = append(skews, w.Skew)
		d.ok(check, "%s, %v there and back", way(w, names), w.RoundTrip.Round(10*time.Microsecond))
	}
	d.tellClock(skews)
}

// way says in words how a server is reached.
func way(w mesh.Way, names hostNames) string {
	if w.Direct {
		return "directly"
	}
	if len(w.Relays) == 0 {
		return "no relay towards segment " + strings.Join(w.Segments, ", ")
	}
	relays := make([]string, len(w.Relays))
	for i, r := range w.Relays {
		relays[i] = names.of(r)
	}
	return "through " + strings.Join(relays, " or ")
}

// waysToDial lists the node ports that should be open to this host: its
// neighbours', from which it fetches; those of servers elsewhere need not be.
func waysToDial(s mesh.Survey, names hostNames) (targets []portToDial) {
	for _, b := range s.Neighbours {
		who := "host"
		switch {
		case b.Role == string(identity.RoleServer):
			who = "server"
		case b.Relay:
			who = "relay"
		}
		targets = append(targets, portToDial{who: who + " " + names.of(b.HostID), addr: b.NodePort})
	}
	return targets
}

// lookAtNodePorts dials node ports.
func (d *diagnosis) lookAtNodePorts(ctx context.Context, creds identity.Credentials, targets []portToDial) {
	targets = targets[:min(len(targets), maxDials)]
	errs := make([]error, len(targets))
	var dialled sync.WaitGroup
	for i, t := range targets {
		dialled.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, dialTimeout)
			defer cancel()
			_, errs[i] = nodeport.Probe(ctx, creds, t.addr)
		})
	}
	dialled.Wait()
	var open []string
	for i, t := range targets {
		if errs[i] == nil {
			open = append(open, t.who)
			continue
		}
		d.warn("node port", nextForPort(errs[i]), "%s at %s: %v", t.who, t.addr, errs[i])
	}
	if len(open) > 0 {
		slices.Sort(open)
		d.ok("node port", "open to this host: %s", strings.Join(open, ", "))
	}
}

// nextForPort says what the error of a dial hints at.
func nextForPort(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens there: is moult up on it, with this --peer?"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "there is no route to it: look at this host's routes and at the firewall"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "packets are lost on the way: let TCP to the node port (7947) through"
	}
	return "something else answers there, or its certificate is not of this cluster"
}
